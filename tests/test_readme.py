"""Runs the Python code in README.md and docs, page by page, as a reader would paste it block by block.

A page that says `<!-- needs: PACKAGE -->` is skipped where the package is not installed.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)


OF_FRAMEWORKS = {"use-accelerate", "use-fabric", "use-hf-trainer", "use-keras", "use-lightning"}
"""Pages whose scripts start many processes. `make test-frameworks` runs them, and `tests/frameworks` what they show."""
NEEDS = re.compile(r"<!-- needs: (?P<packages>[\w ]+) -->")
TITLE = re.compile(r' title="(?P<title>[^"]+)"')


def python_blocks(page: Path) -> list[tuple[str | None, str]]:
    """Return the Python blocks of a page: the file that a block is, if it has a title, and its code.

    Code is padded with empty lines so that tracebacks show the page's line numbers.
    """
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in FENCE.finditer(text):
        language, _, _ = fence["language"].partition(" ")
        if language == "python":
            code = re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
            title = TITLE.search(fence["language"])
            blocks.append((title and title["title"], "\n" * text.count("\n", 0, fence.start("code")) + code))
    return blocks


def run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page in the working directory; a block with a title becomes a file, for the blocks that follow."""
    # A new main module, so that functions of the page can be pickled as in a script.
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    for title, code in python_blocks(page):
        if title is None:
            exec(compile(code, str(page), "exec"), module.__dict__)
        else:
            Path(title).write_text(code, encoding="utf-8")


def case(page: Path) -> ParameterSet:
    """Return a page as a case of a test, skipped if a package is missing."""
    needs = NEEDS.search(page.read_text(encoding="utf-8"))
    missing = [name for name in (needs["packages"].split() if needs else ()) if find_spec(name) is None]
    reason = f"needs {', '.join(missing)}; make test-frameworks installs it"
    marks = [pytest.mark.skipif(bool(missing), reason=reason)]
    if page.stem in OF_FRAMEWORKS:
        marks.append(pytest.mark.thorough)
    return pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=marks)


@pytest.mark.parametrize("page", [*map(case, PAGES)])
def test_the_python_on_this_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, monkeypatch)


def test_the_readme_runs_again_where_it_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run(ROOT / "README.md", monkeypatch)
    assert python_blocks(ROOT / "README.md")


def test_every_python_block_of_a_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('text\n```python\na = 1\n```\n```sh\nmake\n```\n- item\n  ```python title="c.py"\n  b = 2\n  ```\n')
    assert python_blocks(page) == [(None, "\n\na = 1\n"), ("c.py", "\n" * 9 + "b = 2\n")]


LINK = re.compile(r"^ *```.*?^ *```$|\[[^\]]*\]\((?P<path>[^)#:\s]+)[)#]", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    paths = [found["path"] for found in LINK.finditer(page.read_text(encoding="utf-8")) if found["path"]]
    assert [path for path in paths if not (page.parent / path).exists()] == []

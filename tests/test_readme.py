"""Runs the Python code in README.md and docs, page by page, as a reader would paste it block by block."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)


def python_blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page, padded with empty lines so that tracebacks show the page's line numbers."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in FENCE.finditer(text):
        if fence["language"].split(" ")[0] == "python":
            code = re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
            blocks.append("\n" * text.count("\n", 0, fence.start("code")) + code)
    return blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_on_this_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A new main module, so that functions of the page can be pickled as in a script.
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.chdir(tmp_path)
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), module.__dict__)


def test_the_readme_has_python_to_run() -> None:
    assert python_blocks(ROOT / "README.md")


def test_every_python_block_of_a_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n```python\na = 1\n```\n```sh\nmake\n```\n- item\n  ```python\n  b = 2\n  ```\n")
    assert python_blocks(page) == ["\n\na = 1\n", "\n" * 9 + "b = 2\n"]

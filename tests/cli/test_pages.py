"""The commands on the pages print what the pages show.

`LANEWAY_WRITE_PAGES=1` writes what they print into the pages.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from laneway.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"^```(?P<language>python|console)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_VARYING = re.compile(r"\b[0-9a-f]{8,32}\b|[\d.]+ (bytes|KiB)")
"""What depends on the release of pyarrow: it writes other footers."""
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "```console" in page.read_text(encoding="utf-8")]


def console(text: str, output: Callable[[], str]) -> str:
    """Return a block with what its commands print."""
    lines = []
    for command in [line for line in text.splitlines() if line.startswith("$ ")]:
        _, name, *arguments = shlex.split(command)
        assert name == "laneway"
        output()
        main(arguments)
        lines += [command, output()]
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, scope = page.read_text(encoding="utf-8"), {"__name__": "__main__"}

    def output() -> str:
        out, err = capsys.readouterr()
        return str(out + err).replace(str(tmp_path), "/data")

    def shown(fence: re.Match[str]) -> str:
        if fence["language"] == "python":
            exec(compile(fence["text"], str(page), "exec"), scope)
            return fence[0]
        return f"```console\n{console(fence['text'], output)}```"

    found = FENCE.sub(shown, text)
    if os.environ.get("LANEWAY_WRITE_PAGES"):
        page.write_text(found, encoding="utf-8")
    assert _VARYING.sub("...", found) == _VARYING.sub("...", text)


def test_there_are_pages_with_commands() -> None:
    assert len(PAGES) >= 4

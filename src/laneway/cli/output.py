"""What commands print: tables of aligned columns that fit a line, or JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDTH = 80
"""Columns where the output is not a terminal."""
_MIN_CELL = 6


class Answer(NamedTuple):
    """What a command answers."""

    facts: dict[str, Any]
    """The answer as JSON values."""
    lines: Iterable[str]
    """The answer as lines of text."""
    exit_code: int = 0
    """0; or 1 if the check failed: damaged data, a state that doesn't fit, rows that are missing.
    """


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Print an answer to the standard output."""
    if as_json:
        json.dump(answer.facts, sys.stdout, indent=1, default=_as_json)
        sys.stdout.write("\n")
        return
    for line in answer.lines:
        sys.stdout.write(f"{line}\n")


def _as_json(value: Any) -> Any:  # noqa: ANN401 - any value of a row
    """Return tensors and arrays as lists, and whatever else JSON lacks as text."""
    tolist = getattr(value, "tolist", None)
    return str(value) if tolist is None else tolist()


def output_file(name: str, path: str, suffix: str) -> Path:
    """Return the path of a file to write, which is written over if it exists.

    Args:
        name: The argument.
        path: Its value.
        suffix: How it must end, so that no data file or checkpoint is written over.

    Raises:
        ValueError: It ends otherwise, or its folder does not exist.
    """
    found = Path(path)
    if found.suffix.lower() != suffix:
        message = f"{name} must end with {suffix}, not {found.name!r}"
        raise ValueError(message)
    if not found.parent.is_dir():
        message = f"{name} is {path}, but there is no folder {str(found.parent)!r}: create it"
        raise ValueError(message)
    return found


def width() -> int:
    """Return the columns of a line."""
    return shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return rows as lines of aligned columns; cells of a line that would be too long are cut."""
    cells = [[*map(str, names)], *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = max(width() - 2 * (len(widths) - 1), 0)
    widths = [min(each, max(room, _MIN_CELL)) for each in widths]
    while sum(widths) > room and max(widths) > _MIN_CELL:
        widths[widths.index(max(widths))] -= 1
    numeric = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(widths))]
    lines = ([_fitted(*each) for each in zip(row, widths, numeric, strict=True)] for row in cells)
    return ["  ".join(line).rstrip() for line in lines]


def wrapped(lines: Iterable[str]) -> list[str]:
    """Return lines of text, those that are too long as several; words stay whole."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, width(), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]


def pairs(facts: Iterable[tuple[str, object]]) -> list[str]:
    """Return names and values as lines."""
    kept = [(name, _cell(value)) for name, value in facts if value is not None]
    first = max((len(name) for name, _ in kept), default=0)
    return [f"{name:<{first}}  {value}" for name, value in kept]


def _cell(value: object) -> str:
    text = f"{value:,}" if type(value) is int else str(value)
    return "".join(char if char.isprintable() else " " for char in text)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def _fitted(text: str, columns: int, is_number: bool) -> str:  # noqa: FBT001 - a cell's properties
    text = text if len(text) <= columns else f"{text[: columns - 3]}..."
    return f"{text:>{columns}}" if is_number else f"{text:<{columns}}"

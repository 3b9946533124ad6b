"""JSON Lines: an object on each line; blocks are runs of lines, parsed by pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, final

import numpy as np
import pyarrow as pa
import pyarrow.json

from laneway.formats.field_paths import fields_inside
from laneway.formats.inferred_types import JsonTypes
from laneway.formats.text import (
    NEWLINE,
    FoundRows,
    RowError,
    codes_of,
    is_conflict,
    names_of,
    without_row_number,
)
from laneway.formats.text_format import TextFormat
from laneway.formats.text_search import positions_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.formats.text import Codes, Parsing, Text

_OPENING, _CLOSING = ord("{"), ord("}")
_COMMA: Final = ord(",")
_SPACES: Final = b" \t\r"
_IS_SPACE: Final = np.isin(np.arange(256), list(_SPACES))
_MAX_STEPS: Final = 16
_read_json: Any = pyarrow.json.read_json  # its stubs accept fewer types


@final
class JsonLinesFormat(TextFormat):
    """Reads JSON Lines, plain or compressed with gzip or zstd, by blocks of about one MiB of lines."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")

    def __init__(self) -> None:
        """Create the format."""
        super().__init__(JsonLinesParser())

    def recognises(self, head: bytes) -> bool:
        """Return whether a file may hold JSON objects, given its first bytes."""
        return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


@final
class JsonLinesParser:
    """Finds and parses lines of JSON."""

    inference = JsonTypes()
    has_header = False

    def find_rows(self, text: bytes, *, is_end: bool) -> FoundRows:
        """Return where lines end, after checking that each begins and ends as an object does.

        As pyarrow counts objects, this and an equal count tell that each line is one object.
        """
        codes = codes_of(text)
        ends = positions_of(codes, NEWLINE) + 1
        if is_end and len(codes) and (not len(ends) or ends[-1] < len(codes)):
            ends = np.append(ends, len(codes))
        starts = np.zeros(len(ends), np.int64)
        starts[1:] = ends[:-1]
        stops = ends - (codes[ends - 1] == NEWLINE)
        if (codes[starts] == _OPENING).all() and (codes[stops - 1] == _CLOSING).all():
            return FoundRows(ends, None, ends)
        first = _skip_spaces(codes, starts, stops, step=1)
        is_empty = first == stops
        last = _skip_spaces(codes, stops - 1, starts - 1, step=-1)
        is_object = is_empty | ((codes[np.minimum(first, len(codes) - 1)] == _OPENING) & (codes[last] == _CLOSING))
        if not is_object.all():
            index = int(np.argmin(is_object))
            row = text[int(starts[index]) : int(ends[index])].strip()
            raise RowError(int(starts[index]), f"is no JSON object, but {_shortened(row)}: each line must be one")
        return FoundRows(ends, is_empty if is_empty.any() else None, ends)

    def count_fields(self, text: Text, num_rows: int, num_names: int) -> int:
        """Return how many values there are at most: there is a comma between two of them."""
        del num_names
        return num_rows + int(np.count_nonzero(codes_of(text) == _COMMA))

    def parse_header(self, row: bytes) -> list[str]:
        """Return no names: there is no header."""
        del row
        return []

    def infer(self, text: Text, names: list[str]) -> pa.Table:
        """Return the rows of a text, in the types that their values suggest."""
        del names
        return _parse(text, pyarrow.json.ParseOptions())

    def parse(self, text: Text, parsing: Parsing) -> pa.Table:
        """Return the rows of a text."""
        others: Literal["error", "ignore"] = "error" if parsing.is_closed else "ignore"
        return _parse(text, pyarrow.json.ParseOptions(explicit_schema=parsing.schema, unexpected_field_behavior=others))

    def explain(self, row: bytes, error: Exception, parsing: Parsing | None) -> str:
        """Return what is wrong with a line."""
        try:
            alone = self.infer(row, [])
        except pa.ArrowInvalid as own:
            what = "has values of several types" if is_conflict(own) else "is malformed"
            return f"{what}: {without_row_number(own)}"
        if alone.num_rows != 1:
            return f"has {alone.num_rows:,} JSON objects: each line must be one"
        if parsing is not None and parsing.is_closed:
            known = {*fields_inside(parsing.schema)}
            others = [name for name in fields_inside(alone.schema) if name not in known]
            if others:
                return (
                    f"has the field {names_of(others[:1])}, which no line has from which the columns were inferred: "
                    f"select columns with columns=, or give their types with schema="
                )
        return f"doesn't fit the columns: {without_row_number(error)}; give their types with schema="


def _parse(text: Text, options: pyarrow.json.ParseOptions) -> pa.Table:
    # As one block: rows of a block are parsed together, so that a line of any length fits.
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    table: pa.Table = _read_json(pa.BufferReader(text), reading, options)
    return table


def _skip_spaces(
    codes: Codes, positions: NDArray[np.int64], stops: NDArray[np.int64], *, step: int
) -> NDArray[np.int64]:
    """Return the positions of the first bytes that are no spaces, before these stops."""
    positions = positions.copy()
    left = np.flatnonzero(positions != stops)
    for _ in range(_MAX_STEPS):
        left = left[_IS_SPACE[codes[positions[left]]]]
        if not len(left):
            return positions
        positions[left] += step
        left = left[positions[left] != stops[left]]
    for index in left.tolist():
        # A line with many spaces, of which there are few.
        start, stop = sorted((int(positions[index]), int(stops[index])))
        if step > 0:
            positions[index] = stop - len(codes[start:stop].tobytes().lstrip(_SPACES))
        else:
            positions[index] = start + len(codes[start + 1 : stop + 1].tobytes().rstrip(_SPACES))
    return positions


def _shortened(row: bytes) -> str:
    text = row[:40].decode(errors="replace")
    return repr(text) + ("..." if len(row) > 40 else "")  # noqa: PLR2004 - as above

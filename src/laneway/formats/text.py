"""Formats whose files are text with a row on each line, or on a few: what they have in common."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from laneway.formats.base import TypeInference

    Text = bytes | bytearray | memoryview | pa.Buffer
    Codes = NDArray[np.uint8]

NEWLINE: Final = 10
RETURN: Final = 13
_STRIPE_BYTES: Final = 8 << 10


class RowError(Exception):
    """A row can't be read. It is translated to a DataFileError that names its file and line."""

    def __init__(self, offset: int, problem: str) -> None:
        """Store where it begins, in bytes of the text, and what is wrong."""
        super().__init__(problem)
        self.offset = offset
        """Bytes of the text before the row."""


class FoundRows(NamedTuple):
    """Where rows end in a text."""

    ends: NDArray[np.int64]
    """Offsets one past the last byte of each row and of its newline, empty lines included, shape (found,)."""
    is_empty: NDArray[np.bool_] | None
    """Which of them are empty lines, which are no rows, shape (found,); None: none."""
    line_ends: NDArray[np.int64]
    """Offsets one past the last byte of each line and of its newline, also inside of rows."""

    def count_until(self, index: int) -> int:
        """Return how many rows the first `index` of these are."""
        return index - (0 if self.is_empty is None else int(np.count_nonzero(self.is_empty[:index])))

    def count_lines(self, start: int, stop: int) -> int:
        """Return how many lines end in a part of the text, from one offset to another."""
        return int(np.subtract(*np.searchsorted(self.line_ends, [stop, start], side="right")))


class Parsing(NamedTuple):
    """How the text of a file is parsed."""

    in_file: list[str]
    """The columns of the file, in its order."""
    schema: pa.Schema
    """The columns to return, and the types to parse."""
    is_closed: bool
    """Whether a field that is in none of the columns is an error."""


class TextParser(Protocol):
    """A text format."""

    @property
    def inference(self) -> TypeInference:
        """How types are inferred."""

    @property
    def has_header(self) -> bool:
        """Whether the first row names the columns."""

    def find_rows(self, text: bytes, *, is_end: bool) -> FoundRows:
        """Return where rows end in a text that begins with a row.

        Args:
            text: The text; its last row may be incomplete.
            is_end: Whether the text is followed by no other, so that its last row ends with it.

        Raises:
            RowError: What stands between two ends is no row.
        """

    def count_fields(self, text: Text, num_rows: int, num_names: int) -> int:
        """Return about how many numbers these rows hold, whose header has so many names."""

    def parse_header(self, row: bytes) -> list[str]:
        """Return the names of columns from the first row of a file.

        Raises:
            ValueError: It is malformed.
        """

    def infer(self, text: Text, names: list[str]) -> pa.Table:
        """Return the rows of a text, in the types that their values suggest. Names: those of the header.

        Raises:
            pa.ArrowInvalid: A row is malformed, or values don't fit together.
        """

    def parse(self, text: Text, parsing: Parsing) -> pa.Table:
        """Return the rows of a text.

        Raises:
            pa.ArrowException: A row is malformed, or doesn't fit the types.
        """

    def explain(self, row: bytes, error: Exception, parsing: Parsing | None) -> str:
        """Return what is wrong with a row that can't be parsed. Parsing: as for `parse`; None: types were inferred."""


@final
class Checksum:
    """The checksum of a text that comes in parts: of the sums of its words, eight KiB apart from each other.

    As fast as memory, so that each read can be checked. A change is missed only if it is undone by another change whose
    distance is a multiple of eight KiB.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(_STRIPE_BYTES // 8, np.uint64)
        self._rest = b""
        self._length = 0

    def update(self, text: memoryview) -> None:
        """Add the next part."""
        self._length += len(text)
        if self._rest:
            missing = _STRIPE_BYTES - len(self._rest)
            self._rest += text[:missing]
            text = text[missing:]
            if len(self._rest) < _STRIPE_BYTES:
                return
            self._add(memoryview(self._rest))
            self._rest = b""
        whole = len(text) // _STRIPE_BYTES * _STRIPE_BYTES
        self._add(text[:whole])
        self._rest = bytes(text[whole:])

    def _add(self, text: memoryview) -> None:
        if len(text):
            words = np.frombuffer(text, "<u8").reshape(-1, len(self._sums))
            self._sums += words.sum(axis=0, dtype=np.uint64)

    @property
    def value(self) -> int:
        """The checksum, in [0, 2**63)."""
        parts = self._sums.astype("<u8").tobytes(), self._rest, self._length.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), "little") >> 1


def checksum(text: Text) -> int:
    """Return the checksum of a text; see `Checksum`."""
    found = Checksum()
    found.update(memoryview(text))
    return found.value


def codes_of(text: Text) -> Codes:
    """Return the bytes of a text as an array."""
    return np.frombuffer(memoryview(text), np.uint8)


def count_lines(text: bytes) -> int:
    """Return how many lines end in a text, whether with LF, CR LF or CR."""
    newlines = text.count(b"\n")
    return max(newlines, text.count(b"\r")) if b"\r" in text else newlines


def first_that_fails(text: bytes, found: FoundRows, parse: Any, start: int = 0) -> int:  # noqa: ANN401 - a function
    """Return the index of the first row that can't be parsed together with those before it.

    Args:
        text: The text.
        found: Its rows.
        parse: Returns the table of a text, or raises an exception of pyarrow.
        start: The first row that may be it.
    """
    low, high = start, len(found.ends)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            is_fine = parse(text[: int(found.ends[middle - 1])]).num_rows == found.count_until(middle)
        except (pa.ArrowException, ValueError):
            is_fine = False
        low, high = (middle, high) if is_fine else (low, middle)
    return high - 1


def row_text(text: bytes, found: FoundRows, index: int) -> bytes:
    """Return the text of a row."""
    start = int(found.ends[index - 1]) if index else 0
    return text[start : int(found.ends[index])]


def without_row_number(error: Exception) -> str:
    """Return the message of pyarrow for a row, without the number of the row, which counts from another one."""
    text = str(error).partition(" in row ")[0].strip()
    return text.removeprefix("JSON parse error: ").removeprefix("CSV parse error: ")


def is_conflict(error: Exception) -> bool:
    """Return whether pyarrow has found JSON values of several types for a field."""
    return "changed from" in str(error)


def names_of(columns: Sequence[str]) -> str:
    """Return names for a message."""
    return ", ".join(map(repr, columns))

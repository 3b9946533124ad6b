"""The index of a text file: where its blocks of rows are, made in one pass over the file, with the types of a part."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import numpy as np
import pyarrow as pa

from laneway.core.files import digest
from laneway.errors import DataFileError
from laneway.formats.base import FileScan
from laneway.formats.compression import PIECE_BYTES, Compression, open_text
from laneway.formats.inferred_types import join_schemas, without_times
from laneway.formats.restarts import can_find_points, find_points, layout_of
from laneway.formats.text import (
    Checksum,
    RowError,
    codes_of,
    count_lines,
    first_that_fails,
    is_conflict,
    row_text,
    without_row_number,
)
from laneway.formats.text_search import is_utf8
from laneway.storage.reading import read_range

if TYPE_CHECKING:
    from laneway.formats.compression import TextStream
    from laneway.formats.restarts import RestartPoint
    from laneway.formats.text import FoundRows, TextParser
    from laneway.storage.filesystem import Storage

BLOCK_BYTES: Final = 1 << 20
"""About as many bytes of text does a block have, unless a row or a compressed frame is longer."""
_SAMPLE_BYTES: Final = 256 << 10
"""Types are inferred from so many bytes at the beginning of a file, and of a part of the pieces that follow. A call of
pyarrow costs as much as parsing 64 KiB, so there are few of them."""
_PIECES_PER_SAMPLE: Final = 8
"""At least: a thirty-second of a large file is parsed."""
_MAX_SAMPLES: Final = 64
_TEXT_PER_COMPRESSED: Final = 4  # a guess, for where in a compressed file the rows are from which types are inferred
_LARGE_FRAME_BYTES: Final = 64 << 20
_HEAD_BYTES: Final = 16
_RESTART_FILE_BYTES: Final = 1 << 20
"""In a gzip file that is larger, and not of many small members as those of bgzip, points are found at which
decompression can begin, if that is possible."""
_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}

# Columns of the layout, which has one entry per block: compression; the range of the file to read; the offset of its
# text in the text of the file; how much of that comes before the block; bytes of the block; its first line; checksum.
COMPRESSION, FILE_START, FILE_STOP, TEXT_START, SKIP, LENGTH, LINE, CHECKSUM = range(8)
NUM_COLUMNS: Final = 8


def scan_text(parser: TextParser, storage: Storage, path: str, size: int, version: str) -> FileScan:
    """Read a text file once, and return where its blocks are.

    The digest is that of the checksums of all blocks, so it covers the whole text.

    Raises:
        DataFileError: The file can't be read, is damaged or isn't UTF-8, or a row is malformed that was looked at.
    """
    head = read_range(storage, path, 0, min(size, _HEAD_BYTES), version)
    compression = Compression.of(head)
    if compression is Compression.GZIP and size > _RESTART_FILE_BYTES and can_find_points(head):
        compression = Compression.GZIP_WITH_POINTS
    scanner = _Scanner(parser, storage, path, size, compression)
    try:
        if size:
            scanner.read(open_text(storage, path, size, version, compression))
        if compression is Compression.GZIP_WITH_POINTS:
            # After the text was read, so that the file is known to be sound.
            scanner.points = find_points(storage, path, size, version)
    except ValueError as error:
        raise storage.error_for(path, "can't be read", error) from storage.cause(error)
    except RecursionError as error:
        problem = "values are nested too deeply, in hundreds of objects or lists: flatten them"
        message = f"{storage.redact(path)} can't be read: {problem}"
        raise DataFileError(message) from error
    return scanner.result()


@dataclass(slots=True)
class _Block:
    """The block that is being put together."""

    start: int
    """Offset of its text in the text of the file."""
    line: int
    """Number of its first line."""
    length: int = 0
    """Bytes of its text so far."""
    rows: int = 0
    fields: int = 0
    checksum: Checksum = field(default_factory=Checksum)


@final
class _Scanner:
    """What is known of a file after some of its text."""

    def __init__(self, parser: TextParser, storage: Storage, path: str, size: int, compression: Compression) -> None:
        self._parser = parser
        self._storage = storage
        self._path = path
        self._size = size
        text_bytes = size * (1 if compression is Compression.NONE else _TEXT_PER_COMPRESSED)
        self._pieces_per_sample = max(_PIECES_PER_SAMPLE, text_bytes // (PIECE_BYTES * _MAX_SAMPLES))
        self._num_pieces = 0
        """Pieces that have been looked at, of those in which a row ends."""
        self.compression = compression
        self._is_framed = compression in {Compression.GZIP, Compression.ZSTD}
        """Whether only whole frames can be decompressed."""
        self.points: list[RestartPoint] = []
        """Where decompression can begin."""
        self._names: list[str] | None = None
        self._schema = pa.schema([])
        self._has_warned = False
        self._block = _Block(0, 1)
        self._text_start = 0
        """Offset in the text of the file of what is looked at next."""
        self._line = 1
        """Number of its first line."""
        self._frames = [(0, 0)]
        """Where frames begin, in the file and in the text; the end of the file at last."""
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._lines: list[int] = []
        self._checksums: list[int] = []
        self._rows: list[int] = []
        self._fields: list[int] = []

    def read(self, stream: TextStream) -> None:
        """Look at the text of the file."""
        unused, is_begun = 0, False
        while not stream.is_done:
            piece = stream.read(unused)
            text = piece.text
            if not is_begun:
                if len(text) < len(_BOM) and not stream.is_done:
                    # A compressed frame may end inside of it.
                    unused = len(text)
                    continue
                text, is_begun = self._without_bom(text), True
            unused = len(text) - self._take(text, is_end=stream.is_done)
            if self._is_framed and (stream.is_done or piece.frame_stop is not None):
                self._close(least=BLOCK_BYTES)
        self._close(least=0)
        self._frames = stream.frames

    def _without_bom(self, text: bytes) -> bytes:
        encoding = _OTHER_BOMS.get(text[:2])
        if encoding is not None:
            message = f"it is {encoding}, and only UTF-8 can be read: convert it"
            raise ValueError(message)
        if not text.startswith(_BOM):
            return text
        self._text_start = self._block.start = len(_BOM)
        return text[len(_BOM) :]

    def _take(self, text: bytes, *, is_end: bool) -> int:
        """Add the rows that end in a text that begins with a row, and return how much of it they are."""
        try:
            found = self._parser.find_rows(text, is_end=is_end)
        except RowError as error:
            raise self._error(text, error.offset, str(error)) from error
        if not len(found.ends):
            return 0
        used = int(found.ends[-1])
        self._check_encoding(text, used)
        skipped = self._read_header(text, found) if self._parser.has_header and self._names is None else 0
        if skipped:
            used = self._start_after(text, int(found.ends[skipped - 1]))
            return used + (self._take(text[used:], is_end=is_end) if used < len(text) else 0)
        if self._num_pieces % self._pieces_per_sample == 0:
            self._infer(text, found)
        self._num_pieces += 1
        num_blocks = 1 if self._is_framed else max(1, round(used / BLOCK_BYTES))
        goals = np.arange(1, num_blocks + 1) * used // num_blocks
        start = first = 0
        for index in np.unique(np.searchsorted(found.ends, goals) + 1).tolist():
            stop = int(found.ends[index - 1])
            num_rows = found.count_until(index) - found.count_until(first)
            self._add(memoryview(text)[start:stop], num_rows, found.count_lines(start, stop))
            if not self._is_framed:
                # A piece of compressed text may be short.
                self._close(least=0 if self.compression is Compression.NONE else BLOCK_BYTES)
            start, first = stop, index
        return used

    def _start_after(self, text: bytes, length: int) -> int:
        """Leave out the beginning of a text, before the first block."""
        self._text_start += length
        self._line += count_lines(text[:length])
        self._block = _Block(self._text_start, self._line)
        return length

    def _read_header(self, text: bytes, found: FoundRows) -> int:
        """Read the names of columns, and return the index of the first row after them; 0: it isn't there yet."""
        index = 0 if found.is_empty is None else int(np.argmin(found.is_empty))
        if found.count_until(index + 1) == 0:
            return len(found.ends)  # only empty lines
        try:
            self._names = self._parser.parse_header(row_text(text, found, index))
        except ValueError as error:
            start = int(found.ends[index - 1]) if index else 0
            raise self._error(text, start, f"is no header ({error})") from error
        self._schema = pa.schema([(name, pa.null()) for name in self._names])
        return index + 1

    def _add(self, text: memoryview, num_rows: int, num_lines: int) -> None:
        """Add rows to the block that is being put together."""
        block = self._block
        block.checksum.update(text)
        block.length += len(text)
        block.rows += num_rows
        block.fields += self._parser.count_fields(text, num_rows, len(self._names or ()))
        self._text_start += len(text)
        self._line += num_lines

    def _close(self, least: int) -> None:
        """End the block, unless it has less than `least` bytes, or no row."""
        block = self._block
        if block.length < least:
            return
        if block.rows:
            self._starts.append(block.start)
            self._lengths.append(block.length)
            self._lines.append(block.line)
            self._checksums.append(block.checksum.value)
            self._rows.append(block.rows)
            self._fields.append(block.fields)
        self._block = _Block(self._text_start, self._line)

    def _check_encoding(self, text: bytes, length: int) -> None:
        if text.isascii() or is_utf8(codes_of(memoryview(text)[:length])):
            return
        try:
            text[:length].decode()
        except UnicodeDecodeError as error:
            bad = text[error.start : error.start + 4]
            raise self._error(text, error.start, f"is not UTF-8 ({bad!r}): convert the file") from error

    def _infer(self, text: bytes, found: FoundRows) -> None:
        """Infer the types of the first rows of a text."""
        index = max(1, int(np.searchsorted(found.ends, _SAMPLE_BYTES, side="right")))
        sample = text[: int(found.ends[index - 1])]
        if found.count_until(index) == 0:
            return
        found = found._replace(ends=found.ends[:index])
        names = self._names or []
        try:
            table = self._parser.infer(sample, names)
        except pa.ArrowInvalid as error:
            table = self._infer_until_conflict(sample, found, names, error)
        else:
            if table.num_rows != found.count_until(index):
                message = f"{table.num_rows:,} rows where {found.count_until(index):,} are"
                table = self._infer_until_conflict(sample, found, names, ValueError(message))
        schema = pa.schema([(each.name, without_times(each.type)) for each in table.schema])
        self._schema = join_schemas(self._parser.inference, self._schema, schema)

    def _infer_until_conflict(self, sample: bytes, found: FoundRows, names: list[str], error: Exception) -> pa.Table:
        """Return the rows before the first that has a value of another type; raise an error for any other problem."""
        bad = first_that_fails(sample, found, lambda text: self._parser.infer(text, names))
        start = int(found.ends[bad - 1]) if bad else 0
        row = row_text(sample, found, bad)
        try:
            alone = self._parser.infer(row, names)
        except pa.ArrowInvalid as own:
            if not is_conflict(own):
                raise self._error(sample, start, self._parser.explain(row, own, None)) from own
            alone = pa.table({"row": [0]}).select([])
        if alone.num_rows != 1:
            raise self._error(sample, start, self._parser.explain(row, error, None)) from error
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self._storage.redact(self._path)} line {self._line_at(sample, start):,}: "
                f"{without_row_number(error)}; reading this column will fail: leave it out with columns=",
                stacklevel=2,
            )
        return self._parser.infer(sample[:start], names) if start else alone

    def _line_at(self, text: bytes, offset: int) -> int:
        return self._line + count_lines(text[:offset])

    def _error(self, text: bytes, offset: int, problem: str) -> DataFileError:
        """Return the error for a row of the text that is looked at."""
        line = self._line_at(text, offset)
        return DataFileError(f"{self._storage.redact(self._path)} line {line:,} {problem}")

    def result(self) -> FileScan:
        """Return what was found."""
        starts, lengths = np.array(self._starts, np.int64), np.array(self._lengths, np.int64)
        if self.compression is Compression.NONE:
            file_starts, file_stops, text_starts = starts, starts + lengths, starts
        elif self.points:
            in_text = np.array([*(each.text_start for each in self.points), self._text_start], np.int64)
            in_file = np.array([*(each.file_start for each in self.points), self._size], np.int64)
            first = np.searchsorted(in_text[:-1], starts, side="right") - 1
            last = np.searchsorted(in_text, starts + lengths, side="left")
            # With the byte in which the next point is: a part of its bits may be needed.
            file_starts, file_stops = in_file[first], np.minimum(in_file[last] + 1, self._size)
            text_starts = in_text[first]
        else:
            in_file, in_text = np.array([*self._frames, (self._size, self._text_start)], np.int64).T
            first = np.searchsorted(in_text[:-1], starts, side="right") - 1
            # Frames without text, of which several may begin at the same offset of the text, are not needed.
            last = np.searchsorted(in_text, starts + lengths, side="left")
            file_starts, file_stops, text_starts = in_file[first], in_file[last], in_text[first]
            self._warn_of_large_frames(in_text)
        rows, fields = np.array(self._rows, np.int64), np.array(self._fields, np.int64)
        table = np.zeros((len(starts), NUM_COLUMNS), np.int64)
        table[:, COMPRESSION] = self.compression
        table[:, FILE_START], table[:, FILE_STOP], table[:, TEXT_START] = file_starts, file_stops, text_starts
        table[:, SKIP], table[:, LENGTH] = starts - text_starts, lengths
        table[:, LINE], table[:, CHECKSUM] = self._lines, self._checksums
        return FileScan(
            schema=self._schema,
            block_rows=rows.tolist(),
            block_bytes=lengths.tolist(),
            # A field takes up to eight bytes, unless it is text.
            block_memory_bytes=np.maximum(lengths, 8 * fields).tolist(),
            digest=digest(repr(self._names).encode(), table[:, CHECKSUM].astype("<i8").tobytes()),
            layout=[*table.tolist(), *layout_of(self.points)],
        )

    def _warn_of_large_frames(self, in_text: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        largest = int(np.diff(in_text).max())
        if largest <= _LARGE_FRAME_BYTES:
            return
        what, remedy = {
            Compression.GZIP: (
                "gzip member",
                "install indexed_gzip (pip install 'laneway[gzip]'), compress the file in small parts, as bgzip does",
            ),
            Compression.ZSTD: ("zstd frame", "compress the file in small parts, as pzstd does"),
        }[self.compression]
        warnings.warn(
            f"{self._storage.redact(self._path)} has a {what} of {largest >> 20:,} MiB of text, which is decompressed "
            f"and parsed as a whole, and held in memory, for any of its rows: {remedy}, or rewrite it "
            "with laneway.to_parquet",
            stacklevel=2,
        )

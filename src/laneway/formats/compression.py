"""Text files, plain or compressed: their text in order, and again that of a range in which decompression can begin.

A gzip member and a zstd frame are decompressed without what precedes them; in this module, both are frames.
"""

from __future__ import annotations

import enum
import io
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast, final

import pyarrow as pa

from laneway.formats.restarts import inflate_from
from laneway.storage.reading import RangeFile, read_range, read_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.formats.restarts import RestartPoint
    from laneway.storage.filesystem import Storage
    from laneway.storage.ranges import Data

PIECE_BYTES: Final = 1 << 20
"""Most bytes of text that are looked at together, unless a row is longer: so many stay in the cache of a processor."""
_RANGES_AT_ONCE: Final = 16  # of a remote file, which are requested concurrently
_GZIP_WINDOW: Final = 31  # zlib's number for a gzip member with the largest window
_GZIP_BYTES_AT_ONCE: Final = 128 << 10  # what follows the end of a member is copied
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # the first byte is 0x50 to 0x5f
_ZSTD_BLOCK: Final = struct.Struct("<HB")
_RLE_BLOCK: Final = 1


class Compression(enum.IntEnum):
    """How a text file is compressed; layouts hold these numbers."""

    NONE = 0
    GZIP = 1
    ZSTD = 2
    GZIP_WITH_POINTS = 3
    """Gzip, of which points are known at which decompression can begin; see `restarts`."""

    @classmethod
    def of(cls, head: bytes) -> Compression:
        """Return the compression of a file, from its first bytes, of which a truncated file may have fewer."""
        length = len(head)
        if length and head.startswith(_GZIP_MAGIC[:length]):
            return cls.GZIP
        is_skippable = head[1:4] == _SKIPPABLE_MAGIC and head[0] >> 4 == 5  # noqa: PLR2004 - see _SKIPPABLE_MAGIC
        is_zstd = is_skippable or (length and head.startswith(_ZSTD_MAGIC[:length]))
        return cls.ZSTD if is_zstd else cls.NONE


class Piece(NamedTuple):
    """A part of the text of a file."""

    text: bytes
    """The text."""
    frame_stop: int | None
    """Offset in the file at which a frame ends with this piece; None: the text goes on in the frame."""


class TextStream(Protocol):
    """The text of a file in pieces, of which the reader may leave the end for the next piece."""

    frames: list[tuple[int, int]]
    """Where frames begin and end so far: offset in the file, and in the text."""

    def read(self, unused: int) -> Piece:
        """Return the next piece: the last `unused` bytes of the one before, and at least as much again.

        Raises:
            DataFileError: The file can't be read.
            ValueError: It is truncated or damaged.
        """

    @property
    def is_done(self) -> bool:
        """Whether the last piece ended with the text of the file."""


def open_text(storage: Storage, path: str, size: int, version: str, compression: Compression) -> TextStream:
    """Return the text of a file that is not empty."""
    if compression is Compression.NONE and storage.is_local:
        return _LocalText(storage, path, size, version)
    if compression is Compression.NONE:
        return _PiecedText(_plain_pieces(storage, path, size, version), size)
    file = io.BufferedReader(RangeFile(storage, path, size, version), PIECE_BYTES * _RANGES_AT_ONCE)
    pieces = (_zstd_pieces if compression is Compression.ZSTD else _gzip_pieces)(file, size)
    return _PiecedText(pieces, size)


@final
class _LocalText:
    """The text of a local file: what was left is read again, which costs less than to join it with what follows."""

    def __init__(self, storage: Storage, path: str, size: int, version: str) -> None:
        self._read = partial(read_range, storage, path, version=version)
        self._size = size
        self._position = 0
        self.frames = [(0, 0)]

    def read(self, unused: int) -> Piece:
        start = self._position - unused
        self._position = min(start + max(PIECE_BYTES, 2 * unused), self._size)
        return Piece(self._read(start, self._position), self._position)

    @property
    def is_done(self) -> bool:
        return self._position == self._size


@final
class _PiecedText:
    """The text of a file that comes in pieces."""

    def __init__(self, pieces: Iterator[Piece], size: int) -> None:
        self._pieces = pieces
        self._size = size
        self._last = b""
        self._text_stop = 0
        self.frames = [(0, 0)]

    def read(self, unused: int) -> Piece:
        parts, length = [self._last[len(self._last) - unused :]], 0
        # At least as much again: a row of any length is joined a few times only.
        while not length or length < unused:
            piece = next(self._pieces)
            parts.append(piece.text)
            length += len(piece.text)
            self._text_stop += len(piece.text)
            if piece.frame_stop is not None:
                self.frames.append((piece.frame_stop, self._text_stop))
                if self.is_done or length >= unused:
                    break
        self._last = b"".join(parts) if parts[0] or len(parts) > 2 else parts[1]  # noqa: PLR2004 - one piece
        return Piece(self._last, piece.frame_stop)

    @property
    def is_done(self) -> bool:
        return self.frames[-1][0] == self._size


def decompress(
    compression: Compression, data: Data, length: int, point: RestartPoint | None = None
) -> Data | pa.Buffer:
    """Return the first `length` bytes of the text of some frames.

    Args:
        compression: How they are compressed.
        data: The frames, whole; or what follows a point, as far as it is needed.
        length: Bytes of their text that are needed.
        point: Where the text begins; None: with the first frame.

    Raises:
        ValueError: They are damaged, or have less text.
    """
    if compression is Compression.NONE:
        text: Data | pa.Buffer = data[:length]
    elif point is not None:
        text = _decompress_from(point, data, length)
    elif compression is Compression.GZIP:
        text = _decompress_gzip(data, length)
    else:
        text = _read_stream(pa.CompressedInputStream(pa.BufferReader(data), "zstd"), length)
    if len(text) < length:
        message = f"the compressed text has {len(text):,} bytes instead of {length:,}"
        raise ValueError(message)
    return text


def _plain_pieces(storage: Storage, path: str, size: int, version: str) -> Iterator[Piece]:
    for start in range(0, size, PIECE_BYTES * _RANGES_AT_ONCE):
        stop = min(start + PIECE_BYTES * _RANGES_AT_ONCE, size)
        ranges = [(each, min(each + PIECE_BYTES, stop)) for each in range(start, stop, PIECE_BYTES)]
        for (_, end), data in zip(ranges, read_ranges(storage, path, ranges, version), strict=True):
            yield Piece(bytes(data), end)


def _gzip_pieces(file: io.BufferedReader[RangeFile], size: int) -> Iterator[Piece]:
    stream, offset = zlib.decompressobj(_GZIP_WINDOW), 0
    # At the end of the file, what zlib still holds back.
    while offset < size or not stream.eof:
        file.seek(offset)
        data = file.read(_GZIP_BYTES_AT_ONCE)
        text = _inflate(stream, data, PIECE_BYTES)
        offset += len(data) - len(stream.unused_data if stream.eof else stream.unconsumed_tail)
        if not stream.eof:
            if not text and not data:
                message = "the gzip data ends too early: the file is truncated"
                raise ValueError(message)
            yield Piece(text, None)
            continue
        offset = _skip_zeros(file, offset)
        yield Piece(text, offset)
        if offset < size:
            stream = zlib.decompressobj(_GZIP_WINDOW)


def _skip_zeros(file: io.BufferedReader[RangeFile], offset: int) -> int:
    """Return where the next gzip member begins: there may be zeros between them, and at the end of the file."""
    file.seek(offset)
    while data := file.read(_GZIP_BYTES_AT_ONCE):
        zeros = len(data) - len(data.lstrip(b"\0"))
        offset += zeros
        if zeros < len(data):
            break
    return offset


def _decompress_from(point: RestartPoint, data: Data, length: int) -> bytes:
    text, stop = inflate_from(point, data, length)
    if len(text) == length:
        return text
    following = memoryview(data)[_after_zeros(data, stop) :]
    return text + _decompress_gzip(following, length - len(text))


def _after_zeros(data: Data | memoryview, offset: int) -> int:
    """Return where the next gzip member begins: there may be zeros between them."""
    while offset < len(data) and data[offset] == 0:
        offset += 1
    return offset


def _decompress_gzip(data: Data, length: int) -> bytes:
    parts, missing, offset, rest = [], length, 0, memoryview(data)
    stream = zlib.decompressobj(_GZIP_WINDOW)
    while missing > 0:
        part = rest[offset : offset + _GZIP_BYTES_AT_ONCE]
        text = _inflate(stream, part, missing)
        parts.append(text)
        missing -= len(text)
        offset += len(part) - len(stream.unused_data if stream.eof else stream.unconsumed_tail)
        if stream.eof:
            offset = _after_zeros(rest, offset)
            stream = zlib.decompressobj(_GZIP_WINDOW)
        if offset >= len(rest) and not text:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflate(stream: zlib._Decompress, data: Data, length: int) -> bytes:
    try:
        return stream.decompress(data, length)
    except zlib.error as error:
        message = f"the gzip data is damaged ({error})"
        raise ValueError(message) from error


def _zstd_pieces(file: io.BufferedReader[RangeFile], size: int) -> Iterator[Piece]:
    start = 0
    while start < size:
        stop = _zstd_frame_stop(file, start, size)
        file.seek(start)
        source = pa.PythonFile(cast("io.IOBase", _Section(file, stop - start)), mode="r")
        stream = pa.CompressedInputStream(source, "zstd")
        text = _read_stream(stream, PIECE_BYTES)
        while following := _read_stream(stream, PIECE_BYTES):
            yield Piece(text, None)
            text = following
        yield Piece(text, stop)
        start = stop


def _read_stream(stream: pa.NativeFile, length: int) -> bytes:
    try:
        return stream.read(length)
    except OSError as error:
        message = f"the zstd data is damaged or truncated ({error})"
        raise ValueError(message) from error


def _zstd_frame_stop(file: io.BufferedReader[RangeFile], start: int, size: int) -> int:
    """Return where a zstd frame ends, from the sizes of its blocks (RFC 8878)."""
    file.seek(start)
    magic, descriptor = _exactly(file, 4), _exactly(file, 1)[0]
    if Compression.of(magic) is not Compression.ZSTD:
        message = f"there is no zstd frame at byte {start:,}, but {magic!r}"
        raise ValueError(message)
    if magic != _ZSTD_MAGIC:
        length = int.from_bytes(bytes([descriptor]) + _exactly(file, 3), "little")
        return _within(start + 8 + length, size)
    is_single = descriptor >> 5 & 1
    position = start + 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3] + (is_single, 2, 4, 8)[descriptor >> 6]
    is_last = 0
    while not is_last:
        file.seek(position)
        low, high = _ZSTD_BLOCK.unpack(_exactly(file, 3))
        header = low | high << 16
        is_last, kind, length = header & 1, header >> 1 & 3, header >> 3
        position = _within(position + 3 + (1 if kind == _RLE_BLOCK else length), size)
    return _within(position + (4 if descriptor >> 2 & 1 else 0), size)


def _exactly(file: io.BufferedReader[RangeFile], length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        message = "the zstd data ends too early: the file is truncated"
        raise ValueError(message)
    return data


def _within(position: int, size: int) -> int:
    if position > size:
        message = f"a zstd frame claims to end at byte {position:,} of {size:,}: the file is truncated or damaged"
        raise ValueError(message)
    return position


class _Section:
    """The next bytes of a file, as a file object for pyarrow."""

    closed = False

    def __init__(self, file: io.BufferedReader[RangeFile], length: int) -> None:
        self._file = file
        self._left = length

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Leave the file open: what follows is another section of it."""

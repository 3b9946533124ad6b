"""Points within a gzip member at which decompression can begin: found with indexed_gzip, used with zlib alone.

There, a block of deflate begins, at any bit of a byte; what it copies from is the 32 KiB of text before it, its window.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np

from laneway.errors import DataFileError
from laneway.storage.reading import RangeFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from laneway.storage.filesystem import Storage
    from laneway.storage.ranges import Data

SPACING: Final = 4 << 20
"""About as many bytes of text are between two points. A window is stored for each, of about ten KiB."""
_READ_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 32 << 10
_RAW: Final = -15  # zlib's number for deflate without the header of gzip
_INDEX: Final = struct.Struct("<5sBBQQIII")
_POINT: Final = struct.Struct("<QQBB")
_MAGIC: Final = (b"GZIDX", 1)
_EXTRA_FIELD: Final = 4  # flag of a gzip header
_BGZIP: Final = b"BC"
_TRAILER_BYTES: Final = 8
_ENTRY_BYTES: Final = 64
"""Of an entry of a layout: eight integers."""


class RestartPoint(NamedTuple):
    """A place in a gzip file."""

    text_start: int
    """Offset in the text."""
    file_start: int
    """Offset in the file of the first byte of which at least a bit is needed."""
    bits: int
    """How many of its upper bits these are; 0: all."""
    window: bytes
    """The text before it, as far as it is needed; b"" at the beginning of a member."""


def can_find_points(head: bytes) -> bool:
    """Return whether points can be found in a gzip file of these first bytes, and are of use: bgzip needs none."""
    if len(head) > 13 and head[3] & _EXTRA_FIELD and head[12:14] == _BGZIP:  # noqa: PLR2004 - where the field is
        return False
    try:
        import indexed_gzip  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True


def find_points(storage: Storage, path: str, size: int, version: str) -> list[RestartPoint]:
    """Return points in a gzip file, sorted, from the beginning of its text on. It is decompressed once.

    The file must be sound: indexed_gzip doesn't look.

    Raises:
        DataFileError: The file can't be read.
        ValueError: No index of it can be made.
    """
    import indexed_gzip  # noqa: PLC0415 - an extra

    opened: Any = path
    if not storage.is_local:
        opened = io.BufferedReader(RangeFile(storage, path, size, version), 16 * _READ_BYTES)
    found = io.BytesIO()
    try:
        with indexed_gzip.IndexedGzipFile(opened, spacing=SPACING, readbuf_size=_READ_BYTES) as file:
            file.build_full_index()
            file.export_index(fileobj=found)
    except DataFileError:
        raise
    except Exception as error:
        message = f"indexed_gzip can't make an index of it ({error})"
        raise ValueError(message) from error
    return _parse(found.getvalue())


def _parse(index: bytes) -> list[RestartPoint]:
    """Return the points of an index as `export_index` writes it."""
    magic, version, _, _, _, _, window_bytes, count = _INDEX.unpack_from(index)
    windows_start = _INDEX.size + count * _POINT.size
    points = [_POINT.unpack_from(index, _INDEX.size + at * _POINT.size) for at in range(count)]
    num_windows = sum(has_window for _, _, _, has_window in points)
    if (magic, version) != _MAGIC or len(index) != windows_start + num_windows * window_bytes:
        message = f"indexed_gzip writes an index of another version ({magic!r} {version})"
        raise ValueError(message)
    found, start = [], windows_start
    for in_file, in_text, bits, has_window in points:
        window = index[start : start + window_bytes] if has_window else b""
        start += len(window)
        found.append(RestartPoint(in_text, in_file - (bits > 0), bits, window[-_WINDOW_BYTES:]))
    return found


def layout_of(points: Sequence[RestartPoint]) -> list[list[int]]:
    """Return points as entries of a layout."""
    found: list[list[int]] = []
    for each in points:
        packed = zlib.compress(each.window, 9)
        padded = packed + b"\0" * (-len(packed) % _ENTRY_BYTES)
        found.append([each.text_start, each.file_start, each.bits, len(packed), 0, 0, 0, 0])
        found += np.frombuffer(padded, "<i8").reshape(-1, 8).tolist()
    return found


@final
class StoredPoints:
    """The points of entries of a layout, whose windows stay compressed until they are needed."""

    def __init__(self, layout: NDArray[np.int64]) -> None:
        """Find the points.

        Args:
            layout: What `layout_of` returned.

        Raises:
            ValueError: The entries are damaged.
        """
        self._layout = layout
        self._entry_of: dict[int, int] = {}
        """Offset in the text -> the entry where the point begins."""
        start = 0
        while start < len(layout):
            text_start, _, _, length = layout[start, :4].tolist()
            self._entry_of[text_start] = start
            start += 1 + -(-length // _ENTRY_BYTES)
            if length < 0 or start > len(layout):
                message = "the restart points of a gzip file are damaged"
                raise ValueError(message)

    def at(self, text_start: int) -> RestartPoint | None:
        """Return the point at an offset in the text; None: there is none.

        Raises:
            ValueError: It is damaged.
        """
        start = self._entry_of.get(text_start)
        if start is None:
            return None
        _, file_start, bits, length = self._layout[start, :4].tolist()
        packed = self._layout[start + 1 : start + 1 - (-length // _ENTRY_BYTES)].astype("<i8").tobytes()
        try:
            return RestartPoint(text_start, file_start, bits, zlib.decompress(packed[:length]))
        except zlib.error as error:
            message = f"a window of a gzip file is damaged ({error})"
            raise ValueError(message) from error


def inflate_from(point: RestartPoint, data: Data, length: int) -> tuple[bytes, int]:
    """Return the text from a point on, at most `length` bytes of it, or until its member ends.

    Args:
        point: The point.
        data: What the file has from `file_start` on.
        length: Bytes of text that are needed.

    Returns:
        The text, and where in `data` the next member begins if the text is shorter.

    Raises:
        ValueError: The data is damaged.
    """
    try:
        stream = zlib.decompressobj(_RAW, zdict=point.window)
        rest = memoryview(data)
        if point.bits:
            first = data[0] >> (8 - point.bits) << (8 - point.bits)
            prefix, low = _PREFIXES[8 - point.bits]
            stream.decompress(prefix + bytes([first | low]))
            rest = rest[1:]
        text = stream.decompress(rest, length)
    except zlib.error as error:
        message = f"the gzip data is damaged ({error})"
        raise ValueError(message) from error
    return text, len(data) - len(stream.unused_data) + _TRAILER_BYTES


def _prefix(num_bits: int) -> tuple[bytes, int]:
    """Return blocks of deflate without text, as many bytes of them as are whole, and the other bits.

    zlib can begin within a byte (inflatePrime), but Python's zlib can't. Behind these blocks, it does.

    Args:
        num_bits: Bits that these blocks have in the last byte, 1 to 7.
    """
    # Fixed codes: no last block, type 1, the code of the end. Ten bits.
    fixed = [(0, 1), (1, 2), (0, 7)]
    # Codes of its own: 257 of text and 1 of distances; those that tell their lengths are 0 (one bit), 1 and 18 (two),
    # the 1st, 15th and 3rd of 18 that are given. The lengths: 138 + 118 times 0, then 1 and 0. The end. 93 bits.
    given = [0] * 18
    given[2], given[3], given[17] = 2, 1, 2
    own = [(0, 1), (2, 2), (0, 5), (0, 5), (14, 4), *((each, 3) for each in given)]
    own += [(0b11, 2), (127, 7), (0b11, 2), (107, 7), (0b01, 2), (0, 1), (0, 1)]
    blocks = next(
        odd * own + count * fixed for odd in (0, 1) for count in range(4) if (odd * 93 + count * 10) % 8 == num_bits
    )
    number = length = 0
    for value, bits in blocks:
        number |= value << length
        length += bits
    data = number.to_bytes(length // 8 + 1, "little")
    return data[:-1], data[-1]


_PREFIXES: Final = {num_bits: _prefix(num_bits) for num_bits in range(1, 8)}

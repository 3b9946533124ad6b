"""A file of which some ranges have been fetched, for pyarrow."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import TYPE_CHECKING, final

import pyarrow as pa

from laneway.storage.reading import read_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.storage.filesystem import Storage
    from laneway.storage.ranges import Data


@final
class FetchedFile:
    """A file object for pyarrow that holds fetched ranges, and fetches any other range when it is read."""

    closed = False

    def __init__(
        self,
        storage: Storage,
        path: str,
        size: int,
        ranges: Sequence[tuple[int, int]],
        parts: Sequence[Data],
        *,
        version: str = "",
    ) -> None:
        """Store the fetched ranges.

        Args:
            storage: Where the file is.
            path: The file.
            size: Its bytes.
            ranges: The ranges, sorted and disjoint.
            parts: Their bytes.
            version: Version of the file when it was listed; "" if unknown.
        """
        self._storage = storage
        self._path = path
        self._size = size
        self._version = version
        self._starts = [start for start, _ in ranges]
        self._parts = [pa.py_buffer(part) for part in parts]
        self._offset = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset and return it."""
        self._offset = offset + (self._size if whence == os.SEEK_END else 0)
        return self._offset

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._offset

    def read(self, size: int) -> pa.Buffer:
        """Return the next bytes, without a copy if they were fetched."""
        start, stop = self._offset, min(self._offset + size, self._size)
        self._offset = stop
        index = bisect_right(self._starts, start) - 1
        if index >= 0:
            part, offset = self._parts[index], start - self._starts[index]
            if offset + stop - start <= part.size:
                return part.slice(offset, stop - start)
        return pa.py_buffer(read_range(self._storage, self._path, start, stop, self._version))

    read_buffer = read

    def close(self) -> None:
        """Release the fetched ranges."""
        self._starts.clear()
        self._parts.clear()

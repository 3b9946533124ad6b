"""The file of a large manifest, which the processes of a host map into memory instead of copying it."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast, final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_SHARED_BYTES: Final = 4 << 20
"""Manifests from this size on are mapped and shared. A smaller one is copied, so that its file may be overwritten."""
HEAD_BYTES: Final = 64
"""Length of the head of a manifest, which holds the digest of the rest."""


@final
class SharedFile:
    """A file with the encoding of a manifest, for other processes of this host; created when the first one asks."""

    def __init__(self) -> None:
        """Start without a file."""
        self.path: str | None = None
        """Local file that the manifest was read from, if any."""
        self.head = b""
        """First bytes of that file: another manifest may have replaced it since."""
        self._descriptor: int | None = None

    def remember(self, path: str | None, head: bytes) -> None:
        """Remember the local file that the manifest was read from."""
        self.path, self.head = path, head

    def descriptor(self, encode: Callable[[], bytes]) -> int:
        """Return a descriptor of the file, which stays open as long as this object lives.

        It is the local file if that is unchanged, else a temporary file without a name, which disappears with the last
        process that uses it.

        Args:
            encode: Returns the encoding of the manifest.

        Raises:
            OSError: The temporary file can't be written.
        """
        if self._descriptor is None:
            found = self._open_unchanged()
            self.adopt(_write_unnamed(encode()) if found is None else found)
        return cast("int", self._descriptor)

    def adopt(self, descriptor: int) -> None:
        """Take ownership of the descriptor of a file that may have no name any more."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def _open_unchanged(self) -> int | None:
        if self.path is None:
            return None
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.pread(descriptor, HEAD_BYTES, 0) == self.head:
            return descriptor
        os.close(descriptor)
        return None


def read_local(path: str) -> memoryview:
    """Return the content of a local file; that of a large one is mapped, and read when it is accessed.

    Raises:
        OSError: The file can't be read.
    """
    # Windows can't replace a file that is mapped.
    if sys.platform == "win32" or os.path.getsize(path) < MIN_SHARED_BYTES:  # noqa: PTH202 - paths are strings here
        return memoryview(Path(path).read_bytes())
    # The memory stays valid when the file is closed.
    with pa.memory_map(path) as file:
        return memoryview(file.read_buffer())


def map_descriptor(descriptor: int) -> memoryview:
    """Return the content of an open file, mapped into memory, and close the descriptor."""
    try:
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def _write_unnamed(data: bytes) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return os.dup(file.fileno())

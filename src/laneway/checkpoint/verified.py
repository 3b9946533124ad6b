"""Reads files of checkpoints, and verifies each block before any of its bytes is returned."""

from __future__ import annotations

import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from laneway.checkpoint.layout import BLOCK_BYTES, FileRecord
from laneway.errors import CheckpointError
from laneway.storage.reading import SeekableFile, open_local, read_range

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from typing import BinaryIO

    from laneway.checkpoint.folder import CheckpointFolder

PIECE_BYTES = 1 << 19
"""Files are summed in pieces that stay in the cache of a core while they are read or written."""
LONG_BYTES = 1 << 20
"""After a read of so many bytes, the blocks behind it are likely to be read next."""
NUM_AHEAD = 2
"""Blocks that are verified ahead, by threads."""
NUM_KEPT = 8
"""Most blocks of a remote file that are kept in memory."""


class VerifiedFile(SeekableFile):
    """A file of a checkpoint for reading: the checksum of each block is compared before its bytes are returned.

    Blocks of a local file are summed by threads, then read straight into the memory of the caller; those of a remote
    file are requested concurrently, and kept for some time.
    """

    def __init__(
        self, folder: CheckpointFolder, name: str, file: str, record: FileRecord, *, verify: bool = True
    ) -> None:
        """Open a file.

        Args:
            folder: The folder of all checkpoints.
            name: The folder of the checkpoint.
            file: The file.
            record: What the index says about it.
            verify: Whether to compare checksums.

        Raises:
            DataFileError: The file can't be opened.
        """
        super().__init__(record.size)
        self._storage, self._path = folder.storage, folder.path(name, file)
        self._name, self._record, self._verify = f"{name}/{file}", record, verify
        self._local: BinaryIO | None = None
        if self._storage.is_local:
            with self._storage.translate_errors(self._path):
                self._local = open_local(self._path)
        self._executor = ThreadPoolExecutor(NUM_AHEAD, "laneway-verify")
        self._blocks: dict[int, Future[bytes]] = {}
        """Index of a block -> its bytes once it is verified; none are kept of a local file."""

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._executor.shutdown(cancel_futures=True)
            if self._local is not None:
                self._local.close()
        super().close()

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - io's own signature takes any buffer
        """Fill `buffer` as far as the file goes, and return the number of bytes.

        Raises:
            CheckpointError: The file is damaged where it is read.
            DataFileError: The file can't be read.
        """
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._offset)]
        if not len(view):
            return 0
        first, last = self._offset // BLOCK_BYTES, (self._offset + len(view) - 1) // BLOCK_BYTES
        num_ahead = NUM_AHEAD if len(view) >= LONG_BYTES else 0
        for index in range(first, last + 1):
            self._submit(range(index, min(last + num_ahead, index + NUM_AHEAD) + 1))
            block = self._blocks[index].result()
            if self._local is None:
                start = max(self._offset, index * BLOCK_BYTES)
                part = memoryview(block)[start - index * BLOCK_BYTES :][: self._offset + len(view) - start]
                view[start - self._offset :][: len(part)] = part
                self._forget(index)
        if self._local is not None:
            self._fill(self._local, view)
        self._offset += len(view)
        return len(view)

    def readall(self) -> bytes:
        """Return the bytes from the offset to the end."""
        found = bytearray(max(0, self._size - self._offset))
        self.readinto(found)
        return bytes(found)

    def verify(self) -> None:
        """Read the whole file and compare all checksums.

        Raises:
            CheckpointError: It is damaged.
            DataFileError: It can't be read.
        """
        for index in range(len(self._record.checksums)):
            self._submit(range(index, index + NUM_AHEAD + 1))
            self._blocks[index].result()
            self._forget(index)

    def _submit(self, indices: Iterable[int]) -> None:
        for index in indices:
            if index < len(self._record.checksums) and index not in self._blocks:
                self._blocks[index] = self._executor.submit(self._verified, index)

    def _forget(self, current: int) -> None:
        """Drop blocks of a remote file, first those that were read longest ago."""
        if self._local is None:
            while len(self._blocks) > NUM_KEPT:
                del self._blocks[next(each for each in self._blocks if each != current)]

    def _verified(self, index: int) -> bytes:
        """Return the bytes of a block; nothing for a block of a local file."""
        start = index * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, self._size)
        if self._local is None:
            block = read_range(self._storage, self._path, start, stop)
            checksum = zlib.crc32(block) if self._verify else None
        else:
            block, checksum = b"", self._local_checksum(self._local.fileno(), start, stop) if self._verify else None
        if checksum not in {None, self._record.checksums[index]}:
            problem = f"the checksum of its bytes {start:,} to {stop:,} differs"
            raise self._damage(problem)
        return block

    def _local_checksum(self, descriptor: int, start: int, stop: int) -> int:
        checksum = 0
        while start < stop:
            with self._storage.translate_errors(self._path):
                piece = os.pread(descriptor, min(PIECE_BYTES, stop - start), start)
            if not piece:
                raise self._cut(start)
            checksum = zlib.crc32(piece, checksum)
            start += len(piece)
        return checksum

    def _fill(self, file: BinaryIO, view: memoryview) -> None:
        num_read = 0
        while num_read < len(view):
            with self._storage.translate_errors(self._path):
                num_now = os.preadv(file.fileno(), [view[num_read:]], self._offset + num_read)
            if not num_now:
                raise self._cut(self._offset + num_read)
            num_read += num_now

    def _cut(self, size: int) -> CheckpointError:
        return self._damage(f"it ends after {size:,} bytes instead of {self._size:,}")

    def _damage(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._name} is damaged: {problem}")


def open_buffered(folder: CheckpointFolder, name: str, file: str, record: FileRecord) -> io.BufferedReader:
    """Open a file of a checkpoint for many small reads; see `VerifiedFile`."""
    return io.BufferedReader(VerifiedFile(folder, name, file, record), buffer_size=1 << 20)

"""Files of checkpoints for torch.distributed.checkpoint, with checksums that are compared when a file is read."""

from __future__ import annotations

import io
import os
import posixpath
import sys
import zlib
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from torch.distributed.checkpoint.filesystem import FileSystem

from laneway.checkpoint.layout import BLOCK_BYTES, METADATA, FileRecord
from laneway.checkpoint.verified import PIECE_BYTES, VerifiedFile, open_buffered
from laneway.errors import CheckpointError
from laneway.storage.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from laneway.checkpoint.folder import CheckpointFolder


class _Writer(io.RawIOBase):
    """Writes a file, and takes checksums of what passes."""

    def __init__(self, file: BinaryIO, *, is_local: bool) -> None:
        super().__init__()
        self._file = file
        self._has_early_writeback = is_local and sys.platform == "linux"
        # Remote files are uploaded in parts that grow with what is written at a time.
        self._piece_bytes = PIECE_BYTES if is_local else BLOCK_BYTES
        self._size = 0
        self._checksums: list[int] = []
        self.error: Exception | None = None
        """Why a write failed: torch.save only tells that one did."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._size

    def write(self, data: Any) -> int:  # noqa: ANN401 - io's own signature takes any buffer
        """Append bytes."""
        view = memoryview(data).cast("B")
        start = 0
        while start < len(view):
            filled = self._size % BLOCK_BYTES
            piece = view[start : start + min(self._piece_bytes, BLOCK_BYTES - filled)]
            if filled:
                self._checksums[-1] = zlib.crc32(piece, self._checksums[-1])
            else:
                self._checksums.append(zlib.crc32(piece))
            try:
                self._file.write(piece)
            except Exception as error:
                self.error = error
                raise
            self._size += len(piece)
            start += len(piece)
            if self._has_early_writeback and not self._size % BLOCK_BYTES:
                # The disk begins to write, so that a sync at the end has little left to wait for. Nothing is dropped:
                # no page of the block is on disk yet.
                os.posix_fadvise(self._file.fileno(), self._size - BLOCK_BYTES, BLOCK_BYTES, os.POSIX_FADV_DONTNEED)
        return len(view)

    def flush(self) -> None:
        """Flush the file."""
        if not self._file.closed:
            self._file.flush()

    @property
    def record(self) -> FileRecord:
        """The size and the checksums."""
        return FileRecord(self._size, tuple(self._checksums))


def _close(stream: BinaryIO) -> None:
    """Close a file, about which all that counts is known already."""
    with suppress(OSError):
        stream.close()


class CheckpointFiles(FileSystem):
    """The files of one checkpoint as a file system of torch.distributed.checkpoint.

    Files that are written are durable after `sync`; the end of a `with` block closes them.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        name: str,
        records: Mapping[str, FileRecord] | None = None,
        *,
        verify: bool = True,
    ) -> None:
        """Read the files in `records`, or write new ones.

        Args:
            folder: The folder of all checkpoints.
            name: The folder of this checkpoint.
            records: Name -> file; None: files are written.
            verify: Whether to compare checksums of what is read.
        """
        self._verify = verify
        self._folder, self._name = folder, name
        self._records = records
        self._lock = Lock()
        self._unsynced: list[tuple[str, BinaryIO]] = []
        """(path, file), of the local files that were written."""
        self.written: dict[str, FileRecord] = {}
        """Name -> file, of the files that were written."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open a file of the checkpoint; path is its name, or ends with it."""
        file = posixpath.basename(os.fspath(path))
        if "w" not in mode:
            if self._records is None or file not in self._records:
                message = f"{self._name} has no file {file}"
                raise CheckpointError(message)
            record = self._records[file]
            if file == METADATA:
                with open_buffered(self._folder, self._name, file, record) as buffered:
                    yield buffered
            else:
                with VerifiedFile(self._folder, self._name, file, record, verify=self._verify) as reader:
                    yield reader
            return
        with self._written(self._final_name(file)) as writer:
            yield writer

    @contextmanager
    def _written(self, file: str) -> Iterator[_Writer]:
        storage, target = self._folder.storage, self._folder.path(self._name, file)
        with storage.translate_errors(target, "written"), ExitStack() as on_failure:
            opened = (
                partial(Path(target).open, "wb") if storage.is_local else partial(storage.filesystem.open, target, "wb")
            )
            stream = cast("BinaryIO", opened())
            on_failure.callback(_close, stream)
            writer = _Writer(stream, is_local=storage.is_local)
            try:
                yield writer
            except Exception as error:
                if writer.error is None:
                    raise
                raise writer.error from error
            stream.flush() if storage.is_local else stream.close()
            on_failure.pop_all()
        with self._lock:
            self.written[file] = writer.record
            if storage.is_local:
                self._unsynced.append((target, stream))

    def write(self, file: str, data: bytes) -> None:
        """Write a small file."""
        storage = self._folder.storage
        if storage.is_local:
            with self._written(file) as writer:
                writer.write(data)
            return
        # A single request, which is repeated if it fails.
        write_file(storage, self._folder.path(self._name, file), data)
        writer = _Writer(io.BytesIO(), is_local=False)
        writer.write(data)
        self.written[file] = writer.record

    def sync(self) -> None:
        """Make what was written durable: at once, since a local disk is waited for about as long for all as for one."""
        for target, stream in self._unsynced:
            with self._folder.storage.translate_errors(target, "written"):
                os.fsync(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _target, stream in self._unsynced:
            _close(stream)
        self._unsynced.clear()

    @staticmethod
    def _final_name(file: str) -> str:
        # torch writes its metadata under another name and renames it, but here only the index makes files count.
        return file.removesuffix(".tmp")

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """Return the path of a file in a folder."""
        return posixpath.join(os.fspath(path), suffix)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Do nothing: files are written under their final name."""

    def init_path(self, path: str | os.PathLike[str]) -> str:
        """Return the path."""
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Do nothing: the folder of the checkpoint exists."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a file is there to be read; files that are being written do not exist yet."""
        return self._records is not None and posixpath.basename(os.fspath(path)) in self._records

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Do nothing: see `rename`."""

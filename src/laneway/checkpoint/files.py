"""Files of checkpoints for torch.distributed.checkpoint, with checksums that are compared when a file is read."""

from __future__ import annotations

import io
import os
import posixpath
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from torch.distributed.checkpoint.filesystem import FileSystem

from laneway.checkpoint.layout import BLOCK_BYTES, METADATA, FileRecord
from laneway.checkpoint.verified import VerifiedFile, open_buffered
from laneway.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from laneway.checkpoint.folder import CheckpointFolder


class _Writer(io.RawIOBase):
    """Writes a file, and takes checksums of what passes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
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
            part = view[start : start + BLOCK_BYTES - filled]
            try:
                self._file.write(part)
            except Exception as error:
                self.error = error
                raise
            if filled:
                self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
            else:
                self._checksums.append(zlib.crc32(part))
            self._size += len(part)
            start += len(part)
        return len(view)

    def fileno(self) -> int:
        """Return the descriptor, which torch syncs; remote files have none."""
        return self._file.fileno()

    def flush(self) -> None:
        """Flush the file."""
        if not self._file.closed:
            self._file.flush()

    @property
    def record(self) -> FileRecord:
        """The size and the checksums."""
        return FileRecord(self._size, tuple(self._checksums))


class CheckpointFiles(FileSystem):
    """The files of one checkpoint as a file system of torch.distributed.checkpoint."""

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
        storage, target = self._folder.storage, self._folder.path(self._name, self._final_name(file))
        with storage.translate_errors(target, "written"):
            opened = (
                partial(Path(target).open, "wb") if storage.is_local else partial(storage.filesystem.open, target, "wb")
            )
            with cast("BinaryIO", opened()) as stream:
                writer = _Writer(stream)
                try:
                    yield writer
                except Exception as error:
                    if writer.error is None:
                        raise
                    raise writer.error from error
        with self._lock:
            self.written[self._final_name(file)] = writer.record

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

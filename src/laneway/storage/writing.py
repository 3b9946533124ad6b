"""Writing files atomically, and removing them."""

from __future__ import annotations

import inspect
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from laneway.errors import DataFileError
from laneway.storage.entries import get_entry
from laneway.storage.reading import read_small_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from laneway.storage.filesystem import Storage


def write_file(storage: Storage, path: str, data: bytes) -> None:
    """Write a file atomically; an existing one is replaced.

    Raises:
        DataFileError: The storage refused.
    """
    if not storage.is_local:
        storage.call(path, lambda: storage.filesystem.pipe_file(storage.request_path(path), data), access="written")
        return
    target = Path(path)
    # Not by the tempfile module: its files are private, which is wrong for a shared cache.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    with storage.translate_errors(path, "written"):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def create_file(storage: Storage, path: str, data: bytes) -> bool:
    """Write a file unless it exists, and return whether it now holds `data`.

    One request does both where the filesystem can make a write conditional, as s3fs and gcsfs can. Elsewhere on remote
    storage the file is looked for first, so two processes may both write it.

    Raises:
        DataFileError: The storage refused.
    """
    if storage.is_local:
        with storage.translate_errors(path, "written"):
            try:
                with Path(path).open("xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
        return True
    if not _can_create(storage.filesystem):
        if get_entry(storage, path) is not None:
            return False
        write_file(storage, path, data)
        return True
    request_path = storage.request_path(path)
    try:
        storage.call(path, lambda: storage.filesystem.pipe_file(request_path, data, mode="create"), access="written")
    except DataFileError:
        # Servers say in different ways that it exists. It may be ours: an answer was lost, and the request repeated.
        found = read_small_file(storage, path)
        if found is None:
            raise
        return found == data
    return True


def remove_file(storage: Storage, path: str) -> None:
    """Remove a file, if it exists.

    Raises:
        DataFileError: The storage refused.
    """

    def remove() -> None:
        with suppress(FileNotFoundError):
            Path(path).unlink() if storage.is_local else storage.filesystem.rm_file(storage.request_path(path))

    storage.call(path, remove, access="written")


def _can_create(filesystem: AbstractFileSystem) -> bool:
    """Return whether a filesystem offers a write that fails if the file exists."""
    return "mode" in inspect.signature(filesystem.pipe_file).parameters

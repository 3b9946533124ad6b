"""Metadata of a single path: whether it is a file or a directory, its size, its version."""

from __future__ import annotations

import os
import stat
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.storage.filesystem import Storage

# Names under which filesystems report a version, best first: an ETag or blob id identifies the content, and a time may
# be too coarse.
_VERSION_KEYS = ("ETag", "etag", "e_tag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")


class Entry(NamedTuple):
    """A file or a directory, as its storage lists it."""

    path: str
    """Path as the storage understands it."""
    kind: str
    """"file" or "directory"."""
    size: int
    """Bytes."""
    version: str
    """A string that changes when the file is rewritten, "" if unknown.

    It is the first of these that the storage reports: ETag, blob id, modification time, creation time. A time is in ns,
    unless the storage reports it as a string.
    """


def get_entry(storage: Storage, path: str) -> Entry | None:
    """Return the current entry of a path, or None if it does not exist.

    Raises:
        DataFileError: The metadata can't be read.
    """

    def look_up() -> Entry | None:
        try:
            if storage.is_local:
                return entry_of_stat(path, os.stat(path))  # noqa: PTH116 - paths are strings here
            info = request_info(storage, path)
        except (FileNotFoundError, NotADirectoryError):
            # The latter if a parent of the path is a file.
            return None
        return Entry(path, str(info["type"]), int(info.get("size") or 0), version_of_info(info))

    return storage.call(path, look_up)


def file_size(storage: Storage, path: str) -> int:
    """Return the current size of a file in bytes.

    Raises:
        DataFileError: The file is missing, or its metadata can't be read.
    """
    if storage.is_local:
        with storage.translate_errors(path):
            return os.stat(path).st_size  # noqa: PTH116 - paths are strings here
    return int(storage.call(path, partial(request_info, storage, path))["size"])


def request_info(storage: Storage, path: str) -> dict[str, Any]:
    """Return fsspec's current metadata of a path; no retries."""
    storage.forget_listings(path)
    info: dict[str, Any] = storage.filesystem.info(storage.request_path(path))
    return info


def entry_of_info(storage: Storage, path: str, info: Mapping[str, Any]) -> Entry:
    """Return the entry of a path from fsspec's metadata; a missing size is requested."""
    size = info.get("size")
    if size is None and info["type"] == "file":
        size = file_size(storage, path)
    return Entry(path, str(info["type"]), int(size or 0), version_of_info(info))


def entry_of_stat(path: str, status: os.stat_result) -> Entry:
    """Return the entry of a local path."""
    kind = "directory" if stat.S_ISDIR(status.st_mode) else "other"
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        kind = "file"
    return Entry(path, kind, status.st_size, str(status.st_mtime_ns))


def version_of_info(info: Mapping[str, Any]) -> str:
    """Return the `Entry.version` of a file from fsspec's metadata."""
    value = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    if isinstance(value, datetime):
        value = value.timestamp()
    return str(round(value * 1e9) if isinstance(value, float) else value)


def versions_differ(version: str, other: str) -> bool:
    """Return whether two versions of a file are known to differ: only two ETags or two times can be compared."""
    if version.isdigit() != other.isdigit() or not other:
        return False
    if version.isdigit():
        # Some servers report milliseconds in a listing, and seconds for a single object.
        return int(version) // 10**9 != int(other) // 10**9
    return version.strip('"') != other.strip('"')

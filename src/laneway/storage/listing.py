"""Listing: the files below a directory, and those that match a glob."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
from typing import TYPE_CHECKING, TypeVar

import fsspec
import pyarrow.fs
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.utils import glob_translate

from laneway.storage.entries import Entry, entry_of_info, entry_of_stat, get_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fsspec import AbstractFileSystem

    from laneway.storage.filesystem import Storage

    T = TypeVar("T")

_WILDCARDS = "*?["
_log = logging.getLogger(__name__)


def find_files(storage: Storage, directory: str, prefix: str = "") -> list[Entry]:
    """Return all files currently below a directory, in any order, in a single listing where the storage supports it.

    Local directories whose name begins with `_` or `.` are skipped. An object store without directories may return
    nothing for a missing one, and the file itself for the path of a file.

    Args:
        storage: The storage to list.
        directory: Path as the storage understands it.
        prefix: Lists only names that begin with it, if the storage supports that; otherwise ignored.

    Raises:
        DataFileError: The directory, or one below it, is missing or can't be listed.
    """
    if storage.is_local:
        return list(_walk(storage, directory, (os.path.realpath(directory),)))
    filesystem = storage.filesystem
    storage.forget_listings(directory)
    if isinstance(filesystem, ArrowFSWrapper):
        selector = pyarrow.fs.FileSelector(directory, recursive=True)
        infos = _list(storage, directory, lambda: filesystem.fs.get_file_info(selector))
        files = [info for info in infos if info.type == pyarrow.fs.FileType.File]
        return [Entry(info.path, "file", info.size, str(info.mtime_ns or "")) for info in files]
    # By default fsspec's own walk omits directories that it can't list.
    options: dict[str, str] = {"on_error": "raise"} if _walks_directories(filesystem) else {}
    if prefix and _supports_prefix(filesystem):
        options["prefix"] = prefix
    found = _list(storage, directory, lambda: filesystem.find(directory, detail=True, **options))
    return [entry for path, info in found.items() if (entry := entry_of_info(storage, path, info)).kind == "file"]


def glob_files(storage: Storage, pattern: str) -> list[Entry]:
    """Return all files that currently match a glob, or are below a directory that matches, in any order.

    The wildcards are those of fsspec: `*`, `?`, `[...]`, and `**` for any number of directories.

    Raises:
        DataFileError: The storage can't be listed.
    """
    root = glob_root(pattern)
    depth = pattern.count("/") + 1
    matches = re.compile(glob_translate(pattern)).match
    below_root = pattern[len(root) :].lstrip("/")
    prefix = re.split(r"[*?\[]", below_root)[0]
    can_use_prefix = bool(prefix) and not storage.is_local and _supports_prefix(storage.filesystem)
    if "**" not in pattern and "/" not in below_root and not can_use_prefix:
        found = [entry for entry in list_directory(storage, root) if matches(entry.path.rstrip("/"))]
        directories = [entry.path for entry in found if entry.kind == "directory"]
        below = [entry for directory in directories for entry in find_files(storage, directory)]
        return [entry for entry in found if entry.kind == "file"] + below
    if not lists_recursively(storage) and get_entry(storage, root) is None:
        return []

    def is_below_a_match(path: str) -> bool:
        parts = path.split("/")
        depths = range(depth, depth + 1) if "**" not in pattern else range(len(parts), 0, -1)
        return any(matches("/".join(parts[:count])) for count in depths if count <= len(parts))

    return [entry for entry in find_files(storage, root, prefix) if is_below_a_match(entry.path)]


def lists_recursively(storage: Storage) -> bool:
    """Return whether `find_files` is a single listing, rather than one per directory."""
    return not storage.is_local and not _walks_directories(storage.filesystem)


def is_hidden(name: str) -> bool:
    """Return whether a file or directory of this name holds no data: `_SUCCESS`, `.git`, but not `_key=value`."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def has_wildcards(path: str) -> bool:
    """Return whether a path may be a glob."""
    return any(wildcard in path for wildcard in _WILDCARDS)


def glob_root(pattern: str) -> str:
    """Return the deepest directory of a glob that contains no wildcard."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if has_wildcards(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")


def _list(storage: Storage, path: str, function: Callable[[], T]) -> T:
    """Call a function that lists files: it may send any number of requests, so it has a longer time limit."""
    return storage.call(path, function, storage.retries.listing_timeout_s)


def _walk(storage: Storage, directory: str, ancestors: Sequence[str]) -> Iterator[Entry]:
    """Yield the files below a local directory; `ancestors` are the real paths of it and the directories above it."""
    with storage.translate_errors(directory):
        for found in _local_entries(storage, directory):
            name = os.path.basename(found.path)  # noqa: PTH119 - paths are strings here
            if found.kind == "file":
                yield found
            elif found.kind == "directory" and not is_hidden(name):
                real = os.path.realpath(found.path) if os.path.islink(found.path) else f"{ancestors[-1]}/{name}"  # noqa: PTH114
                # A link to an ancestor would be followed forever.
                if real not in ancestors:
                    yield from _walk(storage, found.path, (*ancestors, real))


def _local_entries(storage: Storage, directory: str) -> Iterator[Entry]:
    """Yield the entries of what is in a local directory; what is removed meanwhile is left out."""
    for entry in list(os.scandir(directory)):
        try:
            found = _local_entry(storage, entry)
        except FileNotFoundError:
            continue
        yield found


def _local_entry(storage: Storage, entry: os.DirEntry[str]) -> Entry:
    """Return the entry of what is in a local directory, or of what a link there refers to."""
    try:
        status = entry.stat()
    except OSError as error:
        # Broken links, also those to themselves, are listed: if one is a data file, reading it raises the error.
        if entry.is_symlink() and error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return Entry(entry.path, "file", 0, "")
        raise
    found = entry_of_stat(entry.path, status)
    if found.kind == "other" and not is_hidden(entry.name):
        _log.warning("%s is skipped: it is a pipe, a socket or a device", storage.redact(entry.path))
    return found


def list_directory(storage: Storage, directory: str) -> list[Entry]:
    """Return the files and directories in a directory; none if it does not exist."""

    def list_once() -> list[Entry]:
        try:
            if storage.is_local:
                return list(_local_entries(storage, directory))
            storage.forget_listings(directory)
            listed = storage.filesystem.ls(directory, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [entry_of_info(storage, str(info["name"]), info) for info in listed]

    return _list(storage, directory, list_once)


def _walks_directories(filesystem: AbstractFileSystem) -> bool:
    """Return whether `find` lists one directory at a time, which it does unless a filesystem overrides it."""
    while isinstance(filesystem, DirFileSystem):
        filesystem = filesystem.fs
    if isinstance(filesystem, ArrowFSWrapper):
        return False
    if filesystem.async_impl:
        return type(filesystem)._find is AsyncFileSystem._find  # noqa: SLF001 - the coroutine of `find`
    return type(filesystem).find is fsspec.AbstractFileSystem.find


def _supports_prefix(filesystem: AbstractFileSystem) -> bool:
    """Return whether `find` can list only names that begin with a prefix, as on S3 and GCS."""
    find = type(filesystem)._find if filesystem.async_impl else type(filesystem).find  # noqa: SLF001 - the coroutine of `find`
    return "prefix" in inspect.signature(find).parameters

"""Reading ranges of files, with retries and version checks."""

from __future__ import annotations

import io
import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from laneway.metering import current_meter
from laneway.storage.deadlines import call_within
from laneway.storage.entries import file_size, request_info, version_of_info, versions_differ
from laneway.storage.ranges import Request, ShortBodyError, VersionError, check_data
from laneway.storage.retries import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laneway.storage.clients import RangeClient
    from laneway.storage.filesystem import Storage
    from laneway.storage.ranges import Data

_SMALL_BYTES = 1 << 20


def read_range(storage: Storage, path: str, start: int, stop: int, version: str = "") -> bytes:
    """Return the bytes [start, stop) of a file; see `read_ranges`."""
    return bytes(read_ranges(storage, path, [(start, stop)], version)[0])


def read_small_file(storage: Storage, path: str) -> bytes | None:
    """Return the content of a file that is small as a rule, in one request then, or None if it does not exist.

    Where a storage lies about the length of a response, the content may be short: see `read_ranges`.

    Raises:
        DataFileError: The file can't be read.
    """

    def read() -> bytes | None:
        try:
            if storage.is_local:
                with open_local(path) as file:
                    return file.read()
            # Some filesystems look for the file in a listing that they remember.
            storage.forget_listings(path)
            return bytes(storage.filesystem.cat_file(storage.request_path(path), start=0, end=_SMALL_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception:
            # S3 refuses any range of an empty object.
            if storage.is_local or request_info(storage, path).get("size") != 0:
                raise
            return b""

    found = storage.call(path, read)
    if storage.is_local or found is None or len(found) < _SMALL_BYTES:
        return found
    return read_range(storage, path, 0, file_size(storage, path))


def read_ranges(storage: Storage, path: str, ranges: Sequence[tuple[int, int]], version: str = "") -> list[Data]:
    """Return the bytes [start, stop) of a file for each range. Ranges of a remote file are requested concurrently.

    Transient failures are retried, as `storage.retries` says; only the ranges that are still missing are requested.

    Args:
        storage: Where the file is.
        path: The file.
        ranges: The ranges.
        version: Version of the file when it was listed; "" if unknown.

    Raises:
        DataFileError: The file is missing, unreadable or of another version, or the storage returned other bytes or
            did not answer in time.
    """
    meter = current_meter()
    if meter is None:
        return _read_all(storage, path, ranges, version)
    with meter.reading():
        found = _read_all(storage, path, ranges, version)
    meter.count_bytes(sum(map(len, found)))
    return found


def _read_all(storage: Storage, path: str, ranges: Sequence[tuple[int, int]], version: str) -> list[Data]:
    requests = [Request(storage.request_path(path), *each) for each in ranges]
    if storage.is_local:
        return _read_local(storage, path, requests)
    client = storage.client
    if condition := enforceable_version(storage, version):
        requests, version = [each._replace(version=condition) for each in requests], ""
    found: dict[int, Data] = {index: b"" for index, each in enumerate(requests) if each.start >= each.stop}

    def attempt(limit_s: float) -> None:
        end = time.monotonic() + limit_s
        error = _fetch_missing(client, requests, found, limit_s)
        if isinstance(error, ShortBodyError) or (version and error is None):
            # After the read: if the file still has this version, it had it during the read.
            size, version_now = _size_and_version(storage, path, max(end - time.monotonic(), 1.0))
            if version and versions_differ(version, version_now):
                raise VersionError
            if error is not None and size is not None and size < max(each.stop for each in requests):
                raise storage.error_for(path, "is truncated", error)
        if error is not None:
            raise error

    if len(found) < len(requests):
        storage.retry(path, attempt)
    return [found[index] for index in range(len(requests))]


def read_tails(
    storage: Storage, paths: Sequence[str], sizes: Sequence[int], num_bytes: int, versions: Sequence[str]
) -> list[bytes | None]:
    """Return the last `num_bytes` of each file, or all of a smaller one; None where the first attempt failed.

    Use `read_range` for the files that are None: it retries, and raises an error that names the file.

    Args:
        storage: Where the files are.
        paths: The files.
        sizes: Bytes of each file.
        num_bytes: Length of the tails.
        versions: Version to require of each file, as `enforceable_version` returns it.
    """
    lengths = [min(size, num_bytes) for size in sizes]
    starts = [size - length for size, length in zip(sizes, lengths, strict=True)]
    tails: Iterable[Data | BaseException | None] = [None] * len(paths)
    if storage.is_local:
        tails = map(_read_local_at, paths, starts, lengths)
    elif storage.client.is_concurrent and all(lengths):
        requests = list(map(Request, map(storage.request_path, paths), starts, sizes, versions))
        limit_s = min(storage.retries.attempt_timeout_s, storage.retries.deadline_s)
        with suppress(Exception):
            tails = storage.client.fetch(requests, limit_s)
    return [
        bytes(tail) if isinstance(tail, (bytes, memoryview)) and len(tail) == length else None
        for tail, length in zip(tails, lengths, strict=True)
    ]


def enforceable_version(storage: Storage, version: str) -> str:
    """Return the version if a read request can require it; "" if only another request can check it."""
    # Not a time: a listing may be more precise than a response.
    is_enforceable = not storage.is_local and storage.client.is_conditional and not version.isdigit()
    return version if is_enforceable else ""


class SeekableFile(io.RawIOBase):
    """A file object of known size, with an offset from which a subclass reads."""

    def __init__(self, size: int) -> None:
        """Start at the beginning of a file of `size` bytes."""
        super().__init__()
        self._size = size
        self._offset = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset in bytes and return it."""
        self._offset = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence])
        return self._offset


class RangeFile(SeekableFile):
    """A seekable file object that does not read ahead: every read is one request for exactly these bytes."""

    def __init__(self, storage: Storage, path: str, size: int, version: str = "") -> None:
        """Create the file object, without accessing the file.

        Args:
            storage: Where the file is.
            path: The file.
            size: Its bytes.
            version: Version of the file when it was listed; "" if unknown.
        """
        super().__init__(size)
        self._version = version
        self._storage = storage
        self._path = path

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, fewer only at the end of the file."""
        stop = self._size if size is None or size < 0 else min(self._offset + size, self._size)
        data = read_range(self._storage, self._path, self._offset, stop, self._version)
        self._offset += len(data)
        return data

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - io's own signature takes any buffer
        """Fill `buffer` and return the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_local(path: str) -> BinaryIO:
    """Open a local file for reading; a pipe that has taken its place doesn't block."""
    return cast("BinaryIO", open(path, "rb", opener=_open_without_waiting))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _fetch_missing(
    client: RangeClient, requests: Sequence[Request], found: dict[int, Data], limit_s: float
) -> BaseException | None:
    """Fetch the ranges that are not in `found`, add them to it, and return an error, preferably a permanent one."""
    missing = [index for index in range(len(requests)) if index not in found]
    errors: list[BaseException] = []
    for index, data in zip(missing, client.fetch([requests[index] for index in missing], limit_s), strict=True):
        if isinstance(data, BaseException):
            errors.append(data)
        else:
            found[index] = data
    return next((error for error in errors if not is_transient(error)), errors[0] if errors else None)


def _size_and_version(storage: Storage, path: str, limit_s: float) -> tuple[int | None, str]:
    """Return the current size and version of a file, as far as the storage reports them."""
    info = call_within(partial(request_info, storage, path), limit_s)
    size = info.get("size")
    return None if size is None else int(size), version_of_info(info)


def _read_local(storage: Storage, path: str, requests: Sequence[Request]) -> list[Data]:
    found: list[Data] = []
    with storage.translate_errors(path), open_local(path) as file:
        for each in requests:
            file.seek(each.start)
            found.append(check_data(file.read(max(0, each.stop - each.start)), each))
    return found


def _read_local_at(path: str, start: int, length: int) -> bytes | None:
    """Return up to `length` bytes of a local file, without a file object, which would take longer than the read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(handle, length, start)
        finally:
            os.close(handle)
    except OSError:
        return None

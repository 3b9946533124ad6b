"""Ranges of a remote file, asked for once and within a time: how that goes with each kind of filesystem.

Every answer is checked: it has as many bytes as were asked for, or it is an error. Where a client can make a request
conditional on the version of an object, no other request is needed to know that it has not changed.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar, cast, final

import pyarrow as pa
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.dirfs import DirFileSystem

from laneway.storage.retries import TransientError, is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from fsspec import AbstractFileSystem

    T = TypeVar("T")

Data: TypeAlias = bytes | memoryview
"""What came: bytes, or a view of a client's own memory."""

_THREADS: Final = 16
_OPEN_FILES: Final = 64
# Waiting for the event loop itself: it ends what it runs in time, unless it hangs.
_LOOP_GRACE_S: Final = 2.0
_PARTIAL_CONTENT: Final = 206
_MARKS: Final = (0x5A, 0xA5)  # two bytes that differ
# What pyarrow says once a file is open, in the text of an OSError.
_ARROW_ERRORS: Final = {
    "NO_SUCH_KEY": FileNotFoundError,
    "NO_SUCH_BUCKET": FileNotFoundError,
    "RESOURCE_NOT_FOUND": FileNotFoundError,
    "ACCESS_DENIED": PermissionError,
}
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Request(NamedTuple):
    """A request for the bytes [start, stop) of a file."""

    path: str
    """The file."""
    start: int
    stop: int
    version: str = ""
    """The version that the file must have, for a client that can make that a condition; "" for any."""

    @property
    def text(self) -> str:
        """The range, for messages."""
        return f"bytes {self.start:,} to {self.stop:,} were asked for"


class ShortBodyError(TransientError):
    """Another number of bytes came than was asked for, or other ones."""


class VersionError(Exception):
    """The object is no longer of the version that was asked for."""


class RangeClient(Protocol):
    """Asks a filesystem for ranges. It may be used from several threads, in the process that made it."""

    @property
    def is_conditional(self) -> bool:
        """Whether the storage itself compares the version of a request; else `fetch` doesn't look at it."""

    @property
    def is_concurrent(self) -> bool:
        """Whether many requests fly at once without a thread for each."""

    @property
    def survives_fork(self) -> bool:
        """Whether a process that is forked after the client was used can make one of its own."""

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        """Return for each request its bytes, or why they did not come, after `limit_s` seconds at the latest."""


def client_for(filesystem: AbstractFileSystem) -> RangeClient:
    """Return what asks this filesystem for ranges best."""
    if type(filesystem) is DirFileSystem:
        return _DirectoryClient(filesystem)
    # Not imported for those who don't use it: it takes half a second.
    s3fs = sys.modules.get("s3fs")
    if s3fs is not None and isinstance(filesystem, s3fs.S3FileSystem):
        return _S3fsClient(filesystem)
    if isinstance(filesystem, ArrowFSWrapper):
        return _ArrowClient(filesystem)
    is_async = isinstance(filesystem, AsyncFileSystem) and not isinstance(filesystem, DirFileSystem)
    if is_async and filesystem.async_impl and not filesystem.asynchronous:
        is_obstore = type(filesystem).__module__.partition(".")[0] == "obstore"
        return _ObstoreClient(filesystem) if is_obstore else _AsyncClient(filesystem)
    return _BlockingClient(lambda request: filesystem.cat_file(request.path, start=request.start, end=request.stop))


@final
class _DirectoryClient:
    """A directory of another filesystem."""

    def __init__(self, filesystem: DirFileSystem) -> None:
        self._join = filesystem._join  # noqa: SLF001 - what all its methods call
        self._client = client_for(filesystem.fs)
        self.is_conditional, self.is_concurrent = self._client.is_conditional, self._client.is_concurrent
        self.survives_fork = self._client.survives_fork

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        return self._client.fetch([each._replace(path=self._join(each.path)) for each in requests], limit_s)


class _AsyncClient:
    """Any filesystem that has an event loop of its own."""

    is_conditional, is_concurrent, survives_fork = False, True, True

    def __init__(self, filesystem: AsyncFileSystem) -> None:
        self._filesystem = filesystem

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        found: list[Data | BaseException] = sync(
            self._filesystem.loop, self._gather, requests, limit_s, timeout=limit_s + _LOOP_GRACE_S
        )
        return found

    async def _gather(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        tries = (self._in_time(self._get(request), limit_s) for request in requests)
        return await asyncio.gather(*tries, return_exceptions=True)

    async def _in_time(self, answer: Coroutine[Any, Any, Data], limit_s: float) -> Data:
        try:
            return await asyncio.wait_for(answer, limit_s)
        except TimeoutError as error:
            if str(error):
                raise
            message = f"no answer within {limit_s:.1f} s"
            raise TimeoutError(message) from None

    async def _get(self, request: Request) -> Data:
        cat_file = self._filesystem._cat_file  # noqa: SLF001 - what `cat_file` calls
        return checked(await cat_file(request.path, start=request.start, end=request.stop), request)


@final
class _S3fsClient(_AsyncClient):
    """s3fs: its client is asked directly, as `cat_file` can't make a request conditional and retries by itself."""

    is_conditional = True

    async def _get(self, request: Request) -> Data:
        from botocore.exceptions import ClientError  # noqa: PLC0415 - s3fs was imported, so this was too
        from s3fs.errors import translate_boto_error  # noqa: PLC0415

        filesystem = self._filesystem
        bucket, key, version_id = filesystem.split_path(request.path)
        asked = {"Bucket": bucket, "Key": key, "Range": f"bytes={request.start}-{request.stop - 1}"}
        if version_id:
            asked["VersionId"] = version_id
        if request.version:
            asked["IfMatch"] = request.version
        try:
            await filesystem.set_session()
            client = await filesystem.get_s3(bucket)
            # What the filesystem adds to every request: who pays, keys of encryption.
            asked = filesystem._get_s3_method_kwargs(client.get_object, **asked)  # noqa: SLF001
            answer = await client.get_object(**asked)
            async with answer["Body"] as body:
                # Before it is read: where the range was ignored, it is the whole file, however long.
                _check_version(request, answer.get("ETag"))
                status = answer["ResponseMetadata"].get("HTTPStatusCode", _PARTIAL_CONTENT)
                _check_place(request, status, answer.get("ContentRange"))
                _check_length(request, answer.get("ContentLength"))
                data: bytes = await body.read()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"PreconditionFailed", "412"}:
                raise VersionError from error
            if is_transient(error):
                raise
            # A FileNotFoundError or PermissionError, where it is one.
            raise translate_boto_error(error) from error
        return checked(data, request)


@final
class _ObstoreClient(_AsyncClient):
    """obstore's filesystem: its store is asked directly, as `cat_file` can't make a request conditional."""

    is_conditional = True
    survives_fork = False
    """All its clients share one set of threads, which a fork doesn't copy: requests would wait for ever."""

    async def _get(self, request: Request) -> Data:
        bucket, key = self._filesystem._split_path(request.path)  # noqa: SLF001 - there is no public way to a bucket's store
        store = self._filesystem._construct_store(bucket)  # noqa: SLF001
        wanted = (request.start, request.stop)
        options: dict[str, Any] = {"range": wanted}
        if request.version:
            options["if_match"] = request.version
        try:
            answer = await store.get_async(key, options=options)
            data = memoryview(await answer.bytes_async())
        except Exception as error:
            # obstore is no dependency, so its classes have no name here.
            if type(error).__name__ == "PreconditionError":
                raise VersionError from error
            raise
        _check_version(request, answer.meta.get("e_tag"))
        if tuple(answer.range) != wanted:
            message = f"{request.text}, and others came"
            raise ShortBodyError(message)
        return checked(data, request)


class _BlockingClient:
    """Any other filesystem: each request waits in a thread that can be left behind."""

    is_conditional, is_concurrent, survives_fork = False, False, True

    def __init__(self, read: Callable[[Request], Data]) -> None:
        self._read = read

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        return in_time([partial(self._read_and_check, request) for request in requests], limit_s)

    def _read_and_check(self, request: Request) -> Data:
        return checked(self._read(request), request)


@final
class _ArrowClient(_BlockingClient):
    """A filesystem of pyarrow: a few files stay open, as each opening of one costs a request."""

    def __init__(self, filesystem: ArrowFSWrapper) -> None:
        super().__init__(self._read_at)
        self._filesystem = filesystem.fs
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def _read_at(self, request: Request) -> Data:
        path, num_bytes = request.path, request.stop - request.start
        with self._lock:
            file = self._open.get(path)
        if file is None:
            file = self._filesystem.open_input_file(path)
            with self._lock:
                self._open[path] = file
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
        buffer = pa.allocate_buffer(num_bytes)
        data = memoryview(cast("Any", buffer)).cast("B")
        try:
            came = _read_into(data, file, request)
        except OSError as error:
            self._forget(path)
            for name, kind in _ARROW_ERRORS.items():
                if name in str(error):
                    raise kind(str(error)) from error
            raise
        except BaseException:
            self._forget(path)
            raise
        return data[:came]

    def _forget(self, path: str) -> None:
        with self._lock:
            self._open.pop(path, None)


def _read_into(data: memoryview, file: Any, request: Request) -> int:  # noqa: ANN401 - its class has no public name
    """Fill memory with what was asked for, and return how many bytes came."""
    # A body that is too short but consistent counts as whole there, and leaves the end of the memory as it was.
    # It is so only if two different marks survive there: one may happen to be what was read.
    for mark in _MARKS:
        data[-1] = mark
        came: int = file.get_stream(request.start, len(data)).readinto(data)
        if came < len(data) or data[-1] != mark:
            return came
    message = f"{request.text}, and fewer came"
    raise ShortBodyError(message)


def coalesced(ranges: Iterable[tuple[int, int]], hole_bytes: int, most_bytes: int) -> list[tuple[int, int]]:
    """Return ranges that hold all of these, one for those that are close together, sorted and apart.

    Args:
        ranges: Any number of [start, stop).
        hole_bytes: Most bytes between two that become one: what costs less than another request.
        most_bytes: Most bytes of one that is made of several: what is lost when a connection is.
    """
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start - found[-1][1] <= hole_bytes and max(stop, found[-1][1]) - found[-1][0] <= most_bytes:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def in_time(calls: Sequence[Callable[[], T]], limit_s: float) -> list[T | BaseException]:
    """Return what each call returned or raised, or a TimeoutError for those that take longer than `limit_s` seconds.

    They run in daemon threads, which are left alone when the time is over and hold nothing up: not this process's end
    either.
    """
    late = TimeoutError(f"no answer within {limit_s:.1f} s")
    results: list[T | BaseException] = [late] * len(calls)
    left = iter(range(len(calls)))
    lock, done = threading.Lock(), threading.Semaphore(0)

    def work() -> None:
        while True:
            with lock:
                index = next(left, None)
            if index is None or time.monotonic() > end:
                return
            try:
                results[index] = calls[index]()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                results[index] = error
            done.release()

    end = time.monotonic() + limit_s
    for _ in range(min(_THREADS, len(calls))):
        threading.Thread(target=work, name="laneway-request", daemon=True).start()
    for _ in calls:
        if not done.acquire(timeout=max(0.0, end - time.monotonic())):
            break
    return list(results)


def checked(data: Data, request: Request) -> Data:
    """Return the bytes of a range if they are as many as were asked for."""
    _check_length(request, len(data))
    return data


def _check_version(request: Request, etag: str | None) -> None:
    """Raise if an answer is of another version: a server that doesn't know the condition ignores it."""
    if request.version and etag and etag.strip('"') != request.version.strip('"'):
        raise VersionError


def _check_place(request: Request, status: int, content_range: str | None) -> None:
    """Raise unless an answer says that it holds the range, or is the beginning of a whole file and so is the range."""
    if status != _PARTIAL_CONTENT:
        if request.start == 0:
            return
        message = f"{request.text}, and the whole file came"
        raise ShortBodyError(message)
    place = _CONTENT_RANGE.fullmatch(content_range or "")
    if place is not None and (int(place[1]), int(place[2]) + 1) != (request.start, request.stop):
        message = f"{request.text}, and {content_range} came"
        raise ShortBodyError(message)


def _check_length(request: Request, length: int | None) -> None:
    num_bytes = request.stop - request.start
    if length is not None and length != num_bytes:
        message = f"{request.text}, {num_bytes:,} of them, and {length:,} came"
        raise ShortBodyError(message)

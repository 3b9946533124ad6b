"""Clients that fetch ranges of remote files: one attempt, within a time limit, for each kind of filesystem.

Every response is checked: it has the requested number of bytes, or it is an error. Where a client can make a request
conditional on the version of an object, no second request is needed to know that the object has not changed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, final

import pyarrow as pa
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.dirfs import DirFileSystem

from laneway.storage.deadlines import run_within
from laneway.storage.hub import HubReader, is_hub
from laneway.storage.ranges import (
    PARTIAL_CONTENT,
    ShortBodyError,
    VersionError,
    check_content_range,
    check_data,
    check_length,
    check_version,
)
from laneway.storage.retries import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from fsspec import AbstractFileSystem

    from laneway.storage.ranges import Data, Request

_OPEN_FILES: Final = 64
# The event loop enforces the time limit itself; this is for a loop that hangs.
_LOOP_GRACE_S: Final = 2.0
_MARKERS: Final = (0x5A, 0xA5)  # two different bytes
# Errors that pyarrow raises as a plain OSError once a file is open, by the code in the message.
_ARROW_ERRORS: Final = {
    "NO_SUCH_KEY": FileNotFoundError,
    "NO_SUCH_BUCKET": FileNotFoundError,
    "RESOURCE_NOT_FOUND": FileNotFoundError,
    "ACCESS_DENIED": PermissionError,
}


class RangeClient(Protocol):
    """Fetches ranges from a filesystem, from any number of threads, in the process that created it."""

    @property
    def is_conditional(self) -> bool:
        """Whether the storage itself checks `Request.version`; if not, `fetch` ignores it."""

    @property
    def is_concurrent(self) -> bool:
        """Whether the client sends many requests concurrently without a thread for each."""

    @property
    def survives_fork(self) -> bool:
        """Whether a process forked after the client was used can create a working client."""

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        """Return the data or the error of each request, within `limit_s` seconds."""


def client_for(filesystem: AbstractFileSystem) -> RangeClient:
    """Return the best client for a filesystem."""
    if type(filesystem) is DirFileSystem:
        return _DirectoryClient(filesystem)
    # Never imported here: users of other filesystems should not wait half a second for it.
    s3fs = sys.modules.get("s3fs")
    if s3fs is not None and isinstance(filesystem, s3fs.S3FileSystem):
        return _S3fsClient(filesystem)
    if isinstance(filesystem, ArrowFSWrapper):
        return _ArrowClient(filesystem)
    if is_hub(filesystem):
        return _HubClient(HubReader(filesystem).read)
    is_async = isinstance(filesystem, AsyncFileSystem) and not isinstance(filesystem, DirFileSystem)
    if is_async and filesystem.async_impl and not filesystem.asynchronous:
        is_obstore = type(filesystem).__module__.partition(".")[0] == "obstore"
        return _ObstoreClient(filesystem) if is_obstore else _AsyncClient(filesystem)
    return _BlockingClient(lambda request: filesystem.cat_file(request.path, start=request.start, end=request.stop))


@final
class _DirectoryClient:
    """Client of a filesystem that is a directory of another one."""

    def __init__(self, filesystem: DirFileSystem) -> None:
        self._join = filesystem._join  # noqa: SLF001 - all its methods use it, and there is no public name
        self._client = client_for(filesystem.fs)
        # On the Hub, a path below a directory doesn't say of which commit it is.
        self.is_conditional = self._client.is_conditional and not is_hub(filesystem.fs)
        self.is_concurrent = self._client.is_concurrent
        self.survives_fork = self._client.survives_fork

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        return self._client.fetch([each._replace(path=self._join(each.path)) for each in requests], limit_s)


class _AsyncClient:
    """Client of any filesystem that runs on fsspec's event loop."""

    is_conditional, is_concurrent, survives_fork = False, True, True

    def __init__(self, filesystem: AsyncFileSystem) -> None:
        self._filesystem = filesystem

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        found: list[Data | BaseException] = sync(
            self._filesystem.loop, self._gather, requests, limit_s, timeout=limit_s + _LOOP_GRACE_S
        )
        return found

    async def _gather(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        attempts = (self._wait(self._get(request), limit_s) for request in requests)
        return await asyncio.gather(*attempts, return_exceptions=True)

    async def _wait(self, response: Coroutine[Any, Any, Data], limit_s: float) -> Data:
        try:
            return await asyncio.wait_for(response, limit_s)
        except TimeoutError as error:
            if str(error):
                raise
            message = f"no answer within {limit_s:.1f} s"
            raise TimeoutError(message) from None

    async def _get(self, request: Request) -> Data:
        cat_file = self._filesystem._cat_file  # noqa: SLF001 - the coroutine of `cat_file`
        return check_data(await cat_file(request.path, start=request.start, end=request.stop), request)


@final
class _S3fsClient(_AsyncClient):
    """Client of s3fs. It bypasses `cat_file`, which can't make a request conditional and has its own retries."""

    is_conditional = True

    async def _get(self, request: Request) -> Data:
        from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded already, together with s3fs
        from s3fs.errors import translate_boto_error  # noqa: PLC0415

        filesystem = self._filesystem
        bucket, key, version_id = filesystem.split_path(request.path)
        arguments = {"Bucket": bucket, "Key": key, "Range": f"bytes={request.start}-{request.stop - 1}"}
        if version_id:
            arguments["VersionId"] = version_id
        if request.version:
            arguments["IfMatch"] = request.version
        try:
            await filesystem.set_session()
            client = await filesystem.get_s3(bucket)
            # Adds the options that the filesystem sends with every request: requester pays, encryption keys.
            arguments = filesystem._get_s3_method_kwargs(client.get_object, **arguments)  # noqa: SLF001
            response = await client.get_object(**arguments)
            async with response["Body"] as body:
                # Before the body is read: a server that ignores the range sends the whole file, however long.
                check_version(request, response.get("ETag"))
                status = response["ResponseMetadata"].get("HTTPStatusCode", PARTIAL_CONTENT)
                check_content_range(request, status, response.get("ContentRange"))
                check_length(request, response.get("ContentLength"))
                data: bytes = await body.read()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"PreconditionFailed", "412"}:
                raise VersionError from error
            if is_transient(error):
                raise
            # A FileNotFoundError or PermissionError where one applies.
            raise translate_boto_error(error) from error
        return check_data(data, request)


@final
class _ObstoreClient(_AsyncClient):
    """Client of obstore's filesystem. It bypasses `cat_file`, which can't make a request conditional."""

    is_conditional = True
    survives_fork = False
    """All obstore clients share one thread pool, which a fork does not copy: requests would wait forever."""

    async def _get(self, request: Request) -> Data:
        bucket, key = self._filesystem._split_path(request.path)  # noqa: SLF001 - there is no public way to a bucket's store
        store = self._filesystem._construct_store(bucket)  # noqa: SLF001
        expected = (request.start, request.stop)
        options: dict[str, Any] = {"range": expected}
        if request.version:
            options["if_match"] = request.version
        try:
            response = await store.get_async(key, options=options)
            data = memoryview(await response.bytes_async())
        except Exception as error:
            # obstore is not a dependency, so its exception classes can't be imported here.
            if type(error).__name__ == "PreconditionError":
                raise VersionError from error
            raise
        check_version(request, response.meta.get("e_tag"))
        if tuple(response.range) != expected:
            message = f"{request.text}, received another range"
            raise ShortBodyError(message)
        return check_data(data, request)


class _BlockingClient:
    """Client of any other filesystem: each request blocks a thread, which is abandoned if it takes too long."""

    is_conditional, is_concurrent, survives_fork = False, False, True

    def __init__(self, read: Callable[[Request], Data]) -> None:
        self._read = read

    def fetch(self, requests: Sequence[Request], limit_s: float) -> list[Data | BaseException]:
        return run_within([partial(self._read_and_check, request) for request in requests], limit_s)

    def _read_and_check(self, request: Request) -> Data:
        return check_data(self._read(request), request)


@final
class _HubClient(_BlockingClient):
    """Client of the Hugging Face Hub."""

    is_conditional = True
    """Sources are pinned to a commit, which is a part of the paths of their files."""


@final
class _ArrowClient(_BlockingClient):
    """Client of a pyarrow filesystem. A few files stay open, because opening a file costs a request."""

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
            num_read = _read_into(data, file, request)
        except OSError as error:
            self._forget(path)
            for code, error_type in _ARROW_ERRORS.items():
                if code in str(error):
                    raise error_type(str(error)) from error
            raise
        except BaseException:
            self._forget(path)
            raise
        return data[:num_read]

    def _forget(self, path: str) -> None:
        with self._lock:
            self._open.pop(path, None)


def _read_into(data: memoryview, file: Any, request: Request) -> int:  # noqa: ANN401 - its class has no public name
    """Read the requested range into memory, and return the number of bytes read."""
    # pyarrow may report a short body as complete, and then leaves the end of the memory untouched. So the last byte is
    # marked: the body was short if both marker bytes survive. A single one may equal the last byte of the data.
    for marker in _MARKERS:
        data[-1] = marker
        num_read: int = file.get_stream(request.start, len(data)).readinto(data)
        if num_read < len(data) or data[-1] != marker:
            return num_read
    message = f"{request.text}, received fewer"
    raise ShortBodyError(message)

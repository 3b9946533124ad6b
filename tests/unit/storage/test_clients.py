"""Each filesystem gets the client that suits it. A client returns exactly the requested bytes, or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import pytest
import s3fs
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.http import HTTPFileSystem
from huggingface_hub import HfFileSystem

from laneway.storage.clients import _read_into, client_for
from laneway.storage.ranges import Request, ShortBodyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT = bytes(range(1, 201))


class TruncatedFile:
    """A pyarrow file whose responses lack some bytes at the end, and claim to be complete."""

    def __init__(self, content: bytes, num_missing: int) -> None:
        self._content, self._num_missing = content, num_missing

    def get_stream(self, _start: int, _num_bytes: int) -> TruncatedFile:
        return self

    def readinto(self, data: memoryview) -> int:
        num_read = len(data) - self._num_missing
        data[:num_read] = self._content[:num_read]
        return len(data)


def read(file: Any, data: bytearray) -> int:
    return _read_into(memoryview(data), file, Request("a", 0, len(data)))


@pytest.mark.parametrize("num_missing", [1, 5, 15, 16, 200])
def test_a_body_that_is_short_by_any_number_of_bytes_is_detected(num_missing: int) -> None:
    with pytest.raises(ShortBodyError, match="requested bytes 0 to 200"):
        read(TruncatedFile(CONTENT, num_missing), bytearray(200))


@pytest.mark.parametrize("last", range(256))
def test_a_body_is_complete_whatever_its_last_byte(last: int) -> None:
    content = CONTENT[:-1] + bytes([last])
    data = bytearray(200)
    assert read(TruncatedFile(content, 0), data) == 200
    assert data == content


class LikeObstore(AsyncFileSystem):  # type: ignore[misc]
    """An asynchronous filesystem that claims to be obstore's."""


LikeObstore.__module__ = "obstore.fsspec"


class DerivedDirectory(DirFileSystem):  # type: ignore[misc]
    """A directory whose methods may do anything."""


def _s3() -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(anon=True, skip_instance_cache=True)


@pytest.mark.parametrize(
    ("create", "client", "is_conditional", "is_concurrent", "survives_fork"),
    [
        (_s3, "_S3fsClient", True, True, True),
        (lambda: LikeObstore(skip_instance_cache=True), "_ObstoreClient", True, True, False),
        (lambda: HTTPFileSystem(skip_instance_cache=True), "_AsyncClient", False, True, True),
        # Its coroutines belong to the event loop of the user.
        (lambda: HTTPFileSystem(asynchronous=True, skip_instance_cache=True), "_BlockingClient", False, False, True),
        (lambda: ArrowFSWrapper(pyarrow.fs.LocalFileSystem()), "_ArrowClient", False, False, True),
        (HfFileSystem, "_HubClient", True, False, True),
        # A path below a directory doesn't say of which commit it is.
        (lambda: DirFileSystem("datasets/a/b", HfFileSystem()), "_DirectoryClient", False, False, True),
        (lambda: fsspec.filesystem("memory"), "_BlockingClient", False, False, True),
        (lambda: fsspec.filesystem("file"), "_BlockingClient", False, False, True),
        (lambda: DirFileSystem("bucket", _s3()), "_DirectoryClient", True, True, True),
        (lambda: DirFileSystem("a", DirFileSystem("b", _s3())), "_DirectoryClient", True, True, True),
        (lambda: DirFileSystem("a", LikeObstore(skip_instance_cache=True)), "_DirectoryClient", True, True, False),
        (lambda: DirFileSystem("/a", fsspec.filesystem("memory")), "_DirectoryClient", False, False, True),
        (lambda: DerivedDirectory("/a", fsspec.filesystem("memory")), "_BlockingClient", False, False, True),
    ],
)
def test_each_filesystem_has_its_client(
    create: Callable[[], Any], client: str, is_conditional: bool, is_concurrent: bool, survives_fork: bool
) -> None:
    found = client_for(create())
    assert type(found).__name__ == client
    assert (found.is_conditional, found.is_concurrent, found.survives_fork) == (
        is_conditional,
        is_concurrent,
        survives_fork,
    )


@pytest.mark.parametrize("kind", ["local", "memory", "arrow", "directory", "nested", "derived"])
def test_every_client_returns_bytes_or_errors_in_the_order_of_the_requests(data: Path, memory: str, kind: str) -> None:
    root = memory.removeprefix("memory:/")
    local, in_memory = fsspec.filesystem("file"), fsspec.filesystem("memory")
    filesystem, path = {
        "local": (local, f"{data}/a.bin"),
        "memory": (in_memory, f"{root}/a.bin"),
        "arrow": (ArrowFSWrapper(pyarrow.fs.LocalFileSystem()), f"{data}/a.bin"),
        "directory": (DirFileSystem(root, in_memory), "a.bin"),
        "nested": (DirFileSystem(data.name, DirFileSystem(str(data.parent), local)), "a.bin"),
        "derived": (DerivedDirectory(root, in_memory), "a.bin"),
    }[kind]
    requests = [Request(path, 1, 4), Request(f"{path}.missing", 0, 3), Request(path, 95, 105), Request(path, 0, 100)]
    first, missing, short, whole = client_for(filesystem).fetch(requests, 10)
    assert not isinstance(first, BaseException)
    assert not isinstance(whole, BaseException)
    assert (bytes(first), bytes(whole)) == (bytes([1, 2, 3]), bytes(range(100)))
    assert isinstance(missing, FileNotFoundError)
    assert isinstance(short, ShortBodyError)
    assert str(short) == "requested bytes 95 to 105 (10 bytes), received 5 bytes"

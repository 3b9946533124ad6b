"""Filesystems, ranges and secrets."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import pickle
import threading
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway.errors import DataFileError
from laneway.storage.filesystem import Storage
from laneway.storage.retries import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "canary-4711"
TWICE = RetryPolicy(max_attempts=2, first_delay_s=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(bytes(range(100)))
    (tmp_path / "deep" / "_hidden").mkdir(parents=True)
    (tmp_path / "deep" / "b.bin").write_bytes(b"b")
    (tmp_path / "deep" / "_hidden" / "c.bin").write_bytes(b"c")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/laneway-storage/a.bin", bytes(range(100)))
    yield "memory://laneway-storage"
    filesystem.rm("/laneway-storage", recursive=True)


class BrokenFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Fails as the clients of object stores do, telling more than they should."""

    protocol = "broken"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 100, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if path.endswith("short"):
            return b"x" * ((end or 0) - (start or 0) - 1)
        if path.endswith("forbidden"):
            raise PermissionError(13, "AccessDenied", path)
        message = f"can't reach https://user:{CANARY}@store.example/{path}?X-Amz-Signature={CANARY}"
        raise RuntimeError(message)


def test_a_relative_path_and_a_home_directory_become_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    monkeypatch.setenv("HOME", str(data))
    assert Storage("deep").root == str(data / "deep")
    assert Storage("~/deep").root == str(data / "deep")
    assert Storage(Path("~/deep")).root == str(data / "deep")
    assert Storage(data / "deep").is_local
    assert Storage("deep", pyarrow.fs.LocalFileSystem()).root == str(data / "deep")


def test_a_range_has_exactly_the_bytes_that_were_asked_for(data: Path, memory: str) -> None:
    for storage in (
        Storage(data),
        Storage(memory),
        Storage(str(data), pyarrow.fs.SubTreeFileSystem("/", pyarrow.fs.LocalFileSystem())),
    ):
        path = storage.join("a.bin")
        assert storage.size(path) == 100
        assert storage.read_range(path, 10, 20) == bytes(range(10, 20))
        assert storage.read_range(path, 0, 5) == bytes(range(5))
        assert storage.read_range(path, 10, 10) == b""
        with pytest.raises(DataFileError, match=r"a\.bin is cut short: bytes 90 to 110 .* and 10 came"):
            storage.read_range(path, 90, 110)


def test_a_short_body_is_an_error_and_never_data() -> None:
    storage = Storage("dir", BrokenFileSystem(), retries=TWICE)
    with pytest.raises(
        DataFileError,
        match=r"short is cut short \(tried 2 times in .* s\): bytes 10 to 20 were asked for, 10 of them, and 9 came",
    ):
        storage.read_range("dir/short", 10, 20)


def test_missing_and_forbidden_files_are_named(data: Path, memory: str) -> None:
    for place in (data, memory):
        storage = Storage(place)
        for read in (partial(storage.read_range, start=0, stop=1), storage.size):
            with pytest.raises(DataFileError, match=r"gone\.bin does not exist"):
                read(storage.join("gone.bin"))
    with pytest.raises(DataFileError, match="dir/forbidden can't be read, permission denied"):
        Storage("dir", BrokenFileSystem()).read_range("dir/forbidden", 0, 1)


def test_no_secret_gets_into_a_repr_an_error_or_its_traceback() -> None:
    storage = Storage("dir/file", BrokenFileSystem(token=CANARY))
    with pytest.raises(DataFileError, match=r"can't reach https://store\.example/dir/file") as caught:
        storage.read_range("dir/file", 0, 1)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in repr(storage)
    url = Storage(f"https://user:{CANARY}@store.example/dir/a.parquet?X-Amz-Signature={CANARY}")
    assert url.display(url.root) == "https://store.example/dir/a.parquet"
    assert CANARY not in repr(url)
    options = Storage("s3://bucket/dir", storage_options={"key": "k", "secret": CANARY})
    assert repr(options) == "Storage('s3://bucket/dir')"


def test_the_query_of_a_url_goes_into_requests_only() -> None:
    storage = Storage("https://store.example/a.parquet?sig=1")
    assert storage.root == "https://store.example/a.parquet"
    assert storage._asked(storage.root) == "https://store.example/a.parquet?sig=1"


def test_listing_finds_files_and_leaves_hidden_directories_alone(data: Path) -> None:
    storage = Storage(data)
    found = sorted(storage.find(str(data)))
    assert [(entry.path, entry.size) for entry in found] == [(str(data / "a.bin"), 100), (str(data / "deep/b.bin"), 1)]
    assert found[0].version == str((data / "a.bin").stat().st_mtime_ns)
    assert storage.info(str(data / "deep")) is not None
    assert storage.info(str(data / "gone")) is None
    with pytest.raises(DataFileError, match="gone does not exist"):
        storage.find(str(data / "gone"))


def test_a_link_to_a_directory_above_is_not_followed_for_ever(data: Path) -> None:
    (data / "deep" / "loop").symlink_to(data)
    (data / "link").symlink_to(data / "deep" / "_hidden")
    found = sorted(entry.path for entry in Storage(data).find(str(data)))
    assert found == [str(data / "a.bin"), str(data / "deep/b.bin"), str(data / "link/c.bin")]


def test_a_written_file_is_replaced_at_once_and_leaves_nothing_behind(data: Path, memory: str) -> None:
    for storage in (Storage(data), Storage(memory)):
        for content in (b"old", b"new"):
            storage.write(storage.join("new.bin"), content)
            assert storage.read_range(storage.join("new.bin"), 0, 3) == content
    assert sorted(path.name for path in data.iterdir()) == ["a.bin", "deep", "new.bin"]
    with pytest.raises(DataFileError, match="/gone does not exist"):
        Storage(data).write(f"{data}/gone/new.bin", b"")


def _facts(storage: Storage, path: str) -> tuple[int, bytes]:
    return id(storage.filesystem), storage.read_range(path, 1, 4)


def _send_facts(storage: Storage, path: str, results: Any) -> None:
    results.put(_facts(storage, path))


@pytest.mark.parametrize("place", ["local", "memory", "given", "arrow"])
def test_a_forked_child_reads_with_a_filesystem_of_its_own(data: Path, memory: str, place: str) -> None:
    storage = {
        "local": lambda: Storage(data),
        "memory": lambda: Storage(memory),
        "given": lambda: Storage("", DirFileSystem(str(data), fsspec.filesystem("file", skip_instance_cache=True))),
        "arrow": lambda: Storage("", pyarrow.fs.SubTreeFileSystem(str(data), pyarrow.fs.LocalFileSystem())),
    }[place]()
    path = storage.join("a.bin")
    mine = _facts(storage, path)
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    child = fork.Process(target=_send_facts, args=(storage, path, results))
    child.start()
    theirs = results.get()
    child.join()
    assert theirs[1] == mine[1] == bytes([1, 2, 3])
    if place in ("given", "arrow"):
        assert theirs[0] != mine[0]


def test_a_pickled_storage_carries_no_live_filesystem(data: Path, memory: str) -> None:
    for storage in (Storage(data), Storage(memory), Storage("", DirFileSystem(str(data)))):
        assert storage.filesystem is storage.filesystem
        copy = pickle.loads(pickle.dumps(storage))
        assert copy._made is None
        assert copy.read_range(copy.join("a.bin"), 1, 4) == bytes([1, 2, 3])
        assert copy.root == storage.root


def test_a_filesystem_and_options_exclude_each_other(data: Path) -> None:
    with pytest.raises(ValueError, match="give them or filesystem, not both"):
        Storage(data, fsspec.filesystem("memory"), {"key": CANARY})
    with pytest.raises(TypeError, match="filesystem is a str"):
        Storage(data, "memory")


def test_a_file_object_reads_what_it_is_asked_for(data: Path) -> None:
    file = Storage(data).open(str(data / "a.bin"), 100)
    assert (file.seek(-3, os.SEEK_END), file.read(), file.read(5)) == (97, bytes([97, 98, 99]), b"")
    assert (file.seek(10), file.read(2), file.tell(), file.seek(1, os.SEEK_CUR)) == (
        10,
        bytes([10, 11]),
        12,
        13,
    )


def test_a_server_that_ignores_ranges_is_found_out(data: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(data))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            storage = Storage(f"http://127.0.0.1:{server.server_port}/a.bin?token={CANARY}", retries=TWICE)
            assert storage.read_range(storage.root, 0, 100) == bytes(range(100))
            with pytest.raises(DataFileError, match=r"10 of them, and 100 came") as caught:
                storage.read_range(storage.root, 10, 20)
            assert CANARY not in str(caught.value)
            gone = Storage(f"http://127.0.0.1:{server.server_port}/gone.bin?token={CANARY}")
            with pytest.raises(DataFileError, match=r"gone\.bin does not exist") as caught:
                gone.read_range(gone.root, 0, 20)
            assert CANARY not in "".join(traceback.format_exception(caught.value))
        finally:
            server.shutdown()
            thread.join()

"""The filesystem of a process: paths, forks, pickles, secrets."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway.storage.filesystem import Storage
from laneway.storage.reading import read_range

CANARY = "canary-4711"


def test_a_relative_path_and_a_home_directory_become_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    monkeypatch.setenv("HOME", str(data))
    assert Storage("deep").root == str(data / "deep")
    assert Storage("~/deep").root == str(data / "deep")
    assert Storage(Path("~/deep")).root == str(data / "deep")
    assert Storage(data / "deep").is_local
    assert Storage("deep", pyarrow.fs.LocalFileSystem()).root == str(data / "deep")


def test_no_secret_reaches_a_repr_or_a_path_in_a_message() -> None:
    given = Storage("dir/file", fsspec.filesystem("memory", token=CANARY, skip_instance_cache=True))
    assert CANARY not in repr(given)
    url = Storage(f"https://user:{CANARY}@store.example/dir/a.parquet?X-Amz-Signature={CANARY}")
    assert url.redact(url.root) == "https://store.example/dir/a.parquet"
    assert CANARY not in repr(url)
    options = Storage("s3://bucket/dir", storage_options={"key": "k", "secret": CANARY})
    assert repr(options) == "Storage('s3://bucket/dir')"


def test_the_query_of_a_url_is_part_of_requests_only() -> None:
    storage = Storage("https://store.example/a.parquet?sig=1")
    assert storage.root == "https://store.example/a.parquet"
    assert storage.request_path(storage.root) == "https://store.example/a.parquet?sig=1"


def _facts(storage: Storage, path: str) -> tuple[int, bytes]:
    return id(storage.filesystem), read_range(storage, path, 1, 4)


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
        assert copy._connection is None
        assert read_range(copy, copy.join("a.bin"), 1, 4) == bytes([1, 2, 3])
        assert copy.root == storage.root


def test_a_filesystem_and_options_exclude_each_other(data: Path) -> None:
    with pytest.raises(ValueError, match="give them or filesystem, not both"):
        Storage(data, fsspec.filesystem("memory"), {"key": CANARY})
    with pytest.raises(TypeError, match="filesystem is a str"):
        Storage(data, "memory")

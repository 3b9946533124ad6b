"""Writing files atomically."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway.errors import DataFileError
from laneway.storage.filesystem import Storage
from laneway.storage.reading import read_range, read_small_file
from laneway.storage.writing import create_file, write_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_written_file_replaces_the_old_one_and_leaves_no_temporary_file(data: Path, memory: str) -> None:
    for storage in (Storage(data), Storage(memory)):
        for content in (b"old", b"new"):
            write_file(storage, storage.join("new.bin"), content)
            assert read_range(storage, storage.join("new.bin"), 0, 3) == content
    assert sorted(path.name for path in data.iterdir()) == ["a.bin", "deep", "new.bin"]
    with pytest.raises(DataFileError, match=r"/gone/new.bin can't be written, its directory is missing"):
        write_file(Storage(data), f"{data}/gone/new.bin", b"")


def test_of_several_that_create_a_file_at_once_one_succeeds(data: Path, memory: str) -> None:
    for storage in (Storage(data), Storage(memory)):
        path = storage.join("once.bin")
        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lambda content: create_file(storage, path, bytes([content])), range(8))]  # noqa: B023
        assert sum(found) == 1
        assert read_small_file(storage, path) == bytes([found.index(True)])
    with pytest.raises(DataFileError, match=r"/gone/new.bin can't be written, its directory is missing"):
        create_file(Storage(data), f"{data}/gone/new.bin", b"")


def test_a_filesystem_without_conditional_writes_looks_first(memory: str) -> None:
    storage = Storage("sub", DirFileSystem(memory, fsspec.filesystem("memory")))
    assert [create_file(storage, storage.join("once.bin"), each) for each in (b"first", b"second")] == [True, False]
    assert read_small_file(storage, storage.join("once.bin")) == b"first"
    assert read_small_file(storage, storage.join("none.bin")) is None

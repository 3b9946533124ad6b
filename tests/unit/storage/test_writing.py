"""Writing files atomically."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laneway.errors import DataFileError
from laneway.storage.filesystem import Storage
from laneway.storage.reading import read_range
from laneway.storage.writing import write_file

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

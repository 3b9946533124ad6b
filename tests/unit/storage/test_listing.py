"""Listing directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laneway.errors import DataFileError
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files

if TYPE_CHECKING:
    from pathlib import Path


def test_a_listing_finds_files_and_skips_hidden_directories(data: Path) -> None:
    storage = Storage(data)
    found = sorted(find_files(storage, str(data)))
    assert [(entry.path, entry.size) for entry in found] == [(str(data / "a.bin"), 100), (str(data / "deep/b.bin"), 1)]
    assert found[0].version == str((data / "a.bin").stat().st_mtime_ns)
    assert get_entry(storage, str(data / "deep")) is not None
    assert get_entry(storage, str(data / "gone")) is None
    with pytest.raises(DataFileError, match="gone does not exist"):
        find_files(storage, str(data / "gone"))


def test_a_link_to_an_ancestor_is_not_followed_forever(data: Path) -> None:
    (data / "deep" / "loop").symlink_to(data)
    (data / "link").symlink_to(data / "deep" / "_hidden")
    found = sorted(entry.path for entry in find_files(Storage(data), str(data)))
    assert found == [str(data / "a.bin"), str(data / "deep/b.bin"), str(data / "link/c.bin")]

"""Metadata of a path: kind, size, version, and whether two versions differ."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from laneway.errors import DataFileError
from laneway.storage.entries import (
    Entry,
    entry_of_info,
    file_size,
    get_entry,
    request_info,
    version_of_info,
    versions_differ,
)
from laneway.storage.filesystem import Storage
from laneway.storage.retries import RetryPolicy

if TYPE_CHECKING:
    from pathlib import Path

ONCE = RetryPolicy(max_attempts=1)


class ReportingFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Reports the metadata that a test gives it, and records the calls."""

    protocol = "reporting"
    cachable = False

    def __init__(self, info: dict[str, Any] | Exception) -> None:
        super().__init__()
        self.reported = info
        self.calls: list[str] = []

    def invalidate_cache(self, path: str | None = None) -> None:
        self.calls.append(f"invalidate {path}")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.calls.append(f"info {path}")
        if isinstance(self.reported, Exception):
            raise self.reported
        return self.reported


def reporting(info: dict[str, Any] | Exception) -> Storage:
    return Storage("bucket", ReportingFileSystem(info), retries=ONCE)


def test_a_local_path_is_a_file_a_directory_something_else_or_missing(data: Path) -> None:
    storage = Storage(data)
    os.mkfifo(data / "pipe")
    os.utime(data / "a.bin", ns=(7, 1_234_567_890_123_456_789))
    path = str(data / "a.bin")
    assert get_entry(storage, path) == Entry(path, "file", 100, "1234567890123456789")
    for name, kind in (("deep", "directory"), ("pipe", "other")):
        entry = get_entry(storage, str(data / name))
        assert entry is not None
        assert entry.kind == kind
    assert get_entry(storage, str(data / "missing")) is None


def test_a_remote_path_is_a_file_a_directory_or_missing(memory: str) -> None:
    storage = Storage(memory)
    entry = get_entry(storage, storage.join("a.bin"))
    assert entry is not None
    assert (entry.path, entry.kind, entry.size) == ("/laneway-storage/a.bin", "file", 100)
    assert entry.version.isdigit()
    assert get_entry(storage, storage.root) == Entry("/laneway-storage", "directory", 0, "")
    assert get_entry(storage, storage.join("missing")) is None


def test_metadata_that_cannot_be_read_is_an_error_that_names_the_path() -> None:
    storage = reporting(PermissionError("no"))
    for look_up in (get_entry, file_size):
        with pytest.raises(DataFileError, match="bucket/a can't be read, permission denied: no"):
            look_up(storage, "bucket/a")


def test_a_missing_file_has_no_size(data: Path, memory: str) -> None:
    for storage in (Storage(data), Storage(memory)):
        assert file_size(storage, storage.join("a.bin")) == 100
        with pytest.raises(DataFileError, match=r"missing does not exist"):
            file_size(storage, storage.join("missing"))


def test_metadata_is_never_taken_from_a_cached_listing() -> None:
    storage = reporting({"type": "file", "size": 3, "ETag": "abc"})
    assert request_info(storage, "bucket/a")["size"] == 3
    assert isinstance(storage.filesystem, ReportingFileSystem)
    assert storage.filesystem.calls == ["invalidate None", "info bucket/a"]


def test_only_a_missing_size_is_requested() -> None:
    storage = reporting({"type": "file", "size": 3})
    filesystem = storage.filesystem
    assert isinstance(filesystem, ReportingFileSystem)
    assert entry_of_info(storage, "a", {"type": "file", "size": 5, "ETag": "x"}) == Entry("a", "file", 5, "x")
    assert entry_of_info(storage, "a", {"type": "file", "size": 0}) == Entry("a", "file", 0, "")
    assert entry_of_info(storage, "a", {"type": "directory", "size": None}) == Entry("a", "directory", 0, "")
    assert filesystem.calls == []
    assert entry_of_info(storage, "a", {"type": "file", "size": None}) == Entry("a", "file", 3, "")
    assert filesystem.calls == ["invalidate None", "info a"]


NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)
NOON_NS = "1719835200000000000"


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({}, ""),
        ({"ETag": '"abc"'}, '"abc"'),
        ({"etag": "abc"}, "abc"),
        ({"e_tag": "abc"}, "abc"),
        ({"blob_id": "abc"}, "abc"),
        ({"mtime": 1.5}, "1500000000"),
        ({"mtime": NOON}, NOON_NS),
        ({"LastModified": NOON}, NOON_NS),
        ({"last_modified": NOON}, NOON_NS),
        ({"updated": "2024-07-01T12:00:00Z"}, "2024-07-01T12:00:00Z"),
        ({"created": NOON}, NOON_NS),
        ({"mtime": 0, "ETag": None, "created": NOON}, NOON_NS),
        ({"created": 1.0, "updated": 2.0, "mtime": 3.0}, "3000000000"),
        ({"mtime": 3.0, "blob_id": "blob", "etag": "tag"}, "tag"),
        ({"mtime": 3.0, "blob_id": "blob"}, "blob"),
    ],
)
def test_the_version_is_the_most_reliable_value_that_the_storage_reports(info: dict[str, Any], version: str) -> None:
    assert version_of_info(info) == version


@pytest.mark.parametrize(
    ("version", "other", "differ"),
    [
        ("abc", "abc", False),
        ("abc", "abd", True),
        ('"abc"', "abc", False),
        ("abc", "", False),
        ("5000000000", "", False),
        ("5000000000", "5999999999", False),
        ("5000000000", "6000000000", True),
        ("abc", "5000000000", False),
        ("5000000000", "abc", False),
    ],
)
def test_only_two_etags_or_two_times_in_seconds_can_differ(version: str, other: str, differ: bool) -> None:
    assert versions_differ(version, other) == differ

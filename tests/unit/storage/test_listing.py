"""Listing directories."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest

from laneway.errors import DataFileError
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files, glob_files, list_directory

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


def test_pipes_and_sockets_are_passed_over_and_named_in_the_log_also_through_a_link(
    data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(data / "_pipe.parquet")
    os.mkfifo(data / "pipe.parquet")
    (data / "link.parquet").symlink_to(data / "_pipe.parquet")
    (data / "device.parquet").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(data)  # the path of a socket must be short
        server.bind("socket.parquet")
    expected = {str(data / "a.bin"), str(data / "deep/b.bin")}
    for find, path in ((find_files, str(data)), (glob_files, f"{data}/*")):
        assert {entry.path for entry in find(Storage(data), path)} == expected
        named = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert sorted(named) == [
            f"{data}/{name} is skipped: it is a pipe, a socket or a device"
            for name in ("device.parquet", "link.parquet", "pipe.parquet", "socket.parquet")
        ]
        caplog.clear()


def test_broken_links_do_not_make_a_directory_unreadable(data: Path) -> None:
    (data / "self.parquet").symlink_to(data / "self.parquet")
    (data / "gone.parquet").symlink_to(data / "nowhere")
    (data / "below.parquet").symlink_to(data / "a.bin" / "x")
    broken = {str(data / name) for name in ("self.parquet", "gone.parquet", "below.parquet")}
    for found in (find_files(Storage(data), str(data)), glob_files(Storage(data), f"{data}/*")):
        assert {entry.path for entry in found} == {str(data / "a.bin"), str(data / "deep/b.bin"), *broken}
        assert {(entry.size, entry.version) for entry in found if entry.path in broken} == {(0, "")}


def test_a_file_that_is_removed_during_a_listing_is_left_out_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "gone.bin").write_bytes(b"x")
    scandir = os.scandir

    def scan_and_remove(directory: str) -> list[os.DirEntry[str]]:
        entries = list(scandir(directory))
        (data / "gone.bin").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(os, "scandir", scan_and_remove)
    assert [entry.path for entry in list_directory(Storage(data), str(data))] == [
        str(data / "a.bin"),
        str(data / "deep"),
    ]
    (data / "gone.bin").write_bytes(b"x")
    assert {entry.path for entry in find_files(Storage(data), str(data))} == {
        str(data / "a.bin"),
        str(data / "deep/b.bin"),
    }

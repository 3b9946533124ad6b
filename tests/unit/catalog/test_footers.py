"""Reading the metadata of many files."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from laneway.catalog import footers
from laneway.catalog.sources import find_data_files
from laneway.errors import DataFileError
from tests.corpora import KINDS, Kind, write_corpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slow_file_s", [-1.0, 60.0])
def test_slow_and_fast_disks_give_the_same_scans_and_leave_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, slow_file_s: float
) -> None:
    write_corpus(tmp_path, kind, tuple((1 + index % 5,) for index in range(40)))
    found = find_data_files(tmp_path)
    before = set(threading.enumerate())
    threads = set()
    scan = type(found.format).scan

    def record_thread(self: object, *args: object) -> object:
        threads.add(threading.current_thread())
        return scan(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(found.format), "scan", record_thread)
    monkeypatch.setattr(footers, "_SLOW_FILE_S", slow_file_s)
    scans = footers.read_footers(found, range(3, 40), progress=False)
    assert [each.block_rows for each in scans] == [[1 + index % 5] for index in range(3, 40)]
    assert (threads == {threading.main_thread()}) == (slow_file_s > 0)
    assert set(threading.enumerate()) <= before

    (tmp_path / found.paths[7]).unlink()
    (tmp_path / found.paths[30]).unlink()
    with pytest.raises(DataFileError, match=rf"{found.paths[7]} does not exist \(1 more of 40 files failed\)"):
        footers.read_footers(found, range(40), progress=False)

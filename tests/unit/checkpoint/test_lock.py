"""One writer per folder."""

from __future__ import annotations

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from laneway.checkpoint import lock as locking
from laneway.checkpoint.lock import WriterLock
from laneway.errors import CheckpointError
from laneway.storage.filesystem import Storage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "BEAT_S", 0.05)
    monkeypatch.setattr(locking, "STALE_S", 0.5)


def test_a_second_writer_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    first, second = WriterLock(Storage(tmp_path)), WriterLock(Storage(tmp_path))
    first.acquire("error")
    with pytest.raises(CheckpointError, match=r"another Checkpoints of this process, .* writes .*: close\(\) it first"):
        second.acquire("error")
    first.release()
    second.acquire("error")
    second.check()
    second.release()
    assert not [*tmp_path.iterdir()]


def test_of_several_that_begin_at_once_one_becomes_the_writer(tmp_path: Path) -> None:
    locks = [WriterLock(Storage(tmp_path)) for _ in range(4)]

    def is_writer(writer: WriterLock) -> bool:
        try:
            writer.acquire("error")
        except CheckpointError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(is_writer, locks)) == 1
    for each in locks:
        each.release()


def test_a_writer_of_this_host_that_was_killed_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(60)
    dead = {"owner": "x", "host": socket.gethostname(), "pid": ended.pid, "beat": 3}
    (tmp_path / "writer.json").write_text(json.dumps(dead))
    monkeypatch.setattr(locking, "STALE_S", 1e6)
    after = WriterLock(Storage(tmp_path))
    after.acquire("error")
    after.release()


def test_a_writer_of_another_host_is_replaced_when_it_is_silent(tmp_path: Path) -> None:
    dead = {"owner": "x", "host": "elsewhere", "pid": 1, "beat": 3}
    (tmp_path / "writer.json").write_text(json.dumps(dead))
    after = WriterLock(Storage(tmp_path))
    after.acquire("error")
    after.release()


def test_a_damaged_file_is_that_of_a_writer_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "writer.json").write_text("{")
    after = WriterLock(Storage(tmp_path))
    after.acquire("error")
    after.release()


def test_a_writer_that_was_replaced_learns_it(tmp_path: Path) -> None:
    first = WriterLock(Storage(tmp_path))
    first.acquire("error")
    (tmp_path / "writer.json").write_text(json.dumps({"owner": "x", "host": "elsewhere", "pid": 7, "beat": 0}))
    first.renew()
    with pytest.raises(CheckpointError, match="process 7 on elsewhere has taken over"):
        first.check()
    first.release()
    assert (tmp_path / "writer.json").exists()

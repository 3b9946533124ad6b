"""kill -9 any rank at any time and restart on fewer: every row counts exactly once relative to the last checkpoint."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.compat.loaders import FORKSERVER
from tests.corpora import UNEQUAL_FILES, write_corpus
from tests.distributed.train_and_be_killed import LOST_A_RANK, Incarnation, arguments_for_torchrun, join_group

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 120.0
"""Time after which the test gives up."""
FILES = UNEQUAL_FILES * 8
"""Enough rows to kill a job three times before it has delivered them."""
NUM_ROWS = 8 * 48


class Processes:
    """Ranks started by the test."""

    def __init__(self, world_size: int, incarnation: Incarnation) -> None:
        # Not daemonic, or they could not have workers.
        self._ranks = [
            FORKSERVER.Process(target=join_group, args=(rank, world_size, incarnation), daemon=False)
            for rank in range(world_size)
        ]
        for rank in self._ranks:
            rank.start()

    def kill(self, rank: int) -> None:
        self._ranks[rank].kill()
        self._ranks[rank].join(PATIENCE_S)
        assert self._ranks[rank].exitcode == -signal.SIGKILL
        # The others may notice, or wait for it until the job is stopped.
        for survivor in self._ranks:
            survivor.join(0.2)
            survivor.kill()
            survivor.join(PATIENCE_S)
            assert survivor.exitcode in {LOST_A_RANK, -signal.SIGKILL}

    def finish(self) -> None:
        for rank in self._ranks:
            rank.join(PATIENCE_S)
            assert rank.exitcode == 0

    def check(self) -> None:
        assert [rank.exitcode for rank in self._ranks] == [None] * len(self._ranks)

    def stop(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.join()
            rank.close()


class Torchrun:
    """Ranks started by torchrun."""

    def __init__(self, world_size: int, incarnation: Incarnation) -> None:
        self._incarnation = incarnation
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen([*torchrun, *arguments_for_torchrun(incarnation)], env=environment)

    def kill(self, rank: int) -> None:
        while not (logged := lines(self._incarnation.log(rank))):
            self.check()
            sleep(0.01)
        os.kill(logged[0], signal.SIGKILL)
        assert self._process.wait(PATIENCE_S) != 0

    def finish(self) -> None:
        assert self._process.wait(PATIENCE_S) == 0

    def check(self) -> None:
        assert self._process.poll() is None

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def lines(log: Path) -> list[Any]:
    """Return the entries of a log; a rank killed while writing leaves half a line."""
    if not log.exists():
        return []
    text = log.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def rows_logged(incarnation: Incarnation, world_size: int, num_saves: int | None = None) -> list[int]:
    """Return the row ids that all ranks of an incarnation have logged; with `num_saves`, before that save began."""
    found = []
    for rank in range(world_size):
        for entry in lines(incarnation.log(rank))[1:]:
            if "save" not in entry:
                found += entry["ids"]
            elif entry["save"] == num_saves:
                break
    return found


def wait_for_rows(num_rows: float, job: Processes | Torchrun, incarnation: Incarnation, world_size: int) -> None:
    """Wait until an incarnation has logged `num_rows`; fail if one of its ranks ends before."""
    deadline = monotonic() + PATIENCE_S
    while len(rows_logged(incarnation, world_size)) < num_rows:
        job.check()
        assert monotonic() < deadline
        sleep(0.002)


def rows_saved(incarnation: Incarnation, world_size: int) -> list[int]:
    """Return the row ids that an incarnation delivered before its last checkpoint."""
    if not incarnation.checkpoint.exists():
        return []
    saved = torch.load(incarnation.checkpoint, weights_only=True)
    if saved["incarnation"] != incarnation.index:
        return []
    return rows_logged(incarnation, world_size, saved["save"])


def rows_that_count(
    folder: Path,
    generator: random.Random,
    start: type[Processes | Torchrun],
    *,
    world_size: int,
    num_kills: int,
    is_filtered: bool = False,
) -> list[int]:
    """Run a job to the end of its epoch, on one rank fewer after each kill; return the rows that survived."""
    write_corpus(folder / "corpus", files=FILES)
    in_rows = generator.random() < 0.5
    num_workers = generator.randrange(3)
    counted: list[int] = []
    num_rows = NUM_ROWS // 2 if is_filtered else NUM_ROWS
    for index in range(num_kills):
        incarnation = Incarnation(index, str(folder), num_workers, in_rows, is_doomed=True, is_filtered=is_filtered)
        job = start(world_size, incarnation)
        num_awaited = generator.random() * 0.7 * (num_rows - len(counted))
        try:
            wait_for_rows(num_awaited, job, incarnation, world_size)
            sleep(generator.random() * 0.02)
            job.kill(generator.randrange(world_size))
        finally:
            job.stop()
        counted += rows_saved(incarnation, world_size)
        world_size -= 1
        num_workers = (num_workers + generator.randint(1, 2)) % 3
    last = Incarnation(num_kills, str(folder), num_workers, in_rows, is_doomed=False, is_filtered=is_filtered)
    job = start(world_size, last)
    try:
        job.finish()
    finally:
        job.stop()
    return counted + rows_logged(last, world_size)


@pytest.mark.parametrize("seed", range(8))
def test_every_row_counts_once_whichever_rank_is_killed_whenever(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    num_kills = generator.randint(2, 3)
    rows = rows_that_count(tmp_path, generator, Processes, world_size=num_kills + 1, num_kills=num_kills)
    assert sorted(rows) == list(range(NUM_ROWS))


@pytest.mark.parametrize("seed", range(2))
def test_every_selected_row_counts_once_whichever_rank_is_killed(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    rows = rows_that_count(tmp_path, generator, Processes, world_size=3, num_kills=2, is_filtered=True)
    assert sorted(rows) == list(range(1, NUM_ROWS, 2))


def test_every_row_counts_once_when_torchrun_restarts_with_fewer_ranks(tmp_path: Path) -> None:
    rows = rows_that_count(tmp_path, random.Random(0), Torchrun, world_size=3, num_kills=2)
    assert sorted(rows) == list(range(NUM_ROWS))

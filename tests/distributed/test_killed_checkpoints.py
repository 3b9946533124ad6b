"""kill -9 one rank or all while they save: there is always a complete checkpoint, and the resumed job is bit-equal."""

from __future__ import annotations

import json
import random
import signal
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

from laneway import Checkpoints
from tests.corpora import UNEQUAL_FILES, write_corpus
from tests.distributed.ranks import RANK_CONTEXT
from tests.distributed.save_and_be_killed import Start, run
from tests.fuzzing import num_cases

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 600.0
KILLS_PER_RUN = 4


class Job:
    """The ranks of one start."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self._ranks = [RANK_CONTEXT.Process(target=run, args=(rank, start)) for rank in range(start.world_size)]
        for rank in self._ranks:
            rank.start()

    def kill(self, rank: int, pause_s: float) -> None:
        """Kill one rank, and the others a while later, as a scheduler does."""
        self._ranks[rank].kill()
        sleep(pause_s)
        for each in self._ranks:
            each.kill()
            each.join(PATIENCE_S)
        assert self._ranks[rank].exitcode == -signal.SIGKILL

    def finish(self) -> None:
        for rank in self._ranks:
            rank.join(PATIENCE_S)
            assert rank.exitcode == 0

    def entries(self, rank: int) -> list[dict[str, Any]]:
        """Return what a rank has logged; one that was killed while writing leaves half a line."""
        log = self.start.log(rank)
        text = log.read_text() if log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def resumed_after(self) -> int | None:
        """Return the step after which the ranks resumed, or None if one of them was killed before."""
        found = [entries[0]["resumed after"] if (entries := self.entries(rank)) else None for rank in self.ranks]
        known = {each for each in found if each is not None}
        assert len(known) <= 1, "ranks resumed from different checkpoints"
        return known.pop() if known else None

    @property
    def ranks(self) -> range:
        return range(self.start.world_size)

    def steps(self, rank: int) -> dict[int, tuple[list[int], float]]:
        """Return step -> (row ids, loss)."""
        return {each["step"]: (each["ids"], each["loss"]) for each in self.entries(rank) if "step" in each}

    def saved(self) -> list[int]:
        """Return the steps for which `save` has returned on a rank, in order."""
        return sorted({each["saved"] for rank in self.ranks for each in self.entries(rank) if "saved" in each})

    def wait_for(self, num_steps: float) -> None:
        """Wait until so many steps were trained, or all there are."""
        deadline = monotonic() + PATIENCE_S
        while len(self.steps(0)) < num_steps and not any("ended" in each for each in self.entries(0)):
            if not all(each.is_alive() for each in self._ranks):
                break
            assert monotonic() < deadline
            sleep(0.002)


def check_kills(
    folder: Path, generator: random.Random, url: str | None = None, options: dict[str, Any] | None = None
) -> None:
    """Kill a job several times, let it finish, and compare all that counts with a job that was not killed."""
    write_corpus(folder / "corpus", files=UNEQUAL_FILES * 8)
    world_size, async_save = generator.choice([1, 2, 3]), generator.random() < 0.5

    def started(index: int, *, is_doomed: bool) -> Job:
        return Job(Start(index, str(folder), world_size, async_save, is_doomed, url, options))

    jobs: list[Job] = []
    durable = -1
    """The newest step of which a checkpoint must exist."""
    for index in range(KILLS_PER_RUN):
        job = started(index, is_doomed=True)
        jobs.append(job)
        job.wait_for(generator.uniform(0, 20))
        sleep(generator.uniform(0, 0.05))
        job.kill(generator.randrange(world_size), generator.choice([0.0, 0.02, 0.2]))
        resumed = job.resumed_after()
        if resumed is not None:
            assert resumed >= durable
            durable = max(durable, resumed)
        # With async_save, the last save may not have been written.
        saved = job.saved()
        durable = max([durable, *(saved[:-1] if async_save else saved)])
        with Checkpoints(url or folder / "run", storage_options=options) as checkpoints:
            steps = [each.step for each in checkpoints.list()]
            assert durable < 0 or steps[-1] >= durable
            for step in steps:
                checkpoints.verify(step)
    jobs.append(started(KILLS_PER_RUN, is_doomed=False))
    jobs[-1].finish()
    whole_folder = folder / "whole"
    write_corpus(whole_folder / "corpus", files=UNEQUAL_FILES * 8)
    whole = Job(Start(0, str(whole_folder), world_size, async_save=False, is_doomed=False))
    whole.finish()
    for rank in range(world_size):
        counted: dict[int, tuple[list[int], float]] = {}
        for job in jobs:
            after = job.resumed_after()
            if after is not None:
                counted = {step: each for step, each in counted.items() if step <= after} | job.steps(rank)
        assert counted == whole.steps(rank)


@pytest.mark.parametrize("seed", range(num_cases(2)))
def test_a_job_that_is_killed_at_any_moment_resumes_from_a_complete_checkpoint_and_is_bit_equal(
    tmp_path: Path, seed: int
) -> None:
    check_kills(tmp_path, random.Random(seed))

"""What the tests with real frameworks share: training that is killed mid-epoch, and resumed by other processes.

Each framework has a function `train(run)` that trains on the batches of `run.loader()`, calls `run.record(batch)` on
each of them, saves a checkpoint after batch `run.save_at` and dies after batch `run.die_at`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from laneway import SavableLoader, StatefulShardedDataset
from tests.distributed.ranks import RankGroup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUM_EPOCHS = 3
NUM_ROWS = 48
BATCH_ROWS = 3


@dataclass
class Run:
    """A training run on one rank."""

    corpus: Path
    folder: Path
    """For checkpoints, and a record of the batches of each rank."""
    name: str
    save_at: int | None = None
    """Number of batches of this rank after which a checkpoint is saved; it is a multiple of those of a step."""
    die_at: int | None = None
    """Number of batches after which the process dies."""
    resumes: bool = False
    per_step: int = 1
    """Number of batches whose gradients are accumulated."""
    num_workers: int = 2
    rank: int = 0
    world_size: int = 1
    num_taken: int = field(default=0, init=False)

    def dataset(self, **options: Any) -> StatefulShardedDataset:
        return StatefulShardedDataset(
            self.corpus,
            columns=["id", "x"],
            shuffle=True,
            seed=5,
            shard_rows=4,
            window_bytes=200,
            **{"batch_size": BATCH_ROWS, **options},
        )

    def loader(self, **options: Any) -> SavableLoader:
        return SavableLoader(self.dataset(**options), num_workers=self.num_workers)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}-{self.rank}.jsonl"

    def record(self, ids: Any) -> None:
        """Record the ids of a batch, on disk, and die if it is time to."""
        self.num_taken += 1
        with self.log.open("a") as log:
            log.write(json.dumps(ids.tolist()) + "\n")
        if self.num_taken == self.die_at:
            os._exit(1)

    @property
    def saves_now(self) -> bool:
        return self.num_taken == self.save_at


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip the tests of a module where a package is missing; none is imported, since that takes seconds."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}; make test-frameworks installs it")


class Trained(NamedTuple):
    """What one rank has trained."""

    batches: list[list[int]]
    result: Any


def on_rank(rank: int, train: Callable[[Run], Any], run: Run) -> Any:
    """Train on a rank, in the environment that torchrun makes."""
    size = str(run.world_size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", HF_HUB_OFFLINE="1")
    warnings.resetwarnings()
    return train(replace(run, rank=rank))


def run_all(train: Callable[[Run], Any], run: Run) -> list[Trained]:
    """Train on all ranks, each a new process, and return what each of them trained."""
    ranks = range(run.world_size)
    with RankGroup(run.world_size) as group:
        deaths = frozenset(ranks if run.die_at else ())
        results = group.run(on_rank, train, run, deaths=deaths)
    return [Trained(read_log(run, rank), result) for rank, result in zip(ranks, results, strict=True)]


def read_log(run: Run, rank: int) -> list[list[int]]:
    """Return the row ids of each batch that a rank has recorded."""
    log = replace(run, rank=rank).log
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def rows(ranks: list[Trained]) -> list[int]:
    """Return the row ids that all ranks have trained."""
    return [row for rank in ranks for batch in rank.batches for row in batch]


def check_killed_and_resumed(train: Callable[[Run], Any], run: Run) -> tuple[list[Trained], list[Trained]]:
    """Check that killed training resumes exactly; return what was trained without interruption, and after it."""
    assert run.save_at
    assert run.die_at
    whole = run_all(train, replace(run, name="whole", save_at=None, die_at=None))
    for rank in whole:
        assert len(rank.batches) == NUM_EPOCHS * NUM_ROWS // (BATCH_ROWS * run.world_size)
    killed = run_all(train, replace(run, name="killed"))
    after = run_all(train, replace(run, name="after", save_at=None, die_at=None, resumes=True))
    for one, two, three in zip(whole, killed, after, strict=True):
        assert two.batches == one.batches[: run.die_at]
        assert three.batches == one.batches[run.save_at :]
    return whole, after


def check_resumed_on_more_ranks(train: Callable[[Run], Any], run: Run, world_size: int) -> list[Trained]:
    """Check that each row of each epoch comes once, or is repeated as padding; return what was trained after it."""
    killed = replace(run, name="killed")
    before = [Trained(read_log(killed, rank)[: run.save_at], None) for rank in range(run.world_size)]
    after = run_all(train, replace(run, name="more", save_at=None, die_at=None, resumes=True, world_size=world_size))
    counts = Counter(rows(before) + rows(after))
    assert sorted(counts) == list(range(NUM_ROWS))
    assert min(counts.values()) == NUM_EPOCHS
    # At most one row of each rank and epoch is repeated as padding, and as many in the epoch that was cut twice.
    assert counts.total() - NUM_EPOCHS * NUM_ROWS <= world_size * NUM_EPOCHS
    return after

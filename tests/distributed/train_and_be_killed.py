"""One incarnation of a job that may be killed at any moment: the script of each rank, also under torchrun.

A rank logs the rows of a step as soon as it has them. Saving is collective, so every rank has logged all rows of a
checkpoint before rank 0 writes it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from laneway import SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

LOST_A_RANK = 3
"""Exit status of a rank that lost another one."""
STEP_S = 0.003
"""Pause after each step, so that a kill can hit any part of it."""


@dataclass(frozen=True)
class Incarnation:
    """Parameters of one start of the job."""

    index: int
    """Index of the start; later ones resume from the checkpoint of earlier ones."""
    folder: str
    """Folder of the corpus, the checkpoint and the logs."""
    num_workers: int
    """DataLoader workers of each rank."""
    in_rows: bool
    """Whether the loader collates single rows into batches."""
    is_doomed: bool
    """Whether it waits to be killed if it reaches the end of the epoch."""
    is_filtered: bool = False
    """Whether only rows with an odd id belong to the dataset."""

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint: a state, and the incarnation and save that wrote it."""
        return Path(self.folder, "checkpoint.pt")

    def log(self, rank: int) -> Path:
        """The log of a rank: its process id, the row ids of each step, and the number of each save before it begins."""
        return Path(self.folder, f"incarnation-{self.index}-rank-{rank}.jsonl")


def is_odd(batch: pa.RecordBatch) -> Any:
    """Select odd rows."""
    return np.asarray(batch["id"]) % 2 == 1


def train(incarnation: Incarnation) -> None:
    """Train from the last checkpoint to the end of the epoch, as one rank of an initialised group."""
    rank = dist.get_rank()
    dataset = StatefulShardedDataset(
        Path(incarnation.folder, "corpus"),
        shuffle=True,
        seed=5,
        shard_rows=4,
        window_bytes=200,
        remainder="keep",
        batch_size=None if incarnation.in_rows else 3,
    )
    if incarnation.is_filtered:
        dataset = dataset.filter(is_odd, columns=["id"])
    batch_size = 3 if incarnation.in_rows else None
    loader = SavableLoader(dataset, num_workers=incarnation.num_workers, batch_size=batch_size)
    if incarnation.checkpoint.exists():
        state = torch.load(incarnation.checkpoint, weights_only=True)["loader"] if rank == 0 else None
        with lost_ranks_end_this_one():
            loader.restore_state_global(state)
    with incarnation.log(rank).open("w", buffering=1) as log:
        log.write(json.dumps(os.getpid()) + "\n")
        batches = iter(loader)
        num_saves, is_over = 0, False
        while not is_over:
            num_steps = 0
            # Ranks save together, but after different numbers of steps: only a gathered state can be exact.
            for _ in range(2 + (rank + num_saves) % 3):
                batch = next(batches, None)
                if batch is not None:
                    log.write(json.dumps({"ids": batch["id"].tolist()}) + "\n")
                    num_steps += 1
                    time.sleep(STEP_S)
            num_saves += 1
            log.write(json.dumps({"save": num_saves}) + "\n")
            with lost_ranks_end_this_one():
                state = loader.save_state_global()
                is_over = no_rank_took_a_step(num_steps)
            if state is not None:
                write({"loader": state, "incarnation": incarnation.index, "save": num_saves}, incarnation.checkpoint)
    if incarnation.is_doomed:
        signal.pause()


def no_rank_took_a_step(num_steps: int) -> bool:
    """Return whether no rank took a step."""
    total = torch.tensor(num_steps)
    dist.all_reduce(total)
    return not total


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: the previous one stays until this one is complete."""
    torch.save(checkpoint, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


@contextmanager
def lost_ranks_end_this_one() -> Iterator[None]:
    """End this process with `LOST_A_RANK` if a collective fails."""
    try:
        yield
    except RuntimeError:
        os._exit(LOST_A_RANK)


def join_group(rank: int, world_size: int, incarnation: Incarnation) -> None:
    """Train as one rank of a group that is initialised through a file."""
    torch.set_num_threads(1)
    # As under torchrun; a child of the fork server would start its workers through a fork server too.
    multiprocessing.set_start_method("fork", force=True)
    meeting = f"file://{incarnation.folder}/store-{incarnation.index}"
    with lost_ranks_end_this_one():
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=timedelta(minutes=1)
        )
    train(incarnation)
    dist.destroy_process_group()


def arguments_for_torchrun(incarnation: Incarnation) -> list[str]:
    """Return the command line that trains `incarnation` with this file."""
    return [__file__, json.dumps(asdict(incarnation))]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    train(Incarnation(**json.loads(sys.argv[1])))
    dist.destroy_process_group()

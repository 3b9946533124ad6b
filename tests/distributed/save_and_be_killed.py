"""One start of a job that saves checkpoints and may be killed at any moment: what each of its ranks runs."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from laneway import Checkpoints, SavableLoader, StatefulShardedDataset
from laneway.checkpoint import KeepLatest

LOST_A_RANK = 3
"""Exit status of a rank that lost another one."""


@dataclass(frozen=True)
class Start:
    """Parameters of one start."""

    index: int
    """Index of the start."""
    folder: str
    """Folder of the corpus, the checkpoints and the logs."""
    world_size: int
    async_save: bool
    is_doomed: bool
    """Whether it waits to be killed if it reaches the end of the epoch."""
    url: str | None = None
    """Where checkpoints are; None: in `folder`."""
    storage_options: dict[str, Any] | None = None

    def log(self, rank: int) -> Path:
        """The log of a rank: the step it resumed after; (step, row ids, loss) of each step, steps saved; its end."""
        return Path(self.folder, f"start-{self.index}-rank-{rank}.jsonl")


def run(rank: int, start: Start) -> None:
    """Train as one rank."""
    torch.set_num_threads(1)
    meeting = f"file://{start.folder}/store-{start.index}"
    try:
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=start.world_size, timeout=timedelta(minutes=1)
        )
        train(rank, start)
        dist.destroy_process_group()
    except RuntimeError:
        if start.is_doomed:
            os._exit(LOST_A_RANK)
        raise


def train(rank: int, start: Start) -> None:
    """Train to the end of the epoch, and save after each second step or so."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    dataset = StatefulShardedDataset(
        Path(start.folder, "corpus"), shuffle=True, seed=5, shard_rows=4, batch_size=3, remainder="drop"
    )
    loader = SavableLoader(dataset)
    objects: dict[str, Any] = {"model": model, "optimizer": optimizer, "loader": loader}
    torch.manual_seed(rank)
    checkpoints = Checkpoints(
        start.url or Path(start.folder, "run"),
        keep=[KeepLatest(2)],
        async_save=start.async_save,
        storage_options=start.storage_options,
    )
    with start.log(rank).open("w", buffering=1) as log, checkpoints:
        resumed = checkpoints.resume(**objects)
        first = resumed.step + 1 if resumed else 0
        log.write(json.dumps({"resumed after": first - 1}) + "\n")
        for step, batch in enumerate(loader, first):
            loss = (model(batch["id"].float()[:, None] / 400) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.write(json.dumps({"step": step, "ids": batch["id"].tolist(), "loss": loss.item()}) + "\n")
            # Some in quick succession, some not.
            if random.Random(step).random() < 0.6 and checkpoints.save(step, **objects, if_busy="skip"):
                log.write(json.dumps({"saved": step}) + "\n")
        log.write(json.dumps({"ended": True}) + "\n")
    if start.is_doomed:
        time.sleep(600)

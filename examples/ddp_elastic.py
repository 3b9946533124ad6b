"""Train with DDP on 2 ranks, lose one to kill -9, resume on 3, and prove that every row counted exactly once.

Run it with `make demo`, or `python examples/ddp_elastic.py`. It needs no GPU and no download. All output goes below
`.demo/`. The function to read is `train`, which torchrun starts on each rank, as in

    torchrun --nproc-per-node=2 examples/ddp_elastic.py CORPUS RUN

It resumes from the last checkpoint in RUN, on any number of ranks. Without torchrun, this script runs two jobs and
checks them:

1. torchrun starts 2 ranks, which save checkpoints. Mid-epoch, one of them dies by SIGKILL.
2. torchrun starts 3 ranks, which resume from the last checkpoint to the end of the epoch.

Every rank logs the row ids of each step, and the logs together must be the epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laneway import Checkpoints, SavableLoader, StatefulShardedDataset
from laneway.checkpoint import KeepLatest

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from examples.demo import Job, log_path, read_lines, show_claims
else:
    from demo import Job, log_path, read_lines, show_claims

HOME = Path(__file__).resolve().parent.parent / ".demo"
GLOBAL_BATCH = 96
SAVE_EVERY = 100


# --- The training script -----------------------------------------------------------------------------


def make_dataset(corpus: Path, world_size: int) -> StatefulShardedDataset:
    """Return the dataset of this rank, with its share of the global batch."""
    # If ranks * turns per batch (2 * 3, 3 * 2) divides the lanes, every world size trains on the same global batches.
    # If each row exactly once is enough, leave out lanes and turn_rows: any number of ranks then works.
    return StatefulShardedDataset(
        corpus,
        shuffle=True,
        seed=42,
        batch_size=GLOBAL_BATCH // world_size,
        lanes=6,
        turn_rows=16,
        # DDP waits forever for a rank that has no batch left, so all ranks must have as many. The 57,600 rows of the
        # demo are a multiple of the global batch, so "pad" adds nothing here; otherwise a rank may repeat one row.
        remainder="pad",
        # Small shards and windows for a small corpus; use the defaults for data of a usual size.
        shard_rows=500,
        window_bytes="64KiB",
    )


def train(corpus: Path, run: Path) -> None:
    """Train an epoch on this rank, from the last checkpoint if there is one, and log every step."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    began = time.time()
    loader = SavableLoader(make_dataset(corpus, world_size), num_workers=1)
    run.mkdir(parents=True, exist_ok=True)
    with (
        Checkpoints(run / "checkpoints", keep=[KeepLatest(2)]) as checkpoints,
        log_path(run, rank, world_size).open("w", buffering=1) as log,
    ):
        log.write(json.dumps({"pid": os.getpid(), "began": began}) + "\n")
        start = checkpoints.resume(model=model, optimizer=optimizer, loader=loader)
        for step, batch in enumerate(loader, start.step + 1 if start else 1):
            loss = (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()
            # Logged before gradients are reduced: once a rank saves a step, all ranks have logged it.
            log.write(json.dumps({"ids": batch["id"].tolist(), "loss": loss.item(), "time": time.time()}) + "\n")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            if checkpoints.due(step, every_steps=SAVE_EVERY):
                checkpoints.save(step, model=model, optimizer=optimizer, loader=loader)
                if rank == 0:
                    print(f"      step {step:4}  loss {loss.item():.4f}  checkpoint saved", flush=True)
    dist.destroy_process_group()


# --- The corpus --------------------------------------------------------------------------------------


def write_corpus(corpus: Path) -> None:
    """Write 57,600 points of a smooth function of 8 numbers to Parquet files of unequal size."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (57_600, 8)).astype(np.float32)
    y = np.sin(3 * x[:, 0] + 2 * x[:, 1]) + x[:, 2] * x[:, 3]
    points = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 8)
    table = pa.table({"id": np.arange(len(x)), "x": points, "y": y})
    corpus.mkdir(parents=True)
    ends = np.cumsum([1, 2, 3, 5, 8]) * len(table) // 19
    for index, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        pq.write_table(table[start:stop], corpus / f"part-{index}.parquet", row_group_size=499)


# --- The two jobs and the proof ----------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """The log of a rank."""

    began: float
    """Time at which the rank began to create its loader, in seconds."""
    ids: list[list[int]]
    """Row ids of each step's batch, in order."""
    losses: list[float]
    """Loss of each step, on this rank's rows."""
    times: list[float]
    """Time at which the loss of each step was computed, in seconds."""


def read_logs(run: Path, world_size: int) -> list[Log]:
    """Return the logs of all ranks, in the order of ranks."""
    logs = []
    for header, *steps in read_lines(run, world_size):
        columns = ([step[name] for step in steps] for name in ("ids", "loss", "time"))
        logs.append(Log(header["began"], *columns))
    return logs


def global_batches(logs: list[Log]) -> list[list[int]]:
    """Return the row ids of each step across all ranks, for the steps that all ranks logged."""
    return [list(chain.from_iterable(ids)) for ids in zip(*(log.ids for log in logs), strict=False)]


def prove(corpus: Path, killed: list[Log], resumed: list[Log], saved_step: int) -> bool:
    """Check that the steps that count of both jobs equal the epoch, print the result and return it."""
    before, after = global_batches(killed)[:saved_step], global_batches(resumed)
    lost = global_batches(killed)[saved_step:]
    ids = list(chain.from_iterable(before + after))
    all_ids = pq.read_table(corpus, columns=["id"])["id"].to_pylist()
    whole = [batch["id"].tolist() for batch in make_dataset(corpus, world_size=1)]
    num_steps = [len(log.ids) for log in resumed]
    claims = {
        f"each of the corpus's {len(all_ids):,} rows exactly once": sorted(ids) == all_ids,
        "shuffled: not in file order": ids != all_ids,
        "the same global batches, in order, as one uninterrupted process": before + after == whole,
        f"the same number of steps on all {len(resumed)} ranks, so none waits for another": len(set(num_steps)) == 1,
        f"{len(lost)} steps were lost with the ranks and came again": lost == after[: len(lost)],
        "killed mid-epoch": all(saved_step <= len(log.ids) < len(whole) for log in killed),
    }
    num_before = GLOBAL_BATCH * len(before)
    first, last = (np.mean([log.losses[index] for log in logs]) for logs, index in ((killed, 0), (resumed, -1)))
    print(f"  rows  {num_before:,} on {len(killed)} ranks before the checkpoint", end="")
    print(f" + {len(ids) - num_before:,} on {len(resumed)} ranks after it = {len(ids):,}")
    print(f"  steps {len(before)} + {len(after)} = {len(before) + len(after)}; uninterrupted {len(whole)}")
    print(f"  loss  {first:.4f} -> {last:.4f}")
    return show_claims(claims)


def demonstrate() -> bool:
    """Run both jobs and print the proof; return whether it holds."""
    began = time.monotonic()
    corpus, run = HOME / "points", HOME / "elastic"
    shutil.rmtree(corpus, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    write_corpus(corpus)
    num_rows = [pq.ParquetFile(path).metadata.num_rows for path in sorted(corpus.glob("*.parquet"))]
    num_steps = sum(num_rows) // GLOBAL_BATCH
    print(f"corpus  {sum(num_rows):,} rows in {len(num_rows)} Parquet files of {', '.join(f'{n:,}' for n in num_rows)}")
    print(f"job     DDP on gloo; global batches of {GLOBAL_BATCH} rows, {num_steps} steps per epoch")
    print("loader  SavableLoader with 1 worker on each rank, shuffled")

    print(f"\n[1/2] torchrun with 2 ranks, a checkpoint every {SAVE_EVERY} steps, and kill -9 of rank 1 mid-epoch")
    arguments = str(corpus), str(run)
    Job(__file__, run, 2, arguments).kill_a_rank(num_steps // 2 // SAVE_EVERY * SAVE_EVERY + SAVE_EVERY // 2)
    killed = read_logs(run, 2)
    saved = Checkpoints(run / "checkpoints").latest
    if saved is None:
        raise SystemExit("the rank was killed before the first checkpoint")
    saved_step = saved.step
    print(f"      SIGKILL of rank 1 after step {len(killed[1].ids)}; torchrun stopped the job")

    print(f"\n[2/2] torchrun with 3 ranks, resuming from step {saved_step}")
    restarted = time.time()
    Job(__file__, run, 3, arguments).finish()
    resumed = read_logs(run, 3)
    restart_s = max(log.times[0] for log in resumed) - restarted
    loader_s = max(log.times[0] - log.began for log in resumed)
    print(f"      first batch on all ranks {restart_s:.1f} s after the restart, {loader_s:.2f} s after loader creation")

    print("\nproof")
    holds = prove(corpus, killed, resumed, saved_step)
    print(f"\n{'It holds' if holds else 'IT DOES NOT HOLD'} ({time.monotonic() - began:.0f} s)")
    return holds


def main() -> None:
    """Train as a rank of torchrun, or run both jobs."""
    parser = argparse.ArgumentParser(description="Train on 2 ranks, lose one, resume on 3, and prove it.")
    parser.add_argument("corpus", type=Path, nargs="?", help="under torchrun: directory of the data files")
    parser.add_argument("run", type=Path, nargs="?", help="under torchrun: directory for checkpoints and logs")
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():
        if arguments.run is None:
            parser.error("give CORPUS and RUN")
        train(arguments.corpus, arguments.run)
    elif not demonstrate():
        raise SystemExit(1)


if __name__ == "__main__":
    main()

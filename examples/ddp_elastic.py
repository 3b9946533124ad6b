"""Train with DDP on 2 ranks, lose one to kill -9, go on with 3, and prove that every row counted exactly once.

Run it with `make demo`, or `python examples/ddp_elastic.py`. It needs no GPU and no download, and everything it
writes goes below `.demo/`. The function to read is `train`: it is what torchrun starts on each rank, as in

    torchrun --nproc-per-node=2 examples/ddp_elastic.py CORPUS RUN

and it goes on from the last checkpoint in RUN, on however many ranks it finds itself. Without torchrun, this file
plays both acts and checks them:

1. torchrun starts 2 ranks, which save a checkpoint now and then; in mid-epoch, one of them dies by SIGKILL;
2. torchrun starts 3 ranks, which go on from the last checkpoint to the end of the epoch.

Every rank writes the row ids of each step to a log, and the logs together have to be the epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laneway import SavableLoader, StatefulShardedDataset

HOME = Path(__file__).resolve().parent.parent / ".demo"
GLOBAL_BATCH = 96
SAVE_EVERY = 100


# --- The training script -----------------------------------------------------------------------------


def make_dataset(corpus: Path, world_size: int) -> StatefulShardedDataset:
    """Return the dataset of this rank, with its share of the global batch."""
    # Where ranks * turns per batch (2 * 3, 3 * 2) divide the lanes, all of them train on the same global batches.
    # Leave out lanes and turn_rows where exactly once is enough: then any number of ranks will do.
    return StatefulShardedDataset(
        corpus,
        shuffle=True,
        seed=42,
        batch_size=GLOBAL_BATCH // world_size,
        lanes=6,
        turn_rows=16,
        # DDP waits for ever for a rank that has no batch left, so all lanes have to be equally long. The 57,600 rows
        # of the demo divide by 6, so "pad" has nothing to add; else it would deliver up to a row of each lane twice.
        remainder="pad",
        # Shards and windows are as small as the corpus is; leave both out for data of a usual size.
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
    step = 0
    if (run / "checkpoint.pt").exists():
        saved = torch.load(run / "checkpoint.pt", weights_only=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]

    run.mkdir(parents=True, exist_ok=True)
    with (run / f"rank-{rank}-of-{world_size}.jsonl").open("w", buffering=1) as log:
        log.write(json.dumps({"pid": os.getpid(), "began": began}) + "\n")
        for batch in loader:
            loss = (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()
            # Logged before the gradients are shared: what one rank has saved, all of them have logged.
            log.write(json.dumps({"ids": batch["id"].tolist(), "loss": loss.item(), "time": time.time()}) + "\n")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

            if rank == 0 and step % SAVE_EVERY == 0:
                # All ranks take equally many steps, so what rank 0 knows is the state of the whole job.
                checkpoint = {
                    "step": step,
                    "model": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }
                # Written aside and renamed: a kill while it is written leaves the checkpoint before it.
                torch.save(checkpoint, run / "checkpoint.tmp")
                os.replace(run / "checkpoint.tmp", run / "checkpoint.pt")
                print(f"      step {step:4}  loss {loss.item():.4f}  checkpoint saved by rank 0", flush=True)
    dist.destroy_process_group()


# --- The corpus --------------------------------------------------------------------------------------


def write_corpus(corpus: Path) -> None:
    """Write 57,600 points of a smooth function of 8 numbers to unequal Parquet files."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (57_600, 8)).astype(np.float32)
    y = np.sin(3 * x[:, 0] + 2 * x[:, 1]) + x[:, 2] * x[:, 3]
    points = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 8)
    table = pa.table({"id": np.arange(len(x)), "x": points, "y": y})
    corpus.mkdir(parents=True)
    ends = np.cumsum([1, 2, 3, 5, 8]) * len(table) // 19
    for index, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        pq.write_table(table[start:stop], corpus / f"part-{index}.parquet", row_group_size=499)


# --- The two acts and the proof ----------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """What a rank logged."""

    pid: int
    """Its process."""
    began: float
    """Time at which it began to make its loader, in seconds."""
    ids: list[list[int]]
    """Row ids of each step's batch, in order."""
    losses: list[float]
    """Loss of each step, on this rank's rows."""
    times: list[float]
    """Time at which each step had its loss, in seconds."""


def logged(run: Path, world_size: int) -> list[Log]:
    """Return the logs of all ranks, in the order of ranks."""
    logs = []
    for rank in range(world_size):
        text = (run / f"rank-{rank}-of-{world_size}.jsonl").read_text()
        # A rank that was killed while it wrote leaves half a line.
        header, *steps = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        columns = ([step[name] for step in steps] for name in ("ids", "loss", "time"))
        logs.append(Log(header["pid"], header["began"], *columns))
    return logs


def start(corpus: Path, run: Path, world_size: int) -> subprocess.Popen[bytes]:
    """Start torchrun with `train` on `world_size` ranks; what it says on stderr goes to a file."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    with (run / f"torchrun-{world_size}.log").open("wb") as errors:
        return subprocess.Popen(
            [*torchrun, __file__, str(corpus), str(run)], stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def stop(job: subprocess.Popen[bytes]) -> None:
    """Have torchrun end its ranks, if it still runs."""
    job.terminate()
    job.wait()


def fail(run: Path, world_size: int, what: str) -> None:
    """Show what torchrun and its ranks said, and give up."""
    print((run / f"torchrun-{world_size}.log").read_text(), file=sys.stderr)
    raise SystemExit(what)


def kill_a_rank(job: subprocess.Popen[bytes], run: Path, world_size: int, step: int) -> None:
    """Send SIGKILL to the last rank once it has logged `step` steps, and wait until torchrun has given up the job."""
    rank = world_size - 1
    log = run / f"rank-{rank}-of-{world_size}.jsonl"
    try:
        while not log.exists() or log.read_bytes().count(b"\n") <= step:
            if job.poll() is not None:
                fail(run, world_size, f"torchrun ended by itself, with status {job.returncode}")
            time.sleep(0.01)
        os.kill(logged(run, world_size)[rank].pid, signal.SIGKILL)
        job.wait()
    finally:
        stop(job)


def finish(job: subprocess.Popen[bytes], run: Path, world_size: int) -> None:
    """Wait for torchrun, which has to succeed."""
    try:
        if job.wait() != 0:
            fail(run, world_size, f"torchrun failed with status {job.returncode}")
    finally:
        stop(job)


def global_batches(logs: list[Log]) -> list[list[int]]:
    """Return the row ids of each step on all ranks together, as far as all of them came."""
    return [list(chain.from_iterable(ids)) for ids in zip(*(log.ids for log in logs), strict=False)]


def prove(corpus: Path, killed: list[Log], resumed: list[Log], saved_step: int) -> bool:
    """Print whether what counted of both acts is the epoch; return it."""
    before, after = global_batches(killed)[:saved_step], global_batches(resumed)
    lost = global_batches(killed)[saved_step:]
    ids = list(chain.from_iterable(before + after))
    all_ids = pq.read_table(corpus, columns=["id"])["id"].to_pylist()
    whole = [batch["id"].tolist() for batch in make_dataset(corpus, world_size=1)]
    num_steps = [len(log.ids) for log in resumed]
    claims = {
        f"each of the corpus's {len(all_ids):,} rows exactly once": sorted(ids) == all_ids,
        "shuffled: not the order of the files": ids != all_ids,
        "the global batches of a single process without a break, in order": before + after == whole,
        f"equally many steps on all {len(resumed)} ranks, so none waits for another": len(set(num_steps)) == 1,
        f"{len(lost)} steps died with the ranks and came again": lost == after[: len(lost)],
        "killed in mid-epoch": all(saved_step <= len(log.ids) < len(whole) for log in killed),
    }
    num_before = GLOBAL_BATCH * len(before)
    first, last = (np.mean([log.losses[index] for log in logs]) for logs, index in ((killed, 0), (resumed, -1)))
    print(f"  rows  {num_before:,} on {len(killed)} ranks before the checkpoint", end="")
    print(f" + {len(ids) - num_before:,} on {len(resumed)} ranks after it = {len(ids):,}")
    print(f"  steps {len(before)} + {len(after)} = {len(before) + len(after)}; without a break {len(whole)}")
    print(f"  loss  {first:.4f} -> {last:.4f}")
    for claim, holds in claims.items():
        print(f"  {'yes' if holds else 'NO '}   {claim}")
    return all(claims.values())


def demonstrate() -> bool:
    """Run both acts and print the proof; return whether it holds."""
    began = time.monotonic()
    corpus, run = HOME / "points", HOME / "elastic"
    shutil.rmtree(corpus, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    write_corpus(corpus)
    num_rows = [pq.ParquetFile(path).metadata.num_rows for path in sorted(corpus.glob("*.parquet"))]
    num_steps = sum(num_rows) // GLOBAL_BATCH
    print(f"corpus  {sum(num_rows):,} rows in {len(num_rows)} Parquet files of {', '.join(f'{n:,}' for n in num_rows)}")
    print(f"job     DDP on gloo; global batches of {GLOBAL_BATCH} rows, {num_steps} steps an epoch")
    print("loader  SavableLoader with 1 worker on each rank, shuffled")

    print(f"\n[1/2] torchrun with 2 ranks, a checkpoint every {SAVE_EVERY} steps - and kill -9 of rank 1 in mid-epoch")
    kill_a_rank(start(corpus, run, 2), run, 2, num_steps // 2 // SAVE_EVERY * SAVE_EVERY + SAVE_EVERY // 2)
    killed = logged(run, 2)
    saved_step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    print(f"      SIGKILL of rank 1 after step {len(killed[1].ids)}; torchrun gave up the job")

    print(f"\n[2/2] torchrun with 3 ranks, which go on from step {saved_step}")
    restarted = time.time()
    finish(start(corpus, run, 3), run, 3)
    resumed = logged(run, 3)
    restart_s = max(log.times[0] for log in resumed) - restarted
    loader_s = max(log.times[0] - log.began for log in resumed)
    print(
        f"      first batch on all ranks {restart_s:.1f} s after the restart, {loader_s:.2f} s after making the loader"
    )

    print("\nproof")
    holds = prove(corpus, killed, resumed, saved_step)
    print(f"\n{'It holds' if holds else 'IT DOES NOT HOLD'} ({time.monotonic() - began:.0f} s)")
    return holds


def main() -> None:
    """Be a rank that torchrun started, or play both acts."""
    parser = argparse.ArgumentParser(description="Train on 2 ranks, lose one, go on with 3, and prove it.")
    parser.add_argument("corpus", type=Path, nargs="?", help="under torchrun: the data files")
    parser.add_argument("run", type=Path, nargs="?", help="under torchrun: where checkpoints and logs go")
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():
        if arguments.run is None:
            parser.error("give CORPUS and RUN")
        train(arguments.corpus, arguments.run)
    elif not demonstrate():
        raise SystemExit(1)


if __name__ == "__main__":
    main()

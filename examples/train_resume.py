"""Train, get killed, resume, and prove that no row and no bit of a loss differs.

Run it with `make demo`, or `python examples/train_resume.py`. It needs no download: the corpus is the source
code of Python's standard library. All output goes below `.demo/`.

The function to read is `train`. The code around it kills it and checks it:

1. One process trains an epoch without interruption, and saves checkpoints.
2. Another process starts the same training, and dies by SIGKILL mid-epoch.
3. A third process loads the last checkpoint and resumes to the end of the epoch.

Each process logs the row ids and the loss of every step, and the logs must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm

from laneway import Checkpoints, StatefulShardedDataset
from laneway.checkpoint import KeepLatest

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from examples.demo import show_claims
else:
    from demo import show_claims

HOME = Path(__file__).resolve().parent.parent / ".demo"
ROW_BYTES = 512
SAVE_EVERY = 100
BAR = "      {percentage:3.0f}% |{bar:32}| {n_fmt}/{total_fmt}{unit}, {rate_fmt}{postfix}"


# --- The training script -----------------------------------------------------------------------------


class NextByte(nn.Module):
    """Predicts a byte of source code from the 16 bytes before it, at every sixteenth byte of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 24)
        self.layers = nn.Sequential(nn.Linear(16 * 24, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 256))

    def forward(self, text: Tensor) -> Tensor:
        """Return the mean cross entropy in nats of `text`, uint8 of shape (rows, ROW_BYTES)."""
        windows = text.long().unfold(1, 17, 16)
        logits = self.layers(self.embedding(windows[..., :-1]).flatten(2))
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[..., -1].flatten())


def train(corpus: Path, run: Path) -> None:
    """Train an epoch, from the newest checkpoint if there is one, and log every step."""
    torch.manual_seed(0)
    model = NextByte()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    # Small shards and windows for a small corpus; use the defaults for data of a usual size.
    dataset = StatefulShardedDataset(
        corpus,
        columns=["id", "text"],
        shuffle=True,
        seed=42,
        batch_size=32,
        shard_bytes="128KiB",
        window_bytes="1MiB",
    )
    # With a generator of its own, the loader draws nothing from the one that dropout uses.
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2, generator=torch.Generator())
    interval_s = 0.1 if sys.stderr.isatty() else 5.0
    with (
        Checkpoints(run / "checkpoints", keep=[KeepLatest(2)]) as checkpoints,
        (run / "steps.jsonl").open("a", buffering=1) as log,
    ):
        # The random number generators, from which dropout draws, are among what is saved and restored.
        start = checkpoints.resume(model=model, optimizer=optimizer, loader=loader)
        step = start.step if start else 0
        bar = tqdm(loader, initial=step, bar_format=BAR, unit=" steps", mininterval=interval_s)
        for batch in bar:
            loss = model(batch["text"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

            log.write(json.dumps({"ids": batch["id"].tolist(), "loss": loss.item().hex()}) + "\n")
            bar.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
            if checkpoints.due(step, every_steps=SAVE_EVERY):
                checkpoints.save(step, model=model, optimizer=optimizer, loader=loader)


# --- The corpus --------------------------------------------------------------------------------------


def source_files(library: Path) -> list[Path]:
    """Return the modules of the standard library, sorted, without its tests and installed packages."""
    foreign = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return sorted(path for path in library.rglob("*.py") if not foreign & {*path.relative_to(library).parts})


def write_corpus(corpus: Path) -> None:
    """Write the source files as Parquet: one row per ROW_BYTES of a file, padded with newlines."""
    library = Path(sysconfig.get_path("stdlib"))
    paths: list[str] = []
    chunks: list[bytes] = []
    for source in source_files(library):
        text = source.read_bytes()
        text += b"\n" * (-len(text) % ROW_BYTES)
        paths += [source.relative_to(library).as_posix()] * (len(text) // ROW_BYTES)
        chunks.append(text)
    values = pa.array(np.frombuffer(b"".join(chunks), np.uint8))
    text_column = pa.FixedSizeListArray.from_arrays(values, ROW_BYTES)
    table = pa.table({"id": np.arange(len(paths)), "path": paths, "text": text_column})

    # Written to a temporary directory and renamed, so an interrupted first run leaves no partial corpus.
    unfinished = corpus.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    ends = np.cumsum([1, 2, 3, 5, 8]) * len(table) // 19
    for index, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        pq.write_table(table[start:stop], unfinished / f"part-{index}.parquet", row_group_size=999)
    unfinished.rename(corpus)


def describe(corpus: Path) -> None:
    """Print the corpus, the model and the loader."""
    files = [pq.ParquetFile(path) for path in sorted(corpus.glob("*.parquet"))]
    num_sources = len(set(pq.read_table(corpus, columns=["path"])["path"].to_pylist()))
    num_rows = [file.metadata.num_rows for file in files]
    num_parameters = sum(parameter.numel() for parameter in NextByte().parameters())
    print(f"corpus  {num_sources} modules of Python {platform.python_version()}'s standard library")
    num_groups = sum(file.num_row_groups for file in files)
    print(f"        {sum(num_rows):,} rows of {ROW_BYTES} bytes, {num_groups} row groups,")
    print(f"        in {len(files)} Parquet files of {', '.join(f'{rows:,}' for rows in num_rows)} rows")
    print(f"model   {num_parameters:,} parameters with dropout, from 16 bytes to the next one")
    print("loader  StatefulDataLoader with 2 workers, shuffled, batches of 32 rows")


# --- The three runs and the proof --------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """The log entry of one step."""

    ids: list[int]
    """Row ids of the batch, in order."""
    loss: str
    """The loss in the format of `float.hex`, so that equality is bitwise."""


def read_log(run: Path) -> list[Step]:
    """Return the logged steps of a run."""
    return [Step(**json.loads(line)) for line in (run / "steps.jsonl").read_text().splitlines()]


def start(corpus: Path, run: Path) -> subprocess.Popen[bytes]:
    """Start `train` in a new process with its own process group."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "steps.jsonl").touch()
    command = [sys.executable, __file__, "train", str(corpus), str(run)]
    return subprocess.Popen(command, process_group=0)


def kill(trainer: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a training process and its DataLoader workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()


def finish(trainer: subprocess.Popen[bytes]) -> None:
    """Wait for a training process, which must succeed."""
    try:
        if trainer.wait() != 0:
            raise SystemExit(f"the training process failed with exit status {trainer.returncode}")
    finally:
        kill(trainer)


def kill_at(step: int, trainer: subprocess.Popen[bytes], run: Path) -> None:
    """Kill a training process once it has logged `step` steps."""
    try:
        while (run / "steps.jsonl").read_bytes().count(b"\n") < step:
            if trainer.poll() is not None:
                raise SystemExit(f"the training process ended on its own, with status {trainer.returncode}")
            time.sleep(0.02)
    finally:
        kill(trainer)


def prove(corpus: Path, whole: list[Step], killed: list[Step], resumed: list[Step], saved_step: int) -> bool:
    """Check that both halves together equal the whole run, print the result and return it."""
    halves = killed[:saved_step] + resumed
    ids, ids_whole = ([row_id for step in steps for row_id in step.ids] for steps in (halves, whole))
    num_before = sum(len(step.ids) for step in killed[:saved_step])
    all_ids = pq.read_table(corpus, columns=["id"])["id"].to_pylist()
    num_equal = sum(ours.loss == theirs.loss for ours, theirs in zip(halves, whole, strict=False))
    first, last = float.fromhex(halves[0].loss), float.fromhex(halves[-1].loss)
    lost = f"{saved_step + 1}-{len(killed)}"
    claims = {
        "same rows in the same order, batch by batch": [s.ids for s in halves] == [s.ids for s in whole],
        f"each of the corpus's {len(all_ids):,} rows exactly once": sorted(ids) == all_ids,
        "shuffled: not in file order": ids != all_ids,
        f"{num_equal:,} of {len(whole):,} losses bitwise equal": num_equal == len(halves) == len(whole),
        f"steps {lost} were lost with the process and came again": killed == whole[: len(killed)],
        "killed mid-epoch, after its last checkpoint": saved_step < len(killed) < len(whole),
    }
    print(f"  rows  {num_before:,} before the checkpoint + {len(ids) - num_before:,} after the resume", end="")
    print(f" = {len(ids):,}; uninterrupted {len(ids_whole):,}")
    print(f"  loss  {first:.3f} -> {last:.3f} nats per byte; last loss {halves[-1].loss}, {whole[-1].loss}")
    return show_claims(claims)


def demonstrate() -> bool:
    """Run the three processes and print the proof; return whether it holds."""
    began = time.monotonic()
    corpus, runs = HOME / f"python-{platform.python_version()}-by-{ROW_BYTES}", HOME / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    if not corpus.exists():
        write_corpus(corpus)
    describe(corpus)

    print(f"\n[1/3] train one epoch without interruption, with a checkpoint every {SAVE_EVERY} steps")
    finish(start(corpus, runs / "whole"))
    whole = read_log(runs / "whole")

    print("\n[2/3] the same again, and kill -9 mid-epoch")
    half_way = len(whole) // 2 // SAVE_EVERY * SAVE_EVERY + SAVE_EVERY // 2
    kill_at(half_way, start(corpus, runs / "killed"), runs / "killed")
    killed = read_log(runs / "killed")
    saved = Checkpoints(runs / "killed" / "checkpoints").latest
    if saved is None:
        raise SystemExit("the training process was killed before its first checkpoint")
    saved_step = saved.step
    print(f"\n      SIGKILL after step {len(killed)}; the last checkpoint is of step {saved_step}")

    print(f"\n[3/3] a new process resumes from step {saved_step}")
    shutil.copytree(runs / "killed" / "checkpoints", runs / "resumed" / "checkpoints")
    finish(start(corpus, runs / "resumed"))

    print("\nproof")
    holds = prove(corpus, whole, killed, read_log(runs / "resumed"), saved_step)
    print(f"\n{'It holds' if holds else 'IT DOES NOT HOLD'} ({time.monotonic() - began:.0f} s)")
    return holds


def main() -> None:
    """Run the demo, or one of its training processes."""
    parser = argparse.ArgumentParser(description="Train, get killed, resume, and prove that nothing differs.")
    trainer = parser.add_subparsers(dest="command").add_parser("train", help="one training process of the demo")
    trainer.add_argument("corpus", type=Path)
    trainer.add_argument("run", type=Path)
    arguments = parser.parse_args()
    # Losses are bitwise comparable only if sums run in the same order.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    # torchdata 0.11 calls a deprecated function of torch, which users can't change.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated", category=UserWarning)
    if arguments.command == "train":
        train(arguments.corpus, arguments.run)
    elif not demonstrate():
        raise SystemExit(1)


if __name__ == "__main__":
    main()

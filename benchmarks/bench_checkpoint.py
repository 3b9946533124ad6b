"""What does a checkpoint cost?

A model of some hundred MB and its AdamW states, in a single process:

- a synchronous save, beside `torch.distributed.checkpoint.save` with its files synced to disk, as laneway's are
- a load, beside `torch.distributed.checkpoint.load`
- the blocking part of an asynchronous save, beside a copy of all tensors in memory
- the steps of a training loop that saves asynchronously every 50 steps, beside the same loop without saves

Each pair is run in turn, several times; the medians are compared. Run
`python benchmarks/bench_checkpoint.py [--short] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from laneway import Checkpoints
from laneway.checkpoint import KeepLatest

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.machine import warm_memory
else:
    from machine import warm_memory

REPEATS = 5
WIDTH, SHORT_WIDTH = 2_048, 512
NUM_LAYERS = 6
SAVE_EVERY = 50
STEP_S = 0.02
"""Time of a step that computes on an accelerator, while the CPU is free."""


class Job:
    """A model with the states of its optimizer."""

    def __init__(self, width: int) -> None:
        self.model = nn.Sequential(*(nn.Linear(width, width) for _ in range(NUM_LAYERS)))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    @property
    def objects(self) -> dict[str, Any]:
        """The arguments of `save` and `resume`."""
        return {"model": self.model, "optimizer": self.optimizer}

    def states(self) -> dict[str, Any]:
        """Return what torch.distributed.checkpoint saves."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the states."""
        states = self.states()
        of_optimizer = [value for each in states["optimizer"]["state"].values() for value in each.values()]
        return [*states["model"].values(), *of_optimizer]


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of both, run in turn; the first run of each does not count."""
    runs = [(timed(ours), timed(theirs)) for _ in range(REPEATS + 1)][1:]
    return median(a for a, _ in runs), median(b for _, b in runs)


def bare_save(job: Job, folder: Path, index: int) -> None:
    """Save with torch.distributed.checkpoint alone, then delete the checkpoint before."""
    save(job.states(), storage_writer=FileSystemWriter(folder / str(index), sync_files=True), no_dist=True)
    shutil.rmtree(folder / str(index - 1), ignore_errors=True)


def bare_load(job: Job, folder: Path) -> None:
    """Load with torch.distributed.checkpoint alone."""
    states = job.states()
    load(states, storage_reader=FileSystemReader(folder), no_dist=True)
    set_state_dict(job.model, job.optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])


def saving(job: Job, root: Path) -> dict[str, Any]:
    """Compare synchronous saves, and loads."""
    steps = itertools.count()

    def theirs() -> None:
        bare_save(job, root / "bare", next(bare_steps))

    bare_steps = itertools.count()
    # Both keep one checkpoint.
    with Checkpoints(root / "ours", keep=[KeepLatest(1)]) as checkpoints:
        save_s = compare(lambda: checkpoints.save(next(steps), **job.objects), theirs)
        newest = root / "bare" / str(next(bare_steps) - 1)
        load_s = compare(lambda: checkpoints.resume(**job.objects), lambda: bare_load(job, newest))
    return {"save": save_s, "load": load_s}


def blocking(job: Job, root: Path) -> tuple[float, float]:
    """Compare the blocking part of asynchronous saves with a copy in memory."""
    step = 0
    with Checkpoints(root / "blocking", async_save=True) as checkpoints:

        def ours() -> float:
            nonlocal step
            step += 1
            return timed(lambda: checkpoints.save(step, **job.objects))

        runs = []
        for _ in range(REPEATS + 1):
            copy_s = timed(lambda: [each.clone() for each in job.tensors()])
            runs.append((ours(), copy_s))
            # What was written before must not slow down the next one.
            checkpoints.wait()
    return median(a for a, _ in runs[1:]), median(b for _, b in runs[1:])


def steps(job: Job, root: Path, num_steps: int) -> tuple[float, float]:
    """Compare a loop that saves asynchronously with one that does not."""

    def loop(checkpoints: Checkpoints | None) -> None:
        for step in range(1, num_steps + 1):
            time.sleep(STEP_S)
            if checkpoints is not None and checkpoints.due(step, every_steps=SAVE_EVERY):
                checkpoints.save(step, **job.objects)

    def ours() -> None:
        with Checkpoints(Path(tempfile.mkdtemp(dir=root)), async_save=True) as checkpoints:
            loop(checkpoints)

    return compare(ours, lambda: loop(None))


def main() -> None:
    """Measure, and print a table."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--short", action="store_true", help="a smaller model")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    warm_memory(4_096)
    job = Job(SHORT_WIDTH if arguments.short else WIDTH)
    num_bytes = sum(each.nbytes for each in job.tensors())
    print(f"{num_bytes / 2**20:,.0f} MiB of tensors; medians of {REPEATS} runs in turn\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = saving(job, root)
        found["blocking part of an async save"] = blocking(job, root)
        found[f"{4 * SAVE_EVERY} steps, async saves"] = steps(job, root, 4 * SAVE_EVERY)
    others = ("dcp.save", "dcp.load", "copy in memory", "no saves")
    print(f"{'':34}{'laneway s':>12}{'beside':>18}{'s':>10}{'ratio':>8}")
    for (name, (ours, theirs)), other in zip(found.items(), others, strict=True):
        print(f"{name:34}{ours:12.3f}{other:>18}{theirs:10.3f}{ours / theirs:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What does a checkpoint cost?

A model of some hundred MB and its AdamW states, in a single process:

- a synchronous save, beside `torch.distributed.checkpoint.save` with its files synced to disk, as laneway's are, and
  beside `torch.save`, Accelerate's `save_state`, the checkpoint of a Lightning trainer and, where it is installed, the
  checkpoint manager of torchtitan, which sync nothing
- a load, beside those of the same
- the blocking part of an asynchronous save, beside a copy of all tensors into new memory
- the steps of a training loop that saves asynchronously every 50 steps, beside the same loop without saves, and beside
  one that only copies the tensors into memory that it has; with the wait for the last save at its end, and without

All contenders are run in turn, in another order each time; medians of wall time and of CPU time (of all threads) are
compared. Run `python benchmarks/bench_checkpoint.py [--short] [--width N] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import logging
import random
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from lightning import LightningModule, Trainer
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from laneway import Checkpoints
from laneway.checkpoint import KeepLatest

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.machine import warm_memory
else:
    from machine import warm_memory

REPEATS = 5
WIDTH, SHORT_WIDTH = 2_048, 512
NUM_LAYERS = 6
SAVE_EVERY = 50
STEP_S = 0.02
"""Time of a step that computes on an accelerator, while the CPU is free."""


class Cost(NamedTuple):
    """Medians of the runs of a contender."""

    wall_s: float
    cpu_s: float


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


class LightningJob(LightningModule):
    """The same job as a trainer runs it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.model = job.model

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """Return a loss."""
        loss: torch.Tensor = self.model(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.job.optimizer


def torchtitan_manager(job: Job) -> Any:  # noqa: ANN401 - torchtitan need not be installed
    """Return the checkpoint manager of torchtitan with the same job, and with a state of its own optimizer."""
    checkpointer = importlib.import_module("torchtitan.components.checkpointer.dcp")
    optimizer = importlib.import_module("torchtitan.components.optimizer")
    choices = optimizer.default_adamw()
    choices.implementation = "foreach"
    optimizers = optimizer.OptimizersContainer(choices, model_parts=[job.model])
    optimizers.step()
    schedulers = optimizer.LRSchedulersContainer.Config().build(optimizers=optimizers, training_steps=1_000)
    # It deletes checkpoints only where torch.distributed is initialised.
    config = checkpointer.CheckpointManager.Config(enable=True, interval=1, keep_latest_k=0)
    return checkpointer.CheckpointManager(
        config, dataloader=None, model_parts=[job.model], optimizers=optimizers, lr_schedulers=schedulers, states={},
        sd_adapter=None,
    )  # fmt: skip


def timed(function: Callable[[], object]) -> Cost:
    """Return what a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def medians(costs: list[Cost]) -> Cost:
    """Return the medians of runs; the first one does not count."""
    return Cost(*(median(values) for values in zip(*costs[1:], strict=True)))


def in_turn(contenders: Mapping[str, Callable[[], object]]) -> dict[str, Cost]:
    """Run all contenders in turn, in another order each time, and return the cost of each."""
    runs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(REPEATS + 1):
        for name in random.sample([*contenders], len(contenders)):
            runs[name].append(timed(contenders[name]))
    return {name: medians(costs) for name, costs in runs.items()}


@dataclass
class Folder:
    """The checkpoints of a contender: the one before is deleted once the next one is written, as laneway does."""

    root: Path
    newest: Path = Path()
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def save(self, write: Callable[[Path], object]) -> None:
        """Write a checkpoint into a new folder."""
        before, self.newest = self.newest, self.root / str(next(self._numbers))
        self.newest.mkdir(parents=True)
        write(self.newest)
        if before.name:
            shutil.rmtree(before)


def saving(job: Job, root: Path) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """Compare synchronous saves, and loads."""
    steps = itertools.count()
    dcp, plain, hf, lightning = (Folder(root / name) for name in ("dcp", "plain", "accelerate", "lightning"))
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(job.model, job.optimizer)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    width = job.tensors()[0].shape[0]
    rows: Any = [torch.zeros(width)]
    trainer.fit(LightningJob(job), torch.utils.data.DataLoader(rows))

    def dcp_load() -> None:
        states = job.states()
        load(states, storage_reader=FileSystemReader(dcp.newest), no_dist=True)
        set_state_dict(job.model, job.optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])

    def plain_load() -> None:
        states = torch.load(plain.newest / "all.pt", weights_only=True)
        job.model.load_state_dict(states["model"])
        job.optimizer.load_state_dict(states["optimizer"])

    def lightning_load() -> None:
        states = trainer.strategy.load_checkpoint(lightning.newest / "last.ckpt", weights_only=False)
        trainer.strategy.load_model_state_dict(states, strict=True)
        trainer.strategy.load_optimizer_state_dict(states)

    def dcp_save(path: Path) -> None:
        save(job.states(), storage_writer=FileSystemWriter(path, sync_files=True), no_dist=True)

    def plain_save(path: Path) -> None:
        torch.save({"model": job.model.state_dict(), "optimizer": job.optimizer.state_dict()}, path / "all.pt")

    others_save: dict[str, Callable[[], object]] = {}
    others_load: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("torchtitan"):
        manager, titan = torchtitan_manager(job), Folder(root / "torchtitan")

        def titan_save(path: Path) -> None:
            manager.folder = str(path)
            manager.save(1)

        others_save["torchtitan CheckpointManager"] = lambda: titan.save(titan_save)
        others_load["torchtitan CheckpointManager"] = manager.load

    # All keep one checkpoint.
    with Checkpoints(root / "ours", keep=[KeepLatest(1)]) as checkpoints:
        saves = in_turn(
            {
                "laneway": lambda: checkpoints.save(next(steps), **job.objects),
                "dcp.save": lambda: dcp.save(dcp_save),
                "torch.save": lambda: plain.save(plain_save),
                "Accelerate save_state": lambda: hf.save(lambda path: accelerator.save_state(str(path))),
                "Lightning save_checkpoint": lambda: lightning.save(
                    lambda path: trainer.save_checkpoint(path / "last.ckpt")
                ),
                **others_save,
            }
        )
        loads = in_turn(
            {
                "laneway": lambda: checkpoints.resume(**job.objects),
                "laneway, sizes only": lambda: checkpoints.resume(**job.objects, verify="sizes"),
                "dcp.load": dcp_load,
                "torch.load": plain_load,
                "Accelerate load_state": lambda: accelerator.load_state(str(hf.newest)),
                "Lightning load_checkpoint": lightning_load,
                **others_load,
            }
        )
    return saves, loads


def blocking(job: Job, root: Path) -> dict[str, Cost]:
    """Compare the blocking part of asynchronous saves with a copy in memory."""
    steps = itertools.count()
    ours, copies = [], []
    with Checkpoints(root / "blocking", async_save=True, keep=[KeepLatest(1)]) as checkpoints:
        for _ in range(REPEATS + 1):
            copies.append(timed(lambda: [each.clone() for each in job.tensors()]))
            ours.append(timed(lambda: checkpoints.save(next(steps), **job.objects)))
            # What was written before must not slow down the next one.
            checkpoints.wait()
    return {"laneway": medians(ours), "copy into new memory": medians(copies)}


def stepping(job: Job, root: Path, num_steps: int) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """Compare a loop that saves asynchronously with one that does not: its steps, and all of it."""
    saved_at = itertools.count(1)
    steps: dict[str, list[Cost]] = {"laneway": [], "no saves": [], "copies into the same memory": []}
    everything: list[Cost] = []
    memory = [each.clone() for each in job.tensors()]

    def copy() -> None:
        for mine, its in zip(memory, job.tensors(), strict=True):
            mine.copy_(its)

    def loop(save: Callable[[], object]) -> None:
        for step in range(1, num_steps + 1):
            time.sleep(STEP_S)
            if not step % SAVE_EVERY:
                save()

    with Checkpoints(root / "steps", async_save=True, keep=[KeepLatest(1)]) as checkpoints:
        savers: dict[str, Callable[[], object]] = {
            "laneway": lambda: checkpoints.save(next(saved_at), **job.objects),
            "no saves": lambda: None,
            "copies into the same memory": copy,
        }
        for _ in range(REPEATS + 1):
            for name in random.sample([*savers], len(savers)):
                steps[name].append(timed(partial(loop, savers[name])))
                last = timed(checkpoints.wait)
                if name == "laneway":
                    everything.append(Cost(*map(sum, zip(steps[name][-1], last, strict=True))))
    costs = {name: medians(each) for name, each in steps.items()}
    return costs, {"laneway": medians(everything), "no saves": costs["no saves"]}


def main() -> None:
    """Measure, and print a table."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--short", action="store_true", help="a smaller model")
    parser.add_argument("--width", type=int, default=WIDTH, help="rows and columns of a matrix of the model")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    warm_memory(4_096)
    job = Job(SHORT_WIDTH if arguments.short else arguments.width)
    num_bytes = sum(each.nbytes for each in job.tensors())
    print(f"{num_bytes / 2**20:,.0f} MiB of tensors; medians of {REPEATS} runs in turn")
    found: dict[str, dict[str, Cost]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found["blocking part of an async save"] = blocking(job, root)
        steps, everything = stepping(job, root, 4 * SAVE_EVERY)
        found[f"{4 * SAVE_EVERY} steps, 4 async saves"], found["with the wait at the end"] = steps, everything
        found["save"], found["load"] = saving(job, root)
    print(f"\n{'':34}{'beside':>30}{'wall s':>10}{'cpu s':>9}{'laneway: wall':>16}{'cpu':>8}")
    for name, costs in found.items():
        ours = costs["laneway"]
        print(f"{name:34}{'laneway':>30}{ours.wall_s:10.3f}{ours.cpu_s:9.3f}")
        for other, cost in costs.items():
            if other != "laneway":
                ratios = f"{ours.wall_s / cost.wall_s:16.2f}{ours.cpu_s / cost.cpu_s:8.2f}"
                print(f"{'':34}{other:>30}{cost.wall_s:10.3f}{cost.cpu_s:9.3f}{ratios}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The command bench: how fast a training loop with a given step is fed, with different numbers of workers.

Utilisation is the time of the emulated steps, divided by all time, from the end of the first step on. What the loop
waits for follows from the seconds that the stages took meanwhile: see `bottleneck`.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from laneway.cli.output import Answer, output_file, table
from laneway.cli.sources import open_dataset
from laneway.loader import SavableLoader
from laneway.pictures.feeding import FedLoop, draw_stages, draw_utilisation
from laneway.pictures.svg import STYLE, stacked

if TYPE_CHECKING:
    import argparse

    from laneway.dataset import StatefulShardedDataset
    from laneway.delivery.metrics import StageSeconds
    from laneway.mixture import Mixture

_BATCH_SIZE: Final = 256
_FED: Final = 0.95
"""Utilisation from which the loop is called fed."""
_READ_AHEAD: Final = ("read", "decode", "order")
"""Stages of the threads for which the main thread of a worker waits."""
_STAGES: Final = (*_READ_AHEAD, "convert", "transform", "send")
_WORDS: Final = {"step": "the step", "read": "waiting for storage"}
"""What bounds a loop, in words, where its name is not enough."""


def bench(arguments: argparse.Namespace) -> Answer:
    """Measure rows per second, and the utilisation of an emulated accelerator."""
    picture = None if arguments.plot is None else output_file("--plot", arguments.plot, ".svg")
    dataset = open_dataset(arguments, default_batch_size=_BATCH_SIZE).whole
    batch_size = dataset.definition.options.batch_size
    if batch_size is None:
        message = f"{arguments.source} has no batches, of which a step would take one: name what batch() of it returns"
        raise ValueError(message)
    found = [_measure(dataset, workers, arguments.step_ms / 1000, arguments.seconds) for workers in arguments.workers]
    names = ["workers", "first_batch_s", "rows_per_s", "utilisation", "waiting", "bound_by"]
    rows = (
        [
            each["workers"],
            f"{each['first_batch_s']:.2f}",
            f"{each['rows_per_s']:,.0f}",
            f"{each['utilisation']:.1%}",
            f"{each['waiting']:.1%}",
            _WORDS.get(each["bound_by"], each["bound_by"]),
        ]
        for each in found
    )
    facts: dict[str, Any] = {"batch_size": batch_size, "step_ms": arguments.step_ms, "runs": found}
    stages = ([each["workers"], *(f"{each['stage_ms'][name]:.2f}" for name in _STAGES)] for each in found)
    lines = [*table(names, rows), "", "milliseconds of a batch, by stage", *table(["workers", *_STAGES], stages)]
    if picture is not None:
        loops = [
            FedLoop(
                each["workers"],
                each["utilisation"],
                _WORDS.get(each["bound_by"], each["bound_by"]),
                {name: each["stage_ms"][name] for name in _STAGES},
            )
            for each in found
        ]
        drawn = stacked([draw_utilisation(loops, arguments.step_ms), draw_stages(loops)])
        picture.write_text(drawn.image(STYLE), encoding="utf-8")
        facts["plot"] = arguments.plot
        lines += ["", f"wrote {arguments.plot}"]
    return Answer(facts, lines)


def bottleneck(stages: StageSeconds) -> str:
    """Return the stage that keeps a loop waiting, by the seconds that each took.

    The main thread of a worker waits, converts and transforms, one after another, and another thread sends. If it
    waits longer than any of these takes, the threads that read ahead are too slow, with the longest of their stages.

    Args:
        stages: The seconds, of all workers together.
    """
    seconds = asdict(stages)
    longest = max(("wait", "convert", "transform", "send"), key=seconds.__getitem__)
    return max(_READ_AHEAD, key=seconds.__getitem__) if longest == "wait" else longest


def _measure(
    dataset: StatefulShardedDataset | Mixture, num_workers: int, step_s: float, seconds: float
) -> dict[str, Any]:
    """Return what a loop over batches measured, for about some seconds."""
    loader = SavableLoader(dataset, num_workers=num_workers)
    epoch, waited, computed, num_steps = 0, 0.0, 0.0, 0
    begun = time.perf_counter()
    batches, first_batch_s, started = iter(loader), 0.0, begun
    before = loader.metrics()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        taken = time.perf_counter()
        if batch is None:
            if not num_steps and epoch:
                break
            epoch += 1
            loader.set_epoch(epoch)
            batches = iter(loader)
            continue
        time.sleep(step_s)
        done = time.perf_counter()
        if not first_batch_s:
            # The first step, which waits for workers to start, is not counted.
            first_batch_s, started, before = taken - begun, done, loader.metrics()
        else:
            waited, computed, num_steps = waited + taken - asked, computed + done - taken, num_steps + 1
        if done - started >= seconds:
            break
    elapsed = max(time.perf_counter() - started, 1e-9)
    utilisation = computed / elapsed if step_s else 0.0
    is_fed = bool(step_s) and utilisation >= _FED
    metrics = loader.metrics().since(before)
    seconds_of = asdict(metrics.stages)
    return {
        "workers": num_workers,
        "first_batch_s": first_batch_s,
        "rows_per_s": metrics.rows / elapsed,
        "steps": num_steps,
        "utilisation": utilisation,
        "waiting": waited / elapsed,
        "bound_by": "step" if is_fed else bottleneck(metrics.stages),
        "stage_ms": {name: 1000 * stage_s / max(metrics.batches, 1) for name, stage_s in seconds_of.items()},
    }

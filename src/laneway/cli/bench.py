"""The command bench: how fast a training loop with a given step is fed, with different numbers of workers.

Utilisation is the time of the emulated steps, divided by all time, from the end of the first step on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from laneway.cli.output import Answer, table
from laneway.cli.sources import open_dataset
from laneway.loader import SavableLoader

if TYPE_CHECKING:
    import argparse

    from laneway.dataset import StatefulShardedDataset

_FED = 0.95
"""Utilisation from which the loop is called fed."""


def bench(arguments: argparse.Namespace) -> Answer:
    """Measure rows per second, and the utilisation of an emulated accelerator."""
    dataset = open_dataset(arguments)
    found = [_measure(dataset, workers, arguments.step_ms / 1000, arguments.seconds) for workers in arguments.workers]
    names = ["workers", "first_batch_s", "rows_per_s", "utilisation", "waiting", "bound_by"]
    rows = (
        [
            each["workers"],
            f"{each['first_batch_s']:.2f}",
            f"{each['rows_per_s']:,.0f}",
            f"{each['utilisation']:.1%}",
            f"{each['waiting']:.1%}",
            each["bound_by"],
        ]
        for each in found
    )
    facts = {"batch_size": arguments.batch_size, "step_ms": arguments.step_ms, "runs": found}
    return Answer(facts, table(names, rows))


def _measure(dataset: StatefulShardedDataset, num_workers: int, step_s: float, seconds: float) -> dict[str, Any]:
    """Return what a loop over batches measured, for about some seconds."""
    loader = SavableLoader(dataset, num_workers=num_workers)
    epoch, waited, computed, num_rows, num_steps = 0, 0.0, 0.0, 0, 0
    begun = time.perf_counter()
    batches, first_batch_s, started = iter(loader), 0.0, begun
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
            first_batch_s, started = taken - begun, done
        else:
            waited, computed, num_steps = waited + taken - asked, computed + done - taken, num_steps + 1
            num_rows += _num_rows(batch)
        if done - started >= seconds:
            break
    elapsed = max(time.perf_counter() - started, 1e-9)
    utilisation = computed / elapsed if step_s else 0.0
    is_fed = bool(step_s) and utilisation >= _FED
    bound = "the step" if is_fed else "reading and decoding" if num_workers == 0 else "the workers"
    return {
        "workers": num_workers,
        "first_batch_s": first_batch_s,
        "rows_per_s": num_rows / elapsed,
        "steps": num_steps,
        "utilisation": utilisation,
        "waiting": waited / elapsed,
        "bound_by": bound,
    }


def _num_rows(batch: Any) -> int:  # noqa: ANN401 - columns of tensors, or lists
    return len(next(iter(batch.values())))

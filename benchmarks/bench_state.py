"""What does it cost to save a loader?

Measures the time and size of `state_dict()` for several numbers of workers, the time to merge the states of 1,024
ranks, and an epoch of SavableLoader compared with a plain DataLoader over the same dataset, both in a training loop of
1,000 batches per second. Run `python benchmarks/bench_state.py [--json PATH]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader

from laneway import SavableLoader, StatefulShardedDataset, merge_states
from laneway.core.schema import sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REPEATS = 5
BATCH_ROWS = 64
NUM_BATCHES = 1_000
STEP_S = 1e-3
"""Duration of a training step: 1,000 batches per second."""


def seconds(function: Callable[[], object], times: int) -> float:
    """Return the seconds per call, the median of several runs of `times` calls each."""
    runs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(times):
            function()
        runs.append((time.perf_counter() - start) / times)
    return median(runs)


def plain_size(state: dict[str, Any]) -> int:
    """Return the bytes of a state as JSON, without its file table."""
    (inner,) = state["laneway"]
    return len(json.dumps({**inner, "files": ""}))


def cost_of_states(folder: str) -> list[dict[str, Any]]:
    """Return cost and size of states, for different numbers of workers and ranks."""
    found = []
    for num_workers, world_size in [(0, 1), (2, 1), (8, 1), (8, 64)]:
        dataset = StatefulShardedDataset(folder, batch_size=4, shuffle=True, rank=0, world_size=world_size)
        loader = SavableLoader(dataset, num_workers=num_workers)
        batches = iter(loader)
        list(islice(batches, 20))
        start = time.perf_counter()
        loader.load_state_dict(loader.state_dict())
        loading = time.perf_counter() - start
        batches = iter(loader)
        next(batches)
        found.append(
            {
                "workers": num_workers,
                "ranks": world_size,
                "state_dict us": seconds(loader.state_dict, 1000) * 1e6,
                "save_state_rank us": seconds(loader.save_state_rank, 1000) * 1e6,
                "load_state_dict ms": loading * 1e3,
                "bytes without files": plain_size(loader.state_dict()),
            }
        )
        del batches
    return found


def cost_of_merging(folder: str, *, num_ranks: int = 1024, num_workers: int = 8) -> dict[str, Any]:
    """Return the time to merge the states of many ranks."""
    states = []
    for rank in range(num_ranks):
        dataset = StatefulShardedDataset(
            folder, batch_size=1, lanes=num_ranks * num_workers, rank=rank, world_size=num_ranks
        )
        loader = SavableLoader(dataset)
        next(iter(loader))
        states.append(sealed({**loader.save_state_rank(), "files": ""}))
    return {
        "ranks": num_ranks,
        "workers": num_workers,
        "merge_states ms": seconds(lambda: merge_states(states), 3) * 1e3,
    }


def train(batches: Iterable[Any]) -> float:
    """Return the seconds of a training loop whose step is busy for a millisecond."""
    start = time.perf_counter()
    for _ in islice(batches, NUM_BATCHES):
        until = time.perf_counter() + STEP_S
        while time.perf_counter() < until:
            pass
    return time.perf_counter() - start


def cost_of_the_loader(folder: str) -> list[dict[str, Any]]:
    """Return the seconds of an epoch with SavableLoader and with a plain DataLoader, alternating."""
    found = []
    for num_workers in (0, 1):
        dataset = StatefulShardedDataset(folder, batch_size=BATCH_ROWS, shuffle=True)
        loaders: dict[str, Iterable[Any]] = {
            "DataLoader s": DataLoader(dataset, batch_size=None, num_workers=num_workers),
            "SavableLoader s": SavableLoader(
                StatefulShardedDataset(folder, batch_size=BATCH_ROWS, shuffle=True), num_workers=num_workers
            ),
        }
        runs: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(REPEATS):
            for name, loader in loaders.items():
                runs[name].append(train(loader))
        medians = {name: median(times) for name, times in runs.items()}
        ratio = median(mine / plain for plain, mine in zip(*runs.values(), strict=True))
        found.append({"workers": num_workers, "batches": NUM_BATCHES, **medians, "ratio": ratio})
    return found


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    print("  ".join(f"{name:>20}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>20.3f}" if isinstance(value, float) else f"{value:>20,}" for value in row.values()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as folder:
        rows = BATCH_ROWS * NUM_BATCHES
        table = pa.table({"id": np.arange(rows), "x": np.zeros(rows, np.float32)})
        pq.write_table(table, f"{folder}/part-0.parquet", row_group_size=rows // 16)
        figures = {
            "states": cost_of_states(folder),
            "merging": [cost_of_merging(folder)],
            "loader": cost_of_the_loader(folder),
        }
    for title, found in figures.items():
        show(title, found)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

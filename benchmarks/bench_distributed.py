"""What does it cost to save and restore a job of many ranks, and to share a scan?

Starts the ranks of a job on this machine, each a process, and measures the first and the following calls of
`save_state_global` and `restore_state_global`, a call of `scan_once`, and the file descriptors of a rank. The process
group is one without a CPU backend, as with NCCL, or one of gloo (`--backend gloo`). Ranks outnumber the cores, so the
times are those of a busy machine. Run `python benchmarks/bench_distributed.py [--short] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

from laneway import SavableLoader, StatefulShardedDataset
from laneway.distributed import scan_once

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_FILES = 100
WORLD_SIZES = (2, 8, 32, 96)
REPEATS = 10


class Meeting(NamedTuple):
    """What the ranks of a job share."""

    world_size: int
    backend: str
    port: int
    """Port of the store."""
    barrier: Any
    """Lets the ranks begin a call together, by other means than those measured."""
    results: Any
    """Queue of what each rank measured."""


def num_descriptors() -> int:
    """Return the number of file descriptors that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def seconds(call: Callable[[], object], meet: Callable[[], None], times: int) -> list[float]:
    """Return the duration of each call, which all ranks begin together."""
    found = []
    for _ in range(times):
        meet()
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def measure_rank(rank: int, meeting: Meeting, folder: str) -> None:
    """Measure one rank of a job."""
    gc.freeze()
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", meeting.port, None, is_master=False, timeout=timedelta(minutes=5))  # type: ignore[attr-defined]
    world_size, wait, timeout = meeting.world_size, meeting.barrier.wait, timedelta(minutes=5)
    dist.init_process_group(meeting.backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    descriptors = num_descriptors()
    dataset = StatefulShardedDataset(folder, batch_size=4, shuffle=True, rank=rank, world_size=world_size)
    loader = SavableLoader(dataset)
    batches = iter(loader)
    list(islice(batches, 2))
    state = loader.state_dict() if rank == 0 else None

    def restore() -> None:
        loader.restore_state_global(state)

    found: dict[str, list[float]] = {
        "first save": seconds(loader.save_state_global, wait, 1),
        "save": seconds(loader.save_state_global, wait, REPEATS),
        "restore": seconds(restore, wait, REPEATS),
        "scan_once": seconds(lambda: scan_once(folder, cache_dir=False), wait, 3),
        "descriptors": [num_descriptors() - descriptors],
    }
    meeting.results.put({name: median(values) for name, values in found.items()})
    wait()
    os._exit(0)


def measure(world_size: int, backend: str, folder: str) -> dict[str, float]:
    """Return the time of the slowest rank for each call, and the most descriptors of a rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["laneway.distributed", "torch.testing._internal.distributed.fake_pg"])
    barrier, results = context.Barrier(world_size), context.SimpleQueue()
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    meeting = Meeting(world_size, backend, store.port, barrier, results)
    ranks = [context.Process(target=measure_rank, args=(rank, meeting, folder)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    found = [results.get() for _ in ranks]
    for rank in ranks:
        rank.join()
    return {name: max(each[name] for each in found) for name in found[0]}


def main() -> None:
    """Measure all world sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backend", default="cuda:fake", help="backend of the process group; by default one that sends nothing"
    )
    parser.add_argument("--short", action="store_true", help="up to 8 ranks")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(NUM_FILES):
            pq.write_table(pa.table({"x": range(64)}), f"{folder}/part-{index:03}.parquet")
        print(f"{'ranks':>6}{'first save':>14}{'save':>12}{'restore':>12}{'scan_once':>12}{'descriptors':>13}")
        for world_size in WORLD_SIZES[:2] if arguments.short else WORLD_SIZES:
            row = measure(world_size, arguments.backend, folder)
            times = [f"{row[name] * 1e3:9.1f} ms" for name in ("first save", "save", "restore", "scan_once")]
            print(f"{world_size:6}  {''.join(times)}{row['descriptors']:+13}")
            found.append({"ranks": world_size, **row})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

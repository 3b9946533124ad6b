"""How long does it take to plan an epoch, and in how much memory?

Generates file tables (no files), cuts them into shards, lays out a shuffled epoch, cuts it into lanes, and cuts it
again mid-epoch. Each size runs in a separate process. Run `python benchmarks/bench_plan.py [--json PATH]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.cutting import cut_again, cut_epoch
from laneway.core.division import Sharing, divide
from laneway.core.files import FileTable
from laneway.core.order import ORDER_VERSION
from laneway.core.shards import cut_shards
from laneway.core.strings import Strings

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = (10_000, 100_000, 1_000_000)
REPEATS = 5
SHARD_BYTES, WINDOW_BYTES, NUM_LANES, TURN_ROWS = 8 << 20, 64 << 20, 64, 256
COLUMNS = ("shards", "cut files into shards", "order + lanes", "cut again", "peak memory", "of it imports and table")


def file_table(num_shards: int) -> FileTable:
    """Return a table of files with a thousand row groups each, every row group as large as a shard."""
    num_files = -(-num_shards // 1000)
    block_starts = np.linspace(0, num_shards, num_files + 1).astype(np.int64)
    sizes: NDArray[np.int64] = np.diff(block_starts) * SHARD_BYTES
    return FileTable(
        paths=Strings.of(f"part-{i:06d}.parquet" for i in range(num_files)),
        sizes=sizes,
        digests=Strings.of(["0" * 16] * num_files),
        block_starts=block_starts,
        block_rows=np.full(num_shards, 10_000),
        block_bytes=np.full(num_shards, SHARD_BYTES),
        block_memory_bytes=np.full(num_shards, SHARD_BYTES),
        schema_digest="0" * 16,
    )


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_shards: int) -> dict[str, float]:
    """Return the median seconds of each step, and memory in MB."""
    files = file_table(num_shards)
    before_mb = peak_mb()
    times: dict[str, list[float]] = {name: [] for name in COLUMNS[1:4]}
    for repeat in range(REPEATS):
        start = time.perf_counter()
        shards = cut_shards(files, files.block_memory_bytes, shard_bytes=SHARD_BYTES)
        cut = time.perf_counter()
        division = divide(ORDER_VERSION, files.num_rows, NUM_LANES, TURN_ROWS, Sharing(NUM_LANES))
        _, lanes = cut_epoch(shards, division, window_bytes=WINDOW_BYTES, shuffle=True, seed=1, epoch=repeat)
        laid = time.perf_counter()
        rest, num_lanes = lanes.undelivered(lanes.rows // 2), NUM_LANES * 3 // 2
        cut_again(rest, divide(ORDER_VERSION, rest.num_rows, num_lanes, TURN_ROWS, Sharing(num_lanes)))
        for name, seconds in zip(times, np.diff([start, cut, laid, time.perf_counter()]), strict=True):
            times[name].append(float(seconds))
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    return {"shards": num_shards, **medians, "peak memory": peak_mb(), "of it imports and table": before_mb}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    print(" | ".join(COLUMNS))
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--one", str(size)]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        seconds = " | ".join(f"{row[name] * 1000:,.0f} ms" for name in COLUMNS[1:4])
        print(f"{row['shards']:,} | {seconds} | {row['peak memory']:,.0f} MB | {row[COLUMNS[5]]:,.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

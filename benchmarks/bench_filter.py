"""What does a filter cost: to plan it, and to read the rows that it leaves?

Writes Parquet files of 1 KB rows (a list of int32) with two columns of numbers, of which one is sorted.

- Planning is compared with a full decode by pyarrow, and counting again with what statistics alone decide.
- Reading is compared with pyarrow's own filtered scan of the same row groups into the same tensors, with 1, 10, 50 and
  100 % of the rows selected, shuffled and not, in the main process and in two workers, and with other libraries where
  10 % are selected.

All contenders take turns in one process. A figure is the median over the rounds; a ratio is that of the rounds, in wall
time, and in CPU time of all processes, which other work on the machine disturbs less. Run
`python benchmarks/bench_filter.py [--short] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laneway import Manifest, StatefulShardedDataset

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.filter_peers import (
        BATCH_ROWS,
        COLUMNS,
        Opens,
        Reading,
        installed_peers,
        open_laneway,
        open_pyarrow,
    )
    from benchmarks.machine import warm_memory
else:
    from filter_peers import BATCH_ROWS, COLUMNS, Reading, installed_peers, open_laneway, open_pyarrow
    from machine import warm_memory

NUM_FILES, BLOCK_ROWS, TOKENS = 4, 8_000, 256
SHARES = (0.01, 0.1, 0.5, 1.0)
PEER_SHARE = 0.1


class Cost(NamedTuple):
    """What some work costs, in seconds."""

    wall: float
    cpu: float
    """Of this process, and of its workers, which have ended."""


def write(folder: Path, num_rows: int) -> None:
    """Write the corpus: `score` is random in [0, 1), `id` increases."""
    generator = np.random.default_rng(0)
    of_file = num_rows // NUM_FILES
    for index in range(NUM_FILES):
        tokens = pa.array(generator.integers(0, 50_257, of_file * TOKENS, dtype=np.int32))
        table = pa.table(
            {
                "id": np.arange(index * of_file, (index + 1) * of_file),
                "score": generator.random(of_file, np.float32),
                "length": generator.integers(1, 4_096, of_file, dtype=np.int32),
                "tokens": pa.FixedSizeListArray.from_arrays(tokens, TOKENS),
            }
        )
        pq.write_table(table, folder / f"part-{index}.parquet", row_group_size=BLOCK_ROWS, compression="zstd")


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cost_of(work: Callable[[], Any]) -> Cost:
    """Return what something costs."""
    start, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return Cost(time.perf_counter() - start, _cpu_seconds() - cpu)


def decode(folder: Path) -> None:
    """Decode all columns of all row groups, one row group at a time."""
    for path in sorted(folder.iterdir()):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            file.read_row_group(group)


def compare(contenders: Mapping[str, Callable[[], Any]], num_rounds: int) -> dict[str, list[Cost]]:
    """Return the cost of each contender in each round; they take turns in alternating order."""
    found: dict[str, list[Cost]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for number in range(num_rounds):
        order = list(contenders) if number % 2 else list(contenders)[::-1]
        for name in order:
            found[name].append(cost_of(contenders[name]))
    return found


def ratio(ours: list[Cost], theirs: list[Cost]) -> str:
    """Return how much longer theirs takes: in wall time, and in CPU time."""
    of_wall = median(other.wall / own.wall for own, other in zip(ours, theirs, strict=True))
    of_cpu = median(other.cpu / own.cpu for own, other in zip(ours, theirs, strict=True))
    return f"{of_wall:6.2f} {of_cpu:6.2f}"


def bench_planning(folder: Path, num_rows: int, num_rounds: int) -> None:
    """Print the table of planning."""
    manifest = Manifest.scan(folder)
    plain = StatefulShardedDataset(manifest, columns=COLUMNS, batch_size=BATCH_ROWS)
    print(f"{num_rows:,} rows of 1 KB in {len(manifest.files.block_rows)} row groups")
    print(f"\n{'planning':45} {'ms':>8} of a full decode: wall     CPU")
    two = (pc.field("score") < PEER_SHARE) & (pc.field("length") > BATCH_ROWS)
    ordered = pc.field("id") < num_rows // 10
    for title, condition in (("two columns of numbers", two), ("a sorted column, by statistics", ordered)):
        costs = compare({"ours": partial(plain.filter, condition), "full": partial(decode, folder)}, num_rounds)
        wall, cpu = (
            median(own[i] / full[i] for own, full in zip(costs["ours"], costs["full"], strict=True)) for i in (0, 1)
        )
        print(f"{title:45} {median(each.wall for each in costs['ours']) * 1e3:8.1f} {wall:22.2%} {cpu:7.2%}")


def bench_reading(folder: Path, stored: Path, num_rounds: int) -> None:
    """Print the table of reading, and that of the other libraries."""
    print(f"\n{'reading what is selected':45} {'rows/s':>10} of pyarrow's scan: wall    CPU")
    own: dict[str, Opens] = {"laneway": open_laneway, "pyarrow": open_pyarrow}
    # The other libraries last: some of them change how processes fork once they are imported.
    for shares, contenders in ((SHARES, own), ((PEER_SHARE,), own | installed_peers())):
        for share in shares:
            for shuffle in (False, True):
                for num_workers in (0, 2):
                    _compare_reading(Reading(folder, share, shuffle, num_workers), contenders, stored, num_rounds)


def _compare_reading(reading: Reading, contenders: Mapping[str, Opens], stored: Path, num_rounds: int) -> None:
    def read(work: Opens) -> int:
        return sum(len(batch["id"]) for batch in work(reading, stored))

    counts = {name: read(work) for name, work in contenders.items()}
    # LanceDB leaves out rows that it can't divide among workers.
    if max(counts.values()) - min(counts.values()) > reading.num_workers:
        message = f"the contenders select different numbers of rows: {counts}"
        raise RuntimeError(message)
    costs = compare({name: partial(read, work) for name, work in contenders.items()}, num_rounds)
    print(f"{reading.share:.0%} {'shuffled' if reading.shuffle else 'unshuffled'}, {reading.num_workers} workers")
    for name, of_name in costs.items():
        rows = counts[name] / median(each.wall for each in of_name)
        print(f"  {name:43} {rows:10,.0f} {ratio(of_name, costs['pyarrow']):>29}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a quarter of the rows")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    arguments = parser.parse_args()
    num_rows = 96_000 if arguments.short else 384_000
    warnings.filterwarnings("ignore", "lancedb fork support is experimental")
    with tempfile.TemporaryDirectory() as directory:
        folder, stored = Path(directory) / "corpus", Path(directory) / "stored"
        folder.mkdir()
        stored.mkdir()
        write(folder, num_rows)
        warm_memory()
        bench_planning(folder, num_rows, arguments.rounds)
        bench_reading(folder, stored, arguments.rounds)


if __name__ == "__main__":
    main()

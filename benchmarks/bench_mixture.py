"""What does mixing cost: the rows of 2 and of 200 sources, beside one source of the same rows?

Writes tables of 40 float32 and an int8 label, and tables of fixed-size lists of 1,024 int32, as 2 and as 200 files of
log-normal sizes. The files are read as one StatefulShardedDataset, and as a Mixture of as many sources as there are
files, with their sizes as weights, so that both deliver the same rows, in shuffled batches, with 0 and 2 workers.
All run in this process in interleaved rounds, each from `iter` on; each figure is the median of the ratios of the
rounds. With 2 sources, HF datasets, litdata, grain and energon are compared if they are installed.

Run `python benchmarks/bench_mixture.py [--short]`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laneway import Mixture, SavableLoader, StatefulShardedDataset

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.machine import warm_memory
    from benchmarks.mixing_peers import MIXING_PEERS
else:
    from machine import warm_memory
    from mixing_peers import MIXING_PEERS

ROWS = {"tabular": 1_200_000, "tokens": 80_000}
BATCH_ROWS = {"tabular": 1_024, "tokens": 32}
BLOCK_ROWS = {"tabular": 20_000, "tokens": 1_000}
NUM_FLOATS, TOKENS = 40, 1_024
ROUNDS = 5
NUM_SOURCES = (2, 200)
MAX_PEER_SOURCES = 20
"""Others take minutes to open, convert and shuffle hundreds of sources."""
PEER_SECONDS = 5.0
"""Seconds after which a peer is stopped."""
WEIGHED_ROWS = 20_000


def table(kind: str, num_rows: int, generator: np.random.Generator) -> pa.Table:
    """Return rows of a kind."""
    if kind == "tokens":
        tokens = pa.array(generator.integers(0, 50_257, num_rows * TOKENS, dtype=np.int32))
        return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, TOKENS)})
    columns: dict[str, Any] = {f"x{i}": generator.random(num_rows, np.float32) for i in range(NUM_FLOATS)}
    return pa.table({**columns, "label": generator.integers(0, 10, num_rows, dtype=np.int8)})


def write(folder: Path, kind: str, num_rows: int, num_files: int) -> None:
    """Write rows as a number of files."""
    generator = np.random.default_rng(0)
    shares = generator.lognormal(sigma=0.5, size=num_files)
    sizes = (shares / shares.sum() * num_rows).astype(int).tolist()
    for index, size in enumerate(sizes):
        # Each source has more row groups than there are workers, or all of them would decode the same ones.
        block_rows = min(BLOCK_ROWS[kind], max(1, size // 4))
        rows = table(kind, size, generator)
        pq.write_table(rows, folder / f"{index:03d}.parquet", row_group_size=block_rows, compression="none")


def loader_of(folder: Path, kind: str, num_workers: int, *, is_mixed: bool) -> SavableLoader:
    """Return a loader of all files as one source, or as a source each."""
    if not is_mixed:
        dataset = StatefulShardedDataset(folder, shuffle=True, seed=1).batch(BATCH_ROWS[kind])
        return SavableLoader(dataset, num_workers=num_workers)
    paths = sorted(folder.iterdir())
    # A worker holds a window of each source.
    window_bytes = (64 << 20) // min(len(paths), 16)
    sources = {
        path.stem: StatefulShardedDataset(path, shuffle=True, seed=1, window_bytes=window_bytes) for path in paths
    }
    weights = {name: source.manifest.num_rows for name, source in sources.items()}
    mixture = Mixture(sources, weights, stop=rows_read(sum(weights.values()))).batch(BATCH_ROWS[kind])
    return SavableLoader(mixture, num_workers=num_workers)


class Cost(NamedTuple):
    """What a pass takes, from `iter` on."""

    wall_s: float
    cpu_s: float
    """Time of all cores, for all threads and workers."""


def rows_read(num_rows: int) -> int:
    """Return how many rows are read of all: just before the end, when most sources begin their next epoch at once."""
    return num_rows * 9 // 10


def cost_of(loader: SavableLoader, num_batches: int) -> Cost:
    """Read a number of batches."""
    start, cpu_before = time.perf_counter(), sum(os.times()[:4])
    for _ in islice(loader, num_batches):
        pass
    wall_s = time.perf_counter() - start
    del loader
    return Cost(wall_s, sum(os.times()[:4]) - cpu_before)


def compare(folder: Path, kind: str, num_workers: int, num_rows: int, rounds: int) -> None:
    """Print how fast a mixture of all files is, beside one source."""
    costs: dict[bool, list[Cost]] = {False: [], True: []}
    for _ in range(rounds):
        for is_mixed, of_way in costs.items():
            loader = loader_of(folder, kind, num_workers, is_mixed=is_mixed)
            warm_memory()
            of_way.append(cost_of(loader, rows_read(num_rows) // BATCH_ROWS[kind]))
    speeds, efforts = (
        [single[index] / mixed[index] for single, mixed in zip(costs[False], costs[True], strict=True)]
        for index in range(2)
    )
    rates = [rows_read(num_rows) / median(cost.wall_s for cost in costs[is_mixed]) for is_mixed in (True, False)]
    print(
        f"{kind}, {len([*folder.iterdir()])} sources, {num_workers} workers: {median(speeds):.2f} "
        f"({min(speeds):.2f} to {max(speeds):.2f}) of one source, by the time of all cores {median(efforts):.2f}; "
        f"{rates[0]:,.0f} of {rates[1]:,.0f} rows/s"
    )


def rows_per_s(batches: Iterable[Any], batch_rows: int, num_batches: int) -> float:
    """Return how fast batches come, from `iter` on, of as many as come within some seconds."""
    start, count = time.perf_counter(), 0
    for _ in islice(batches, num_batches):
        count += 1
        if time.perf_counter() - start > PEER_SECONDS:
            break
    return count * batch_rows / (time.perf_counter() - start)


def furthest_off(sources: Iterable[int], weights: Sequence[float]) -> float:
    """Return by how many rows a source is off its weight at most, after any number of rows."""
    shares = np.array(weights) / sum(weights)
    drawn = np.array([*sources])
    numbers = np.arange(1, len(drawn) + 1)
    return max(float(np.abs(np.cumsum(drawn == source) - numbers * share).max()) for source, share in enumerate(shares))


def compare_peers(folder: Path, kind: str, num_rows: int) -> None:
    """Print how fast others mix in this process, beside laneway."""
    paths, batch_rows = sorted(folder.iterdir()), BATCH_ROWS[kind]
    weights = [pq.ParquetFile(path).metadata.num_rows for path in paths]
    num_batches = rows_read(num_rows) // batch_rows
    with tempfile.TemporaryDirectory() as kept:
        for name, peer in MIXING_PEERS.items():
            if not peer.is_installed:
                continue
            theirs, ours = [], []
            for _ in range(2):
                theirs.append(rows_per_s(peer.open(paths, weights, batch_rows, Path(kept)), batch_rows, num_batches))
                ours.append(rows_per_s(loader_of(folder, kind, 0, is_mixed=True), batch_rows, num_batches))
            print(f"  {name}, 0 workers: {max(theirs):,.0f} rows/s, {max(theirs) / max(ours):.3f} of laneway's mixture")


def compare_weights(folder: Path, num_sources: int) -> None:
    """Print how far from the weights the sources of the first rows are; not all libraries repeat a source."""
    weights = np.random.default_rng(0).lognormal(size=num_sources).tolist()
    has_peers = num_sources <= MAX_PEER_SOURCES
    sources = {}
    for index in range(num_sources):
        path = folder / f"{index:03d}.parquet"
        pq.write_table(pa.table({"source": np.full(WEIGHED_ROWS if has_peers else 100, index)}), path)
        sources[path.stem] = StatefulShardedDataset(path)
    mixture = Mixture(sources, dict(zip(sources, weights, strict=True)))
    found = {"laneway": furthest_off((int(row["source"]) for row in islice(mixture, WEIGHED_ROWS)), weights)}
    paths = sorted(folder.iterdir())
    with tempfile.TemporaryDirectory() as kept:
        for name, peer in MIXING_PEERS.items():
            if has_peers and peer.is_installed:
                rows = islice(peer.open(paths, weights, None, Path(kept)), WEIGHED_ROWS)
                found[name] = furthest_off((int(row["source"]) for row in rows), weights)
    off = ", ".join(f"{name} {number:.1f}" for name, number in found.items())
    print(f"rows off the weights, {num_sources} log-normal ones, in {WEIGHED_ROWS:,} rows: {off}")


def main() -> None:
    """Write the files, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a quarter of the rows, and three rounds")
    parser.add_argument("--kind", choices=[*ROWS], action="append", help="only these rows")
    parser.add_argument("--sources", type=int, action="append", help="only these numbers of sources")
    parser.add_argument("--workers", type=int, action="append", help="only these numbers of workers")
    arguments = parser.parse_args()
    for kind in arguments.kind or ROWS:
        num_rows = ROWS[kind] // (4 if arguments.short else 1)
        for num_sources in arguments.sources or NUM_SOURCES:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), kind, num_rows, num_sources)
                for num_workers in arguments.workers or (0, 2):
                    compare(Path(folder), kind, num_workers, num_rows, 3 if arguments.short else ROUNDS)
                if num_sources <= MAX_PEER_SOURCES:
                    compare_peers(Path(folder), kind, num_rows)
    for num_sources in arguments.sources or NUM_SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            compare_weights(Path(folder), num_sources)


if __name__ == "__main__":
    main()

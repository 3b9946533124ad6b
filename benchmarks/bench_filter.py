"""What does a filter cost: to plan it, and to read the rows that it leaves?

Writes Parquet files of 1 KB rows (a list of int32) with two columns of numbers, of which one is sorted. Planning is
compared with a full decode by pyarrow. Reading is compared with pyarrow's own filtered scan of the row groups that have
such rows, into the same tensors, with 1, 10, 50 and 100 % of the rows selected. All in one process, in interleaved
rounds; each figure is the median of the ratios of the rounds. Run `python benchmarks/bench_filter.py [--short]`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch

from laneway import Manifest, SavableLoader, StatefulShardedDataset

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.machine import warm_memory
else:
    from machine import warm_memory

NUM_FILES, BLOCK_ROWS, TOKENS = 4, 8_000, 256
BATCH_ROWS = 256
ROUNDS = 7
SHARES = (0.01, 0.1, 0.5, 1.0)
COLUMNS = ["id", "tokens"]


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


def timed(work: Callable[[], Any]) -> float:
    """Return how long something takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode(folder: Path) -> None:
    """Decode all columns of all row groups, one row group at a time."""
    for path in sorted(folder.iterdir()):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            file.read_row_group(group)


def pyarrow_batches(folder: Path, condition: pc.Expression, *, shuffle: bool) -> int:
    """Read what a condition selects with pyarrow alone, as the same tensors, and return the number of rows."""
    generator = np.random.default_rng(0)
    num_rows = 0
    dataset = pads.dataset(str(folder), format="parquet")
    groups = [group for fragment in dataset.get_fragments() for group in fragment.split_by_row_group()]
    if shuffle:
        generator.shuffle(groups)
    for group in groups:
        table = group.to_table(columns=COLUMNS, filter=condition, schema=dataset.schema)
        if shuffle:
            table = table.take(generator.permutation(len(table)))
        table = table.combine_chunks()
        ids = torch.from_numpy(table["id"].to_numpy(zero_copy_only=False).copy()) if len(table) else None
        if ids is None:
            continue
        tokens = table["tokens"].chunk(0).flatten().to_numpy(zero_copy_only=False).copy()
        rows = torch.from_numpy(tokens).view(-1, TOKENS)
        for start in range(0, len(table), BATCH_ROWS):
            batch = {"id": ids[start : start + BATCH_ROWS], "tokens": rows[start : start + BATCH_ROWS]}
            num_rows += len(batch["id"])
    return num_rows


def read(dataset: StatefulShardedDataset) -> None:
    """Read an epoch."""
    for _ in dataset:
        pass


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Return the medians over the rounds: seconds of ours, and how much longer theirs takes."""
    ours()
    theirs()
    pairs = []
    for number in range(ROUNDS):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        pair = (timed(first), timed(second))
        pairs.append(pair if number % 2 else pair[::-1])
    return median(own for own, _ in pairs), median(other / own for own, other in pairs)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a quarter of the rows")
    num_rows = 96_000 if parser.parse_args().short else 384_000
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write(folder, num_rows)
        warm_memory()
        manifest = Manifest.scan(folder)
        plain = StatefulShardedDataset(manifest, columns=COLUMNS, batch_size=BATCH_ROWS)
        print(f"{num_rows:,} rows of 1 KB in {len(manifest.files.block_rows)} row groups")
        print("\nplanning                                       seconds   of a full decode")
        two = (pc.field("score") < SHARES[1]) & (pc.field("length") > BATCH_ROWS)
        ordered = pc.field("id") < num_rows // 10
        for title, condition in (("two columns of numbers", two), ("a sorted column, by statistics", ordered)):
            seconds, times = ratio(partial(plain.filter, condition), partial(decode, folder))
            print(f"{title:45} {seconds:8.4f}   {1 / times:8.2%}")
        print("\nreading what is selected                       rows/s    of pyarrow's filtered scan")
        for share in SHARES:
            condition = pc.field("score") < share
            for shuffle in (False, True):
                dataset = plain.filter(condition)
                dataset = dataset.shuffle(0) if shuffle else dataset
                count = dataset.selection.num_rows if dataset.selection else 0
                scan = partial(pyarrow_batches, folder, condition, shuffle=shuffle)
                if scan() != count:
                    message = "pyarrow selects other rows"
                    raise RuntimeError(message)
                seconds, times = ratio(partial(read, dataset), scan)
                title = f"{share:.0%} {'shuffled' if shuffle else 'unshuffled'}"
                print(f"{title:45} {count / seconds:9,.0f}   {times:6.2f}")
        loader = SavableLoader(plain.filter(pc.field("score") < SHARES[1]).shuffle(0), num_workers=2)
        seconds = median(timed(lambda: [None for _ in loader]) for _ in range(3))
        print(f"{'10% shuffled, 2 workers, with their start':45} {num_rows / 10 / seconds:9,.0f}")


if __name__ == "__main__":
    main()

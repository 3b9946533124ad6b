"""How well are rows mixed, for different window sizes?

Lays out shuffled epochs of generated file tables (nothing is read) and compares their order with the file order, with
a shuffle buffer over shuffled shards, and with a perfect permutation. Each result is the mean of several seeds.
Run `python benchmarks/bench_shuffle_quality.py [--json PATH]`. The columns:

- moved: mean distance of rows from their place in the files; 1 is the distance of a perfect shuffle;
- neighbours: correlation of the row numbers of two consecutive rows; 0 is perfect;
- together: share of rows whose neighbour in the files is in the same batch; close to 0 for a perfect shuffle;
- files: distinct files in a batch, relative to a perfect shuffle;
- uneven: variation between batches of the mean file index; 1 is the variation of a perfect shuffle.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.files import FileTable
from laneway.core.plan import Identity, Settings
from laneway.core.progress import Progress, fresh_cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Order = NDArray[np.int64]

NUM_FILES, FILE_SHARDS, SHARD_ROWS, SHARD_BYTES = 64, 16, 500, 8 << 20
NUM_ROWS = NUM_FILES * FILE_SHARDS * SHARD_ROWS
BATCH_ROWS = 256
WINDOW_SHARDS = (1, 2, 4, 8, 16, 32, 128)
DEFAULT_SHARDS = 8
"""Number of shards of a window of the default size."""
NUM_LANES = 8
SEEDS = range(5)
MEASURES = ("moved", "neighbours", "together", "files", "uneven")


def laneway_order(seed: int, window_shards: int, num_lanes: int = 1) -> Order:
    """Return the row numbers of an epoch as the whole job delivers them: a batch from each lane in turn."""
    rows, sizes = [SHARD_ROWS] * FILE_SHARDS, [SHARD_BYTES] * FILE_SHARDS
    files = FileTable.build(
        paths=[f"part-{i:03d}.parquet" for i in range(NUM_FILES)],
        sizes=[sum(sizes)] * NUM_FILES,
        digests=["0" * 16] * NUM_FILES,
        blocks=[(rows, sizes)] * NUM_FILES,
        schema_digest="0" * 16,
    )
    settings = Settings(
        seed=seed,
        shuffle=True,
        shard_bytes=SHARD_BYTES,
        shard_rows=None,
        window_bytes=window_shards * SHARD_BYTES,
        remainder=None,
        drop_last=False,
    )
    identity = Identity(files, settings)
    plan = identity.plan(Progress(0, cut=fresh_cut(num_lanes, BATCH_ROWS)))
    windows = plan.windows
    found = []
    for window in range(len(windows.lane)):
        ranges = plan.window_files(window)
        in_files = np.concatenate([i * FILE_SHARDS * SHARD_ROWS + np.arange(lo, hi) for i, lo, hi in ranges])
        found.append(in_files[plan.window_order(window)])
    return np.concatenate(found).reshape(num_lanes, -1, BATCH_ROWS).swapaxes(0, 1).ravel()


def buffered_order(seed: int, buffer_rows: int) -> Order:
    """Return the order of shuffled shards after a shuffle buffer of `buffer_rows`."""
    rng = np.random.default_rng(seed)
    line = np.arange(NUM_ROWS).reshape(-1, SHARD_ROWS)[rng.permutation(NUM_ROWS // SHARD_ROWS)].ravel()
    picks = rng.integers(buffer_rows, size=NUM_ROWS - buffer_rows).tolist()
    buffer = line[:buffer_rows].tolist()
    found = []
    for pick, row in zip(picks, line[buffer_rows:].tolist(), strict=True):
        found.append(buffer[pick])
        buffer[pick] = row
    return np.concatenate([np.array(found, np.int64), rng.permutation(buffer)])


def perfect_order(seed: int) -> Order:
    """Return a permutation of all rows."""
    return np.random.default_rng(seed).permutation(NUM_ROWS)


def plain_measures(order: Order) -> NDArray[np.float64]:
    """Return the measures before normalisation by a perfect shuffle, shape (len(MEASURES),)."""
    position = np.empty_like(order)
    position[order] = np.arange(NUM_ROWS)
    batch = position // BATCH_ROWS
    files = np.sort(order.reshape(-1, BATCH_ROWS) // (FILE_SHARDS * SHARD_ROWS), axis=1)
    return np.array(
        [
            np.abs(position - np.arange(NUM_ROWS)).mean() / NUM_ROWS,
            np.corrcoef(order[:-1], order[1:])[0, 1],
            (batch[:-1] == batch[1:]).mean(),
            1 + (np.diff(files, axis=1) > 0).sum(axis=1).mean(),
            files.mean(axis=1).std(),
        ]
    )


def window_name(shards: int) -> str:
    """Return the name of a window of this many shards in the table."""
    return f"window of {shards} shard{'s' * (shards > 1)}, {shards * SHARD_BYTES >> 20} MiB"


def measure() -> list[dict[str, str | float]]:
    """Return one table row per order, the mean of all seeds."""
    default_rows = DEFAULT_SHARDS * SHARD_ROWS
    orders: dict[str, Callable[[int], Order]] = {
        "order of the files": lambda _seed: np.arange(NUM_ROWS),
        f"buffer of {default_rows:,} rows": partial(buffered_order, buffer_rows=default_rows),
        **{window_name(shards): partial(laneway_order, window_shards=shards) for shards in WINDOW_SHARDS},
        f"{window_name(DEFAULT_SHARDS)}, {NUM_LANES} lanes": partial(
            laneway_order, window_shards=DEFAULT_SHARDS, num_lanes=NUM_LANES
        ),
        "perfect permutation": perfect_order,
    }
    found = {name: np.mean([plain_measures(make(seed)) for seed in SEEDS], axis=0) for name, make in orders.items()}
    perfect = found["perfect permutation"]
    scale = np.array([perfect[0], 1, 1, perfect[3], perfect[4]])
    return [
        {"order": name, **dict(zip(MEASURES, (values / scale).tolist(), strict=True))} for name, values in found.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    print(f"{NUM_ROWS:,} rows of {NUM_FILES} files, shards of {SHARD_ROWS} rows, batches of {BATCH_ROWS}\n")
    rows = measure()
    print(f"{'order':>36}" + "".join(f"{name:>12}" for name in MEASURES))
    for row in rows:
        print(f"{row['order']:>36}" + "".join(f"{row[name]:>12.4f}" for name in MEASURES))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What does a table cost, beside its own library?

- planning: which files there are, as `DeltaTable.get_add_actions` and `plan_files` of pyiceberg tell, without footers
- a filter: the same for the files in which it may match rows
- reading: rows of a Delta table, beside those of the same Parquet files; of a Lance dataset, beside Lance's own scan,
  with a tenth of the rows deleted
- Hugging Face: from a folder that `datasets` has cached to the first batch of 256 rows, each in a fresh process, with
  the imports and without

CPU time, so that another process on the machine counts less; pairs are run in turn, and the medians compared. Run
`python benchmarks/bench_tables.py [--short] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType, NestedField

from laneway import StatefulShardedDataset
from laneway.reading.expressions import filter_on
from laneway.tables.delta import DeltaCatalog
from laneway.tables.iceberg import iceberg_catalog
from laneway.tables.pruning import files_that_may_match

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyiceberg.table import Table

    from laneway import Catalog

NUM_FILES, SHORT_FILES = 2_000, 300
NUM_ROWS, SHORT_ROWS = 2_000_000, 200_000
REPEATS = 5

_FIRST_BATCH = """
import sys, time
began = time.process_time()
import torch
folder, cache, which = sys.argv[1:]
if which == "laneway":
    from laneway import load_hf
    imported = time.process_time()
    batch = next(iter(load_hf(folder, split="train", load_options={"cache_dir": cache}, batch_size=256)))
else:
    from datasets import load_dataset
    imported = time.process_time()
    dataset = load_dataset(folder, split="train", cache_dir=cache).with_format("torch")
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=256)))
now = time.process_time()
print(len(batch["x"]), now - began, now - imported)
"""


def compare(contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median CPU seconds of each of some functions, which run in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS):
        for name, function in contenders.items():
            # Its pauses would hit whoever comes when they are due.
            gc.collect()
            gc.disable()
            began = time.process_time()
            function()
            times[name].append(time.process_time() - began)
            gc.enable()
    return {name: median(found) for name, found in times.items()}


def planned(catalog: Catalog, condition: pc.Expression | None = None) -> int:
    """Return how many files a catalog lists, or may match a condition."""
    files = catalog.files()
    if condition is None:
        return len(files.paths)
    return int(files_that_may_match(catalog, filter_on(condition, catalog.schema, None), len(files.paths)).sum())


def _listed(path: Path) -> list[Any]:
    """Return the files of a Delta table, as its library lists them."""
    return pa.table(DeltaTable(path).get_add_actions(flatten=True))["path"].to_pylist()


def delta_table(folder: Path, num_files: int) -> Path:
    """Write a partitioned Delta table."""
    rows = pa.table({"part": np.arange(num_files), "x": np.arange(num_files) * 2})
    write_deltalake(folder, rows, partition_by=["part"])
    return folder


def iceberg_table(folder: Path, num_files: int, file_rows: int = 1) -> Table:
    """Write a partitioned Iceberg table, of so many rows in each file."""
    folder.mkdir()
    catalog = SqlCatalog("bench", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace("ns")
    fields = [NestedField(1, "part", LongType(), required=False), NestedField(2, "x", LongType(), required=False)]
    spec = PartitionSpec(PartitionField(1, 1000, IdentityTransform(), "part"))
    table = catalog.create_table("ns.t", Schema(*fields), partition_spec=spec)
    rows = np.arange(num_files * file_rows)
    table.append(pa.table({"part": rows // file_rows, "x": rows * 2 // file_rows}))
    return table


def planning(folder: Path, num_files: int) -> dict[str, dict[str, float]]:
    """Return the seconds of planning, with and without a filter."""
    path, table = delta_table(folder / "delta", num_files), iceberg_table(folder / "iceberg", num_files)
    ranges = iceberg_table(folder / "ranges", num_files, 3)
    condition = pc.field("x") < num_files
    return {
        "delta: files": compare(
            {
                "library": lambda: _listed(path),
                "laneway": lambda: planned(DeltaCatalog(DeltaTable(path))),
            }
        ),
        "delta: files of a filter": compare(
            {
                "library": lambda: [*DeltaTable(path).to_pyarrow_dataset().get_fragments(condition)],
                "laneway": lambda: planned(DeltaCatalog(DeltaTable(path)), condition),
            }
        ),
        "iceberg: files": compare(
            {"library": table.scan().plan_files, "laneway": lambda: planned(iceberg_catalog(table))}
        ),
        "iceberg: files of a filter": compare(
            {
                "library": lambda: [*table.scan(row_filter=f"x < {num_files}").plan_files()],
                "laneway": lambda: planned(iceberg_catalog(table), condition),
            }
        ),
        "iceberg: files of a filter, by ranges of values": compare(
            {
                "library": lambda: [*ranges.scan(row_filter=f"x < {num_files}").plan_files()],
                "laneway": lambda: planned(iceberg_catalog(ranges), condition),
            }
        ),
    }


def reading(folder: Path, num_rows: int) -> dict[str, float]:
    """Return the seconds of a pass over the files of a table, as such and as a table."""
    numbers = np.random.default_rng(0).random((8, num_rows), np.float32)
    write_deltalake(folder / "rows", pa.table({f"x{i}": column for i, column in enumerate(numbers)}))
    files = [str(path) for path in (folder / "rows").glob("*.parquet")]
    options: dict[str, Any] = {"batch_size": 1024, "shuffle": True}
    return compare(
        {
            "Parquet": lambda: sum(1 for _ in StatefulShardedDataset(files, **options)),
            "laneway": lambda: sum(1 for _ in StatefulShardedDataset(DeltaTable(folder / "rows"), **options)),
        }
    )


def lance_rows(folder: Path, num_rows: int) -> dict[str, dict[str, float]]:
    """Return the seconds to plan and to read a Lance dataset of vectors and of text."""
    vectors = pa.array(np.random.default_rng(0).random(num_rows * 64, np.float32))
    rows = {
        "id": pa.array(np.arange(num_rows)),
        "vector": pa.FixedSizeListArray.from_arrays(vectors, 64),
        "text": pa.array([f"row {i} " * 20 for i in range(num_rows)]),
    }
    lance.write_dataset(pa.table(rows), folder / "lance", max_rows_per_file=num_rows // 8)
    lance.dataset(folder / "lance").delete("id % 10 = 3")
    opened = lance.dataset(folder / "lance")
    options: dict[str, Any] = {"output": "arrow", "batch_size": 8192}
    dataset, shuffled = (StatefulShardedDataset(opened, shuffle=each, **options) for each in (False, True))
    found = {
        "lance: rows": {"laneway": lambda: sum(len(each) for each in dataset)},
        "lance: rows, shuffled": {"laneway": lambda: sum(len(each) for each in shuffled)},
    }
    scan: dict[str, Callable[[], object]] = {"Lance": lambda: sum(len(each) for each in opened.to_batches())}
    return {what: compare(scan | ours) for what, ours in found.items()}


def first_batch(folder: Path, num_rows: int) -> dict[str, dict[str, float]]:
    """Return the seconds to the first batch of a dataset that is cached, with and without the imports."""
    source, cache = folder / "hf", folder / "cache"
    source.mkdir()
    pq.write_table(pa.table({"x": np.arange(num_rows)}), source / "train.parquet")

    def run(which: str) -> list[float]:
        command = [sys.executable, "-c", _FIRST_BATCH, str(source), str(cache), which]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [float(text) for text in done.stdout.split()[-2:]]

    for which in ("datasets", "laneway"):
        run(which)
    pairs = [(run("datasets"), run("laneway")) for _ in range(REPEATS)]
    return {
        f"hugging face: first batch, {what} imports": {
            "datasets": median(theirs[index] for theirs, _ in pairs),
            "laneway": median(ours[index] for _, ours in pairs),
        }
        for index, what in enumerate(("with", "without"))
    }


def main() -> None:
    """Run all comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="smaller tables")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    num_files, num_rows = (SHORT_FILES, SHORT_ROWS) if arguments.short else (NUM_FILES, NUM_ROWS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = planning(folder, num_files)
        results["delta: rows"] = reading(folder, num_rows)
        results |= lance_rows(folder, num_rows // 5)
        results |= first_batch(folder, num_rows)
    for what, times in results.items():
        (other, theirs), (_, ours) = times.items()
        print(f"{what}: laneway {ours:.3f} s of CPU, {other} {theirs:.3f} s, ratio {ours / theirs:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

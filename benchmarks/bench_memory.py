"""How much memory does a shuffled scan need, and does it grow?

Scans generated text and tokens in shuffled batches, in the main thread, with laneway at several `prefetch_windows`,
and through two workers, with pyarrow reading whole windows of the same size, and with HF datasets if it is installed.
Each scan runs in a separate process and is measured by its peak above the memory of its imports. The columns, in MB:

- peak, floor: peak resident memory, and the peak before the first file was opened;
- over floor, to raw: memory added by the scan, and its ratio to pyarrow's;
- private: peak of memory that is not file-backed (anonymous and shared), above the floor; only on Linux. With workers,
  that of all processes together, in which what they share counts once; all other columns are of the main process;
- growth: growth of the peak between two and ten passes;
- in use, growth in use: peak of Arrow's allocations, and its growth. Resident memory is larger, because the allocator
  keeps freed memory for a while; the amount varies from run to run.

With MIMALLOC_PURGE_DELAY=0 in the environment the allocator keeps nothing, and all readers are slower.
Run `python benchmarks/bench_memory.py [--short] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    Batch = dict[str, Any]

BATCH_ROWS = 256
PASSES = 10
COLUMNS = ("rows", "peak", "floor", "over floor", "to raw", "private", "growth", "in use", "growth in use")
WINDOWS = 6
"""Number of windows of an epoch."""
SEED = 1
TOKENS = 1024
ROW_BYTES = {"text": 1110, "tokens": 4104}
"""Uncompressed bytes per row, on average."""
POOL_WORDS = 1_000_000
"""Number of random words that text is cut from."""
STATUS = Path("/proc/self/status")
NUM_WORKERS = 2


@dataclass(frozen=True)
class Scan:
    """A scan that one process measures."""

    folder: str
    """Folder of the data files."""
    reader: str
    """Name of the function that reads."""
    window_bytes: int
    prefetch_windows: int | None
    """None if the dataset has no such argument."""
    passes: int
    num_workers: int = 0


def write_files(folder: Path, kind: str, window_bytes: int) -> None:
    """Write four files, with eight row groups to a window."""
    import numpy as np  # noqa: PLC0415 - the parent must stay small: its children inherit its peak
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    rng = np.random.default_rng(SEED)
    folder.mkdir()
    file_rows = WINDOWS * window_bytes // ROW_BYTES[kind] // 4
    words = ["".join(map(chr, rng.integers(97, 123, size=n))) for n in rng.integers(2, 10, 5000)]
    pool = " ".join(words[i] for i in rng.integers(len(words), size=POOL_WORDS).tolist())
    for i in range(4):
        if kind == "text":
            starts = rng.integers(len(pool) - 2000, size=file_rows)
            stops = starts + rng.integers(200, 2001, file_rows)
            column: pa.Array[Any] = pa.array([pool[i:j] for i, j in zip(starts.tolist(), stops.tolist(), strict=True)])
        else:
            values = rng.integers(50_000, size=file_rows * TOKENS, dtype=np.int32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(values), TOKENS)
        table = pa.table({"id": np.arange(i * file_rows, (i + 1) * file_rows), kind: column})
        # Without dictionaries, the sizes in the footer, which decide the windows, equal those of the decoded columns.
        pq.write_table(
            table,
            folder / f"part-{i}.parquet",
            row_group_size=window_bytes // ROW_BYTES[kind] // 8,
            compression="zstd",
            use_dictionary=False,
        )


def read_with_laneway(scan: Scan) -> Iterator[Iterator[Batch]]:
    """Yield passes over batches of a SavableLoader."""
    from laneway import SavableLoader, StatefulShardedDataset  # noqa: PLC0415 - each process imports what it measures

    yield iter(())
    options: dict[str, Any] = {} if scan.prefetch_windows is None else {"prefetch_windows": scan.prefetch_windows}
    dataset = StatefulShardedDataset(
        scan.folder, batch_size=BATCH_ROWS, shuffle=True, window_bytes=scan.window_bytes, **options
    )
    loader = SavableLoader(dataset, num_workers=scan.num_workers)
    while True:
        yield iter(loader)


def read_with_pyarrow(scan: Scan) -> Iterator[Iterator[Batch]]:
    """Yield passes over batches: windows are read whole, permuted and sliced."""
    import numpy as np  # noqa: PLC0415 - each process imports what it measures
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415
    import torch  # noqa: PLC0415

    def as_tensors(batch: pa.RecordBatch) -> Batch:
        ids = torch.from_numpy(batch["id"].to_numpy())
        if "text" in batch.schema.names:
            return {"id": ids, "text": batch["text"].to_pylist()}
        lists: Any = batch["tokens"]
        return {"id": ids, "tokens": torch.from_numpy(lists.flatten().to_numpy().reshape(-1, TOKENS))}

    def one_pass() -> Iterator[Batch]:
        files = [pq.ParquetFile(path) for path in sorted(Path(scan.folder).iterdir())]
        groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        num_bytes = sum(file.metadata.row_group(group).total_byte_size for file, group in groups)
        order = rng.permutation(len(groups))
        for window in np.array_split(order, -(-num_bytes // scan.window_bytes)):
            table = pa.concat_tables([groups[i][0].read_row_group(groups[i][1]) for i in window])
            table = table.take(rng.permutation(len(table))).combine_chunks()
            for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                yield as_tensors(batch)
            del table, batch

    rng = np.random.default_rng(SEED)
    yield iter(())
    while True:
        yield one_pass()


def read_with_hf_datasets(scan: Scan) -> Iterator[Iterator[Batch]]:
    """Yield passes over batches of a streaming dataset with its default shuffle buffer."""
    import torch  # noqa: F401, PLC0415 - each process imports what it measures

    datasets = importlib.import_module("datasets")

    yield iter(())
    paths = sorted(str(path) for path in Path(scan.folder).iterdir())
    stream = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
    batches = stream.shuffle(seed=SEED).with_format("torch")
    while True:
        yield iter(batches.iter(batch_size=BATCH_ROWS))


READERS = {
    "laneway": read_with_laneway,
    "raw pyarrow": read_with_pyarrow,
    "HF datasets": read_with_hf_datasets,
}


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def private_mb(num_workers: int) -> float:
    """Return the current memory of this process that is not file-backed, in MB; 0 if the system doesn't report it.

    Args:
        num_workers: If it has workers, theirs is counted too.
    """
    if not STATUS.exists():
        return 0.0
    if not num_workers:
        return _private_kb(STATUS, ("RssAnon", "RssShmem")) / 1024
    # The workers are children of the main thread. Each has its part of the pages that several share.
    main = Path("/proc/self")
    workers = [Path("/proc", pid) for pid in (main / "task" / str(os.getpid()) / "children").read_text().split()]
    num_kb = 0
    for process in (main, *workers):
        with suppress(OSError):  # a worker that has ended
            num_kb += _private_kb(process / "smaps_rollup", ("Pss_Anon", "Pss_Shmem"))
    return num_kb / 1024


def _private_kb(path: Path, names: tuple[str, ...]) -> int:
    facts = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return sum(int(facts[name].split()[0]) for name in names)


def in_use_mb() -> float:
    """Return the peak of Arrow's allocations in MB."""
    import pyarrow as pa  # noqa: PLC0415 - each process imports what it measures

    return (pa.default_memory_pool().max_memory() or 0) / 2**20


def measure(scan: Scan) -> dict[str, float]:
    """Return the memory of a scan in MB; a reader first yields once its imports are done."""
    passes = READERS[scan.reader](scan)
    next(passes)
    floor, private_floor = peak_mb(), private_mb(scan.num_workers)
    most_private = private_floor
    is_over = threading.Event()

    def watch() -> None:
        nonlocal most_private
        while not is_over.wait(0.05 if scan.num_workers else 0.005):
            most_private = max(most_private, private_mb(scan.num_workers))

    watcher = threading.Thread(target=watch)
    watcher.start()
    peaks: list[float] = []
    in_use: list[float] = []
    num_rows = 0
    try:
        for _ in range(scan.passes):
            for batch in next(passes):
                num_rows += len(batch["id"])
                del batch
            peaks.append(peak_mb())
            in_use.append(in_use_mb())
    finally:
        is_over.set()
        watcher.join()
    found = {"rows": num_rows / scan.passes, "peak": peaks[-1], "floor": floor, "over floor": peaks[-1] - floor}
    found |= {"private": most_private - private_floor, "in use": in_use[-1]}
    # A single pass has no second one to compare with.
    return found | {"growth": peaks[-1] - peaks[:2][-1], "growth in use": in_use[-1] - in_use[:2][-1]}


def make_data(folder: Path, window_bytes: int) -> list[int | None]:
    """Write all data files and return the values of `prefetch_windows` to measure."""
    from laneway import StatefulShardedDataset  # noqa: PLC0415 - see write_files

    for kind in ROW_BYTES:
        write_files(folder / kind, kind, window_bytes)
    has_prefetch = "prefetch_windows" in inspect.signature(StatefulShardedDataset).parameters
    return [0, 1, 2] if has_prefetch else [None]


def scans_of(folder: str, window_bytes: int, prefetch: list[int | None]) -> dict[str, Scan]:
    """Return the scans of one folder by name, pyarrow first."""
    scans = {"raw pyarrow": Scan(folder, "raw pyarrow", window_bytes, None, PASSES)}
    for count in prefetch:
        name = "laneway" if count is None else f"laneway, prefetch {count}"
        scans[name] = Scan(folder, "laneway", window_bytes, count, PASSES)
    scans[f"laneway, {NUM_WORKERS} workers"] = Scan(folder, "laneway", window_bytes, None, PASSES, NUM_WORKERS)
    if importlib.util.find_spec("datasets"):
        scans["HF datasets"] = Scan(folder, "HF datasets", window_bytes, None, passes=1)
    return scans


def run(*arguments: str) -> Any:  # noqa: ANN401 - any JSON value
    """Run this script in a new process and return the JSON that it prints."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_all(window_bytes: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row for each kind of data and scan: the medians of several processes, interleaved."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prefetch = run("--make", json.dumps([folder, window_bytes]))
        for kind in ROW_BYTES:
            scans = scans_of(f"{folder}/{kind}", window_bytes, prefetch)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in scans}
            for _ in range(repeats):
                for name, scan in scans.items():
                    runs[name].append(run("--one", json.dumps(asdict(scan))))
            raw_mb = median(one["over floor"] for one in runs["raw pyarrow"])
            for name, found in runs.items():
                medians = {key: median(one[key] for one in found) for key in found[0]}
                row = {"data": kind, "reader": name, **medians, "to raw": medians["over floor"] / raw_mb}
                grew = dict.fromkeys(("growth", "growth in use")) if scans[name].passes == 1 else {}
                rows.append(row | grew)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="windows of 16 MiB instead of 64, and each scan once")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--make", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        folder, window_bytes = arguments.make
        print(json.dumps(make_data(Path(folder), window_bytes)))
        return
    if arguments.one:
        print(json.dumps(measure(Scan(**arguments.one))))
        return
    window_bytes = (16 if arguments.short else 64) << 20
    print(f"windows of {window_bytes >> 20} MiB, {WINDOWS} of them, {PASSES} passes\n")
    rows = measure_all(window_bytes, repeats=1 if arguments.short else 3)
    if not importlib.util.find_spec("datasets"):
        print("HF datasets: skipped, not installed\n")
    print("".join(f"{name:>20}" for name in ("data", "reader")) + "".join(f"{name:>14}" for name in COLUMNS))
    for row in rows:
        figures = ("-" if row[name] is None else f"{row[name]:,.{2 * (name == 'to raw')}f}" for name in COLUMNS)
        print(f"{row['data']:>20}{row['reader']:>20}" + "".join(f"{text:>14}" for text in figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

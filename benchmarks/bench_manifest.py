"""What does a manifest of many files cost: to save, to load, to send to workers, and in states?

Generates a manifest (no files) of a million files with ten row groups each, saves it, and measures each step in a
process of its own: CPU time (user and system), and growth of private memory (of which mapped files are no part); for a
spawned worker, those of the worker. Then the commands `laneway plan` (64 ranks with 4 workers) and `laneway state`,
from start to exit, of such manifests with one and with ten row groups per file.
Run `python benchmarks/bench_manifest.py [--files N] [--short] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from laneway import Manifest, StatefulShardedDataset
from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.core.differences import file_differences
from laneway.core.files import FileTable
from laneway.core.strings import Strings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCKS_PER_FILE = 10
REPEATS = 3
STEPS = (
    "load",
    "fingerprint",
    "encode for a state",
    "refuse a state of other files",
    "pickle",
    "send to a spawned worker",
)


def manifest(num_files: int, blocks_per_file: int = BLOCKS_PER_FILE) -> Manifest:
    """Return a manifest of files with random sizes, digests and modification times."""
    random = np.random.default_rng(0)
    num_blocks = num_files * blocks_per_file
    rows, sizes = random.integers(9_000, 11_000, num_blocks), random.integers(6 << 20, 9 << 20, num_blocks)
    digests = random.bytes(8 * num_files).hex()
    versions = 1_700_000_000_000_000_000 + random.integers(0, 10**15, num_files)
    files = FileTable(
        paths=Strings.of(
            f"year=2024/month={i % 12 + 1:02}/part-{i:07}-0c7e.snappy.parquet" for i in _by_month(num_files)
        ),
        sizes=random.integers(60 << 20, 90 << 20, num_files),
        digests=Strings.of(digests[start : start + 16] for start in range(0, len(digests), 16)),
        block_starts=np.arange(0, num_blocks + 1, blocks_per_file),
        block_rows=rows,
        block_bytes=sizes,
        block_memory_bytes=sizes + 1000,
        schema_digest="0" * 16,
    )
    return Manifest(
        root=tempfile.gettempdir(),
        format="parquet",
        files=files,
        schemas=FileSchemas.same(pa.schema([("text", pa.string())]), num_files),
        partitions=Partitions((), ()),
        layout=np.zeros((0, 0), np.int64),
        layout_starts=np.zeros(num_files + 1, np.int64),
        versions=Strings.of(map(str, versions.tolist())),
    )


def _by_month(num_files: int) -> list[int]:
    return sorted(range(num_files), key=lambda i: (i % 12, i))


def private_mb() -> float:
    """Return the memory of this process that no file backs, in MB."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return int(lines["Anonymous"].split()[0]) / 1024


def receive(value: Manifest | None, results: Any) -> None:  # noqa: ANN401 - the queue has no public type
    """Report the private memory of a spawned worker, and its CPU seconds."""
    if value is not None:
        _ = value.num_rows
    results.put((private_mb(), time.process_time()))


def send(value: Manifest) -> tuple[float, float]:
    """Return the private memory in MB, and the CPU seconds, that a manifest takes in a spawned worker."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    found = []
    for sent in (None, value):
        worker = context.Process(target=receive, args=(sent, results))
        worker.start()
        found.append(results.get())
        worker.join()
    (memory, cpu), (memory_with, cpu_with) = found
    return memory_with - memory, cpu_with - cpu


def measure(path: str, step: str) -> dict[str, float]:
    """Return CPU seconds, seconds, growth of private memory in MB, and the size of the result in KB."""
    value = None if step == "load" else Manifest.load(path)
    other = "parts:9:9:" if step.startswith("refuse") else ""
    if other and value is not None:
        files = value.files
        sizes = files.sizes.copy()
        sizes[len(sizes) // 2] += 1
        changed = FileTable(**{**vars(files), "sizes": sizes})
        other = changed.encoded
    work: dict[str, Callable[[Any], Any]] = {
        "load": lambda _: Manifest.load(path),
        "fingerprint": lambda value: value.fingerprint,
        "encode for a state": lambda value: value.files.encoded,
        "refuse a state of other files": lambda value: file_differences(other, value.files),
        "pickle": pickle.dumps,
        "send to a spawned worker": send,
    }
    memory, cpu, began = private_mb(), time.process_time(), time.perf_counter()
    result = work[step](value)
    took = {"cpu_s": time.process_time() - cpu, "s": time.perf_counter() - began, "private_mb": private_mb() - memory}
    if isinstance(result, tuple):
        took["private_mb"], took["cpu_s"] = result
    return {**took, "kb": len(result) / 1024 if isinstance(result, (str, bytes)) else 0.0}


def measure_command(arguments: list[str]) -> dict[str, float]:
    """Return the seconds and CPU seconds of a command from start to exit: those of the fastest of some runs."""
    runs = []
    for _ in range(REPEATS):
        before, began = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-m", "laneway", *arguments], capture_output=True, check=True)
        took, after = time.perf_counter() - began, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        runs.append({"s": took, "cpu_s": cpu})
    return min(runs, key=lambda run: run["s"])


def measure_commands(directory: Path, num_files: int) -> Iterator[dict[str, Any]]:
    """Yield what the commands take that look at a manifest, or at a state of it, by row groups per file."""
    for blocks in (1, BLOCKS_PER_FILE):
        path, state = directory / f"manifest-{blocks}", directory / f"state-{blocks}.pt"
        value = manifest(num_files, blocks)
        value.save(path)
        torch.save(StatefulShardedDataset(value, rank=3, world_size=64).state_dict(), state)
        del value
        ranks = ["--world-size", "64", "--workers", "4"]
        for name, arguments in (("plan", [str(path), *ranks]), ("state", [str(state)])):
            yield {"command": f"laneway {name}", "row groups": blocks, **measure_command([name, *arguments])}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--short", action="store_true", help="a tenth of the files")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "manifest")
        num_files = arguments.files // 10 if arguments.short else arguments.files
        value, began = manifest(num_files), time.perf_counter()
        value.save(path)
        print(f"{num_files:,} files: saved in {time.perf_counter() - began:.2f} s, {path.stat().st_size:,} bytes")
        del value
        print("step | CPU | time | private memory | result")
        for step in STEPS:
            command = [sys.executable, __file__, "--one", str(path), step]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            rows.append({"step": step, **row})
            print(
                f"{step} | {row['cpu_s']:.2f} s | {row['s']:.2f} s | {row['private_mb']:,.0f} MB | {row['kb']:,.0f} KB"
            )
        path.unlink()
        print("\ncommand | row groups per file | CPU | time")
        for row in measure_commands(Path(directory), num_files):
            rows.append(row)
            print(f"{row['command']} | {row['row groups']} | {row['cpu_s']:.2f} s | {row['s']:.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

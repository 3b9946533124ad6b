"""How long until the first batch, fresh and resumed, and with how many files?

Times from constructing dataset and loader, over a state at several places of the epoch, to the first batch: of text in
200 files and in one large file, shuffled and not, without and with workers, with the footers read anew and with a saved
manifest; then the start on many small files. Each time is measured in a process of its own that has imported
everything and read a batch of another dataset, in turns, and is the median of several.
Run `python benchmarks/bench_resume.py [--short] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laneway import Manifest, SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BATCH_ROWS = 256
POSITIONS = (0.01, 0.50, 0.99)
NUM_FILES, SMALL_FILE_ROWS = 200, 100
LARGE_GROUP_ROWS = 10_000
WORKERS = (0, 2)
POOL_WORDS = 1_000_000
"""Text is cut from so many random words."""


class Case(NamedTuple):
    """What is started."""

    layout: str
    """Name of the folder of the data files."""
    shuffle: bool
    num_workers: int
    manifest: bool
    """Whether a saved manifest is used."""


def write_text(folder: Path, num_rows: int, num_files: int, group_rows: int) -> None:
    """Write files of rows of an id and 200 to 2,000 characters of words."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    words = ["".join(map(chr, rng.integers(97, 123, size=n))) for n in rng.integers(2, 10, 5000)]
    pool = " ".join(words[i] for i in rng.integers(len(words), size=POOL_WORDS).tolist())
    file_rows = num_rows // num_files
    for i in range(num_files):
        starts = rng.integers(len(pool) - 2000, size=file_rows)
        stops = starts + rng.integers(200, 2001, file_rows)
        column = [pool[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        table = pa.table({"id": np.arange(i * file_rows, (i + 1) * file_rows), "text": column})
        pq.write_table(table, folder / f"part-{i:04d}.parquet", row_group_size=group_rows, compression="zstd")


def write_small(folder: Path, num_files: int) -> None:
    """Write many small files, all alike."""
    folder.mkdir()
    columns = {"id": np.arange(SMALL_FILE_ROWS)} | {f"x{i}": np.zeros(SMALL_FILE_ROWS, np.float32) for i in range(8)}
    first = folder / "part-00000.parquet"
    pq.write_table(pa.table(columns), first)
    for i in range(1, num_files):
        shutil.copyfile(first, folder / f"part-{i:05d}.parquet")


def make_data(folder: Path, num_rows: int, small_files: int) -> None:
    """Write all data files, and the manifest of each layout."""
    write_text(folder / "200 files", num_rows, NUM_FILES, num_rows // NUM_FILES)
    write_text(folder / "1 file", num_rows, 1, LARGE_GROUP_ROWS)
    write_text(folder / "warm", 600, 1, 600)
    write_small(folder / "small files", small_files)
    for path in list(folder.iterdir()):
        Manifest.scan(str(path), progress=False).save(f"{path}.json")


def loader_of(folder: Path, case: Case) -> SavableLoader:
    """Return a fresh loader."""
    path = folder / case.layout
    source = Manifest.load(f"{path}.json") if case.manifest else str(path)
    dataset = StatefulShardedDataset(source, batch_size=BATCH_ROWS, shuffle=case.shuffle)
    context = "fork" if case.num_workers else None
    return SavableLoader(dataset, num_workers=case.num_workers, multiprocessing_context=context)


def first_batch_s(folder: Path, case: Case, state: dict[str, Any] | None) -> float:
    """Return the seconds that it takes to construct, to load the state and to get the first batch."""
    next(iter(loader_of(folder, Case("warm", case.shuffle, 0, case.manifest))))
    start = time.perf_counter()
    loader = loader_of(folder, case)
    if state is not None:
        loader.load_state_dict(state)
    next(iter(loader))
    return time.perf_counter() - start


def states_of(folder: Path, case: Case) -> list[dict[str, Any]]:
    """Return the states at the positions, from one pass."""
    loader = loader_of(folder, case)
    # A little later: the middle itself is where row groups meet, and a batch across them needs both.
    wanted = [min(int(len(loader) * position) + 2, len(loader) - 1) for position in POSITIONS]
    return [loader.state_dict() for taken, _ in enumerate(loader, start=1) if taken in wanted]


def footers_s(folder: Path, layout: str) -> float:
    """Return the seconds in which pyarrow reads all footers, with as many threads as cores."""
    pq.read_metadata(folder / "warm" / "part-0000.parquet")
    start = time.perf_counter()
    with ThreadPoolExecutor(multiprocessing.cpu_count()) as threads:
        list(threads.map(pq.read_metadata, sorted((folder / layout).iterdir())))
    return time.perf_counter() - start


def in_turns(calls: Iterable[tuple[Any, ...]], repeats: int, run: Callable[..., Any]) -> list[float]:
    """Return the median seconds of each call; all are made once before any is made again."""
    calls = list(calls)
    times = [[float(run(*call)) for call in calls] for _ in range(repeats)]
    return [median(column) for column in zip(*times, strict=True)]


def measure(folder: Path, repeats: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return seconds of fresh starts and resumes, and of starts on many small files."""
    # A new process for each call, forked from one that has imported laneway: nothing is cached in it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["laneway", "pyarrow.parquet"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:

        def run(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - what the function returns
            return processes.submit(function, folder, *arguments).result()

        resumes = []
        for layout, shuffle, num_workers in product(("200 files", "1 file"), (False, True), WORKERS):
            manifests = (False, True) if layout == "200 files" else (False,)
            cases = [Case(layout, shuffle, num_workers, manifest) for manifest in manifests]
            states = [None, *run(states_of, cases[0])]
            calls: list[tuple[Any, ...]] = [(first_batch_s, case, state) for case in cases for state in states]
            seconds = in_turns(calls, repeats, run)
            for i, case in enumerate(cases):
                fresh, *resumed = seconds[i * len(states) : (i + 1) * len(states)]
                resumes.append(
                    {
                        **case._asdict(),
                        "fresh s": fresh,
                        **{f"at {position:.0%} s": time_s for position, time_s in zip(POSITIONS, resumed, strict=True)},
                        "to fresh": max(resumed) / fresh,
                        "among": max(resumed) / min(resumed),
                    }
                )
        # Shuffled, a window is made of nearly all of these files: one case shows what that costs.
        small = [Case("small files", *choice) for choice in product((False,), WORKERS, (False, True))]
        small.append(Case("small files", shuffle=True, num_workers=0, manifest=True))
        calls = [(footers_s, "small files"), *((first_batch_s, case, None) for case in small)]
        footers, *seconds = in_turns(calls, repeats, run)
    starts = [
        {**case._asdict(), "first batch s": time_s, "to footers": time_s / footers}
        for case, time_s in zip(small, seconds, strict=True)
    ]
    return resumes, [*starts, {"layout": "all footers by pyarrow", "first batch s": footers, "to footers": 1.0}]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    print("  ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        values = (row.get(name, "") for name in rows[0])
        shown = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in values)
        print("  ".join(f"{text:>12}" for text in shown))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="60,000 rows of text, 2,000 small files, fewer repeats")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_rows, small_files = (60_000, 2_000) if arguments.short else (400_000, 10_000)
        make_data(folder, num_rows, small_files)
        resumes, starts = measure(folder, repeats=3 if arguments.short else 5)
    show("Resume, seconds to the first batch; the slowest position over a fresh start, and over the fastest", resumes)
    show(f"Fresh start, {small_files:,} small files, seconds to the first batch", starts)
    if arguments.json:
        arguments.json.write_text(json.dumps({"resume": resumes, "small files": starts}, indent=1) + "\n")


if __name__ == "__main__":
    main()

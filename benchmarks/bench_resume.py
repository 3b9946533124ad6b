"""How long until the first batch, fresh and resumed, and with how many files?

Measures the time to construct dataset and loader, load a state at several positions of the epoch, and get the first
batch: of text in 200 files and in one large file, shuffled and unshuffled, without and with workers. laneway runs with
and without a saved manifest. The libraries of peers.py that can resume are compared if they are installed:

- litdata: StreamingDataLoader, over files in its own format, so the layout of the data files makes no difference. It
  shuffles rows within chunks, here of 8 MB; laneway with a manifest and windows of 8 MiB instead of 64 is comparable.
- datasets: a streaming dataset of HF datasets, in a StatefulDataLoader if there are workers. Shuffled, it has a buffer
  of 1,000 rows, the default, which its state doesn't hold: it refills the buffer, and the rows in it are lost
  ("no rows": all of them).

torch-dataloader-utils is not included: mid-epoch its state is empty, and it starts from row 0 again.

The second table shows the start on many small files. Each time is the median of several measurements, interleaved, each
in a separate process that has imported everything and read a batch of another dataset.
Run `python benchmarks/bench_resume.py [--short] [--json PATH] [--only WORD] [--no-peers]`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import Manifest, SavableLoader, StatefulShardedDataset

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection

    from benchmarks.corpora import Corpus
    from benchmarks.machine import warm_memory
    from benchmarks.peers import BATCH_ROWS, PEERS, Reading, stream_datasets, stream_litdata
else:
    from corpora import Corpus
    from machine import warm_memory
    from peers import BATCH_ROWS, PEERS, Reading, stream_datasets, stream_litdata

POSITIONS = (0.01, 0.50, 0.99)
NUM_FILES, SMALL_FILE_ROWS = 200, 100
LARGE_GROUP_ROWS = 10_000
WORKERS = (0, 2)
POOL_WORDS = 1_000_000
"""Number of random words that text is cut from."""


LANEWAY, WITH_MANIFEST, SMALL_WINDOWS = "laneway", "with manifest", "manifest, 8 MiB windows"
LITDATA, DATASETS = "litdata", "datasets"
OURS = (LANEWAY, WITH_MANIFEST)
FOOTERS = "all footers by pyarrow"


class Case(NamedTuple):
    """A start to measure."""

    reader: str
    layout: str
    """Name of the folder of the data files."""
    shuffle: bool
    num_workers: int

    @property
    def title(self) -> str:
        """The title in the table, which `--only` searches."""
        return f"{self.layout} {'shuffled' if self.shuffle else 'unshuffled'} K={self.num_workers}"


class Resumable(Protocol):
    """The methods that all libraries share."""

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]:
        """Return the position of the pass."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Resume the next pass from this state."""


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
    """Write many identical small files."""
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


def open_laneway(folder: Path, case: Case) -> SavableLoader:
    """Return a fresh loader."""
    path = folder / case.layout
    source = str(path) if case.reader == LANEWAY else Manifest.load(f"{path}.json")
    window_mib = 8 if case.reader == SMALL_WINDOWS else 64
    dataset = StatefulShardedDataset(source, batch_size=BATCH_ROWS, shuffle=case.shuffle, window_bytes=window_mib << 20)
    return SavableLoader(dataset, num_workers=case.num_workers, multiprocessing_context=_fork(case))


def _fork(case: Case) -> str | None:
    """Return how workers start; spawned workers would spend seconds on imports."""
    return "fork" if case.num_workers else None


def _reading(folder: Path, case: Case) -> tuple[list[str], Reading]:
    path = folder / case.layout
    reading = Reading(Corpus("text", 0, path), "parquet", case.shuffle, case.num_workers)
    return [str(file) for file in sorted(path.iterdir())], reading


def open_litdata(folder: Path, case: Case) -> Resumable:
    """Return a fresh loader."""
    kept = folder / LITDATA / ("warm" if case.layout == "warm" else "text")
    files, reading = _reading(folder, case)
    loader: Resumable = stream_litdata(files, reading, kept, multiprocessing_context=_fork(case))
    return loader


def open_datasets(folder: Path, case: Case) -> Resumable:
    """Return a fresh streaming dataset, in a loader if there are workers."""
    files, reading = _reading(folder, case)
    dataset: Resumable = stream_datasets(files, reading, folder / DATASETS, buffer_rows=1_000).batch(BATCH_ROWS)
    if not case.num_workers:
        return dataset
    loader: Resumable = StatefulDataLoader(
        dataset, batch_size=None, num_workers=case.num_workers, multiprocessing_context=_fork(case)
    )
    return loader


READERS: dict[str, Callable[[Path, Case], Resumable]] = {
    LANEWAY: open_laneway,
    WITH_MANIFEST: open_laneway,
    SMALL_WINDOWS: open_laneway,
    LITDATA: open_litdata,
    DATASETS: open_datasets,
}


def first_batch_s(folder: Path, case: Case, state: dict[str, Any] | None) -> float:
    """Return the seconds to construct, load the state and get the first batch; NaN if there is no batch."""
    next(iter(READERS[case.reader](folder, case._replace(layout="warm", num_workers=0))))
    warm_memory()
    start = time.perf_counter()
    loader = READERS[case.reader](folder, case)
    if state is not None:
        loader.load_state_dict(state)
    batch = next(iter(loader), None)
    return math.nan if batch is None else time.perf_counter() - start


def states_of(folder: Path, case: Case, num_rows: int) -> list[dict[str, Any]]:
    """Return the states at the positions, from one pass."""
    READERS[case.reader](folder, case._replace(layout="warm", num_workers=0))
    loader = READERS[case.reader](folder, case)
    # Two batches later: exactly in the middle two row groups meet, and a batch across them needs both.
    num_batches = -(-num_rows // BATCH_ROWS)
    wanted = [min(int(num_batches * position) + 2, num_batches - 1) for position in POSITIONS]
    states = []
    for taken, _ in enumerate(loader, start=1):
        if taken in wanted:
            states.append(copy.deepcopy(loader.state_dict()))
        if taken == wanted[-1]:
            break
    return states


def footers_s(folder: Path, layout: str) -> float:
    """Return the seconds that pyarrow takes to read all footers, with one thread per core."""
    pq.read_metadata(folder / "warm" / "part-0000.parquet")
    warm_memory()
    start = time.perf_counter()
    with ThreadPoolExecutor(multiprocessing.cpu_count()) as threads:
        list(threads.map(pq.read_metadata, sorted((folder / layout).iterdir())))
    return time.perf_counter() - start


def interleave(calls: Iterable[tuple[Any, ...]], repeats: int, run: Callable[..., Any]) -> list[float]:
    """Return the median seconds of each call; every round makes each call once."""
    calls = list(calls)
    times = [[float(run(*call)) for call in calls] for _ in range(repeats)]
    return [median(column) for column in zip(*times, strict=True)]


def _send(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send((function(*arguments), None))
    except Exception as error:  # noqa: BLE001 - an error of one library must not stop the others
        connection.send((None, f"{type(error).__name__}: {error}"))


def in_fork(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - any argument of the function
    """Return the result of a function in a fork of this process, so that nothing is cached."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        result, error = None, "the process died"
    process.join()
    if error is not None:
        raise RuntimeError(error)
    return result


def _import(module: str) -> None:
    """Import the module of a reader, and silence all output."""
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    importlib.import_module(module)


class Homes:
    """One process per library, which has imported it and is forked for each call."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._processes: dict[str, ProcessPoolExecutor] = {}

    def run(self, reader: str, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - as in_fork
        """Return the result of a function in a fork of the process of a reader."""
        module = PEERS[reader].module if reader in PEERS else LANEWAY
        if module not in self._processes:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, spawn, _import, (module,))
            self._processes[module] = self._stack.enter_context(pool)
        return self._processes[module].submit(in_fork, function, *arguments).result()


def measure_resume(homes: Homes, folder: Path, cases: list[Case], num_rows: int, repeats: int) -> list[dict[str, Any]]:
    """Return the seconds of fresh starts and resumes for all readers of a case."""
    found: list[dict[str, Any]] = []
    states: list[list[dict[str, Any] | None]] = []
    for case in cases:
        row = {"case": case.title, **case._asdict()}
        try:
            taken = homes.run(case.reader, states_of, folder, case, num_rows)
        except RuntimeError as error:
            found.append({**row, "error": str(error)})
            continue
        found.append(row)
        states.append([None, *taken])
    going = [row for row in found if "error" not in row]
    calls = [(row, state) for row, some in zip(going, states, strict=True) for state in some]

    def run(row: dict[str, Any], state: dict[str, Any] | None) -> float:
        if "error" in row:
            return 0.0
        case = Case(row["reader"], row["layout"], row["shuffle"], row["num_workers"])
        try:
            return float(homes.run(case.reader, first_batch_s, folder, case, state))
        except RuntimeError as error:
            row["error"] = str(error)
            return 0.0

    seconds = iter(interleave(calls, repeats, run))
    for row, some in zip(going, states, strict=True):
        fresh, *resumed = [next(seconds) for _ in some]
        if "error" not in row:
            names = [f"at {position:.0%} s" for position in POSITIONS]
            came = [time_s for time_s in resumed if not math.isnan(time_s)]
            known = [None if math.isnan(time_s) else time_s for time_s in resumed]
            row |= {"fresh s": fresh, **dict(zip(names, known, strict=True))}
            row |= {"slowest/fastest": max(came) / min(came), "slowest/fresh": max(came) / fresh}
    return found


def measure_small(homes: Homes, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Return the seconds of starts on many small files."""
    small = [Case(reader, "small files", shuffle=False, num_workers=k) for k, reader in product(WORKERS, OURS)]
    # Shuffled, a window spans many of these files; one case measures the cost.
    small.append(Case(WITH_MANIFEST, "small files", shuffle=True, num_workers=0))
    calls = [(footers_s, "small files"), *((first_batch_s, case, None) for case in small)]
    footers, *seconds = interleave(calls, repeats, lambda function, *rest: homes.run(LANEWAY, function, folder, *rest))
    starts = [
        {"case": case.title, **case._asdict(), "fresh s": time_s, "to footers": time_s / footers}
        for case, time_s in zip(small, seconds, strict=True)
    ]
    return [*starts, {"case": "", "reader": FOOTERS, "fresh s": footers, "to footers": 1.0}]


def show(title: str, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
    """Print a table, with a group of lines per case."""
    columns = list(columns)
    print(f"\n{title}\n")
    print(f"{'case':<28}{'reader':<24}" + "".join(f"{name:>17}" for name in columns))
    before = None
    for row in rows:
        case = row["case"] if row["case"] != before else ""
        before = row["case"]
        figures = row.get("error") or "".join(f"{_figure(row[name], name):>17}" for name in columns)
        print(f"{case:<28}{row['reader']:<24}" + figures.splitlines()[0][:120])


def _figure(value: float | None, column: str) -> str:
    return "no rows" if value is None else f"{value:.{2 + column.endswith(' s')}f}"


def readers_of(layout: str, *, shuffle: bool, with_peers: bool) -> list[str]:
    """Return the readers to compare."""
    ours = [LANEWAY, *([WITH_MANIFEST] if layout == "200 files" else []), *([SMALL_WINDOWS] if shuffle else [])]
    return ours + [name for name in (LITDATA, DATASETS) if with_peers and PEERS[name].is_installed]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="60,000 rows of text, 2,000 small files, fewer repeats")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--only", default="", help='only cases with these words in the title: "1 file shuffled K=2"')
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with libraries")
    arguments = parser.parse_args()
    for name in (LITDATA, DATASETS) if arguments.peers else ():
        if not PEERS[name].is_installed:
            print(f"skipped, not installed: {name}")
    num_rows, small_files = (60_000, 2_000) if arguments.short else (400_000, 10_000)
    repeats = 3 if arguments.short else 5
    only = set(arguments.only.split())
    resumes, starts = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        homes = Homes(stack)
        make_data(folder, num_rows, small_files)
        for choice in product(("200 files", "1 file"), (False, True), WORKERS):
            readers = readers_of(choice[0], shuffle=choice[1], with_peers=arguments.peers)
            cases = [Case(reader, *choice) for reader in readers]
            if only <= set(cases[0].title.split()):
                resumes += measure_resume(homes, folder, cases, num_rows, repeats)
        if only <= {"small", "files"}:
            starts = measure_small(homes, folder, repeats)
    if resumes:
        columns = ("fresh s", *(f"at {position:.0%} s" for position in POSITIONS), "slowest/fastest", "slowest/fresh")
        show(
            "Seconds to the first batch, fresh and resumed; ratios between positions and to a fresh start",
            resumes,
            columns,
        )
    if starts:
        title = f"Seconds to the first batch of {small_files:,} small files; ratio to the time to read all footers"
        show(title, starts, ("fresh s", "to footers"))
    if arguments.json:
        arguments.json.write_text(json.dumps({"resume": resumes, "small files": starts}, indent=1) + "\n")


if __name__ == "__main__":
    main()

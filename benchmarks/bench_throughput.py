"""How many rows a second reach the training loop, beside raw pyarrow and other libraries?

Reads the corpora of corpora.py in batches of 256 rows as dicts of tensors (tokens, tabular) or as dicts of Python
values (text): laneway, pyarrow alone and every library of peers.py that is installed, each in a process of its own and
one after another, several times over. A pass counts from the start of its iteration, the start of workers included.
Run `python benchmarks/bench_throughput.py [--short] [--json PATH] [--only WORD] [--no-peers]`; with `--workers 0 1 2 4`
it reads shuffled Parquet at these numbers of workers instead, for the plot of draw.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import product, repeat, starmap
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset

# Scripts find what lies beside them, and mypy what lies below the root.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.corpora import Corpus, CorpusName, FileFormat, make_corpus
    from benchmarks.machine import warm_memory
    from benchmarks.peers import BATCH_ROWS, PEERS, Reading
    from benchmarks.raw_pyarrow import RawPyarrow
else:
    from corpora import CorpusName, make_corpus
    from machine import warm_memory
    from peers import BATCH_ROWS, PEERS, Reading
    from raw_pyarrow import RawPyarrow

REPEATS = 3
CACHE_LINE_BYTES = 64
PACKED_ROW_BYTES = {"tokens": 8 + 4 * 1_024, "tabular": 8 + 4 * 40 + 1}
NUM_WORKERS = 2

Pass = tuple[float, float]
"""Rows a second of a whole pass, and seconds to its first batch."""


class Case(NamedTuple):
    """A row of the table."""

    corpus: CorpusName
    file_format: FileFormat
    shuffle: bool
    num_workers: int
    is_row_by_row: bool = False

    @property
    def title(self) -> str:
        """What the table calls it, and `--only` looks into."""
        objects = "rows" if self.corpus == "text" else "batches"
        order = "shuffled" if self.shuffle else "unshuffled"
        single = " one by one" if self.is_row_by_row else ""
        return f"{self.corpus} {objects}{single} {self.file_format} {order} K={self.num_workers}"


CASES = (
    *(Case(corpus, "parquet", shuffle, 0) for corpus in get_args(CorpusName) for shuffle in (False, True)),
    *(Case(corpus, "arrow", shuffle, 0) for corpus in ("text", "tokens") for shuffle in (False, True)),
    *(Case(corpus, "parquet", True, NUM_WORKERS) for corpus in get_args(CorpusName)),  # noqa: FBT003 - as above
    Case("text", "parquet", shuffle=True, num_workers=NUM_WORKERS, is_row_by_row=True),
)


# Contenders. Each returns what yields rows, lists of rows or batches.


def _dataset(reading: Reading) -> StatefulShardedDataset:
    folder = reading.corpus.folder(reading.file_format)
    return StatefulShardedDataset(
        folder, shuffle=reading.shuffle, batch_size=None if reading.yields_rows else BATCH_ROWS
    )


def _lists(reading: Reading) -> dict[str, Any]:
    """Return the arguments that make a loader send rows in lists, if that is wanted."""
    if reading.yields_rows and reading.rows_per_item is not None:
        return {"batch_size": reading.rows_per_item, "collate_fn": list}
    return {"batch_size": None}


def open_laneway(reading: Reading, _: Path) -> Iterable[Any]:
    """Return a SavableLoader."""
    return SavableLoader(_dataset(reading), num_workers=reading.num_workers, **_lists(reading))


def open_in_stateful(reading: Reading, _: Path) -> Iterable[Any]:
    """Return torchdata's StatefulDataLoader over laneway's dataset."""
    loader: Iterable[Any] = StatefulDataLoader(_dataset(reading), num_workers=reading.num_workers, **_lists(reading))
    return loader


def open_raw(reading: Reading, _: Path, *, is_packed: bool = False) -> Iterable[Any]:
    """Return pyarrow's own."""
    rows = RawPyarrow(
        reading.corpus.files(reading.file_format),
        reading.file_format,
        shuffle=reading.shuffle,
        batch_rows=None if reading.yields_rows else BATCH_ROWS,
        is_packed=is_packed,
        # Faster without, on two cores: tokens are one column, and workers are two already.
        use_threads=not reading.num_workers and reading.corpus.name != "tokens",
    )
    return DataLoader(rows, num_workers=reading.num_workers, **_lists(reading)) if reading.num_workers else rows


def open_packed(reading: Reading, _: Path) -> Iterable[Any]:
    """Return pyarrow's own, with one uint8 tensor per batch."""
    return open_raw(reading, _, is_packed=True)


LANEWAY, IN_STATEFUL, RAW, PACKED = "laneway", "in StatefulDataLoader", "raw", "raw packed"
OURS: dict[str, Callable[[Reading, Path], Iterable[Any]]] = {
    LANEWAY: open_laneway,
    IN_STATEFUL: open_in_stateful,
    RAW: open_raw,
    PACKED: open_packed,
}


def takes_part(contender: str, case: Case) -> bool:
    """Return whether the comparison means anything."""
    if contender == IN_STATEFUL:
        return case.num_workers > 0
    if contender == PACKED:
        return case.num_workers > 0 and case.corpus in PACKED_ROW_BYTES
    if contender in PEERS:
        return not case.is_row_by_row and (case.file_format == "parquet" or PEERS[contender].reads_arrow)
    return True


# Measuring.


def _num_rows(item: Any, corpus: CorpusName) -> int:  # noqa: ANN401 - each library has its own
    """Return the rows of a list or a batch. Of tokens, touch each cache line, as views cost nothing until then."""
    tokens = item.get("tokens") if isinstance(item, dict) else item
    if isinstance(tokens, torch.Tensor) and corpus == "tokens":
        tokens.reshape(-1)[:: CACHE_LINE_BYTES // tokens.element_size()].sum()
    if isinstance(item, torch.Tensor) and item.dtype == torch.uint8:
        return item.numel() // PACKED_ROW_BYTES[corpus]
    return len(next(iter(item.values())) if isinstance(item, dict) else item)


def measure(contender: str, reading: Reading, directory: Path, max_seconds: float) -> Pass:
    """Return how fast one pass is, or the start of one that would take longer than so many seconds."""
    opener = OURS.get(contender) or PEERS[contender].open
    try:
        loader = opener(reading, directory)
        warm_memory()
        start = time.perf_counter()
        items: Iterator[Any] = iter(loader)
        first = next(items)
        first_s = time.perf_counter() - start
        is_single = reading.rows_per_item is None
        rows = 1 if is_single else _num_rows(first, reading.corpus.name)
        while (seconds := time.perf_counter() - start) < max_seconds:
            # Not islice: it asks an iterator for its iterator, and one that is a dataset too begins anew.
            some = map(next, repeat(items, BATCH_ROWS if is_single else 1))
            found = sum(1 for _ in some) if is_single else sum(_num_rows(item, reading.corpus.name) for item in some)
            if not found:
                break
            rows += found
    except Exception as error:  # noqa: BLE001 - whatever a library raises, the others go on
        # A library's own exception may not survive the way to the parent.
        message = f"{type(error).__name__}: {error}"
        raise RuntimeError(message) from None
    is_whole = seconds < max_seconds
    if is_whole and rows != reading.corpus.num_rows:
        message = f"delivered {rows:,} rows of {reading.corpus.num_rows:,}"
        raise RuntimeError(message)
    return rows / seconds, first_s


def _set_up(start_method: str) -> None:
    """Set up a process that measures."""
    # A spawned process would spawn its workers too, and those would spend seconds on imports.
    multiprocessing.set_start_method(start_method, force=True)
    # Libraries print and warn a lot.
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


@contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """Stop processes meanwhile: a pass that was cut off may have left threads behind that still read."""

    def send(number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


class Bench:
    """Processes that measure, one for each contender, and what they found."""

    def __init__(self, stack: ExitStack, directory: Path, *, repeats: int, max_seconds: float) -> None:
        self._stack, self._directory = stack, directory
        self._repeats, self._max_seconds = repeats, max_seconds
        self._pools: dict[str, tuple[ProcessPoolExecutor, int]] = {}
        """Contender -> its process, and the number of that."""

    def _run(self, contender: str, reading: Reading) -> Pass:
        if contender not in self._pools:
            # Spawned: no contender finds the threads and the memory that another one left behind.
            spawn = multiprocessing.get_context("spawn")
            new = ProcessPoolExecutor(1, spawn, _set_up, (multiprocessing.get_start_method(),))
            self._pools[contender] = self._stack.enter_context(new), new.submit(os.getpid).result()
        directory = self._directory / contender / reading.corpus.directory.name
        directory.mkdir(parents=True, exist_ok=True)
        pool, pid = self._pools[contender]
        with frozen({other for _, other in self._pools.values()} - {pid}):
            return pool.submit(measure, contender, reading, directory, self._max_seconds).result()

    def passes(self, contenders: list[str], reading: Reading) -> tuple[dict[str, list[Pass]], dict[str, str]]:
        """Return the passes of each contender, in turns, and the errors of those that failed.

        One more pass goes before, which isn't counted: it imports, converts and fills caches.
        """
        found: dict[str, list[Pass]] = {name: [] for name in contenders}
        errors: dict[str, str] = {}
        for number in range(self._repeats + 1):
            # In another order each time: what a pass finds in caches depends on who came before.
            for name in random.Random(number).sample(contenders, len(contenders)):
                if name in errors:
                    continue
                try:
                    result = self._run(name, reading)
                except RuntimeError as error:
                    errors[name] = str(error)
                    # A process that died takes its pool with it.
                    if name in self._pools:
                        self._pools.pop(name)[0].shutdown()
                    continue
                if number:
                    found[name].append(result)
        return {name: passes for name, passes in found.items() if name not in errors}, errors


def _ratio(of: list[Pass], to: list[Pass]) -> float:
    """Return the median of the ratios of passes of the same round."""
    return median(mine[0] / other[0] for mine, other in zip(of, to, strict=True))


def compare(bench: Bench, case: Case, corpus: Corpus, contenders: list[str]) -> dict[str, Any]:
    """Return a row of the table."""
    reading = Reading(corpus, case.file_format, case.shuffle, case.num_workers, case.is_row_by_row)
    passes, errors = bench.passes([name for name in contenders if takes_part(name, case)], reading)
    rates = {name: median(rate for rate, _ in some) for name, some in passes.items()}
    peers = [name for name in rates if name in PEERS]
    row: dict[str, Any] = {
        "case": case.title,
        "corpus": case.corpus,
        "num_workers": case.num_workers,
        "rows/s": rates,
        "seconds to the first batch": {name: median(first for _, first in some) for name, some in passes.items()},
        "errors": errors,
    }
    if LANEWAY in passes:
        against = {name: name for name in (RAW, PACKED, IN_STATEFUL) if name in passes}
        if peers:
            against["best peer"] = max(peers, key=rates.__getitem__)
        row["of"] = {title: _ratio(passes[LANEWAY], passes[name]) for title, name in against.items()}
    return row


RATIOS = {RAW: "of raw", PACKED: "of packed", "best peer": "of best peer", IN_STATEFUL: "of Stateful"}
WIDTH = 12


def _line(title: str, cells: Iterable[str]) -> str:
    return f"{title:<42}" + "".join(f"  {cell:>{WIDTH}}" for cell in cells)


def show_header(contenders: list[str]) -> None:
    """Print the names of the columns: rows/s of laneway, its ratios, rows/s of all others."""
    others = [name for name in contenders if name != LANEWAY]
    for number, name in enumerate(others, start=1):
        print(f"[{number}] {name}")
    numbers = [f"[{number}]" for number in range(1, len(others) + 1)]
    print("\nrows/s; ratios are those of laneway to the others; - takes no part, ! failed")
    print(_line("case", [LANEWAY, *RATIOS.values(), *numbers]))


def show(row: dict[str, Any], contenders: list[str]) -> None:
    """Print a row, and what went wrong."""

    def rate(name: str) -> str:
        if name in row["errors"]:
            return "!"
        return f"{row['rows/s'][name]:,.0f}" if name in row["rows/s"] else "-"

    ratios = [f"{row['of'][name]:.2f}" if name in row.get("of", {}) else "-" for name in RATIOS]
    others = [rate(name) for name in contenders if name != LANEWAY]
    print(_line(row["case"], [rate(LANEWAY), *ratios, *others]), flush=True)
    for name, error in row["errors"].items():
        print(f"  ! {name}: {error.splitlines()[-1][:150]}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="small corpora; workers' start weighs more in them")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", default="", help='only cases with these words in their title, such as "tabular K=2"')
    parser.add_argument("--workers", type=int, nargs="+", metavar="K", help="shuffled Parquet at these num_workers")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with libraries")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="passes of each, in turns (%(default)s)")
    parser.add_argument("--max-seconds", type=float, help="cut passes off after so long (20; short: 5)")
    parser.add_argument("--directory", type=Path, help="keep corpora and converted copies here, for the next run")
    arguments = parser.parse_args()
    cases: Iterable[Case] = CASES
    if arguments.workers is not None:
        cases = starmap(Case, product(get_args(CorpusName), ("parquet",), (True,), arguments.workers))
    max_seconds = arguments.max_seconds or (5 if arguments.short else 20)
    contenders = list(OURS)
    for name, peer in PEERS.items() if arguments.peers else ():
        if peer.is_installed:
            contenders.append(name)
        else:
            print(f"skipped, as it is not installed: {name}")
    rows = []
    with ExitStack() as stack:
        directory = arguments.directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack, directory / "converted", repeats=arguments.repeats, max_seconds=max_seconds)
        show_header(contenders)
        for case in cases:
            if set(arguments.only.split()) <= set(case.title.split()):
                corpus = make_corpus(case.corpus, directory, "short" if arguments.short else "full")
                rows.append(compare(bench, case, corpus, contenders))
                show(rows[-1], contenders)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

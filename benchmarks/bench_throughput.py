"""How many rows per second reach the training loop, compared with raw pyarrow and other libraries?

Reads the corpora of corpora.py in batches of 256 rows as dicts of tensors (tokens, tabular) or as dicts of Python
values (text): laneway, pyarrow alone and every library of peers.py that is installed, each in a separate process, in
several interleaved rounds. A pass is timed from the start of iteration, and includes the start of workers.
Run `python benchmarks/bench_throughput.py [--short] [--json PATH] [--only WORD] [--no-peers]`; with `--workers 0 1 2 4`
it reads shuffled Parquet with these numbers of workers instead, for the plot of draw.py.
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

# Scripts import from their own directory, mypy from the root.
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
"""Rows per second of a whole pass, and seconds to its first batch."""


class Case(NamedTuple):
    """A row of the table."""

    corpus: CorpusName
    file_format: FileFormat
    shuffle: bool
    num_workers: int
    is_row_by_row: bool = False

    @property
    def title(self) -> str:
        """The title in the table, which `--only` searches."""
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


# Contenders. Each returns an iterable of rows, lists of rows or batches.


def _dataset(reading: Reading) -> StatefulShardedDataset:
    folder = reading.corpus.folder(reading.file_format)
    return StatefulShardedDataset(
        folder, shuffle=reading.shuffle, batch_size=None if reading.yields_rows else BATCH_ROWS
    )


def _lists(reading: Reading) -> dict[str, Any]:
    """Return the arguments with which a loader sends rows in lists, if the reading asks for them."""
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
    """Return raw pyarrow."""
    rows = RawPyarrow(
        reading.corpus.files(reading.file_format),
        reading.file_format,
        shuffle=reading.shuffle,
        batch_rows=None if reading.yields_rows else BATCH_ROWS,
        is_packed=is_packed,
        # On two cores this is faster without threads for tokens, a single column, and with two workers.
        use_threads=not reading.num_workers and reading.corpus.name != "tokens",
    )
    return DataLoader(rows, num_workers=reading.num_workers, **_lists(reading)) if reading.num_workers else rows


def open_packed(reading: Reading, _: Path) -> Iterable[Any]:
    """Return raw pyarrow with one uint8 tensor per batch."""
    return open_raw(reading, _, is_packed=True)


LANEWAY, IN_STATEFUL, RAW, PACKED = "laneway", "in StatefulDataLoader", "raw", "raw packed"
OURS: dict[str, Callable[[Reading, Path], Iterable[Any]]] = {
    LANEWAY: open_laneway,
    IN_STATEFUL: open_in_stateful,
    RAW: open_raw,
    PACKED: open_packed,
}


def takes_part(contender: str, case: Case) -> bool:
    """Return whether the contender is comparable in this case."""
    if contender == IN_STATEFUL:
        return case.num_workers > 0
    if contender == PACKED:
        return case.num_workers > 0 and case.corpus in PACKED_ROW_BYTES
    if contender in PEERS:
        return not case.is_row_by_row and (case.file_format == "parquet" or PEERS[contender].reads_arrow)
    return True


# Measuring.


def _num_rows(item: Any, corpus: CorpusName) -> int:  # noqa: ANN401 - each library has its own
    """Return the rows of a list or batch. Touch each cache line of tokens, because views are free until then."""
    tokens = item.get("tokens") if isinstance(item, dict) else item
    if isinstance(tokens, torch.Tensor) and corpus == "tokens":
        tokens.reshape(-1)[:: CACHE_LINE_BYTES // tokens.element_size()].sum()
    if isinstance(item, torch.Tensor) and item.dtype == torch.uint8:
        return item.numel() // PACKED_ROW_BYTES[corpus]
    return len(next(iter(item.values())) if isinstance(item, dict) else item)


def measure(contender: str, reading: Reading, directory: Path, max_seconds: float) -> Pass:
    """Return the rate of one pass, which is cut off after `max_seconds`."""
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
            # Not islice: it calls iter() on the iterator, and one that is a dataset too would restart.
            some = map(next, repeat(items, BATCH_ROWS if is_single else 1))
            found = sum(1 for _ in some) if is_single else sum(_num_rows(item, reading.corpus.name) for item in some)
            if not found:
                break
            rows += found
    except Exception as error:  # noqa: BLE001 - an error of one library must not stop the others
        # The exception of a library may not be picklable.
        message = f"{type(error).__name__}: {error}"
        raise RuntimeError(message) from None
    is_whole = seconds < max_seconds
    if is_whole and rows != reading.corpus.num_rows:
        message = f"delivered {rows:,} rows of {reading.corpus.num_rows:,}"
        raise RuntimeError(message)
    return rows / seconds, first_s


def _set_up(start_method: str) -> None:
    """Set up a measuring process."""
    # A spawned process would spawn its workers too, which would spend seconds on imports.
    multiprocessing.set_start_method(start_method, force=True)
    # Libraries print a lot and emit many warnings.
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


@contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """Stop processes in this context: the threads of a pass that was cut off may still be reading."""

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
    """One measuring process per contender."""

    def __init__(self, stack: ExitStack, directory: Path, *, repeats: int, max_seconds: float) -> None:
        self._stack, self._directory = stack, directory
        self._repeats, self._max_seconds = repeats, max_seconds
        self._pools: dict[str, tuple[ProcessPoolExecutor, int]] = {}
        """Contender -> its process and process id."""

    def _run(self, contender: str, reading: Reading) -> Pass:
        if contender not in self._pools:
            # Spawned, so that no contender inherits threads or memory of another.
            spawn = multiprocessing.get_context("spawn")
            new = ProcessPoolExecutor(1, spawn, _set_up, (multiprocessing.get_start_method(),))
            self._pools[contender] = self._stack.enter_context(new), new.submit(os.getpid).result()
        directory = self._directory / contender / reading.corpus.directory.name
        directory.mkdir(parents=True, exist_ok=True)
        pool, pid = self._pools[contender]
        with frozen({other for _, other in self._pools.values()} - {pid}):
            return pool.submit(measure, contender, reading, directory, self._max_seconds).result()

    def passes(self, contenders: list[str], reading: Reading) -> tuple[dict[str, list[Pass]], dict[str, str]]:
        """Return the passes of each contender, interleaved, and the errors of failed contenders.

        One uncounted pass comes first: it imports, converts and fills caches.
        """
        found: dict[str, list[Pass]] = {name: [] for name in contenders}
        errors: dict[str, str] = {}
        for number in range(self._repeats + 1):
            # In a different order each time, because the content of caches depends on the previous pass.
            for name in random.Random(number).sample(contenders, len(contenders)):
                if name in errors:
                    continue
                try:
                    result = self._run(name, reading)
                except RuntimeError as error:
                    errors[name] = str(error)
                    # A dead process breaks its pool.
                    if name in self._pools:
                        self._pools.pop(name)[0].shutdown()
                    continue
                if number:
                    found[name].append(result)
        return {name: passes for name, passes in found.items() if name not in errors}, errors


def _ratio(of: list[Pass], to: list[Pass]) -> float:
    """Return the median ratio of passes of the same round."""
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
    """Print the column names: rows/s of laneway, its ratios, rows/s of all others."""
    others = [name for name in contenders if name != LANEWAY]
    for number, name in enumerate(others, start=1):
        print(f"[{number}] {name}")
    numbers = [f"[{number}]" for number in range(1, len(others) + 1)]
    print("\nrows/s, and ratios of laneway to the others; - not comparable, ! failed")
    print(_line("case", [LANEWAY, *RATIOS.values(), *numbers]))


def show(row: dict[str, Any], contenders: list[str]) -> None:
    """Print a row and its errors."""

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
    parser.add_argument("--short", action="store_true", help="small corpora, in which the start of workers weighs more")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--only", default="", help='only cases with these words in the title, such as "tabular K=2"')
    parser.add_argument("--workers", type=int, nargs="+", metavar="K", help="shuffled Parquet at these num_workers")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with libraries")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="passes per contender, interleaved (%(default)s)")
    parser.add_argument("--max-seconds", type=float, help="cut off passes after this time (20; short: 5)")
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
            print(f"skipped, not installed: {name}")
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

"""What do the metrics of a loader cost?

Compares the CPU time of a whole pass, workers included, with that of a copy of laneway from which all statements that
measure are removed. Both run side by side: a process for each, which take turns pass by pass, so that whatever else the
machine does affects both. What is shown is the median over pairs of consecutive passes, with the 95 % confidence
interval of this median, which makes no assumption about the noise. On a busy machine, an interval of 1 % takes minutes;
without workers, there is also a count that needs none: the reads of the clock in a pass, times what a measured block
takes in a loop, as a share of the pass.
Run `python benchmarks/bench_metrics.py [--short] [--seconds S] [--only WORD] [--json PATH]`.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from benchmarks.corpora import Corpus, CorpusName, FileFormat, Size, make_corpus
else:
    from corpora import make_corpus

ROOT = Path(__file__).resolve().parent.parent
METERED = ("delivery", "reading", "formats", "storage")
"""Folders whose modules measure."""
BATCH_ROWS = 256
SECONDS = {"short": 10.0, "full": 60.0}
"""CPU time for the passes of a case."""
MIN_PASSES = 11
TARGET = 0.01


class Case(NamedTuple):
    """A row of the table."""

    corpus: CorpusName
    file_format: FileFormat
    shuffle: bool
    num_workers: int

    @property
    def title(self) -> str:
        """The title in the table."""
        order = "shuffled" if self.shuffle else "in file order"
        return f"{self.corpus} {self.file_format} {order} K={self.num_workers}"


CASES = (
    Case("tabular", "parquet", shuffle=True, num_workers=0),
    Case("tokens", "parquet", shuffle=True, num_workers=0),
    Case("tokens", "arrow", shuffle=False, num_workers=0),
    Case("text", "parquet", shuffle=True, num_workers=0),
    Case("tabular", "parquet", shuffle=True, num_workers=2),
    Case("text", "parquet", shuffle=True, num_workers=2),
)


class Unmetered(ast.NodeTransformer):
    """Removes what measures: reads of the clock, stores into meters and cells of activity, and measured blocks."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Replace a read of the clock by a number."""
        if isinstance(node.func, ast.Name) and node.func.id == "perf_counter":
            return ast.Constant(0.0)
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        """Replace a store by nothing."""
        self.generic_visit(node)
        return ast.Pass() if all(map(self._measures, node.targets)) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        """Replace a count by nothing."""
        return ast.Pass() if self._measures(node.target) else node

    def visit_For(self, node: ast.For) -> ast.stmt:
        """Replace a loop that only counts by nothing."""
        self.generic_visit(node)
        return ast.Pass() if all(isinstance(each, ast.Pass) for each in node.body) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        """Leave nothing of what begins and ends a measured block."""
        self.generic_visit(node)
        if node.name in {"__enter__", "__exit__"} and "self._meter" in ast.unparse(node):
            node.body = [ast.Pass()]
        return node

    def _measures(self, target: ast.expr) -> bool:
        """Return whether what is stored is measured."""
        if isinstance(target, ast.Tuple):
            return all(map(self._measures, target.elts))
        if isinstance(target, ast.Subscript):
            return ast.unparse(target.value).endswith("cells")
        return isinstance(target, ast.Attribute) and ast.unparse(target.value).endswith("meter")


def write_unmetered(target: Path) -> None:
    """Write a copy of the package that measures nothing."""
    shutil.copytree(ROOT / "src", target)
    package = target / "laneway"
    files = [package / "metering.py", *(file for folder in METERED for file in (package / folder).glob("*.py"))]
    for file in files:
        before = file.read_text(encoding="utf-8")
        if "meter" in before:
            tree = ast.fix_missing_locations(Unmetered().visit(ast.parse(before)))
            file.write_text(ast.unparse(tree), encoding="utf-8")


def serve() -> None:
    """Run a pass for each line that comes in, and print the seconds of CPU time that it took."""
    from laneway import SavableLoader, StatefulShardedDataset  # noqa: PLC0415 - the copy in PYTHONPATH

    folder, shuffle, num_workers = sys.argv[2], sys.argv[3] == "True", int(sys.argv[4])
    dataset = StatefulShardedDataset(folder, batch_size=BATCH_ROWS, shuffle=shuffle)
    for line in sys.stdin:
        counted = count_clock_reads() if line.strip() else [0]
        loader = SavableLoader(dataset, num_workers=num_workers)
        before = _cpu_s()
        for _ in loader:
            pass
        # Those of the workers count once they have ended.
        del loader
        for worker in multiprocessing.active_children():
            worker.join()
        print(counted[0] if line.strip() else _cpu_s() - before, flush=True)


def count_clock_reads() -> list[int]:
    """Return a list with the number of reads of the clock by laneway from now on."""
    counted = [0]

    def counting() -> float:
        counted[0] += 1
        return time.perf_counter()

    for name, module in [*sys.modules.items()]:
        if name.startswith("laneway") and "perf_counter" in vars(module):
            vars(module)["perf_counter"] = counting
    return counted


def block_s() -> float:
    """Return the CPU seconds of a measured block: two reads of the clock, and what is stored."""
    meter, number = argparse.Namespace(decode=0.0, rows=0, cells=[0.0] * 8), 100_000

    def measured() -> None:
        begun = time.perf_counter()
        meter.cells[0] = begun
        meter.cells[1] = 1
        meter.decode += time.perf_counter() - begun
        meter.rows += 1

    times = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(number):
            measured()
        times.append((time.process_time() - begun) / number)
    return statistics.median(times)


def _cpu_s() -> float:
    # More precise than os.times().
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


class Contender:
    """A process that runs passes with one copy of the package."""

    def __init__(self, source: Path, corpus: Corpus, case: Case) -> None:
        """Start it.

        Args:
            source: The directory with the package.
            corpus: The data.
            case: How it is read.
        """
        command = [sys.executable, __file__, "serve", str(corpus.folder(case.file_format))]
        self._process = subprocess.Popen(
            [*command, str(case.shuffle), str(case.num_workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source)},
        )

    def run(self, *, count: bool = False) -> float:
        """Run a pass and return its CPU time in seconds; with `count`, in the last pass, its reads of the clock."""
        if self._process.stdin is None or self._process.stdout is None:
            message = "the process has no pipes"
            raise RuntimeError(message)
        self._process.stdin.write("count\n" if count else "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median: two of the values, by their ranks."""
    ordered, number = sorted(values), len(values)
    # How many values are below the median is binomial with p = 1/2: by the normal approximation, with its correction.
    low = max(0, math.floor((number - 1) / 2 - 1.96 * math.sqrt(number) / 2))
    return ordered[low], ordered[number - 1 - low]


def measure(case: Case, corpus: Corpus, other: Path, seconds: float) -> dict[str, Any]:
    """Return the CPU time with metrics and without, and by how much more it is with them.

    Args:
        case: How the data is read.
        corpus: The data.
        other: The directory with the package that measures nothing.
        seconds: CPU time for all passes.
    """
    with ExitStack() as stack:
        contenders = []
        for source in (other, ROOT / "src"):
            contenders.append(Contender(source, corpus, case))
            stack.callback(contenders[-1].end)
        for each in contenders:
            each.run()
        times: dict[int, list[float]] = {0: [], 1: []}
        while len(times[1]) < MIN_PASSES or sum(times[0]) + sum(times[1]) < seconds:
            for index in (0, 1) if len(times[0]) % 2 else (1, 0):
                times[index].append(contenders[index].run())
        reads = contenders[1].run(count=True) if not case.num_workers else None
    costs = [after / before - 1 for before, after in zip(times[0], times[1], strict=True)]
    low, high = interval_of_median(costs)
    return {
        "case": case.title,
        "passes": len(costs),
        "without_s": statistics.median(times[0]),
        "with_s": statistics.median(times[1]),
        "cost": statistics.median(costs),
        "low": low,
        "high": high,
        "counted": None if reads is None else reads / 2 * block_s() / statistics.median(times[1]),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="smaller corpora and less time")
    parser.add_argument("--seconds", type=float, help="CPU time for the passes of a case (10 with --short, else 60)")
    parser.add_argument("--only", default="", help="only cases whose title has this word")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    size: Size = "short" if arguments.short else "full"
    seconds = arguments.seconds or SECONDS[size]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_unmetered(Path(folder) / "src")
        print(f"Median CPU time of a pass in batches of {BATCH_ROWS}, without metrics and with them, and their cost:")
        for case in (each for each in CASES if arguments.only in each.title):
            corpus = make_corpus(case.corpus, Path(tempfile.gettempdir()) / "laneway-corpora", size)
            found.append(measure(case, corpus, Path(folder) / "src", seconds))
            row = found[-1]
            verdict = f"  above {TARGET:.0%}" if row["low"] > TARGET else ""
            if row["low"] <= TARGET < row["high"]:
                verdict = f"  not resolved from {TARGET:.0%}: give more than --seconds {seconds:.0f}"
            print(
                f"  {row['case']:36} {row['without_s']:7.3f} s {row['with_s']:7.3f} s {row['cost']:+7.2%} "
                f"[{row['low']:+.2%}, {row['high']:+.2%}] of {row['passes']:3} pairs{verdict}"
                + ("" if row["counted"] is None else f"; counted {row['counted']:.2%}")
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    else:
        main()

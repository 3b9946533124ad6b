"""How many emulated accelerators does a machine feed, with laneway, pyarrow alone and other libraries?

The workloads are the shapes of MLPerf Storage v3 in accelerator_shapes.py. An accelerator is a process that takes a
batch, decoded to tensors, and sleeps for the seconds of computation; its utilisation is these seconds divided by all
seconds, without the first step, as DLIO defines it. A contender holds as many accelerators as run at the same time at
a mean utilisation of at least 90 %.

For each contender, in turn: the rows per second of as many processes as there are cores, which never sleep; the CPU
seconds of a row, workers included; the accelerators that each of these permits; and those that were held. Only the CPU
seconds don't depend on what else the machine does.
Run `python benchmarks/bench_accelerators.py [--short] [--json PATH] [--only WORD ...] [--shape NAME] [--held]`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from benchmarks.accelerator_peers import ALONE, CONTENDERS, Batch, Contender, Reading
    from benchmarks.accelerator_shapes import SHAPES, Shape, make_files
    from benchmarks.corpora import FileFormat
else:
    from accelerator_peers import ALONE, CONTENDERS, Batch, Contender, Reading
    from accelerator_shapes import SHAPES, Shape, make_files

HELD = 0.9
"""Mean utilisation at which accelerators are held."""
CACHE_LINE_BYTES = 64
MAX_TRIALS = 6
START_TIMEOUT_S = 300.0
_context = multiprocessing.get_context("fork")


class Trial(NamedTuple):
    """What some accelerators measured, all at the same time."""

    utilisation: float
    """The mean."""
    rows_per_s: float
    """Rows per second of all of them together."""
    cpu_s_per_row: float
    """CPU seconds of a row, of all processes."""


def _touch(batch: Batch) -> int:
    """Return the rows of a batch, after reading each of its cache lines: views are free until then."""
    for column in batch.values():
        column.reshape(-1)[:: max(1, CACHE_LINE_BYTES // column.element_size())].sum()
    return len(next(iter(batch.values())))


def _accelerate(contender: Contender, reading: Reading, step_s: float, seconds: float, together: Any) -> Any:  # noqa: ANN401 - a Barrier
    """Run an accelerator for some seconds, and return its seconds of computation, all its seconds, and its rows."""
    batches = contender.open(reading)
    before = _touch(next(batches))
    time.sleep(step_s)
    together.wait(START_TIMEOUT_S)
    computed, rows, began = 0.0, 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        rows += _touch(next(batches))
        asked = time.perf_counter()
        time.sleep(step_s)
        computed += time.perf_counter() - asked
    return computed, now - began, rows, rows + before


def _process(results: Any, *arguments: Any) -> None:  # noqa: ANN401 - a queue, and the arguments of _accelerate
    # Libraries print a lot and emit many warnings.
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        results.put(_accelerate(*arguments))
    except Exception as error:  # noqa: BLE001 - an error of one library must not stop the others
        arguments[-1].abort()
        results.put(f"{type(error).__name__}: {error}"[:200])


def run(contender: Contender, readings: list[Reading], step_s: float, seconds: float) -> Trial:
    """Run an accelerator for each reading, all at the same time.

    Raises:
        RuntimeError: One of them failed.
    """
    results, together = _context.SimpleQueue(), _context.Barrier(len(readings))
    before = _cpu_s()
    processes = [
        # Not daemons, which may have no workers.
        _context.Process(target=_process, args=(results, contender, reading, step_s, seconds, together))
        for reading in readings
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join(10)
        with suppress(ProcessLookupError):
            process.kill()
            process.join()
    errors = [each for each in found if isinstance(each, str)]
    if errors:
        # The others only tell that the barrier is broken.
        raise RuntimeError(min(errors, key=lambda text: "BrokenBarrier" in text))
    cpu_s = _cpu_s() - before
    return Trial(
        sum(computed / elapsed for computed, elapsed, _, _ in found) / len(found),
        sum(rows / elapsed for _, elapsed, rows, _ in found),
        cpu_s / sum(rows for *_, rows in found),
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Bench:
    """Measures contenders with one workload."""

    def __init__(self, shape: Shape, folders: dict[FileFormat, Path], directory: Path, seconds: float) -> None:
        """Measure each for about `seconds` at a time."""
        self._shape, self._folders, self._directory, self._seconds = shape, folders, directory, seconds

    def readings(self, name: str, count: int) -> list[Reading]:
        """Return what some accelerators read."""
        own = self._directory / f"{self._folders['parquet'].parent.name}-{name.replace(' ', '-')}"
        own.mkdir(parents=True, exist_ok=True)
        return [Reading(self._shape, self._folders, own, seed) for seed in range(count)]

    def rates(self, names: list[str], rounds: int) -> tuple[dict[str, list[Trial]], dict[str, str]]:
        """Return trials without steps of each contender, in turn, and the errors of those that failed."""
        trials: dict[str, list[Trial]] = {name: [] for name in names}
        errors: dict[str, str] = {}
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if name in errors:
                    continue
                try:
                    readings = self.readings(name, os.cpu_count() or 1)
                    trials[name].append(run(CONTENDERS[name], readings, 0.0, self._seconds))
                except (RuntimeError, OSError) as error:
                    errors[name] = str(error)
        return {name: found for name, found in trials.items() if name not in errors}, errors

    def held(self, name: str, expected: float) -> tuple[int, dict[int, float]]:
        """Return how many accelerators a contender holds, and the utilisation of each number that was tried.

        Args:
            name: The contender.
            expected: About how many it will hold.
        """
        shape, tried = self._shape, {0: 1.0}
        seconds = max(self._seconds, 20 * shape.step_s)
        count = max(1, round(expected))
        while count not in tried and len(tried) <= MAX_TRIALS:
            tried[count] = run(CONTENDERS[name], self.readings(name, count), shape.step_s, seconds).utilisation
            good = max(number for number, utilisation in tried.items() if utilisation >= HELD)
            bad = min((number for number, utilisation in tried.items() if utilisation < HELD), default=None)
            count = max(good + 1, round(good * 1.25)) if bad is None else max(good + 1, (good + bad) // 2)
            if bad is not None and bad - good <= max(1, good // 12):
                break
        del tried[0]
        return max((number for number, utilisation in tried.items() if utilisation >= HELD), default=0), tried


def measure(shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what each contender does with a workload."""
    directory = arguments.directory or Path(tempfile.gettempdir()) / "laneway-accelerators"
    # In a process of its own: threads of pyarrow don't survive the fork of an accelerator.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        folders = pool.submit(make_files, shape, directory, is_short=arguments.short).result()
        bench = Bench(shape, folders, directory, arguments.seconds)
        names = [name for name in CONTENDERS if name == ALONE or any(word in name for word in arguments.only)]
        problems = {name: problem for name in names if (problem := CONTENDERS[name].problem) is not None}
        for name in (name for name in names if name not in problems):
            contender = CONTENDERS[name]
            if contender.module is not None:
                __import__(contender.module)
            if contender.convert is not None:
                pool.submit(contender.convert, bench.readings(name, 1)[0]).result()
    trials, errors = bench.rates([name for name in names if name not in problems], arguments.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name, found in trials.items():
        rate = median(each.rows_per_s for each in found)
        cpu_s = min(each.cpu_s_per_row for each in found)
        rows[name] = {
            "rows_per_s": rate,
            "cpu_s_per_row": cpu_s,
            "permitted_by_rate": rate / shape.rows_per_s,
            "permitted_by_cpu": (os.cpu_count() or 1) / cpu_s / shape.rows_per_s,
        }
        if arguments.held and name != ALONE:
            rows[name]["held"], rows[name]["tried"] = bench.held(name, rows[name]["permitted_by_rate"])
    return {"shape": shape.name, "contenders": rows, "errors": errors | problems}


def show(found: dict[str, Any]) -> None:
    """Print the table of a workload."""
    rows = found["contenders"]
    print(
        f"\n{found['shape']}: accelerators by the rate, by CPU time, held at {HELD:.0%}, and laneway's in parts of it"
    )
    alone = rows.get(ALONE)
    for name, row in rows.items():
        held = f"{row['held']:6}" if "held" in row else "     -"
        part = f"{row['permitted_by_cpu'] / alone['permitted_by_cpu']:6.2f} of {ALONE} by CPU" if alone else ""
        print(
            f"  {name:28} {row['rows_per_s']:12,.0f} rows/s {row['permitted_by_rate']:7.1f} "
            f"{row['permitted_by_cpu']:7.1f} {held} {part}"
        )
    for measured in ("permitted_by_rate", "permitted_by_cpu", "held"):
        peers = {name: row[measured] for name, row in rows.items() if CONTENDERS[name].is_peer and measured in row}
        ours = {name: row[measured] for name, row in rows.items() if name.startswith("laneway") and measured in row}
        if peers and ours:
            best = max(peers, key=peers.__getitem__)
            parts = ", ".join(f"{name} {number / max(peers[best], 1e-9):.2f}" for name, number in ours.items())
            print(f"  {measured}, of the best peer, {best}: {parts}")
    for name, error in found["errors"].items():
        print(f"  ! {name}: {error}")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="fewer rows, one round")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--only", nargs="+", default=[""], help="only contenders with one of these words in the name")
    parser.add_argument("--shape", choices=[*SHAPES], help="only this workload")
    parser.add_argument("--held", action=argparse.BooleanOptionalAction, default=True, help="emulate accelerators")
    parser.add_argument("--seconds", type=float, help="seconds of a trial (10; short: 3)")
    parser.add_argument("--rounds", type=int, help="trials of each contender without steps (3; short: 1)")
    parser.add_argument("--directory", type=Path, help="keep the files here, for the next run")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (3.0 if arguments.short else 10.0)
    arguments.rounds = arguments.rounds or (1 if arguments.short else 3)
    results = []
    for shape in (each for name, each in SHAPES.items() if arguments.shape in {None, name}):
        results.append(measure(shape, arguments))
        show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

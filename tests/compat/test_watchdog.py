"""A batch that does not come: the log says why, its workers are replaced, and the rows are those of any other run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laneway import Mixture, SavableLoader, StatefulShardedDataset, WorkerError
from tests.compat.loaders import FORKSERVER, ids, loader_raises
from tests.corpora import write_corpus
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
STALL_S = 2.0
"""Long enough for workers to start. If they don't, they are replaced once more, and nothing else changes."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write 96 rows in 12 row groups of 3 files."""
    write_corpus(tmp_path, files=((8, 8, 8, 8),) * 3, names=("part-0", "part-1", "part-2"))
    return tmp_path


class Stall:
    """A transform that does not return for a row, the first times that it is called with it."""

    def __init__(self, row: int, times: int, *, keeps_lock: bool = False) -> None:
        self.row, self.keeps_lock = row, keeps_lock
        self.left = multiprocessing.Semaphore(times)
        self.never = multiprocessing.Event()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        found = item["id"]
        if (found == self.row if isinstance(found, int) else self.row in found.tolist()) and self.left.acquire(
            block=False
        ):
            if self.keeps_lock:
                # Takes longer than the age of the universe, and no other thread of the process runs meanwhile.
                re.match(r"(a+)+$", "a" * 60 + "b")
            self.never.wait()
        return item


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "laneway"]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (False, {"num_workers": 2}),
        (True, {"num_workers": 1, "persistent_workers": True}),
        (False, {"num_workers": 2, "multiprocessing_context": "fork", "shield_workers": True}),
    ],
)
def test_a_batch_whose_function_does_not_return_is_read_again_exactly(
    corpus: Path, rows: bool, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    arguments: dict[str, Any] = {"shuffle": True, "seed": 3, "shard_rows": 8}
    expected = ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8, **arguments), **options))
    size: dict[str, Any] = {} if rows else {"batch_size": 8}
    dataset = StatefulShardedDataset(corpus, transform=Stall(40, 1), **size, **arguments)
    batch_size = 8 if rows else None
    loader = SavableLoader(
        dataset, batch_size=batch_size, stall_warning_s=STALL_S / 2, stall_timeout_s=STALL_S, **options
    )
    other = SavableLoader(StatefulShardedDataset(corpus, **size, **arguments), batch_size=batch_size, **options)
    found = []
    for batch, same in zip(loader, other, strict=True):
        found.append(batch["id"].tolist())
        assert loader.state_dict() == other.state_dict()
        assert same["id"].tolist() == found[-1]
    assert found == expected
    warnings = [each for each in records(caplog) if "calls functions on rows" in each]
    assert any("the workers are replaced, and the batch is read again (1 of 2 times" in each for each in warnings)
    first = warnings[0]
    assert re.search(r"no batch for \d+ s: worker [01] of rank 0 \(pid \d+, [\d.,]+ [KMG]iB of memory\)", first)
    where = "row 8 of part-1.parquet" if rows else r"the batch that begins with row \d+ of part-\d.parquet"
    assert re.search(f"calls functions on rows: {where}", first)
    # The stack of the function that does not return.
    assert re.search(r'File ".*test_watchdog.py", line \d+ in __call__', first)
    assert loader.metrics().rows == 96


def test_a_function_that_keeps_the_lock_of_the_interpreter_is_named_and_replaced(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = StatefulShardedDataset(corpus, transform=Stall(40, 1, keeps_lock=True), batch_size=8)
    loader = SavableLoader(dataset, num_workers=1, stall_warning_s=None, stall_timeout_s=STALL_S)
    assert ids(loader) == ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8)))
    (message,) = [each for each in records(caplog) if "calls functions on rows" in each]
    assert re.search(r'File ".*test_watchdog.py", line \d+ in __call__', message)


def test_the_stacks_of_persistent_workers_are_known_in_later_epochs_too(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stall = Stall(40, 0)
    dataset = StatefulShardedDataset(corpus, batch_size=8, transform=stall)
    loader = SavableLoader(
        dataset, num_workers=1, persistent_workers=True, stall_warning_s=None, stall_timeout_s=STALL_S
    )
    expected = ids(loader)
    stall.left.release()
    assert ids(loader) == expected
    (message,) = [each for each in records(caplog) if "calls functions on rows" in each]
    assert re.search(r'File ".*test_watchdog.py", line \d+ in __call__', message)
    assert (loader.epoch, loader.metrics().rows) == (1, 192)


def test_the_third_stall_at_the_same_row_is_an_error_that_names_it_and_loses_nothing(corpus: Path) -> None:
    others = {*multiprocessing.active_children()}
    expected = ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8), num_workers=2))
    stall = Stall(40, 3)
    dataset = StatefulShardedDataset(corpus, transform=stall).flat_map(same)
    loader = SavableLoader(dataset.batch(8), num_workers=2, stall_warning_s=None, stall_timeout_s=STALL_S)
    found: list[list[int]] = []
    with loader_raises(WorkerError, r"this has happened 3 times at the same place.* is row 8 of part-1.parquet"):
        found.extend(batch["id"].tolist() for batch in loader)
    state = loader.state_dict()
    assert found == expected[: len(found)]
    resumed = SavableLoader(dataset.batch(8), num_workers=2)
    resumed.load_state_dict(state)
    assert found + ids(resumed) == expected
    assert {*multiprocessing.active_children()} <= others


def same(row: Any) -> list[Any]:
    return [row]


def test_rows_of_mixtures_are_named_with_their_source(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = {name: StatefulShardedDataset(corpus) for name in ("a", "b")}
    mixture = Mixture(sources, {"a": 1, "b": 1}, stop=64)
    expected = ids(SavableLoader(mixture.batch(8)))
    stalling = mixture.map(Stall(10, 1)).batch(8)
    loader = SavableLoader(stalling, num_workers=1, stall_warning_s=None, stall_timeout_s=STALL_S)
    assert ids(loader) == expected
    (message,) = [each for each in records(caplog) if "calls functions" in each]
    assert re.search(r"calls functions on rows: row 10 of part-0.parquet of source '[ab]'", message)


def test_a_warning_may_be_later_than_any_thread_can_wait(corpus: Path) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=8), stall_warning_s=1e12)
    # An error of its thread would be a warning, which is an error here.
    assert ids(loader) == ids(StatefulShardedDataset(corpus, batch_size=8))


def test_without_workers_the_log_says_where_the_process_is(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = {*watches()}
    expected = ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8)))
    stall = Stall(40, 1)

    class Handler(logging.Handler):
        """Lets the function return once the warning has come."""

        def emit(self, _: logging.LogRecord) -> None:
            stall.never.set()

    handler = Handler()
    logging.getLogger("laneway").addHandler(handler)
    try:
        dataset = StatefulShardedDataset(corpus, transform=stall)
        loader = SavableLoader(dataset, batch_size=8, stall_warning_s=0.2)
        assert ids(loader) == expected
    finally:
        logging.getLogger("laneway").removeHandler(handler)
    # The function has returned before other handlers have the warning too.
    wait_until(lambda: bool(records(caplog)), lambda: "the warning is in the log")
    message = records(caplog)[0]
    assert re.search(
        r"no batch for 0 s: rank 0, which has no workers \(pid \d+, [\d.]+ [MG]iB of memory\) calls", message
    )
    assert "calls functions on rows: row 8 of part-1.parquet" in message
    assert re.search(r'File ".*test_watchdog.py", line \d+, in __call__', message)
    wait_until(lambda: others.issuperset(watches()), lambda: "the thread that watches has ended")
    batches = iter(SavableLoader(StatefulShardedDataset(corpus, batch_size=8)))
    next(batches)
    assert not others.issuperset(watches())
    del batches
    wait_until(lambda: others.issuperset(watches()), lambda: "the thread of an iterator that is gone has ended")


def watches() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "laneway-watch"]


# -- Killed workers ---------------------------------------------------------------------------------------------------


class KillAt:
    """A transform that has its process killed at a row, once, after taking much memory."""

    def __init__(self, row: int, by: int = signal.SIGKILL, context: Any = multiprocessing) -> None:
        self.row, self.by = row, by
        self.left = context.Semaphore(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.row in batch["id"].tolist() and self.left.acquire(block=False):
            kept = bytearray(300 << 20)
            kept[::4096] = b"x" * len(kept[::4096])
            os.kill(os.getpid(), self.by)
            time.sleep(60)
        return batch


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_worker_that_is_killed_is_named_and_no_batch_is_lost(corpus: Path, method: str) -> None:
    context = FORKSERVER if method == "forkserver" else multiprocessing.get_context(method)
    expected = ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8), num_workers=2))
    dataset = StatefulShardedDataset(corpus, batch_size=8, transform=KillAt(40, context=context))
    loader = SavableLoader(dataset, num_workers=2, multiprocessing_context=context)
    batches = iter(loader)
    found: list[list[int]] = []
    with loader_raises(WorkerError, r"worker [01] of rank 0 \(pid \d+\) was killed by signal SIGKILL, ") as raised:
        found.extend(batch["id"].tolist() for batch in batches)
    del raised
    assert found == expected[: len(found)]
    found += [batch["id"].tolist() for batch in batches]
    assert found == expected


KILLED = """
import sys
from laneway import SavableLoader, StatefulShardedDataset, WorkerError
from tests.compat.test_watchdog import KillAt
try:
    list(SavableLoader(StatefulShardedDataset(sys.argv[1], batch_size=8, transform=KillAt(40)), num_workers=1))
except WorkerError as error:
    print(error)
"""


def test_the_error_for_a_killed_worker_says_how_much_memory_it_used(corpus: Path) -> None:
    # In a process of its own: the peak is known only of a child that was larger than all before it.
    command = [sys.executable, "-c", KILLED, str(corpus)]
    message = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    used = re.search(r"it used ([\d.]+) MiB when it sent its last batch and ([\d.,]+) ([MG])iB at its peak", message)
    assert used is not None, message
    peak = float(used[2].replace(",", "")) * (1024 if used[3] == "G" else 1)
    assert peak >= float(used[1]) + 250
    assert "When last seen, it called functions on rows" in message
    assert re.search(r"[\d.]+ [MG]iB of [\d.,]+ [MG]iB of memory are available now", message)


def test_a_worker_that_another_signal_ends_is_named_too(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=8, transform=KillAt(40, signal.SIGUSR1))
    with loader_raises(WorkerError, "was killed by signal SIGUSR1; it used"):
        list(SavableLoader(dataset, num_workers=1))


# -- Other times ------------------------------------------------------------------------------------------------------


def test_the_timeout_of_a_dataloader_is_still_an_error_and_costs_no_batch(corpus: Path) -> None:
    expected = ids(SavableLoader(StatefulShardedDataset(corpus, batch_size=8)))
    stall = Stall(40, 1)
    dataset = StatefulShardedDataset(corpus, batch_size=8, transform=stall)
    loader = SavableLoader(dataset, num_workers=1, timeout=STALL_S, stall_warning_s=STALL_S / 4)
    batches = iter(loader)
    found: list[list[int]] = []
    with loader_raises(RuntimeError, f"DataLoader timed out after {STALL_S} seconds"):
        found.extend(batch["id"].tolist() for batch in batches)
    found += [batch["id"].tolist() for batch in batches]
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stall_warning_s": 0}, "stall_warning_s must be a finite number of seconds above 0, not 0"),
        ({"stall_timeout_s": -1, "num_workers": 1}, "stall_timeout_s must be a finite number of seconds above 0"),
        ({"stall_timeout_s": 60}, "stall_timeout_s=60 replaces worker processes, and with num_workers=0 there are"),
    ],
)
def test_times_are_checked(corpus: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SavableLoader(StatefulShardedDataset(corpus), **arguments)


@pytest.fixture(autouse=True)
def _log_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "laneway"):
        yield

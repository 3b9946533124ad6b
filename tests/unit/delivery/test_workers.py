"""What DataLoader exposes about its workers; these tests fail if a release of torch or torchdata changes it."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.utils.data
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import LanewayError, SavableLoader, StatefulShardedDataset
from laneway.core.turns import WorkerPlace
from laneway.delivery.workers import end_workers, is_loader_starting_again, killed_workers, worker_place
from tests.compat.loaders import FORKSERVER
from tests.fuzzing import thorough
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LOADERS = [torch.utils.data.DataLoader, StatefulDataLoader]


class Places(torch.utils.data.IterableDataset[Any]):
    """A dataset that yields the place of each worker."""

    def __iter__(self) -> Iterator[Any]:
        place = worker_place(WorkerPlace(4, 5))
        yield None if place is None else (place.rank, place.world_size, place.worker, place.num_workers)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write 160 rows."""
    pq.write_table(pa.table({"id": range(160)}), tmp_path / "part-0.parquet", row_group_size=20)
    return tmp_path


def test_a_worker_knows_its_place() -> None:
    assert worker_place(WorkerPlace()) is None
    loader = torch.utils.data.DataLoader(Places(), batch_size=None, num_workers=2, collate_fn=tuple)
    assert [WorkerPlace(*found) for found in loader] == [WorkerPlace(4, 5, 0, 2), WorkerPlace(4, 5, 1, 2)]


def test_workers_are_ended_at_once() -> None:
    others = {*multiprocessing.active_children()}
    batches = iter(torch.utils.data.DataLoader(Places(), batch_size=None, num_workers=2, collate_fn=tuple))
    next(batches)
    end_workers(batches)
    end_workers(None)
    assert {*multiprocessing.active_children()} <= others


class Waiting(torch.utils.data.IterableDataset[Any]):
    """A dataset that waits for a signal that ends its process."""

    def __init__(self) -> None:
        self.is_waiting = multiprocessing.Event()

    def __iter__(self) -> Iterator[Any]:
        self.is_waiting.set()
        while True:
            signal.pause()
            yield 0


def test_a_signal_that_ends_a_worker_while_it_is_shut_down_raises_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Waiting()
    batches: Any = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1))
    assert dataset.is_waiting.wait(60)
    (worker,) = batches._workers
    joined = worker.join

    def join(timeout: float | None = None) -> None:
        worker.kill()
        # Its parent is told of its end, and has not asked how it ended yet.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        joined(timeout)

    monkeypatch.setattr(worker, "join", join)
    end_workers(batches)
    assert worker.exitcode == -signal.SIGKILL


def test_a_worker_that_was_killed_is_waited_for_if_it_has_closed_its_connection() -> None:
    dataset = Waiting()
    batches: Any = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1))
    assert dataset.is_waiting.wait(60)
    (worker,) = batches._workers
    threading.Timer(0.2, worker.kill).start()
    assert killed_workers(batches, EOFError()) == [(0, worker.pid, -signal.SIGKILL)]
    end_workers(batches)
    assert killed_workers(iter([]), EOFError()) == []


@pytest.mark.parametrize("loader_type", LOADERS)
def test_a_loader_that_collates_batches_again_gives_a_warning(corpus: Path, loader_type: Any) -> None:
    batches, rows = StatefulShardedDataset(corpus, batch_size=8), StatefulShardedDataset(corpus)
    with pytest.warns(UserWarning, match="pass batch_size=None to the DataLoader"):
        assert next(iter(loader_type(batches)))["id"].shape == (1, 8)
    assert next(iter(loader_type(batches, batch_size=None)))["id"].shape == (8,)
    assert next(iter(loader_type(rows, batch_size=4)))["id"].shape == (4,)


class StartingAgain(torch.utils.data.IterableDataset[Any]):
    """A dataset whose state says whether its loader starts its workers again."""

    def __init__(self, log: Path) -> None:
        self.log, self.starts_again = log, False

    def __iter__(self) -> Iterator[int]:
        with self.log.open("a") as file:
            file.write(f"{int(self.starts_again or is_loader_starting_again())}")
        yield 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "starts_again": is_loader_starting_again()}

    def state_dict(self) -> dict[str, Any]:
        return {"state": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept a state."""


@pytest.mark.parametrize("method", ["fork", thorough("spawn")])
def test_a_stateful_dataloader_starts_its_workers_twice_after_the_end_of_an_epoch(tmp_path: Path, method: str) -> None:
    log = tmp_path / "log"
    options: dict[str, Any] = {"batch_size": None, "num_workers": 1, "multiprocessing_context": method}
    loader = StatefulDataLoader(StartingAgain(log), **options)
    assert [*loader] == [1]
    state = loader.state_dict()
    resumed = StatefulDataLoader(StartingAgain(log), **options)
    resumed.load_state_dict(state)
    assert [*resumed] == [1]
    assert log.read_text() == "010"


# -- Workers of a SavableLoader ---------------------------------------------------------------------------------------


def with_lock(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "unsent": open(os.devnull)} if 20 in batch["id"] else batch  # noqa: PTH123 - not picklable


def with_lock_in_list(batch: dict[str, Any]) -> list[Any]:
    return [with_lock(batch)]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("transform", [with_lock, with_lock_in_list])
def test_a_batch_that_can_not_be_sent_is_an_error(corpus: Path, transform: Any) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=10, transform=transform), num_workers=2)
    batches = iter(loader)
    assert len([next(batches) for _ in range(4)]) == 4
    with pytest.raises(LanewayError, match="a batch can't be sent from a DataLoader worker, since it can't be pickled"):
        next(batches)
    assert loader.batches_delivered == 4


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_batch_that_can_not_be_sent_is_an_error_in_a_users_loader_too(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=10, transform=with_lock)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=lambda batch: batch)
    with pytest.raises(LanewayError, match="can't be pickled"):
        list(loader)


def test_workers_end_with_their_iterator_and_after_an_error(corpus: Path) -> None:
    def fail(batch: Any) -> Any:
        if 20 in batch["id"]:
            message = "on purpose"
            raise ValueError(message)
        return batch

    others = {*multiprocessing.active_children()}

    def children() -> set[Any]:
        return {*multiprocessing.active_children()} - others

    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=10, transform=fail), num_workers=2)
    for _ in loader:
        break
    assert children() == set()
    batches, kept = iter(loader), []
    for _ in range(4):
        next(batches)
    for _ in range(3):
        start = time.perf_counter()
        with pytest.raises(ValueError, match="on purpose") as raised:
            next(batches)
        assert time.perf_counter() - start < 4, "far from the five seconds that a worker may take to end"
        kept.append(raised)
        assert children() == set()


def test_workers_started_early_deliver_the_next_pass(corpus: Path) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=10), num_workers=2)
    expected = [batch["id"].tolist() for batch in loader]
    others = {*multiprocessing.active_children()}
    loader.set_epoch(0)
    loader.start()
    workers = {*multiprocessing.active_children()} - others
    assert len(workers) == 2
    batches = iter(loader)
    first = next(batches)["id"].tolist()
    assert {*multiprocessing.active_children()} - others == workers
    state = loader.state_dict()
    assert [first, *(batch["id"].tolist() for batch in batches)] == expected
    loader.start()
    loader.load_state_dict(state)
    assert [batch["id"].tolist() for batch in loader] == expected[1:]


def test_shielded_workers_ignore_signals_of_others_and_end_with_their_parent(corpus: Path) -> None:
    others = {*multiprocessing.active_children()}
    dataset = StatefulShardedDataset(corpus, batch_size=10)
    batches = iter(SavableLoader(dataset, num_workers=2, shield_workers=True))
    # One of each worker.
    next(batches)
    next(batches)
    workers = {*multiprocessing.active_children()} - others
    kill = ["/bin/sh", "-c", "kill -TERM $*; kill -INT $*", "kill", *(str(worker.pid) for worker in workers)]
    subprocess.run(kill, check=True)
    time.sleep(0.2)
    assert all(worker.is_alive() for worker in workers)
    assert len(list(batches)) == 14


def test_a_shielded_worker_of_a_fork_server_ends_when_the_process_that_started_it_says_so(corpus: Path) -> None:
    others = {*multiprocessing.active_children()}
    dataset = StatefulShardedDataset(corpus, batch_size=10)
    batches = iter(SavableLoader(dataset, num_workers=1, shield_workers=True, multiprocessing_context=FORKSERVER))
    next(batches)
    (worker,) = {*multiprocessing.active_children()} - others
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


def named_threads(_: dict[str, Any]) -> list[str]:
    """Return the names of the threads that a worker needs once."""
    return [each.name for each in threading.enumerate() if each.name in {"laneway-parent", "laneway-signals"}]


def test_a_persistent_worker_of_a_fork_server_starts_its_threads_once(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=40, transform=named_threads)
    loader = SavableLoader(
        dataset, num_workers=1, persistent_workers=True, shield_workers=True, multiprocessing_context=FORKSERVER
    )
    for _ in range(3):
        assert [sorted(each) for each in loader] == [["laneway-parent", "laneway-signals"]] * 4


ORPHANS = """
import multiprocessing, os, sys, time
from laneway import SavableLoader, StatefulShardedDataset
def slow(batch):
    os.write(1, f"{os.getpid()}\\n".encode())  # one write, so that the lines of two workers don't mix
    time.sleep(60)
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    loader = SavableLoader(StatefulShardedDataset(sys.argv[1], batch_size=10, transform=slow), num_workers=2)
    next(iter(loader))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path, corpus: Path, method: str) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "orphans.py"), str(corpus / "part-0.parquet"), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, workers)), lambda: "the workers end")


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loader_in_mid_pass_can_not_be_copied_and_says_what_to_save(corpus: Path, how: Any) -> None:
    loader = SavableLoader(StatefulShardedDataset(corpus, batch_size=10))
    assert len(list(copy.deepcopy(loader))) == 16
    next(iter(loader))
    with pytest.raises(LanewayError, match=r"save its state_dict\(\)"):
        how(loader)


def test_an_iterator_in_a_forked_child_is_an_error(corpus: Path) -> None:
    batches = iter(StatefulShardedDataset(corpus, batch_size=10, output="python"))
    rows = iter(StatefulShardedDataset(corpus))
    next(batches)
    next(rows)
    pid = os.fork()
    if pid == 0:
        errors = 0
        for each in (batches, rows):
            try:
                next(each)
            except LanewayError:
                errors += 1
        os._exit(errors)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert (len(list(batches)), len(list(rows))) == (15, 159)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_forked_child_begins_a_pass_of_its_own_and_leaves_the_workers_to_its_parent(
    corpus: Path, *, persistent_workers: bool
) -> None:
    loader = SavableLoader(
        StatefulShardedDataset(corpus, batch_size=10), num_workers=1, persistent_workers=persistent_workers
    )
    batches = iter(loader)
    next(batches)
    pid = os.fork()
    if pid == 0:
        count = -1
        try:
            count = len(list(loader))
        finally:
            os._exit(count)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 16
    assert len(list(batches)) == 15
    assert len(list(loader)) == 16

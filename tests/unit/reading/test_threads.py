"""Calls in daemon threads, and in no thread: in which order, with whose errors, until when."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Executor
from typing import TYPE_CHECKING, Any

import pytest

from laneway.reading.threads import DaemonThreads, NoThreads, cores_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def thread() -> Iterator[DaemonThreads]:
    """One thread, which runs one call after the other."""
    executor = DaemonThreads(1)
    yield executor
    executor.shutdown(cancel_futures=True)


@pytest.fixture(params=["threads", "no threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made: Executor = DaemonThreads(2) if request.param == "threads" else NoThreads()
    yield made
    made.shutdown()


def fail(error: BaseException) -> None:
    raise error


def test_a_future_has_the_result_of_its_call(executor: Executor) -> None:
    futures = [executor.submit(divmod, i, 3) for i in range(10)]
    assert [future.result(10) for future in futures] == [divmod(i, 3) for i in range(10)]
    assert executor.submit(dict, a=1).result(10) == {"a": 1}


def test_an_error_is_raised_by_the_future_and_stops_no_other_call(executor: Executor) -> None:
    failed = executor.submit(fail, KeyError("x"))
    assert executor.submit(int, "7").result(10) == 7
    for _ in range(2):
        with pytest.raises(KeyError, match="x"):
            failed.result(10)


def test_calls_start_in_the_order_in_which_they_are_submitted(thread: DaemonThreads) -> None:
    started: list[int] = []
    for i in range(100):
        thread.submit(started.append, i)
    thread.submit(int).result(10)
    assert started == list(range(100))


def test_as_many_calls_run_at_the_same_time_as_there_are_threads() -> None:
    executor = DaemonThreads(3)
    barrier = threading.Barrier(3)
    futures = [executor.submit(barrier.wait, 10) for _ in range(3)]
    assert sorted(future.result(10) for future in futures) == [0, 1, 2]
    executor.shutdown()
    assert not any(one.is_alive() for one in executor.threads)


def test_a_cancelled_call_is_not_made(thread: DaemonThreads) -> None:
    release, made = threading.Event(), list[str]()
    running = thread.submit(release.wait, 10)
    cancelled, other = thread.submit(made.append, "cancelled"), thread.submit(made.append, "other")
    assert cancelled.cancel()
    release.set()
    assert running.result(10)
    other.result(10)
    assert made == ["other"]
    with pytest.raises(CancelledError):
        cancelled.result(10)


@pytest.mark.parametrize("cancel_futures", [True, False])
def test_shutdown_finishes_the_current_call_and_the_queue_only_if_it_is_not_cancelled(*, cancel_futures: bool) -> None:
    executor = DaemonThreads(1)
    started, release, made = threading.Event(), threading.Event(), list[int]()

    def current() -> None:
        started.set()
        assert release.wait(10)
        made.append(0)

    futures = [executor.submit(current), *(executor.submit(made.append, i) for i in (1, 2))]
    assert started.wait(10)
    executor.shutdown(wait=False, cancel_futures=cancel_futures)
    assert executor.threads[0].is_alive()
    release.set()
    executor.threads[0].join(10)
    assert not executor.threads[0].is_alive()
    assert made == ([0] if cancel_futures else [0, 1, 2])
    assert [future.cancelled() for future in futures] == [False, cancel_futures, cancel_futures]


def test_without_threads_a_call_is_made_by_submit_itself() -> None:
    future = NoThreads().submit(threading.current_thread)
    assert future.done()
    assert future.result() is threading.current_thread()


def test_an_interrupt_is_raised_in_the_thread_that_it_interrupts(thread: DaemonThreads) -> None:
    with pytest.raises(KeyboardInterrupt):
        NoThreads().submit(fail, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        thread.submit(fail, KeyboardInterrupt()).result(10)
    assert thread.submit(int).result(10) == 0


EXITS = """
import threading, time
from pathlib import Path
from laneway.reading.threads import DaemonThreads

started = threading.Event()

def call():
    started.set()
    time.sleep({seconds})
    Path({path!r}).touch()

executor = DaemonThreads(1)
executor.submit(call)
assert started.wait(10)
"""


@pytest.mark.parametrize(("seconds", "is_finished"), [(0.1, True), (600, False)])
def test_the_exit_of_the_process_waits_for_short_calls_only(
    tmp_path: Path, seconds: float, *, is_finished: Any
) -> None:
    path = tmp_path / "finished"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", EXITS.format(seconds=seconds, path=str(path))], check=True, timeout=120)
    assert time.monotonic() - begin < 100
    assert path.exists() == is_finished


def test_each_process_has_its_share_of_the_cores_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laneway.reading.threads.cores_of_rank", lambda: 8)
    assert [cores_of_each(number) for number in (1, 2, 3, 8, 100)] == [8, 4, 2, 1, 1]

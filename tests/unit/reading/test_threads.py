"""Calls in daemon threads, and in no thread: in which order, with whose errors, until when."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

from laneway.reading.threads import Caller, DaemonThreads, NoThreads, cores_of_each
from tests.interruption import InterruptError, Interruption, traced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def thread() -> Iterator[DaemonThreads]:
    """One thread, which runs one call after the other."""
    threads = DaemonThreads(1)
    yield threads
    threads.end()


@pytest.fixture(params=["threads", "no threads"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    made: Caller = DaemonThreads(2) if request.param == "threads" else NoThreads()
    yield made
    made.end()


def has_ended(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def fail(error: BaseException) -> None:
    raise error


def test_a_call_has_the_result_of_its_function(caller: Caller) -> None:
    calls = [caller.submit(divmod, i, 3) for i in range(10)]
    assert [call.result() for call in calls for _ in range(2)] == [divmod(i, 3) for i in range(10) for _ in range(2)]


def test_an_error_is_raised_by_its_call_and_stops_no_other_one(caller: Caller) -> None:
    failed = caller.submit(fail, KeyError("x"))
    assert caller.submit(int, "7").result() == 7
    for _ in range(2):
        with pytest.raises(KeyError, match="x"):
            failed.result()


def test_calls_start_in_the_order_in_which_they_are_submitted(thread: DaemonThreads) -> None:
    started: list[int] = []
    for i in range(100):
        thread.submit(started.append, i)
    thread.submit(int).result()
    assert started == list(range(100))


def test_as_many_calls_run_at_the_same_time_as_there_are_threads() -> None:
    threads = DaemonThreads(3)
    barrier = threading.Barrier(3)
    calls = [threads.submit(barrier.wait, 10) for _ in range(3)]
    assert sorted(call.result() for call in calls) == [0, 1, 2]
    threads.end()
    assert all(has_ended(one) for one in threads.threads)


def test_a_cancelled_call_is_not_made(thread: DaemonThreads) -> None:
    begin, release, made = threading.Barrier(2), threading.Event(), list[str]()

    def run() -> bool:
        begin.wait(10)
        return release.wait(10)

    running = thread.submit(run)
    begin.wait(10)
    cancelled, other = thread.submit(made.append, "cancelled"), thread.submit(made.append, "other")
    for _ in range(2):
        cancelled.cancel()
        with pytest.raises(CancelledError):
            cancelled.result()
    running.cancel()
    release.set()
    assert running.result()
    other.result()
    assert made == ["other"]


def test_threads_that_are_to_end_make_the_calls_that_have_begun_and_cancel_the_others() -> None:
    threads = DaemonThreads(1)
    started, release, made = threading.Event(), threading.Event(), list[int]()

    def current() -> None:
        started.set()
        assert release.wait(10)
        made.append(0)

    begun, *others = [threads.submit(current), *(threads.submit(made.append, i) for i in (1, 2))]
    assert started.wait(10)
    for _ in range(2):
        threads.end()
    assert threads.threads[0].is_alive()
    for other in others:
        with pytest.raises(CancelledError):
            other.result()
    release.set()
    begun.result()
    assert has_ended(threads.threads[0])
    assert made == [0]


def test_threads_end_when_nobody_refers_to_them_any_more_after_all_calls() -> None:
    threads, made = DaemonThreads(2), list[int]()
    running = threads.threads
    for i in range(10):
        threads.submit(made.append, i)
    del threads
    assert all(has_ended(one) for one in running)
    assert sorted(made) == [*range(10)]


def test_without_threads_a_call_is_made_by_submit_itself() -> None:
    made: list[threading.Thread] = []
    NoThreads().submit(lambda: made.append(threading.current_thread()))
    assert made == [threading.current_thread()]


def test_an_interrupt_is_raised_in_the_thread_that_it_interrupts(thread: DaemonThreads) -> None:
    with pytest.raises(KeyboardInterrupt):
        NoThreads().submit(fail, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        thread.submit(fail, KeyboardInterrupt()).result()
    assert thread.submit(int).result() == 0


def test_a_signal_handler_that_raises_anywhere_costs_no_thread() -> None:
    step, is_interrupted = 0, True
    while is_interrupted:
        step += 1
        threads = DaemonThreads(1)
        try:
            with traced(Interruption(step)):
                call = threads.submit(time.sleep, 0.001)
                try:
                    call.result()
                finally:
                    call.cancel()
            is_interrupted = False
        except InterruptError:
            pass
        done = threading.Event()
        threads.submit(done.set)
        assert done.wait(10), f"interrupted at place {step}"
        threads.end()
    assert step > 5


def test_a_signal_handler_that_raises_while_threads_start_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_interrupted(self: threading.Thread) -> None:
        signal.raise_signal(signal.SIGUSR1)
        started.append(self)
        start(self)

    def interrupt(*_: object) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start_interrupted)
            with pytest.raises(InterruptError):
                DaemonThreads(2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    gc.collect()
    assert [has_ended(thread) for thread in started] == [True, True]


EXITS = """
import threading, time
from pathlib import Path
from laneway.reading.threads import DaemonThreads

started = threading.Event()

def call():
    started.set()
    time.sleep({seconds})
    Path({path!r}).touch()

threads = DaemonThreads(1)
threads.submit(call)
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

"""Calls that read, made by daemon threads or the calling thread; and how many cores there are for them."""

from __future__ import annotations

import _thread
import atexit
import queue
import threading
import time
import weakref
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import pyarrow as pa

from laneway.cores import cores_of_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Result = TypeVar("_Result")

_EXIT_TIMEOUT_S = 1.0
"""Seconds that the exit of the process waits for threads that are still busy."""

_num_processes = 1
"""Number of processes that share the cores of this rank, as far as this one knows."""


def cores_of_each(num_processes: int) -> int:
    """Return the cores per process, at least 1, if processes share those of this rank evenly."""
    return max(1, cores_of_rank() // num_processes)


def share_cores(num_processes: int) -> None:
    """Limit this process to its share of the cores for reading and decoding; otherwise each worker would use them all.

    Each thread decodes into memory of its own, whose pages a new process has to fault in first.

    Args:
        num_processes: Number of processes that share the cores of this rank.
    """
    global _num_processes  # noqa: PLW0603 - a fact about the process, like the number of Arrow's threads
    _num_processes = num_processes
    pa.set_cpu_count(min(pa.cpu_count(), cores_of_each(num_processes)))


def sharing_processes() -> int:
    """Return the number of processes that share the cores; see `share_cores`."""
    return _num_processes


class Call(Generic[_Result]):
    """A call, which is made at most once, and what it returns.

    Unlike a Future, it has no lock: a signal handler that raises within one can leave it locked for ever, and then the
    thread that makes the call would wait for it.
    """

    def __init__(self, function: Callable[[], _Result]) -> None:
        """Prepare to call `function`."""
        self._functions = [function]
        self._outcome: tuple[_Result | None, BaseException | None] | None = None
        # Each method is one call into C.
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def make(self, raised_later: type[BaseException] = BaseException) -> None:
        """Make the call, unless it was cancelled.

        Args:
            raised_later: Errors that `result` raises; others are raised here.
        """
        try:
            function = self._functions.pop()
        except IndexError:
            return
        self._end(*_outcome(function, raised_later))

    def cancel(self) -> None:
        """Don't make the call, if it has not begun; `result` then raises an error."""
        with suppress(IndexError):
            self._functions.pop()
            self._end(None, CancelledError())

    def result(self) -> _Result:
        """Return what the call returns, once it has ended.

        Raises:
            CancelledError: It was cancelled.
            BaseException: What the call has raised.
        """
        while self._outcome is None:
            self._ended.get()
        result, error = self._outcome
        if error is not None:
            raise error
        return cast("_Result", result)

    def _end(self, result: _Result | None, error: BaseException | None) -> None:
        self._outcome = result, error
        self._ended.put(None)


def _outcome(
    function: Callable[[], _Result], errors: type[BaseException]
) -> tuple[_Result | None, BaseException | None]:
    """Return the result of a function, or its error, whose traceback has this frame: it knows no `Call`."""
    try:
        return function(), None
    except errors as error:
        return None, error


class Caller:
    """Makes calls."""

    def submit(self, function: Callable[..., _Result], /, *args: object) -> Call[_Result]:
        """Return a call that is made now, or later by a thread."""
        raise NotImplementedError

    def end(self) -> None:
        """Cancel the calls that have not begun. Threads end once they have made the others; this doesn't wait."""


class DaemonThreads(Caller):
    """Makes calls in a few threads that don't delay the exit of the process if a storage doesn't answer."""

    def __init__(self, num_threads: int) -> None:
        """Start the threads."""
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Puts itself when this object is gone, without any Python code in which a signal handler could raise.
        end = weakref.ref(self, self._calls.put)
        self.threads = [
            threading.Thread(target=_work, args=(self._calls, end), name="laneway-read", daemon=True)
            for _ in range(num_threads)
        ]
        start_threads(self.threads)
        _running.add(self)

    def submit(self, function: Callable[..., _Result], /, *args: object) -> Call[_Result]:
        """Return a call that one of the threads will make."""
        call = Call(partial(function, *args))
        self._calls.put(call)
        return call

    def end(self) -> None:
        """Cancel the calls that have not begun, and end the threads; see `Caller`."""
        with suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if isinstance(call, Call):
                    call.cancel()
        self._calls.put(None)


_running: weakref.WeakSet[DaemonThreads] = weakref.WeakSet()


def start_threads(threads: Sequence[threading.Thread]) -> None:
    """Start threads, from a thread of its own: Python runs no signal handler there.

    `Thread.start` waits for an Event, and a handler that raises within it can leave its lock locked for ever.

    Raises:
        RuntimeError: The process can't have more threads.
    """
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    _thread.start_new_thread(_start, (threads, outcome))
    error = outcome.get()
    if error is not None:
        raise error


def _start(threads: Sequence[threading.Thread], outcome: queue.SimpleQueue[BaseException | None]) -> None:
    try:
        for thread in threads:
            thread.start()
    except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for it
        outcome.put(error)
    else:
        outcome.put(None)


@atexit.register
def _join_at_exit() -> None:
    """Give threads time to end: one that is inside Arrow must not outlive the interpreter."""
    running = list(_running)
    for each in running:
        each.end()
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    for each in running:
        for thread in each.threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _work(calls: queue.SimpleQueue[Any], _: weakref.ref[DaemonThreads]) -> None:
    """Make calls until something else comes, which is passed on to the other threads."""
    while isinstance(call := calls.get(), Call):
        call.make()
        del call
    calls.put(None)


class NoThreads(Caller):
    """Makes each call within `submit`: a read of memory-mapped rows takes less time than a thread switch."""

    def submit(self, function: Callable[..., _Result], /, *args: object) -> Call[_Result]:
        """Return a call that was made. What interrupts it is raised here."""
        call = Call(partial(function, *args))
        call.make(raised_later=Exception)
        return call

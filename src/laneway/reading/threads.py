"""Executors for reads: daemon threads, or the calling thread; and how many cores there are for them."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from laneway.cores import cores_of_rank

if TYPE_CHECKING:
    from collections.abc import Callable

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


class DaemonThreads(Executor):
    """Calls functions in a few threads that don't delay the exit of the process if a storage doesn't answer."""

    def __init__(self, num_threads: int) -> None:
        """Start the threads."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self.threads = [
            threading.Thread(target=_work, args=(self._jobs,), name="laneway-read", daemon=True)
            for _ in range(num_threads)
        ]
        # First, so that no thread stays if this is interrupted: the thread only knows the queue.
        weakref.finalize(self, _end, self._jobs, num_threads).atexit = False
        for thread in self.threads:
            thread.start()
        _executors.add(self)

    def submit(self, function: Callable[..., _Result], /, *args: object, **kwargs: object) -> Future[_Result]:
        """Queue a call and return its future."""
        future: Future[_Result] = Future()
        self._futures.add(future)
        self._jobs.put(partial(_call, future, partial(function, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        """End the threads when the queue is empty or, with `cancel_futures`, after their current calls."""
        if cancel_futures:
            for future in list(self._futures):
                future.cancel()
        _end(self._jobs, len(self.threads))
        for thread in self.threads if wait else ():
            thread.join()


_executors: weakref.WeakSet[DaemonThreads] = weakref.WeakSet()


@atexit.register
def _join_at_exit() -> None:
    """Give threads time to end: one that is inside Arrow must not outlive the interpreter."""
    executors = list(_executors)
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    for executor in executors:
        for thread in executor.threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _end(jobs: queue.SimpleQueue[Callable[[], None] | None], num_threads: int) -> None:
    for _ in range(num_threads):
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job


def _call(future: Future[_Result], function: Callable[[], _Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - stored in the future, which raises it
        future.set_exception(error)


class NoThreads(Executor):
    """Calls each function within `submit`: a read of memory-mapped rows takes less time than a thread switch."""

    def submit(self, function: Callable[..., _Result], /, *args: object, **kwargs: object) -> Future[_Result]:
        """Call the function and return its completed future."""
        future: Future[_Result] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - stored in the future; KeyboardInterrupt propagates
            future.set_exception(error)
        return future

"""Executors: what calls functions for those who read, and how it ends."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

_END_S = 1.0
"""Seconds that the end of the process waits for threads that are still at work."""


class DaemonThreads(Executor):
    """Does what it is given in a few threads, which don't hold up the end of the process where a storage is silent."""

    def __init__(self, num_threads: int) -> None:
        """Start the threads."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self.threads = [
            threading.Thread(target=_work, args=(self._jobs,), name="laneway-read", daemon=True)
            for _ in range(num_threads)
        ]
        for thread in self.threads:
            thread.start()
        _running.add(self)

    def submit(self, function: Callable[..., _Result], /, *args: object, **kwargs: object) -> Future[_Result]:
        """Return what will be the outcome."""
        future: Future[_Result] = Future()
        self._futures.add(future)
        self._jobs.put(partial(_run, future, partial(function, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        """End the threads, each after what it does now."""
        if cancel_futures:
            for future in list(self._futures):
                future.cancel()
        for _ in self.threads:
            self._jobs.put(None)
        for thread in self.threads if wait else ():
            thread.join()


_running: weakref.WeakSet[DaemonThreads] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """Let threads come to an end that are about to: one that is in Arrow must not find the interpreter gone."""
    running = list(_running)
    for executor in running:
        executor.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + _END_S
    for executor in running:
        for thread in executor.threads:
            thread.join(max(0.0, until - time.monotonic()))


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job


def _run(future: Future[_Result], function: Callable[[], _Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)


class NoThreads(Executor):
    """Does at once, in the caller's thread, what it is given: reading what is memory-mapped is only looking it up."""

    def submit(self, function: Callable[..., _Result], /, *args: object, **kwargs: object) -> Future[_Result]:
        """Return the outcome."""
        future: Future[_Result] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is the future's, as with threads; an interrupt is the caller's
            future.set_exception(error)
        return future

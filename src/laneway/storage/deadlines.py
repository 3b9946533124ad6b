"""Calls with a time limit, for clients that have no reliable one of their own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    T = TypeVar("T")

_THREADS: Final = 16


def run_within(calls: Sequence[Callable[[], T]], limit_s: float) -> list[T | BaseException]:
    """Run calls concurrently and return for each its result, its exception, or a TimeoutError.

    The calls run in daemon threads. A thread that is still busy at the deadline is abandoned; it does not delay the
    exit of the process.

    Args:
        calls: The functions to call.
        limit_s: Seconds that all of them together may take.
    """
    timeout = TimeoutError(f"no answer within {limit_s:.1f} s")
    results: list[T | BaseException] = [timeout] * len(calls)
    remaining = iter(range(len(calls)))
    lock, done = threading.Lock(), threading.Semaphore(0)

    def work() -> None:
        while True:
            with lock:
                index = next(remaining, None)
            if index is None or time.monotonic() > end:
                return
            try:
                results[index] = calls[index]()
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                results[index] = error
            done.release()

    end = time.monotonic() + limit_s
    for _ in range(min(_THREADS, len(calls))):
        threading.Thread(target=work, name="laneway-request", daemon=True).start()
    for _ in calls:
        if not done.acquire(timeout=max(0.0, end - time.monotonic())):
            break
    return list(results)


def call_within(call: Callable[[], T], limit_s: float) -> T:
    """Return the result of a call, or raise its exception, or a TimeoutError after `limit_s` seconds."""
    (result,) = run_within([call], limit_s)
    if isinstance(result, BaseException):
        raise result
    return result

"""Warns of a batch that does not come where the process reads its data itself, without workers."""

from __future__ import annotations

import logging
import os
import queue
import threading
import weakref
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final

from laneway.delivery.stacks import stacks_of_threads
from laneway.delivery.watchdog import place_of
from laneway.metering import memory_in_use
from laneway.reading.threads import start_threads
from laneway.wording import rounded_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.delivery.dataloader import DataLoaderPass
    from laneway.delivery.reports import LoopTimes

_POLLS: Final = 4
"""How often to look within the time until the first warning."""
_log = logging.getLogger("laneway")


def watch(running: DataLoaderPass, times: LoopTimes, warning_s: float) -> Callable[[], None]:
    """Watch a pass in a thread, and return a function that ends it. The thread that calls this takes the batches.

    Args:
        running: The pass.
        times: Tells since when the training loop waits.
        warning_s: Seconds without a batch until the first warning.
    """
    # Not an Event: a signal handler that raises within `set` can leave it locked, and the next `set` waits for ever.
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    # Nothing of the pass: its iterator ends this thread when it is gone.
    arguments = (ended, weakref.ref(running), times, warning_s, threading.get_ident())
    start_threads([threading.Thread(target=_watch, args=arguments, name="laneway-watch", daemon=True)])
    return partial(ended.put, None)


def _watch(
    ended: queue.SimpleQueue[None],
    found: weakref.ref[DataLoaderPass],
    times: LoopTimes,
    warning_s: float,
    thread: int,
) -> None:
    reported, num_warnings = 0.0, 0
    while not _is_over(ended, min(warning_s / _POLLS, threading.TIMEOUT_MAX)):
        since = times.waiting_since
        if since != reported:
            reported, num_warnings = since, 0
        waited_s = perf_counter() - since
        if since and waited_s >= warning_s * 2**num_warnings:
            num_warnings += 1
            running = found()
            if running is None:
                return
            _warn(running, waited_s, thread)
            del running


def _is_over(ended: queue.SimpleQueue[None], timeout_s: float) -> bool:
    """Wait for the end of the pass, and return whether it came in time."""
    try:
        ended.get(timeout=timeout_s)
    except queue.Empty:
        return False
    return True


def _warn(running: DataLoaderPass, waited_s: float, thread: int) -> None:
    """Log what this process is doing instead of delivering a batch."""
    source = running.source
    meter = source.counts.own_meter
    place = "is starting" if meter is None else place_of(meter.cells, source.definition, running.reading()).text
    readers = {each.ident or 0 for each in threading.enumerate() if each.name == "laneway-read"}
    _log.warning(
        "no batch for %s s: rank %d, which has no workers (pid %d, %s of memory) %s\n%s",
        *(f"{waited_s:,.0f}", source.place.rank, os.getpid(), rounded_size(memory_in_use()), place),
        stacks_of_threads({thread, *readers}),
    )

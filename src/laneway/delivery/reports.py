"""What is told of a pass while it runs: to an observer, and as lines of a log; how long the training loop waits."""

from __future__ import annotations

import sys
import time
from math import inf
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.delivery.metrics import LoaderMetrics

LOG_INTERVAL_S: Final = 30.0
"""Seconds between lines of the log."""


@final
class LoopTimes:
    """The seconds in which the training loop waits for a batch, and those in which it works."""

    __slots__ = ("_is_waiting", "_since", "_waited_s", "_worked_s")

    def __init__(self) -> None:
        """Start at zero."""
        self._waited_s = self._worked_s = 0.0
        self._since = 0.0
        """Since when the loop waits or works; 0: it does neither."""
        self._is_waiting = False

    def begin_to_wait(self, now: float) -> None:
        """Record that the loop asks for a batch."""
        if self._since:
            self._worked_s += now - self._since
        self._since, self._is_waiting = now, True

    def end_to_wait(self, now: float) -> None:
        """Record that it gets one."""
        self._waited_s += now - self._since
        self._since, self._is_waiting = now, False

    @property
    def waiting_since(self) -> float:
        """The time since when the loop waits, as of `time.perf_counter`; 0: it does not."""
        return self._since if self._is_waiting else 0.0

    def leave(self) -> None:
        """Record that the loop is between two passes."""
        self._since = 0.0

    def until(self, now: float, *, is_running: bool) -> tuple[float, float]:
        """Return the seconds of all passes up to now, and the seconds of these in which the loop has waited.

        Args:
            now: The time.
            is_running: Whether the last pass goes on.
        """
        since, is_waiting = self._since, self._is_waiting
        latest = max(0.0, now - since) if since and (is_running or is_waiting) else 0.0
        return self._waited_s + self._worked_s + latest, self._waited_s + (latest if is_waiting else 0.0)


@final
class _Listener:
    """Somebody who is told of the metrics of each interval."""

    def __init__(self, tell: Callable[[LoaderMetrics], None], interval_s: float) -> None:
        self.tell = tell
        self.interval_s = interval_s
        self.next_s = 0.0
        """When it is told next; 0: an interval after the first batch is asked for."""
        self.last: LoaderMetrics | None = None
        """What it was told last."""


@final
class Reports:
    """Tells observers and logs of the metrics, each in its own interval, and at the end of each pass."""

    def __init__(self) -> None:
        """Start without anybody to tell."""
        self._listeners: list[_Listener] = []
        self.next_s = inf
        """The time, as of `time.perf_counter`, from which on `tell` has something to do."""

    def add(self, tell: Callable[[LoaderMetrics], None], interval_s: float) -> None:
        """Call a function with the metrics of each interval.

        Args:
            tell: The function.
            interval_s: Seconds between two calls, if batches are requested as often.
        """
        self._listeners.append(_Listener(tell, interval_s))
        self.next_s = 0.0

    def tell(self, now: float, metrics: Callable[[], LoaderMetrics]) -> None:
        """Tell those whose interval has ended."""
        for each in self._listeners:
            if not each.next_s:
                each.last = metrics()
            elif now >= each.next_s:
                _tell(each, metrics())
            else:
                continue
            each.next_s = now + each.interval_s
        self.next_s = min(each.next_s for each in self._listeners)

    def tell_last(self, metrics: Callable[[], LoaderMetrics]) -> None:
        """Tell all at the end of a pass; their next interval begins with the next one."""
        for each in self._listeners:
            if each.next_s:
                each.next_s = 0.0
                _tell(each, metrics())
        if self._listeners:
            self.next_s = 0.0


def _tell(listener: _Listener, found: LoaderMetrics) -> None:
    before, listener.last = listener.last, found
    listener.tell(found if before is None else found.since(before))


def log_line(metrics: LoaderMetrics) -> None:
    """Write a line with the time to stderr, where progress bars are."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {metrics}\n")
    sys.stderr.flush()

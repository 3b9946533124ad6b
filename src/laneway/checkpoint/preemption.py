"""When to save besides every so many steps: after some time, after a signal, before the job's time is over."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from laneway.ranks import Ranks

    Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

AGREE_EVERY_S = 1.0
"""About how often ranks ask each other; a signal is noticed that late."""
MAX_POLLS = 16
"""Most polls from one question to the next: steps may become longer."""
MIN_MARGIN_S = 30.0
"""Least time before the end of the job at which it saves for the last time."""


class SignalFlag:
    """Notes that a signal has arrived, and calls the handler that was there before."""

    def __init__(self, signals: Sequence[int | str]) -> None:
        """Install the handlers: in the main thread only, as Python demands.

        Args:
            signals: Numbers or names, such as "SIGTERM".

        Raises:
            ValueError: There is no such signal, or it can't be handled.
            TypeError: It is no list.
        """
        if isinstance(signals, str) or not isinstance(signals, Sequence):
            example = signals if isinstance(signals, (str, int)) else "SIGTERM"
            message = f"signals must be a list such as [{example!r}], not {signals!r}"
            raise TypeError(message)
        self.received: int | None = None
        """The first signal that has arrived."""
        self._before: dict[int, Handler] = {}
        for number in [*map(_signal, signals)]:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except OSError as error:
                self.restore()
                message = f"{number.name} can't be handled by any process ({error.strerror}): give SIGTERM or SIGUSR1"
                raise ValueError(message) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def restore(self) -> None:
        """Put the handlers back that were there before, where they are still ours."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before.clear()


def _signal(given: int | str) -> signal.Signals:
    try:
        return signal.Signals[given] if isinstance(given, str) else signal.Signals(given)
    except (KeyError, ValueError):
        message = f"there is no signal {given!r}: give names such as 'SIGTERM', or numbers"
        raise ValueError(message) from None


class _Report(NamedTuple):
    """What a rank says when it is asked."""

    is_stopping: bool
    """Whether it was told to stop, or the job's time is nearly over."""
    is_due: bool
    """Whether the last save was so long ago that another one is due, by its clock."""
    poll_s: float
    """Seconds between two polls."""
    failure: str | None
    """Why the checkpoint that was written last could not be, as far as it knows."""


class Verdict(NamedTuple):
    """What the ranks have agreed on."""

    is_stopping: bool
    """Whether a rank was told to stop, or the job's time is nearly over."""
    is_due: bool
    """Whether it is time to save."""
    next_poll: int
    """Number of polls until they ask each other again."""
    failure: str | None
    """Why the checkpoint that was written last could not be, if a rank knows that."""


class Polls:
    """Asks all ranks now and then whether it is time to save.

    Ranks must poll equally often. They ask each other at polls that they agreed on before, about once in
    `AGREE_EVERY_S`, since a question at every step would take longer than a short step.
    """

    def __init__(self, ranks: Ranks, flag: SignalFlag | None, deadline_s: float | None) -> None:
        """Start to count time.

        Args:
            ranks: All ranks, with an exchange that nobody else uses at the same time.
            flag: The signals that this rank waits for.
            deadline_s: Seconds from now until the job is ended; None: there is no such time.
        """
        self._ranks, self._flag = ranks, flag
        self._end = None if deadline_s is None else time.monotonic() + deadline_s
        self._longest_save_s = 0.0
        self._saved_at = self._asked_at = time.monotonic()
        self._until_next, self._num_asked = 1, 1
        self.is_stopping = False
        """Whether all ranks know that the job is to stop."""
        self.failure: str | None = None
        """What the ranks said of the last checkpoint when they were last asked: why it could not be written."""

    def note_save(self) -> None:
        """Note that a checkpoint was saved."""
        self._saved_at = time.monotonic()

    def note_duration(self, duration_s: float) -> None:
        """Note how long it took to write a checkpoint."""
        self._longest_save_s = max(self._longest_save_s, duration_s)

    def ask(self, every_s: float | None, failure: str | None = None) -> bool:
        """Return whether it is time to save, the same on all ranks: once when the job is to stop, and every `every_s`.

        All ranks must call it equally often.

        Args:
            every_s: Seconds from one save to the next.
            failure: Why the checkpoint that was written last could not be, as far as this rank knows.
        """
        self._until_next, self.failure = self._until_next - 1, None
        if self._until_next > 0 or self.is_stopping:
            return False
        now = time.monotonic()
        is_due = every_s is not None and now - self._saved_at >= every_s
        mine = _Report(self._is_told_to_stop(now), is_due, (now - self._asked_at) / self._num_asked, failure)
        gathered = self._ranks.gather("due()", lambda: mine, dst_rank=0)
        found = self._ranks.broadcast("due(): agree", lambda: _judge(gathered or [], self._num_asked), src_rank=0)
        self._asked_at, self._until_next, self._num_asked = time.monotonic(), found.next_poll, found.next_poll
        self.is_stopping, self.failure = found.is_stopping, found.failure
        return found.is_stopping or found.is_due

    def _is_told_to_stop(self, now: float) -> bool:
        if self._flag is not None and self._flag.received is not None:
            return True
        return self._end is not None and now + max(MIN_MARGIN_S, 2 * self._longest_save_s) >= self._end


def _judge(reports: Sequence[_Report], num_asked: int) -> Verdict:
    """Return what follows from the reports of all ranks; rank 0's clock counts.

    Args:
        reports: Those of all ranks, in their order.
        num_asked: Number of polls for which they were asked last.
    """
    wanted = AGREE_EVERY_S / max(reports[0].poll_s, 1e-6)
    next_poll = max(1, min(int(wanted), 2 * num_asked, MAX_POLLS))
    failure = next((each.failure for each in reports if each.failure is not None), None)
    return Verdict(any(each.is_stopping for each in reports), reports[0].is_due, next_poll, failure)

"""Signals that are held back while processes and threads start."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGCHLD}
_replaced: dict[int, Callable[[int, FrameType | None], Any]] = {}
"""Signal -> the handler that `holding_back_signals` has replaced for now; a forked worker inherits it."""


@contextmanager
def holding_back_signals() -> Iterator[None]:
    """Hold back signals in this block: a handler that raises while a process or thread starts may leave a lock locked.

    Handlers in Python are replaced, and called afterwards. Holding back the signals themselves is not enough: another
    thread of the process may receive one, and Python runs the handler in the main thread whichever did. Workers are
    forked with all this, as are the threads that Arrow starts in a forked process; see `release_signals`.
    """
    is_main = threading.current_thread() is threading.main_thread()
    # A handler is only ever run in the main thread.
    found = {each: signal.getsignal(each) for each in signal.valid_signals() - _FAULTS} if is_main else {}
    handlers = {int(each): handler for each, handler in found.items() if callable(handler) and each not in _replaced}
    received: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    # All of these run in the end, the last one first, even if a handler raises.
    with ExitStack() as stack:
        stack.callback(_raise_signals, received)
        for each, handler in handlers.items():
            stack.callback(_give_back_handler, each, handler)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        _replaced.update(handlers)
        for each in handlers:
            signal.signal(each, lambda number, _: received.append(number))
        yield


def _give_back_handler(number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
    _replaced.pop(number, None)
    signal.signal(number, handler)


def _raise_signals(numbers: list[int]) -> None:
    with ExitStack() as stack:
        for number in reversed(numbers):
            stack.callback(signal.raise_signal, number)


def release_signals(*, shielded: bool) -> None:
    """Let signals reach this worker again, other than SIGTERM if it is shielded."""
    for each, handler in _replaced.items():
        if not (shielded and each == signal.SIGINT):
            signal.signal(each, handler)
    _replaced.clear()
    held_back = signal.valid_signals() - ({signal.SIGTERM} if shielded else set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held_back)

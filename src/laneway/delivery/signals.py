"""Signals while workers start and end, and in the workers themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext
    from types import FrameType

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGCHLD}
_replaced: dict[int, Callable[[int, FrameType | None], Any]] = {}
"""Signal -> the handler that `holding_back_signals` has replaced for now; a forked worker inherits it."""


def are_forked(context: BaseContext | None) -> bool:
    """Return whether workers are copies of this process, and have what it has computed."""
    return (context or multiprocessing).get_start_method() == "fork"


def start_fork_server(context: BaseContext | None) -> None:
    """Start the server that forks workers, if there is one: before signals are held back.

    Whatever it forks inherits what it holds back, also processes that are not workers.

    Args:
        context: That of the workers; None: the default of this process.
    """
    if (context or multiprocessing).get_start_method() == "forkserver":
        forkserver.ensure_running()


@contextmanager
def holding_back_signals() -> Iterator[None]:
    """Hold back signals in this block: a handler that raises while workers are forked may leave a lock locked.

    Handlers in Python are replaced, and called afterwards. Holding back the signals themselves is not enough: another
    thread of the process may receive one, and Python runs the handler in the main thread whichever did. Workers are
    forked with all this, as are the threads that Arrow starts in a forked process; see `release_signals`.
    """
    is_main = threading.current_thread() is threading.main_thread()
    # A handler is only ever run in the main thread.
    found = {each: signal.getsignal(each) for each in signal.valid_signals() - _FAULTS} if is_main else {}
    handlers = {int(each): handler for each, handler in found.items() if callable(handler) and each not in _replaced}
    received: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # All of these run in the end, the last one first, even if a handler raises.
    with ExitStack() as stack:
        stack.callback(_raise_signals, received)
        for each, handler in handlers.items():
            stack.callback(_give_back_handler, each, handler)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        # In the block, as it first calls the handlers of signals that have come, and these may raise.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
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


def ignore_signals_of_the_group() -> None:
    """Ignore SIGINT, and SIGTERM unless the process that started this worker sends it, which may save a checkpoint."""
    started_by = multiprocessing.parent_process()
    # Not the parent of a worker that comes from a fork server: that is the server.
    pid = os.getppid() if started_by is None or started_by.pid is None else started_by.pid
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM is held back in all threads, so it reaches only the one below, which can ask who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(pid,), name="laneway-signals", daemon=True).start()


def _end_for(pid: int) -> None:
    """Wait for a SIGTERM from a process, and end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

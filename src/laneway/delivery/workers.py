"""Facts about the workers of PyTorch's DataLoader."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

# DataLoader imports it in each worker; imported here, forked workers find it and need no import lock.
import numpy.random  # noqa: F401
from torch.utils.data import get_worker_info
from torch.utils.data._utils.fetch import _IterableDatasetFetcher
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway.core.turns import WorkerPlace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


MAX_WORKERS = 1024
"""Maximum number of workers of a rank."""


def is_in_worker() -> bool:
    """Return whether this process is a DataLoader worker."""
    return get_worker_info() is not None


def worker_place(rank: WorkerPlace) -> WorkerPlace | None:
    """Return the place of this DataLoader worker, or None in a main process.

    Args:
        rank: The rank that the worker reads for.
    """
    info = get_worker_info()
    return None if info is None else WorkerPlace(rank.rank, rank.world_size, info.id, info.num_workers)


def is_collated_by_caller() -> bool:
    """Return whether the caller of the caller is a DataLoader that collates the items of its dataset to batches.

    A DataLoader does so by default, and doesn't tell its dataset.
    """
    frame = sys._getframe(2)  # noqa: SLF001 - as above; tested with both loaders
    # Not of other callers: until these return, Python would keep all that their variables refer to now.
    if frame.f_code is not _IterableDatasetFetcher.__init__.__code__:
        return False
    return bool(frame.f_locals["self"].auto_collation)


def is_loader_starting_again() -> bool:
    """Return whether a StatefulDataLoader on the call stack starts its workers twice: now, and then without a state.

    It does so with a state that was saved after the end of an epoch, and doesn't tell its workers. A forked worker has
    the loader on its stack; for a spawned one, the main process does while it pickles the dataset.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    while frame is not None:
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "_get_iterator" else None
        if isinstance(caller, StatefulDataLoader):
            return bool((caller.next_iter_state or {}).get("_iterator_finished"))
        frame = frame.f_back
    return False


def end_with_parent() -> None:
    """Have the kernel end this worker when its parent ends, also while it starts; on Linux only.

    The workers of a DataLoader look for their parent every few seconds, but not before they have started.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


_PR_SET_PDEATHSIG = 1


def ignore_signals_of_the_group() -> None:
    """Ignore SIGINT, and SIGTERM unless this worker's parent sends it, so that the parent can save a checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM is held back in all threads, so it reaches only the one below, which can ask who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), name="laneway-signals", daemon=True).start()


_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGCHLD}


_replaced: dict[int, Callable[[int, FrameType | None], Any]] = {}
"""Signal -> the handler that `holding_back_signals` has replaced meanwhile; a forked worker inherits it."""


@contextmanager
def holding_back_signals() -> Iterator[None]:
    """Hold signals back meanwhile: a handler that raises while workers are forked may leave a lock locked.

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


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def end_workers(batches: object) -> None:
    """Shut down the workers of a DataLoader's iterator now, rather than when the last reference to it is gone.

    An exception that was kept holds such a reference. Does nothing for anything else, such as None.
    """
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        with holding_back_signals():
            batches._shutdown_workers()  # noqa: SLF001 - tests/unit/delivery/test_workers.py fails if it changes

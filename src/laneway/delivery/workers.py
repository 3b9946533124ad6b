"""Facts about the workers of PyTorch's DataLoader."""

from __future__ import annotations

import ctypes
import multiprocessing.process
import os
import signal
import sys
import threading
from contextlib import suppress
from math import inf
from multiprocessing.connection import wait
from typing import TYPE_CHECKING
from weakref import WeakSet

# DataLoader imports the one in each worker, numpy.unique the other; imported here, forked workers find them, without
# the time that it takes, and need no import lock.
import numpy.ma
import numpy.random  # noqa: F401
from torch._C import _remove_worker_pids
from torch.utils.data import get_worker_info
from torch.utils.data._utils.fetch import _IterableDatasetFetcher
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway.core.turns import WorkerPlace
from laneway.delivery.signals import holding_back_signals

if TYPE_CHECKING:
    from types import FrameType


MAX_WORKERS = 1024
"""Maximum number of workers of a rank."""
_started: WeakSet[_MultiProcessingDataLoaderIter] = WeakSet()
"""Iterators whose workers this process has started."""
_PR_SET_PDEATHSIG = 1
_PARENT_THREAD = "laneway-parent"
_MAX_END_S = 2.0
"""Seconds to wait for the end of a worker that has closed its connections."""


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
    """Have this worker end when the process that started it ends, also while it starts; it may be called again.

    The workers of a DataLoader look for their parent every few seconds, but not before they have started. If they come
    from a fork server, that is their parent, and it stays as long as they do. Otherwise the kernel ends them, on Linux.
    """
    started_by = multiprocessing.parent_process()
    if started_by is not None and started_by.pid != os.getppid():
        # A persistent worker has the thread from its first pass on.
        if all(each.name != _PARENT_THREAD for each in threading.enumerate()):
            threading.Thread(target=_end_after, args=(started_by,), name=_PARENT_THREAD, daemon=True).start()
    elif sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _end_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)


def num_ready(batches: object) -> int:
    """Return how many items of a DataLoader's iterator its workers have sent, and nobody has taken yet."""
    if not isinstance(batches, _MultiProcessingDataLoaderIter) or batches._shutdown:  # noqa: SLF001
        return 0
    # Private; see `end_workers`. Items that came out of turn are in the list of tasks.
    num_early = sum(len(task) > 1 for task in list(batches._task_info.values()))  # noqa: SLF001
    num_pinned = batches._data_queue.qsize() if batches._pin_memory else 0  # noqa: SLF001
    return num_early + num_pinned + batches._worker_result_queue.qsize()  # noqa: SLF001


def wait_at_most(batches: object, seconds: float) -> None:
    """Have a DataLoader's iterator raise an error, `is_timeout`, if no batch comes for some time; inf: it never does.

    Its next call goes on to wait for the same batch.
    """
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._timeout = seconds if seconds < inf else 0  # noqa: SLF001 - see `end_workers`


def is_timeout(error: BaseException) -> bool:
    """Return whether an error says that no batch came in time; see `wait_at_most`."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out after ")


def check_pinning(batches: object) -> None:
    """Check that the thread of a DataLoader's iterator that copies batches to page-locked memory still runs.

    With a time limit, the iterator itself does not.

    Raises:
        RuntimeError: It has ended.
    """
    if not isinstance(batches, _MultiProcessingDataLoaderIter) or not batches._pin_memory:  # noqa: SLF001
        return
    if not batches._pin_memory_thread.is_alive():  # noqa: SLF001 - see `end_workers`
        message = "the thread that copies batches to page-locked memory has ended unexpectedly"
        raise RuntimeError(message)


def awaited_worker(batches: object) -> tuple[int, int]:
    """Return the number and pid of the worker whose batch a DataLoader's iterator waits for."""
    if not isinstance(batches, _MultiProcessingDataLoaderIter):
        return 0, os.getpid()
    task = batches._task_info.get(batches._rcvd_idx)  # noqa: SLF001 - see `end_workers`
    worker = 0 if task is None else int(task[0])
    return worker, batches._workers[worker].pid or 0  # noqa: SLF001


def killed_workers(batches: object, error: Exception) -> list[tuple[int, int, int]]:
    """Return (number, pid, exit code) of the workers of a DataLoader's iterator that have not ended normally.

    The exit code is minus the signal that has killed it.

    Args:
        batches: The iterator.
        error: What the iterator has raised. If a worker has closed a connection, its end may not be known yet.
    """
    if not isinstance(batches, _MultiProcessingDataLoaderIter):
        return []
    if isinstance(error, ConnectionError | EOFError):
        # When the kernel tells that a worker has ended, torch raises an error from any call.
        with suppress(RuntimeError):
            ending = wait([each.sentinel for each in batches._workers], _MAX_END_S)  # noqa: SLF001
            for worker in batches._workers:  # noqa: SLF001
                if worker.sentinel in ending:
                    worker.join(_MAX_END_S)
    found = [(index, each.pid or 0, each.exitcode) for index, each in enumerate(batches._workers)]  # noqa: SLF001
    return [(index, pid, code) for index, pid, code in found if code]


def end_workers(batches: object, *, kill: bool = False) -> None:
    """Shut down the workers of a DataLoader's iterator now, rather than when the last reference to it is gone.

    An exception that was kept holds such a reference. Does nothing for anything else, such as None.

    Args:
        batches: The iterator.
        kill: Whether to kill them first, since they may not answer.
    """
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        with holding_back_signals():
            # Private, so tests/unit/delivery/test_workers.py fails if one of these changes.
            if batches._worker_pids_set:  # noqa: SLF001
                # How a worker ends doesn't matter any more. Otherwise torch raises an error if a signal ends it.
                _remove_worker_pids(id(batches))
                batches._worker_pids_set = False  # noqa: SLF001
            for worker in batches._workers if kill and not batches._shutdown else ():  # noqa: SLF001
                worker.kill()
            batches._shutdown_workers()  # noqa: SLF001


def note_started(batches: object) -> None:
    """Have forks of this process leave the workers of a DataLoader's iterator alone."""
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        _started.add(batches)


def has_no_workers(batches: object) -> bool:
    """Return whether the workers of a DataLoader's iterator were shut down, or are those of the parent of this fork."""
    return isinstance(batches, _MultiProcessingDataLoaderIter) and batches._shutdown  # noqa: SLF001


def _leave_to_parent() -> None:
    # A fork that shuts them down, or only drops the iterator, would end those of its parent.
    for batches in _started:
        batches._shutdown = True  # noqa: SLF001


os.register_at_fork(after_in_child=_leave_to_parent)

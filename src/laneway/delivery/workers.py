"""What torch's DataLoader tells a dataset about its workers."""

from __future__ import annotations

import multiprocessing
import re
import sys
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, get_worker_info

from laneway.core.turns import WorkerPlace

if TYPE_CHECKING:
    from types import FrameType

    from torch.utils.data import Dataset


def is_in_worker() -> bool:
    """Tell whether this process is a DataLoader worker."""
    return get_worker_info() is not None


def worker_place(rank: int, world_size: int) -> WorkerPlace | None:
    """Return the place of the DataLoader worker that this process is, or None in a main process."""
    info = get_worker_info()
    return None if info is None else WorkerPlace(rank, world_size, info.id, info.num_workers)


def loader_number() -> int | None:
    """Return a number that all workers that a loader started together share, None in a main process.

    A process numbers its children in the order in which it makes them, and a loader makes its workers one after
    another; so the number of a later set of workers is larger.
    """
    info = get_worker_info()
    if info is None:
        return None
    number = re.search(r"\d+$", multiprocessing.current_process().name)
    return int(number[0]) - info.id if number else 0


def num_workers_of_caller(dataset: Dataset[object]) -> int | None:
    """Return num_workers of the DataLoader whose `__len__` is asking for the length of `dataset`, if one is.

    An epoch's batches depend on how many workers cut it, and DataLoader asks its dataset for the length
    without saying. So the loader is looked for among the callers.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, and there is no other way to know
    while frame is not None and frame.f_code.co_name == "__len__":
        caller = frame.f_locals.get("self")
        if isinstance(caller, DataLoader) and caller.dataset is dataset:
            return int(caller.num_workers)
        frame = frame.f_back
    return None

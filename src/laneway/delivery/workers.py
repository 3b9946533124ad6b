"""Facts about the workers of PyTorch's DataLoader."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

# DataLoader imports it in each worker; imported here, forked workers find it and need no import lock.
import numpy.random  # noqa: F401
from torch.utils.data import DataLoader, get_worker_info

from laneway.core.turns import WorkerPlace

if TYPE_CHECKING:
    from types import FrameType

    from torch.utils.data import Dataset


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


def num_workers_of_caller(dataset: Dataset[object]) -> int | None:
    """Return num_workers of the DataLoader whose `__len__` calls that of `dataset`, or None if there is none.

    The number of batches of an epoch depends on the number of workers, which DataLoader does not pass to the `__len__`
    of its dataset. So this searches the call stack for the loader.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, and there is no other way to know
    while frame is not None and frame.f_code.co_name == "__len__":
        caller = frame.f_locals.get("self")
        if isinstance(caller, DataLoader) and caller.dataset is dataset:
            return int(caller.num_workers)
        frame = frame.f_back
    return None

"""What torch's DataLoader tells a dataset about its workers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, get_worker_info

from laneway.turns import Place

if TYPE_CHECKING:
    from torch.utils.data import Dataset


def is_in_worker() -> bool:
    """Tell whether this process is a DataLoader worker."""
    return get_worker_info() is not None


def worker_place(rank: int, world_size: int) -> Place | None:
    """Return the place of the DataLoader worker that this process is, or None in a main process."""
    info = get_worker_info()
    return None if info is None else Place(rank, world_size, info.id, info.num_workers)


def num_workers_of_caller(dataset: Dataset[object]) -> int | None:
    """Return num_workers of the DataLoader whose `__len__` is asking for the length of `dataset`, if one is.

    An epoch's batches depend on how many workers cut it, and DataLoader asks its dataset for the length
    without saying. So the caller is looked up, two frames above this function.
    """
    loader = sys._getframe(2).f_locals.get("self")  # noqa: SLF001 - documented, and there is no other way to know
    if isinstance(loader, DataLoader) and loader.dataset is dataset:
        return int(loader.num_workers)
    return None

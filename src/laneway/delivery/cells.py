"""Integers that a process shares with its workers. Shared memory takes a file descriptor, so many owners share one."""

from __future__ import annotations

import os
import weakref
from typing import Final

import torch

_NUM_AT_ONCE: Final = 32
"""Number of owners that share a file descriptor."""

_free: dict[tuple[int, int], list[torch.Tensor]] = {}
"""(pid, number of cells) -> shared memory that has no owner."""


def shared_cells(owner: object, num_cells: int) -> torch.Tensor:
    """Return zeros, int64 `[num_cells]`, in memory shared with all processes that are started from now on.

    Args:
        owner: The memory is reused when this object is gone. Workers that use it must have ended by then.
        num_cells: Number of integers; owners with equal numbers share memory.
    """
    key = os.getpid(), num_cells
    free = _free.setdefault(key, [])
    if not free:
        # New shared memory is zeroed. `share_memory_` would copy zeros, in threads that a forked process has lost.
        storage = torch.UntypedStorage._new_shared(_NUM_AT_ONCE * num_cells * 8)  # type: ignore[no-untyped-call]  # noqa: SLF001
        block = torch.empty(0, dtype=torch.int64).set_(storage, 0, (_NUM_AT_ONCE, num_cells), (num_cells, 1))
        free.extend(block.unbind())
    cells = free.pop()
    weakref.finalize(owner, _give_back, key, cells).atexit = False
    return cells


def _give_back(key: tuple[int, int], cells: torch.Tensor) -> None:
    # A forked process loses its copies of the owners, but not the memory, which is its parent's.
    if key[0] == os.getpid():
        cells.zero_()
        _free[key].append(cells)

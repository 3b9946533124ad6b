"""Selections: how many rows of each block belong to a dataset, which is planned before anything else.

Shards, lanes, windows and positions count selected rows only. Which rows of a block these are, only its reader knows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.files import FileTable


def compact(counts: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return counts in 32 bits if they fit: a million row groups of several selections shall take little memory."""
    return counts.astype(np.int32) if counts.max(initial=0) < 2**31 else counts


def part_of_blocks(files: FileTable, rank: int, world_size: int) -> slice:
    """Return the blocks of whole files that one of several ranks counts: consecutive, and about equally many bytes.

    Args:
        files: The data files.
        rank: The rank, in [0, world_size).
        world_size: Number of ranks.
    """
    ends = np.concatenate([[0], np.cumsum(files.block_memory_bytes, dtype=np.float64)])[files.block_starts]
    shares = ends[-1] * np.arange(rank, rank + 2) / world_size
    # A file belongs to the rank in whose share it begins; the last share has no end.
    first, stop = np.searchsorted(ends[:-1], shares, side="left").tolist()
    stop = files.num_files if rank == world_size - 1 else stop
    return slice(int(files.block_starts[first]), int(files.block_starts[stop]))


@final
@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that belong to a dataset, counted by block."""

    text: str
    """Which rows these are, for states and messages: equal texts over equal files select equal rows."""
    block_rows: NDArray[np.integer]
    """Selected rows of each block, shape (num_blocks,)."""

    def __post_init__(self) -> None:
        """Keep the counts from being changed: they may be shared."""
        self.block_rows.flags.writeable = False

    @property
    def num_rows(self) -> int:
        """Number of selected rows."""
        return int(self.block_rows.sum())

    def fingerprint(self, files: str) -> str:
        """Return the identity of the selected rows: 32 hexadecimal digits.

        It tells other counts apart that a step of the same text finds, such as a function that was changed.

        Args:
            files: The fingerprint of the data files.
        """
        state = hashlib.blake2b(files.encode(), digest_size=16)
        state.update(np.ascontiguousarray(self.block_rows, "<i8").data)
        return state.hexdigest()

    def files(self, files: FileTable) -> FileTable:
        """Return the table of data files as if they had no other rows; blocks keep their bytes."""
        return replace(files, block_rows=self.block_rows)

    def selected_bytes(self, files: FileTable, block_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the share of the bytes of each block that its selected rows have, shape (num_blocks,)."""
        share = self.block_rows / np.maximum(files.block_rows, 1)
        found: NDArray[np.int64] = np.ceil(block_bytes * share).astype(np.int64)
        return found

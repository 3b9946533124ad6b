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


@final
@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that belong to a dataset, counted by block."""

    text: str
    """Which rows these are, for states and messages: equal texts over equal files select equal rows."""
    block_rows: NDArray[np.int64]
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
        return np.ceil(block_bytes * share).astype(np.int64)

"""The rows of data files that their table has: the first step of each selection, unless it has all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from laneway.catalog.contents import ManifestContents
    from laneway.catalog.table_facts import DeletedRows
    from laneway.core.files import FileTable
    from laneway.core.strings import Strings
    from laneway.reading.steps import Mask, Run


@final
@dataclass(frozen=True, eq=False)
class NotDeleted:
    """Selects the rows of data files that their table has."""

    deleted: DeletedRows
    """The rows that it doesn't have."""
    paths: Strings
    """Paths of the files."""
    columns: tuple[str, ...] = field(default=(), init=False)
    """None: rows are deleted by their number."""
    is_named: bool = field(default=True, init=False)
    """See Step."""

    @property
    def text(self) -> str:
        """How many rows the table doesn't have, and a digest of which."""
        return f"without {self.deleted.num_rows} rows that the table doesn't have [{self.deleted.digest}]"

    @cached_property
    def _indices(self) -> dict[str, int]:
        starts = self.deleted.starts
        return {self.paths[index]: index for index in np.flatnonzero(np.diff(starts)).tolist()}

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:  # noqa: ARG002 - see Step
        """See Step."""
        index = self._indices.get(run.path)
        if index is None:
            return left
        ranges = self.deleted.of_file(index)
        # +1 where a range begins, -1 where it ends: the sum up to a row says whether the row is in one.
        marks = np.zeros(run.num_rows + 1, np.int32)
        ranges = np.clip(ranges - run.first_row, 0, run.num_rows)
        np.add.at(marks, ranges[:, 0], 1)
        np.subtract.at(marks, ranges[:, 1], 1)
        found: Mask = left & (np.cumsum(marks[:-1]) == 0)
        return found

    def counts(self, files: FileTable) -> NDArray[np.int64]:
        """Return how many rows of each block it selects, shape (num_blocks,)."""
        deleted = self.deleted
        # Row numbers are those of a file, and `block_row_starts` counts over all files.
        ranges = files.row_starts[deleted.owners][:, None] + deleted.ranges
        before = np.concatenate([[0], np.cumsum(ranges[:, 1] - ranges[:, 0])])
        index = np.searchsorted(ranges[:, 0], files.block_row_starts, side="right") - 1
        # Deleted rows before the start of each block: those of earlier ranges, and a part of the last one that began.
        within = np.clip(files.block_row_starts - ranges[index, 0], 0, ranges[index, 1] - ranges[index, 0])
        num_before = np.where(index < 0, 0, before[index] + within)
        found: NDArray[np.int64] = files.block_rows.astype(np.int64) - np.diff(num_before)
        return found


def not_deleted(manifest: ManifestContents) -> NotDeleted | None:
    """Return the step that selects the rows that a table has; None: it has all rows of its files."""
    table = manifest.table
    if table is None or len(table.deleted.ranges) == 0:
        return None
    return NotDeleted(table.deleted, manifest.files.paths)

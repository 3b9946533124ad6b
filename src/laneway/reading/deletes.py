"""The rows of a table that were not deleted: the first step of each selection of a table that has deleted rows."""

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
    """Selects the rows of data files that their table still has."""

    deleted: DeletedRows
    """The rows that it has no more."""
    paths: Strings
    """Paths of the files."""
    columns: tuple[str, ...] = field(default=(), init=False)
    """None: rows are deleted by their number."""
    is_named: bool = field(default=True, init=False)
    """See Step."""

    @property
    def text(self) -> str:
        """How many rows were deleted, and a digest of which."""
        return f"without {len(self.deleted.rows)} deleted rows [{self.deleted.digest}]"

    @cached_property
    def _indices(self) -> dict[str, int]:
        starts = self.deleted.starts
        return {self.paths[index]: index for index in np.flatnonzero(np.diff(starts)).tolist()}

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:  # noqa: ARG002 - see Step
        """See Step."""
        index = self._indices.get(run.path)
        if index is None:
            return left
        deleted = self.deleted.of_file(index)
        first, stop = np.searchsorted(deleted, [run.first_row, run.first_row + run.num_rows])
        found = left.copy()
        found[deleted[first:stop] - run.first_row] = False
        return found

    def counts(self, files: FileTable) -> NDArray[np.int64]:
        """Return how many rows of each block it selects, shape (num_blocks,)."""
        rows = files.block_rows.astype(np.int64)
        owners = np.repeat(np.arange(files.num_files), np.diff(self.deleted.starts))
        # Row numbers are those of a file, and `block_row_starts` counts over all files.
        places = files.block_row_starts[files.block_starts[owners]] + self.deleted.rows
        blocks = np.searchsorted(files.block_row_starts, places, side="right") - 1
        np.subtract.at(rows, blocks, 1)
        return rows


def not_deleted(manifest: ManifestContents) -> NotDeleted | None:
    """Return the step that selects the rows that a table still has; None: no row of the files was deleted."""
    table = manifest.table
    if table is None or len(table.deleted.rows) == 0:
        return None
    return NotDeleted(table.deleted, manifest.files.paths)

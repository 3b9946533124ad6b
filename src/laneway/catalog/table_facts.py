"""What a manifest says of the table whose catalog lists its files: its version, its columns, and its deleted rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from laneway.core.files import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray


@final
@dataclass(frozen=True, eq=False)
class DeletedRows:
    """The rows of data files that don't belong to the table any more."""

    starts: NDArray[np.int64]
    """Index of the first deleted row of each file in `rows`, shape (num_files + 1,)."""
    rows: NDArray[np.int64]
    """Number in its file of each deleted row, ascending in each file, shape (num_deleted,)."""

    @classmethod
    def of(cls, deleted: Mapping[int, NDArray[np.int64]], num_files: int) -> DeletedRows:
        """Return the deleted rows, given those of each file that has some."""
        found = {index: np.unique(np.asarray(rows, np.int64)) for index, rows in deleted.items()}
        counts = np.zeros(num_files, np.int64)
        for index, rows in found.items():
            counts[index] = len(rows)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.concatenate([np.zeros(0, np.int64), *(found[index] for index in sorted(found))])
        return cls(starts, rows)

    def of_file(self, file_index: int) -> NDArray[np.int64]:
        """Return the deleted rows of a file, ascending, shape (num_deleted,)."""
        return self.rows[self.starts[file_index] : self.starts[file_index + 1]]

    @cached_property
    def digest(self) -> str:
        """Digest of all of them."""
        return digest(*(np.ascontiguousarray(column, "<i8").tobytes() for column in (self.starts, self.rows)))


@final
@dataclass(frozen=True, eq=False)
class TableFacts:
    """The table whose catalog lists the files of a manifest."""

    version: str | None
    """Which version of which table; None: it has no versions."""
    schema: pa.Schema
    """Its columns. A file may lack some, have others, or have them in a narrower type."""
    deleted: DeletedRows
    """The rows of the files that don't belong to it."""
    filter: str | None = None
    """The text of the filter for which files without a matching row are left out; None: all files are there."""

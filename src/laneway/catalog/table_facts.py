"""What a manifest says of the table whose catalog lists its files: its version, its columns, and which rows it has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from laneway.core.files import digest
from laneway.core.intervals import Intervals
from laneway.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray


@final
@dataclass(frozen=True, eq=False)
class DeletedRows:
    """The rows of data files that don't belong to the table, as ranges: a slice of a file is one or two of them."""

    starts: NDArray[np.int64]
    """Index of the first range of each file in `ranges`, shape (num_files + 1,)."""
    ranges: NDArray[np.int64]
    """First row, and one past the last row, of each range; ascending and apart in each file, shape (num_ranges, 2)."""

    @classmethod
    def of(cls, deleted: Mapping[int, NDArray[np.int64]], num_files: int) -> DeletedRows:
        """Return the deleted rows, given those of each file that has some: row numbers, or ranges of shape (n, 2)."""
        found = {index: _ranges_of(np.asarray(rows, np.int64)) for index, rows in sorted(deleted.items())}
        counts = np.zeros(num_files, np.int64)
        for index, ranges in found.items():
            counts[index] = len(ranges)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(starts, np.concatenate([np.zeros((0, 2), np.int64), *found.values()]))

    @cached_property
    def num_rows(self) -> int:
        """Number of rows."""
        return int((self.ranges[:, 1] - self.ranges[:, 0]).sum())

    @property
    def owners(self) -> NDArray[np.int64]:
        """Index of the file of each range, shape (num_ranges,)."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def of_file(self, file_index: int) -> NDArray[np.int64]:
        """Return the ranges of a file, shape (num_ranges, 2)."""
        return self.ranges[self.starts[file_index] : self.starts[file_index + 1]]

    @cached_property
    def digest(self) -> str:
        """Digest of all of them."""
        return digest(*(np.ascontiguousarray(column, "<i8").tobytes() for column in (self.starts, self.ranges)))


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

    def explain(self, error: DataFileError) -> DataFileError:
        """Return the error for a file that can't be opened, with the likely reason and the way out if it is missing."""
        if not isinstance(error.__cause__, FileNotFoundError):
            return error
        message = (
            f"{error}, but {self.version or 'the table'} lists it: files of old versions are deleted by vacuum, or as "
            "snapshots expire; read a newer version"
        )
        return DataFileError(message)


def _ranges_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return row numbers, or ranges, as ranges that are ascending and apart."""
    first, stop = (rows, rows + 1) if rows.ndim == 1 else rows.T
    found = Intervals.of(first, stop)
    return np.stack([found.starts, found.stops], axis=1)

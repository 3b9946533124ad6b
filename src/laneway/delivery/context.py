"""The context of rows: where each comes from, and a seed for it, for the user's functions; the same after any resume.

It is made from hidden columns, which the reader adds to the rows, and which are removed before the user sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa

from laneway.core.order import row_seeds
from laneway.reading.origin import FILE_INDEX, FILE_ROW, HIDDEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@final
@dataclass(frozen=True, eq=False)
class BatchContext:
    """Where the rows of a batch come from, and a seed for each, which doesn't depend on the other rows."""

    epoch: int
    """The epoch, zero-based."""
    paths: list[str]
    """The data file of each row, relative to the dataset's root."""
    rows: NDArray[np.int64]
    """The number of each row in its file, int64 of shape (rows,)."""
    seeds: NDArray[np.uint64]
    """A seed for each row, uint64 of shape (rows,): a function of the dataset's seed, the epoch, the file and the row.
    """

    @property
    def rngs(self) -> list[np.random.Generator]:
        """A new random generator for each row, Philox keyed by its seed."""
        return [np.random.Generator(np.random.Philox(key=seed)) for seed in self.seeds.tolist()]


@final
@dataclass(frozen=True, eq=False)
class RowContext:
    """Where a row comes from, and its seed: the same in any batch, worker and rank, and after any resume."""

    epoch: int
    """The epoch, zero-based."""
    path: str
    """The data file of the row, relative to the dataset's root."""
    row: int
    """The number of the row in its file."""
    dataset_seed: int
    """The seed of the dataset."""

    @cached_property
    def seed(self) -> int:
        """A seed in [0, 2**64): a function of the dataset's seed, the epoch, the file and the row."""
        (seed,) = row_seeds(np.array([self.row]), seed=self.dataset_seed, epoch=self.epoch, path=self.path).tolist()
        return int(seed)

    @cached_property
    def rng(self) -> np.random.Generator:
        """The random generator of the row, Philox keyed by its seed."""
        return np.random.Generator(np.random.Philox(key=self.seed))


@final
class Contexts:
    """Removes the hidden columns from batches and rows of an epoch, and makes contexts from them."""

    def __init__(self, paths: Sequence[str], *, seed: int, epoch: int) -> None:
        """Make contexts.

        Args:
            paths: The data files, relative to the dataset's root.
            seed: That of the dataset.
            epoch: Zero-based.
        """
        self._paths = paths
        self._seed = seed
        self._epoch = epoch

    def of_batch(self, batch: Any) -> tuple[Any, BatchContext]:  # noqa: ANN401 - columns in any output
        """Return a batch without the hidden columns, and its context."""
        rest, files, rows = _take(batch)
        path_of = {file_index: self._paths[file_index] for file_index in np.unique(files).tolist()}
        seeds = np.empty(len(files), np.uint64)
        for file_index, path in path_of.items():
            is_in = files == file_index
            seeds[is_in] = row_seeds(rows[is_in], seed=self._seed, epoch=self._epoch, path=path)
        paths = [path_of[file_index] for file_index in files.tolist()]
        return rest, BatchContext(self._epoch, paths, rows, seeds)

    def of_row(self, row: Any) -> tuple[Any, RowContext]:  # noqa: ANN401 - a row in any output
        """Return a row without the hidden columns, and its context."""
        rest, files, rows = _take(row)
        return rest, RowContext(self._epoch, self._paths[int(files[0])], int(rows[0]), self._seed)


def _take(item: Any) -> tuple[Any, NDArray[np.int64], NDArray[np.int64]]:  # noqa: ANN401 - a batch or row
    """Return a batch or row without the hidden columns, and these: index and row number of the file of each row."""
    rest: Any
    if isinstance(item, pa.RecordBatch):
        rest = item.select([name for name in item.schema.names if name not in HIDDEN.names])
        files, rows = (item.column(name).to_numpy(zero_copy_only=False) for name in HIDDEN.names)
    else:
        rest = {name: column for name, column in item.items() if name not in HIDDEN.names}
        files, rows = (np.atleast_1d(np.asarray(item[name], np.int64)) for name in (FILE_INDEX, FILE_ROW))
    return rest, files, rows

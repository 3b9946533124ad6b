"""The context of rows: where each comes from, and a seed for it, for the user's functions; the same after any resume.

It is made from hidden columns, which the reader adds to the rows, and which are removed before the user sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import pyarrow as pa

from laneway.core.order import row_seeds
from laneway.reading.origin import HIDDEN, HIDDEN_IN_MIXTURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@final
@dataclass(frozen=True, eq=False)
class BatchContext:
    """Where the rows of a batch come from, and a seed for each, which doesn't depend on the other rows."""

    epoch: int
    """The epoch, zero-based. In a mixture, how many times it has ended before."""
    paths: list[str]
    """The data file of each row, relative to the dataset's root."""
    rows: NDArray[np.int64]
    """The number of each row in its file, int64 of shape (rows,)."""
    seeds: NDArray[np.uint64]
    """A seed for each row, uint64 of shape (rows,): a function of the dataset's seed, the epoch, the file and the row.
    """
    sources: list[str] | None = None
    """In a mixture, the name of the source of each row."""
    epochs: NDArray[np.int64] | None = None
    """In a mixture, the epoch of its source for each row, int64 of shape (rows,)."""

    @property
    def rngs(self) -> list[np.random.Generator]:
        """A new random generator for each row, Philox keyed by its seed."""
        return [np.random.Generator(np.random.Philox(key=seed)) for seed in self.seeds.tolist()]


@final
@dataclass(frozen=True, eq=False)
class RowContext:
    """Where a row comes from, and its seed: the same in any batch, worker and rank, and after any resume."""

    epoch: int
    """The epoch, zero-based; in a mixture, that of its source."""
    path: str
    """The data file of the row, relative to the dataset's root."""
    row: int
    """The number of the row in its file."""
    dataset_seed: int
    """The seed of the dataset."""
    source: str | None = None
    """In a mixture, the name of its source."""

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
        rest, (files, rows) = _take(batch, HIDDEN.names)
        path_of = {file_index: self._paths[file_index] for file_index in np.unique(files).tolist()}
        seeds = np.empty(len(files), np.uint64)
        for file_index, path in path_of.items():
            is_in = files == file_index
            seeds[is_in] = row_seeds(rows[is_in], seed=self._seed, epoch=self._epoch, path=path)
        paths = [path_of[file_index] for file_index in files.tolist()]
        return rest, BatchContext(self._epoch, paths, rows, seeds)

    def of_row(self, row: Any) -> tuple[Any, RowContext]:  # noqa: ANN401 - a row in any output
        """Return a row without the hidden columns, and its context."""
        rest, (files, rows) = _take(row, HIDDEN.names)
        return rest, RowContext(self._epoch, self._paths[int(files[0])], int(rows[0]), self._seed)


class OfSource(NamedTuple):
    """What the contexts of the rows of a source are made from."""

    name: str
    """Its name."""
    paths: Sequence[str]
    """The data files, relative to its root."""
    seed: int
    """Its seed."""


@final
class MixtureContexts:
    """Removes the hidden columns from batches and rows of a mixture, and makes contexts from them."""

    def __init__(self, sources: Sequence[OfSource], *, epoch: int) -> None:
        """Make contexts.

        Args:
            sources: The sources, by their index.
            epoch: How many times the mixture has ended before.
        """
        self._sources = sources
        self._epoch = epoch

    def of_batch(self, batch: Any) -> tuple[Any, BatchContext]:  # noqa: ANN401 - columns in any output
        """Return a batch without the hidden columns, and its context."""
        rest, (files, rows, sources, epochs) = _take(batch, HIDDEN_IN_MIXTURES.names)
        seeds, paths = np.empty(len(files), np.uint64), [""] * len(files)
        origins, inverse = np.unique(np.stack([sources, epochs, files]), axis=1, return_inverse=True)
        inverse = inverse.reshape(-1)
        for index, (source_index, epoch, file_index) in enumerate(origins.T.tolist()):
            source = self._sources[source_index]
            path = source.paths[file_index]
            places = np.flatnonzero(inverse == index)
            seeds[places] = row_seeds(rows[places], seed=source.seed, epoch=epoch, path=path)
            for place in places.tolist():
                paths[place] = path
        names = [self._sources[index].name for index in sources.tolist()]
        return rest, BatchContext(self._epoch, paths, rows, seeds, names, epochs)

    def of_row(self, row: Any) -> tuple[Any, RowContext]:  # noqa: ANN401 - a row in any output
        """Return a row without the hidden columns, and its context."""
        rest, hidden = _take(row, HIDDEN_IN_MIXTURES.names)
        file_index, file_row, source_index, epoch = (int(each[0]) for each in hidden)
        source = self._sources[source_index]
        return rest, RowContext(epoch, source.paths[file_index], file_row, source.seed, source.name)


AnyContexts = Contexts | MixtureContexts


def _take(item: Any, names: Sequence[str]) -> tuple[Any, list[NDArray[np.int64]]]:  # noqa: ANN401 - a batch or row
    """Return a batch or row without hidden columns, and these, each of shape (rows,)."""
    if isinstance(item, pa.RecordBatch):
        rest = item.select([name for name in item.schema.names if name not in names])
        return rest, [item.column(name).to_numpy(zero_copy_only=False) for name in names]
    kept = {name: column for name, column in item.items() if name not in names}
    return kept, [np.atleast_1d(np.asarray(item[name], np.int64)) for name in names]

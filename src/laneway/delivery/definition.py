"""The definition: all that a worker needs to read its part of an epoch, as one value that can be sent to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laneway.core.cursor import open_epoch, rank_length, settle
from laneway.delivery.stream import BatchStream, CollatedStream, RowStream
from laneway.reading.lane_reader import LaneReader
from laneway.reading.reader import RowReader

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from laneway.catalog.manifest import Manifest
    from laneway.convert.batches import BatchConverter
    from laneway.core.cursor import LaneOptions, Settled
    from laneway.core.plan import Identity
    from laneway.core.progress import Progress
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.stream import Stream
    from laneway.storage.filesystem import Storage


@dataclass(frozen=True, slots=True)
class Composed:
    """Two functions, one after the other; unlike a lambda it can be sent to a spawned worker."""

    first: Callable[[Any], Any]
    """Called first."""
    second: Callable[[Any], Any]
    """Called on what the first returns."""

    def __call__(self, value: Any) -> Any:  # noqa: ANN401 - whatever the functions take and return
        """Call both."""
        return self.second(self.first(value))


@dataclass(frozen=True, eq=False)
class Definition:
    """From data files to what a dataset yields."""

    identity: Identity
    """Which rows, in which order."""
    options: LaneOptions
    """Lanes, turns and batches."""
    manifest: Manifest
    """Where the rows are in the data files."""
    storage: Storage
    """Where the data files are."""
    columns: tuple[str, ...] | None
    """Columns to deliver; None: all."""
    converter: BatchConverter
    """Makes what is yielded out of Arrow."""
    transform: Callable[[Any], Any] | None
    """Called on each row, or on each batch that is made by columns."""
    prefetch_windows: int
    """Windows of each lane that are read ahead."""
    collate_fn: Callable[[list[Any]], Any] | None = None
    """Makes what is yielded of the rows of a batch, or of a turn where there are no batches; None: no rows are made."""

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of the columns that are delivered."""
        return self._reader().schema

    def _reader(self) -> RowReader:
        return RowReader(self.manifest, self.storage, self.columns)

    def num_items(self, place: WorkerPlace, options: LaneOptions) -> int:
        """Return how many batches of `options`, or rows, the rank of `place` delivers in a whole epoch."""
        return rank_length(self.manifest.num_rows, place, self.identity.settings, options)

    def settle(self, progress: Progress, place: WorkerPlace) -> Settled:
        """Return an epoch as the workers of `place` read it; see `laneway.core.cursor.settle`."""
        return settle(self.identity, progress, place, self.options)

    def open(self, progress: Progress, place: WorkerPlace) -> Stream:
        """Return what the worker at `place` delivers from `progress` on.

        Raises:
            CheckpointMismatchError: The progress is that of another worker.
        """
        cursor = open_epoch(self.identity, progress, place, self.options)
        lanes = LaneReader(cursor.plan, self._reader(), self.converter.vectorized, self.prefetch_windows)
        if self.collate_fn is not None:
            return CollatedStream(cursor, lanes, self.converter, self.transform, self.collate_fn)
        stream_type = RowStream if self.options.batch_size is None else BatchStream
        return stream_type(cursor, lanes, self.converter, self.transform)

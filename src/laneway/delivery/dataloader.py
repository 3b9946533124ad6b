"""Progress that travels with each batch: a number of its turn, from the worker that makes it to the main process.

The main process moves a cursor of its own over the lanes of its rank by these numbers, so it knows what has been
delivered whatever the workers have made ahead, and in whichever order it comes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from laneway.core.cursor import Cursor, RowRun
from laneway.core.progress import Progress
from laneway.delivery.buffers import forget_ended_workers
from laneway.delivery.workers import worker_place
from laneway.errors import LanewayError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from laneway.core.cursor import Settled, Step
    from laneway.core.plan import Plan
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.definition import Definition
    from laneway.delivery.schedule import EpochSchedule
    from laneway.delivery.stream import Stream

    Parcel = tuple[int] | tuple[int, Any]
    """First turn of a batch, and the batch; without one, these turns are empty."""

_ROWS_AT_ONCE = 256
"""Rows of a turn, and so of a parcel, where rows are yielded one by one and a user has not chosen."""


class _Parcels:
    """What a worker delivers, each with its turn.

    An empty turn is a parcel too. So the loader, which takes parcels from its workers in rotation, keeps to the order
    of turns, and that does not depend on the number of workers.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Parcel]:
        return self

    def __next__(self) -> Parcel:
        cursor = self._stream.cursor
        turn = cursor.next_turn
        return (turn,) if cursor.pass_over() else (turn, next(self._stream))


class _ParcelDataset(IterableDataset["Parcel"]):
    """The dataset of the DataLoader. The main process says what the next pass is."""

    def __init__(self, definition: Definition, rank_place: WorkerPlace) -> None:
        self._definition = definition
        self._rank_place = rank_place
        self._progress = Progress(0)
        # Shared with workers that persist. One that is late may read the epoch of a later pass, but only after
        # the loader has begun that one and takes nothing more of this.
        self._fresh_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, progress: Progress) -> None:
        """Make the next pass deliver from here on; only an epoch that has not been cut reaches workers that persist."""
        self._progress = progress
        self._fresh_epoch[0] = progress.epoch if progress.cut is None else -1

    def __iter__(self) -> _Parcels:
        fresh_epoch = int(self._fresh_epoch)
        progress = self._progress if fresh_epoch < 0 else Progress(fresh_epoch)
        place = worker_place(self._rank_place.rank, self._rank_place.world_size) or self._rank_place
        return _Parcels(self._definition.open(progress, place))


def _as_it_is(parcel: Any) -> Any:  # noqa: ANN401 - a batch may be anything
    return parcel


class DataLoaderSource:
    """Feeds one rank from a plain DataLoader."""

    def __init__(
        self, definition: Definition, place: WorkerPlace, passes: EpochSchedule, options: Mapping[str, Any]
    ) -> None:
        """Prepare to feed what `definition` delivers.

        Args:
            definition: What the workers read; without batches, its rows travel by turns.
            place: Any worker of the rank.
            passes: Of the dataset.
            options: Further arguments of DataLoader.
        """
        self.yields_rows = definition.options.batch_size is None
        if self.yields_rows:
            lane_options = replace(definition.options, turn_rows=definition.options.turn_rows or _ROWS_AT_ONCE)
            definition = replace(definition, options=lane_options, collate_fn=_as_it_is)
        self.definition = definition
        self.item_options = definition.options
        self.place = place
        self._passes = passes
        self._source = _ParcelDataset(definition, place.of_rank())
        self._options = options
        self.in_order = place.num_workers == 1 or bool(options.get("in_order", True))
        self._loader = self._make_loader()

    def _make_loader(self) -> DataLoader[Parcel]:
        return DataLoader(self._source, batch_size=None, collate_fn=_as_it_is, **self._options)

    def begin(self, progress: Progress, settled: Settled) -> DataLoaderPass:
        """Begin a pass that goes on from `progress`, settled for the workers of this loader."""
        begun = DataLoaderPass(self, progress, settled)
        self._passes.begin_elsewhere(progress.epoch, self.place.num_workers)
        return begun

    def renew(self) -> None:
        """Let go of workers that persist."""
        self._loader = self._make_loader()

    def parcels(self, progress: Progress) -> Iterator[Parcel]:
        """Have workers go on from `progress`, and return what they send."""
        if progress.cut is not None:
            # Workers that persist know of fresh epochs only.
            self.renew()
        self._source.begin(progress)
        # Without workers a DataLoader would add nothing but the time that it takes.
        is_direct = not self._options.get("num_workers") and not self._options.get("pin_memory")
        return iter(self._source if is_direct else self._loader)


class DataLoaderPass:
    """What one rank delivers of an epoch, and how far it has come. After an error it goes on where it was."""

    def __init__(self, feed: DataLoaderSource, progress: Progress, settled: Settled) -> None:
        """Begin; the workers start at once."""
        self._source = feed
        self._is_over = False
        self._parcels: Iterator[Parcel] | None = self._go_on_from(progress, settled)

    def _go_on_from(self, progress: Progress, settled: Settled) -> Iterator[Parcel]:
        self._cursor = Cursor(settled.plan, settled.progress, self._source.place.of_rank(), settled.turns_per_batch)
        self._run = RowRun(self._cursor)
        return self._source.parcels(progress)

    @property
    def plan(self) -> Plan:
        """The plan that belongs to `progress`."""
        return self._cursor.plan

    @property
    def rows(self) -> list[Any]:
        """Single rows that are at hand, last first: to take one is to deliver it."""
        return self._run.rows

    @property
    def is_complete(self) -> bool:
        """Whether this rank has delivered all it has of the epoch."""
        self._run.count()
        return self._cursor.is_at_end

    def progress(self) -> Progress:
        """Return what this rank has delivered."""
        self._run.count()
        return self._cursor.progress()

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        """Return the next batch or row; it counts as delivered from now on."""
        if not self._source.yields_rows:
            step, batch = self._next_parcel()
            self._cursor.deliver_batch(step)
            return batch
        if not self._run.rows:
            self._run.count()
            # After an error the next parcel comes with a cursor and a run of its own.
            step, rows = self._next_parcel()
            self._run.begin(step, rows)
        return self._run.rows.pop()

    def _next_parcel(self) -> tuple[Step, Any]:
        while not self._is_over:
            parcel = self._receive()
            if len(parcel) > 1:
                turn, item = parcel
                return self._cursor.step_at(turn), item
        raise StopIteration

    def _receive(self) -> Sequence[Any]:
        if self._parcels is None:
            progress = self._cursor.progress()
            self._parcels = self._go_on_from(progress, self._source.definition.settle(progress, self._source.place))
        try:
            return next(self._parcels)
        except StopIteration:
            if not self._cursor.is_at_end:
                message = "the workers ended before all rows of the epoch were delivered"
                raise LanewayError(message) from None
            self._is_over, self._parcels = True, None
            forget_ended_workers()
            return ()
        except BaseException:
            # What workers have made ahead is let go: the next call starts from what was delivered.
            self._parcels = None
            self._source.renew()
            raise

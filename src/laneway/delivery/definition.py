"""The definition of a dataset: everything a worker needs to read its share of an epoch, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from laneway.core.assignment import resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.plan import Identity
from laneway.delivery.context import Contexts
from laneway.delivery.stream import BatchStream, ItemMaker, RowStream
from laneway.reading.lane_reader import LaneReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.catalog.manifest import Manifest
    from laneway.core.assignment import Assignment
    from laneway.core.options import LaneOptions
    from laneway.core.progress import Progress
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.delivered_columns import DeliveredColumns
    from laneway.delivery.schedule import EpochSchedule
    from laneway.delivery.stream import Stream
    from laneway.delivery.transforms import Transforms
    from laneway.reading.selecting import RowSelection
    from laneway.storage.filesystem import Storage


@dataclass(frozen=True, eq=False)
class Definition:
    """The files, order and conversion of a dataset, which don't change while it is read."""

    identity: Identity
    """The files, and the settings that determine the order of their rows."""
    options: LaneOptions
    """Lanes, turns and batches."""
    place: WorkerPlace
    """The rank that reads."""
    manifest: Manifest
    """The data files and their metadata."""
    storage: Storage
    """Storage of the data files."""
    columns: DeliveredColumns
    """The columns that are delivered."""
    transform: Transforms
    """Called on each row, or on each batch of columns."""
    prefetch_windows: int
    """Windows of each lane that are read ahead."""
    selection: RowSelection | None = None
    """The rows that belong to the dataset; None: all."""
    collate_fn: Callable[[list[Any]], Any] | None = None
    """Builds an item from the rows of a batch, or of a turn if there are no batches; None: columns, or single rows."""

    def __post_init__(self) -> None:
        """Check that no rank may deliver fewer rows than the others, unless they may anyway.

        Raises:
            ValueError: One may.
        """
        errors = self.transform.errors
        if errors is not None and errors.skips and self.place.world_size > 1:
            remainder = self.identity.settings.remainder
            if remainder != "keep":
                message = (
                    f'on_error="skip" would let the {self.place.world_size} ranks deliver different numbers of rows: '
                    'use "mask", or remainder="keep" if the training loop can end at another step on each rank'
                )
                raise ValueError(message)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the file table of the identity: the manifest has it, and may travel as a file."""
        return {**vars(self), "identity": self.identity.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the identity."""
        rows = None if state["selection"] is None else state["selection"].rows
        vars(self).update(state, identity=Identity(state["manifest"].files, state["identity"], rows))

    def with_selection(self, selection: RowSelection) -> Self:
        """Return the definition of the rows of a selection."""
        settings = replace(self.identity.settings, selection=selection.rows.text)
        return replace(self, identity=Identity(self.manifest.files, settings, selection.rows), selection=selection)

    def num_items(self, place: WorkerPlace) -> int:
        """Return the number of batches, or rows if there are no batches, that a rank delivers in a whole epoch.

        Args:
            place: Any worker of the rank.
        """
        return self.options.num_items(self.identity.selected.num_rows, place, self.identity.settings)

    def warnings_at_start(self, schedule: EpochSchedule, place: WorkerPlace) -> list[str]:
        """Return what to warn of when the worker at `place` starts to read the next pass of `schedule`."""
        of_options = self.options.warnings_for(self.identity.selected.num_rows, place, self.identity.settings)
        return [*of_options, *filter(None, [schedule.warning_at_start(place)])]

    def resolve(self, progress: Progress, place: WorkerPlace) -> Assignment:
        """Return the assignment of the worker at `place`; see `laneway.core.assignment.resolve_cut`."""
        return resolve_cut(self.identity, progress, place, self.options)

    def open(self, assignment: Assignment) -> Stream:
        """Open the stream of a worker: batches, or single rows if there is no batch size."""
        if self.options.batch_size is not None:
            return self.open_batches(assignment)
        return RowStream(Cursor(assignment), lambda: self._items(assignment))

    def open_batches(self, assignment: Assignment) -> BatchStream:
        """Open the stream of batches of a worker; if there is no batch size, each turn of rows is a batch."""
        return BatchStream(Cursor(assignment), lambda: self._items(assignment))

    def _items(self, assignment: Assignment) -> ItemMaker:
        plan, seed = assignment.plan, self.identity.settings.seed
        takes_context = self.transform.takes_context
        rows, converter = self.columns.open(
            self.manifest,
            self.storage,
            epoch=plan.epoch,
            selection=self.selection,
            with_hidden=takes_context,
        )
        lanes = LaneReader(plan, rows, converter.vectorized, self.prefetch_windows)
        contexts = Contexts(self.manifest.files.paths, seed=seed, epoch=plan.epoch) if takes_context else None
        return ItemMaker(lanes, converter, self.transform, contexts, self.collate_fn)

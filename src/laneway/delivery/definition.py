"""The definition of a dataset: everything a worker needs to read its share of an epoch, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from laneway.core.assignment import resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.plan import Identity
from laneway.delivery.context import Contexts
from laneway.delivery.item_stream import ItemStream
from laneway.delivery.lane_items import BatchMaker, LaneItems, Stages
from laneway.delivery.stream import BatchStream, ItemMaker, RowStream
from laneway.delivery.transforms import Transforms
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
    from laneway.delivery.stream import Stream, TaggedStream
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
    stages: Stages | None = None
    """What is made of the rows; None: they are delivered."""
    of_batches: Transforms = field(default_factory=Transforms)
    """Called on each batch that was built of rows or of what stages have made of them."""

    def __post_init__(self) -> None:
        """Check that no rank may deliver fewer rows than the others, unless they may anyway.

        Raises:
            ValueError: One may.
        """
        errors = self.transform.errors
        if self.stages is not None:
            self._check_stages()
            return
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

    def _check_stages(self) -> None:
        """Check that the other arguments go together with stages.

        Raises:
            ValueError: They don't.
        """
        errors, remainder = self.transform.errors, self.identity.settings.remainder
        if errors is not None and not errors.skips:
            message = (
                'on_error="mask" would have a filler packed or expanded like a row: use "skip", since nothing counts '
                "on the number of rows"
            )
            raise ValueError(message)
        if remainder not in {None, "keep"}:
            message = (
                f'remainder="{remainder}" evens out rows, but how many items are made of these depends on the data: '
                'use "keep"'
            )
            raise ValueError(message)
        if self.options.batch_size is None and self.options.turn_rows not in {None, 1}:
            message = f"turn_rows={self.options.turn_rows} counts items of a batch: call batch(), or omit turn_rows"
            raise ValueError(message)

    def then(self, function: Callable[..., Any], *, takes_context: bool = False) -> Self:
        """Return the definition with one more function of the user, on what is delivered so far.

        Args:
            function: Called with a row, an item or a batch and, if it takes one, with the context of the row or batch.
            takes_context: Whether it takes one.

        Raises:
            ValueError: There is no context.
        """
        if self.options.batch_size is not None and (self.stages is not None or self.collate_fn is not None):
            if takes_context:
                message = "a batch that was built of rows has no context: put the function before batch()"
                raise ValueError(message)
            return replace(self, of_batches=self.of_batches.then(function))
        if self.stages is not None:
            return replace(self, stages=self.stages.then(function, takes_context=takes_context))
        return replace(self, transform=self.transform.then(function, takes_context=takes_context))

    def with_stages(self, stages: Stages) -> Self:
        """Return the definition of what stages make of its rows."""
        settings = replace(self.identity.settings, stages=stages.text)
        return replace(self, stages=stages, identity=replace(self.identity, settings=settings))

    def num_items(self, place: WorkerPlace) -> int | None:
        """Return the number of batches, or rows if there are no batches, that a rank delivers in a whole epoch.

        Args:
            place: Any worker of the rank.

        Returns:
            None if it depends on what stages make of the rows.
        """
        if self.stages is not None:
            return None
        return self.options.num_items(self.identity.selected.num_rows, place, self.identity.settings)

    def warnings_at_start(self, schedule: EpochSchedule, place: WorkerPlace) -> list[str]:
        """Return what to warn of when the worker at `place` starts to read the next pass of `schedule`."""
        of_options = self.options.warnings_for(self.identity.selected.num_rows, place, self.identity.settings)
        return [*of_options, *filter(None, [schedule.warning_at_start(place)])]

    def resolve(self, progress: Progress, place: WorkerPlace) -> Assignment:
        """Return the assignment of the worker at `place`; see `laneway.core.assignment.resolve_cut`.

        Raises:
            ValueError: Ranks would deliver different numbers of batches, and the user has not said that they may.
        """
        if self.stages is not None and place.world_size > 1 and self.identity.settings.remainder is None:
            message = (
                f"how many items are made of the rows depends on the data, so the {place.world_size} ranks would "
                'deliver different numbers of batches: pass remainder="keep" if the training loop can end at another '
                "step on each rank"
            )
            raise ValueError(message)
        return resolve_cut(self.identity, progress, place, self.options)

    def open(self, assignment: Assignment) -> Stream[Any]:
        """Open the stream of a worker: batches, or single rows or items if there is no batch size."""
        if self.options.batch_size is not None or self.stages is not None:
            return self.open_batches(assignment)
        return RowStream(Cursor(assignment), lambda: self._items(assignment))

    def open_batches(self, assignment: Assignment) -> TaggedStream[Any]:
        """Open the stream of batches of a worker; if there is no batch size, each turn of rows is a batch."""
        cursor, stages = Cursor(assignment), self.stages
        if stages is None:
            return BatchStream(cursor, lambda: self._items(assignment))
        batch_size, drop_last = self.options.batch_size, self.identity.settings.drop_last
        return ItemStream(
            cursor,
            lambda: self._lane_items(assignment, stages, cursor),
            turn_items=assignment.cut.turn_rows,
            min_items=batch_size if batch_size and drop_last else 1,
        )

    def _lane_items(self, assignment: Assignment, stages: Stages, cursor: Cursor) -> LaneItems:
        rows = self._items(assignment)
        batches = BatchMaker(
            rows,
            stages,
            self.options.batch_size is not None,
            self.collate_fn,
            self.of_batches,
            is_numpy=self.columns.output == "numpy",
        )
        return LaneItems(rows, batches, cursor)

    @property
    def _columns_to_read(self) -> DeliveredColumns:
        """The columns that are delivered, or the one that is packed as it is in the files."""
        stages = self.stages
        if stages is None or stages.pack is None or self.transform or stages.expansion.steps:
            return self.columns
        return self.columns.only(stages.pack.column)

    def _items(self, assignment: Assignment) -> ItemMaker:
        plan, seed = assignment.plan, self.identity.settings.seed
        takes_context = self.transform.takes_context or (
            self.stages is not None and self.stages.expansion.takes_context
        )
        rows, converter = self._columns_to_read.open(
            self.manifest,
            self.storage,
            epoch=plan.epoch,
            selection=self.selection,
            with_hidden=takes_context,
        )
        lanes = LaneReader(plan, rows, converter.vectorized, self.prefetch_windows)
        contexts = Contexts(self.manifest.files.paths, seed=seed, epoch=plan.epoch) if takes_context else None
        return ItemMaker(
            lanes, converter, self.transform, contexts, collate_fn=self.collate_fn, of_batches=self.of_batches
        )


def known_length(num_items: int | None) -> int:
    """Return the number of items, if it is known.

    Raises:
        TypeError: It isn't. This makes `list` and `tqdm` do without.
    """
    if num_items is None:
        message = "this has no length: how many items flat_map() or pack() make of the rows depends on the data"
        raise TypeError(message)
    return num_items

"""The definition of a dataset: everything a worker needs to read its share of an epoch, as one value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch.utils.data import default_collate

from laneway.core.assignment import is_fresh, resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.gaps import text_of
from laneway.core.plan import Identity
from laneway.core.state import num_added_files, read_progress
from laneway.delivery.context import Contexts
from laneway.delivery.item_stream import ItemStream
from laneway.delivery.lane_items import BatchMaker, LaneItems
from laneway.delivery.stream import BatchStream, Closeable, CutReading, ItemMaker, RowStream
from laneway.metering import Meter
from laneway.reading.lane_reader import LaneReader
from laneway.reading.origin import HIDDEN
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from laneway.convert.batches import BatchConverter
    from laneway.convert.columns import Output
    from laneway.core.assignment import Assignment
    from laneway.core.gaps import EpochGap
    from laneway.core.mixture_identity import MixtureIdentity
    from laneway.core.options import LaneOptions
    from laneway.core.plan import Plan
    from laneway.core.progress import Progress
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.delivered_columns import DeliveredColumns
    from laneway.delivery.lane_items import Stages
    from laneway.delivery.schedule import EpochSchedule
    from laneway.delivery.stream import Stream, TaggedStream
    from laneway.delivery.transforms import Transforms
    from laneway.manifest import Manifest
    from laneway.reading.selecting import RowSelection
    from laneway.storage.filesystem import Storage


T = TypeVar("T", bound=Closeable)


@dataclass(frozen=True, eq=False)
class Collating:
    """A collate_fn, and a function that is called on the batch that it returns."""

    collate_fn: Callable[[list[Any]], Any]
    function: Callable[[Any], Any]

    def __call__(self, rows: list[Any]) -> Any:  # noqa: ANN401 - the functions may return anything
        """Return what the function makes of a batch of rows."""
        return self.function(self.collate_fn(rows))


@dataclass(frozen=True, eq=False, kw_only=True)
class Definition(ABC):
    """What is delivered, and how: what a dataset and a mixture have in common."""

    options: LaneOptions
    """Lanes, turns and batches."""
    place: WorkerPlace
    """The rank that reads."""
    transform: Transforms
    """Called on each row, or on each batch of columns."""
    collate_fn: Callable[[list[Any]], Any] | None = None
    """Builds an item from the rows of a batch, or of a turn if there are no batches; None: columns, or single rows."""
    stages: Stages | None = None
    """What is made of the rows; None: they are delivered."""

    if TYPE_CHECKING:
        # At run time, a property would be taken as the default of the fields of this name.
        @property
        def identity(self) -> Identity | MixtureIdentity:
            """What the states belong to."""

    @property
    def is_endless(self) -> bool:
        """Whether a pass never ends."""
        return False

    @property
    def max_empty_rows(self) -> int | None:
        """How many rows of a lane in a row may make no items; None: any number, as the lane has an end."""
        return None

    @abstractmethod
    def resolve(self, progress: Progress, place: WorkerPlace) -> Assignment:
        """Return the assignment of the worker at `place`."""

    @abstractmethod
    def is_fresh(self, assignment: Assignment) -> bool:
        """Return whether a pass starts here, in the cut that every worker derives from the epoch number alone."""

    @abstractmethod
    def read_progress(self, saved: SavedState, place: WorkerPlace, *, is_worker: bool) -> Progress:
        """Return the progress in a state that belongs to this definition; see `laneway.core.state.read_progress`."""

    @abstractmethod
    def remarks(self, saved: SavedState, progress: Progress) -> list[str]:
        """Return what to log of a state that was loaded."""

    @abstractmethod
    def num_items(self, place: WorkerPlace, epoch: int) -> int | None:
        """Return the number of batches, or rows if there are no batches, that a rank delivers in a whole epoch.

        Args:
            place: Any worker of the rank.
            epoch: The epoch.

        Returns:
            The number; None: the epoch doesn't end, or it depends on what stages make of the rows.
        """

    @abstractmethod
    def num_received(self, assignment: Assignment) -> int:
        """Return the number of batches or rows of the epoch that the rank of an assignment has delivered."""

    @abstractmethod
    def warnings_at_start(self, schedule: EpochSchedule, place: WorkerPlace) -> list[str]:
        """Return what to warn of when the worker at `place` starts to read the next pass of `schedule`."""

    @abstractmethod
    def open_items(self, assignment: Assignment, meter: Meter) -> ItemMaker:
        """Open what reads and builds the items of an assignment, as measured by a meter."""

    @abstractmethod
    def batched(self, options: LaneOptions, output: Output, *, drop_last: bool) -> Self:
        """Return the same rows in batches.

        Args:
            options: Lanes, turns and batches.
            output: The type of the columns of a batch, unless functions are called on single rows before.
            drop_last: Whether the last batch is dropped on all ranks, unless all of them have a whole one.
        """

    def mapped(self, function: Callable[..., Any], *, takes_context: bool = False) -> Self:
        """Return the same with one more function, which is called on each row or batch that is delivered.

        Args:
            function: The function.
            takes_context: Whether it is also passed where the rows come from.

        Raises:
            ValueError: It takes a context, but batches are collated from rows that functions have returned.
        """
        if self.stages is not None:
            is_batched = self.options.batch_size is not None
            return replace(self, stages=self.stages.then(function, takes_context=takes_context, of_batches=is_batched))
        if self.options.batch_size is None or self.collate_fn is None:
            return replace(self, transform=self.transform.then(function, takes_context=takes_context))
        if takes_context:
            message = (
                "with_context=True is not possible for batches that are collated from rows: give it to a function that "
                "is called on rows, before batch()"
            )
            raise ValueError(message)
        return replace(self, collate_fn=Collating(self.collate_fn, function))

    def following(self, assignment: Assignment) -> Assignment | None:  # noqa: ARG002 - a mixture may go on
        """Return what the worker reads after an assignment has ended, in the same epoch; None: nothing."""
        return None

    def num_left(self, assignment: Assignment) -> int | None:
        """Return the number of batches or rows that the rank of an assignment has yet to deliver; None: unknown."""
        return None if self.stages is not None else assignment.num_items_left(self.options.batch_size)

    def with_stages(self, stages: Stages) -> Self:
        """Return the definition of what stages make of its rows.

        Raises:
            ValueError: Other arguments don't go together with stages.
        """
        errors = self.transform.errors
        if errors is not None and not errors.skips:
            message = (
                'on_error="mask" would have a filler packed or expanded like a row: use "skip", since nothing counts '
                "on the number of rows"
            )
            raise ValueError(message)
        if self.options.turn_rows not in {None, 1}:
            message = f"turn_rows={self.options.turn_rows} counts rows, and a batch consists of items: omit turn_rows"
            raise ValueError(message)
        return replace(self, stages=stages)

    def open(self, assignment: Assignment) -> Stream[Any]:
        """Open the stream of a worker: batches, or single rows or items if there is no batch size."""
        meter = Meter()
        if self.stages is not None:
            return self._open_stages(assignment, self.stages, meter, goes_on=True)
        cut = self._reading_of(assignment, partial(self.open_items, meter=meter), goes_on=True)
        return RowStream(cut) if self.options.batch_size is None else BatchStream(cut, meter)

    def open_batches(self, assignment: Assignment, meter: Meter) -> TaggedStream[Any]:
        """Open the stream of batches of a worker, up to the end of a cut.

        If there is no batch size, each turn of rows, or each item, is a batch.

        Args:
            assignment: What the worker reads.
            meter: Measures how.
        """
        if self.stages is not None:
            return self._open_stages(assignment, self.stages, meter, goes_on=False)
        return BatchStream(self._reading_of(assignment, partial(self.open_items, meter=meter), goes_on=False), meter)

    def _open_stages(self, assignment: Assignment, stages: Stages, meter: Meter, *, goes_on: bool) -> ItemStream:
        size = self.options.batch_size

        def open_items(found: Assignment) -> LaneItems:
            rows = self.open_items(found, meter)
            is_numpy = self.columns.output == "numpy"
            maker = BatchMaker(rows, stages, self.collate_fn, is_batched=size is not None, is_numpy=is_numpy)
            return LaneItems(rows, maker, found, self.max_empty_rows)

        return ItemStream(
            self._reading_of(assignment, open_items, goes_on=goes_on),
            meter,
            turn_items=assignment.cut.turn_rows,
            min_items=size if size and self.identity.settings.drop_last else 1,
        )

    def _reading_of(
        self, assignment: Assignment, open_items: Callable[[Assignment], T], *, goes_on: bool
    ) -> CutReading[T]:
        """Return what the worker of an assignment delivers of its cut, and if it goes on, of those that follow."""

        def follow() -> CutReading[T] | None:
            found = self.following(assignment) if goes_on else None
            return None if found is None else self._reading_of(found, open_items, goes_on=True)

        return CutReading(Cursor(assignment), lambda: open_items(assignment), follow)

    def _to_read(self, columns: DeliveredColumns) -> DeliveredColumns:
        """Return which of the columns are read: all, or the one that is packed as it is in the files."""
        stages = self.stages
        is_direct = stages is not None and not stages.expansion.steps and not self.has_functions
        return columns.only(stages.pack.column) if is_direct and stages and stages.pack else columns

    @property
    def unit(self) -> str:
        """What is delivered, for a repr."""
        stages, size = self.stages, self.options.batch_size
        unit = "rows" if stages is None else "items" if stages.pack is None else "packs"
        unit = unit if size is None else f"batches of {counted(size, unit.removesuffix('s'))}"
        return unit if stages is None else f"{unit} by {stages.text} of rows"

    @property
    def takes_context(self) -> bool:
        """Whether one of the functions takes a context."""
        of_stages = self.stages is not None and self.stages.expansion.takes_context
        return self.transform.takes_context or of_stages

    @property
    @abstractmethod
    def has_functions(self) -> bool:
        """Whether functions are called on rows."""

    if TYPE_CHECKING:
        # As above.
        @property
        def columns(self) -> DeliveredColumns:
            """The columns of rows, before any function is called."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetDefinition(Definition):
    """The files, order and conversion of a dataset, which don't change while it is read."""

    identity: Identity
    """The files, and the settings that determine the order of their rows."""
    manifest: Manifest
    """The data files and their metadata."""
    storage: Storage
    """Storage of the data files."""
    columns: DeliveredColumns
    """The columns that are delivered."""
    prefetch_windows: int
    """Windows of each lane that are read ahead."""
    selection: RowSelection | None = None
    """The rows that belong to the dataset; None: all."""
    former: tuple[DatasetDefinition, ...] = ()
    """Its definitions before files were added, oldest first; only mixtures finish what began with them."""

    def __post_init__(self) -> None:
        """Check that no rank may deliver fewer rows than the others, unless they may anyway.

        Raises:
            ValueError: One may.
        """
        errors = self.transform.errors
        if self.stages is None and errors is not None and errors.skips and self.place.world_size > 1:
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

    def with_gaps(self, gaps: Iterable[EpochGap]) -> Self:
        """Return the definition of the same rows, without some of the order of some epochs."""
        settings = replace(self.identity.settings, without=text_of(gaps))
        return replace(self, identity=replace(self.identity, settings=settings))

    def of(self, identity: Identity) -> DatasetDefinition:
        """Return the definition with these files and settings: this one, or one before files were added."""
        return next((each for each in self.former if each.identity is identity), self)

    def with_stages(self, stages: Stages) -> Self:
        """Return the definition of what stages make of its rows.

        Raises:
            ValueError: Other arguments don't go together with stages.
        """
        settings = self.identity.settings
        if settings.remainder not in {None, "keep"}:
            message = (
                f'remainder="{settings.remainder}" evens out rows, but how many items are made of these depends on '
                'the data: use "keep"'
            )
            raise ValueError(message)
        if settings.without is not None:
            message = (
                "without() leaves out rows by their number in an epoch, and how far a step with stages gets depends on "
                "the data: take rows out with filter()"
            )
            raise ValueError(message)
        identity = replace(self.identity, settings=replace(settings, stages=stages.text))
        return replace(super().with_stages(stages), identity=identity)

    @property
    def has_functions(self) -> bool:
        """Whether functions are called on rows."""
        return bool(self.transform)

    def num_items(self, place: WorkerPlace, epoch: int) -> int | None:
        """Return the number of batches, or rows if there are no batches, that a rank delivers in a whole epoch.

        None: it depends on what stages make of the rows.
        """
        if self.stages is not None:
            return None
        return self.options.num_items(self.identity.num_rows(epoch), place, self.identity.settings)

    def batched(self, options: LaneOptions, output: Output, *, drop_last: bool) -> Self:
        """Return the same rows in batches; see `Definition.batched`."""
        settings = replace(self.identity.settings, drop_last=drop_last)
        changed = replace(self, options=options, identity=replace(self.identity, settings=settings))
        if self.stages is not None:
            return changed
        if self.transform:
            return replace(changed, collate_fn=default_collate)
        return replace(changed, columns=self.columns.with_output(output))

    def num_received(self, assignment: Assignment) -> int:
        """Return the number of batches or rows of the epoch that the rank of an assignment has delivered."""
        num_items = self.num_items(assignment.place, assignment.progress.epoch)
        if num_items is None:
            return assignment.num_batches_taken
        return max(0, num_items - assignment.num_items_left(self.options.batch_size))

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
                "deliver different numbers of batches: call repeat(), before the stages, for a stream without an end, "
                'or pass remainder="keep" if the training loop can end at another step on each rank'
            )
            raise ValueError(message)
        return resolve_cut(self.identity, progress, place, self.options)

    def is_fresh(self, assignment: Assignment) -> bool:
        """Return whether a pass starts here, in the cut that every worker derives from the epoch number alone."""
        return is_fresh(self.identity, assignment, self.options)

    def read_progress(self, saved: SavedState, place: WorkerPlace, *, is_worker: bool) -> Progress:
        """Return the progress in a state that belongs to this dataset; see `laneway.core.state.read_progress`."""
        return read_progress(saved, self.identity, place, is_worker=is_worker)

    def remarks(self, saved: SavedState, progress: Progress) -> list[str]:
        """Return how many files were added since a complete state was saved, if some were."""
        num_added = num_added_files(saved, self.identity)
        if not num_added:
            return []
        return [
            f"{num_added} files were added since the checkpoint at the end of epoch {progress.epoch} was saved",
        ]

    def open_items(self, assignment: Assignment, meter: Meter) -> ItemMaker:
        """Open what reads and builds the items of an assignment, as measured by a meter."""
        takes_context = self.takes_context
        plan, seed = self.identity.plan(assignment.progress), self.identity.settings.seed
        columns = self._to_read(self.columns)
        converter = columns.with_hidden(HIDDEN if takes_context else None)
        lanes = self.open_lanes(plan, columns, converter, frozenset(HIDDEN.names if takes_context else ()), meter)
        contexts = Contexts(self.manifest.files.paths, seed=seed, epoch=plan.epoch) if takes_context else None
        return ItemMaker(lanes, converter, self.transform, contexts, self.collate_fn, meter=meter)

    def open_lanes(
        self,
        plan: Plan,
        columns: DeliveredColumns,
        converter: BatchConverter,
        hidden: frozenset[str],
        meter: Meter,
        *,
        source_index: int = 0,
        threads: Executor | None = None,
    ) -> LaneReader:
        """Open what reads the lanes of an epoch.

        Args:
            plan: The lanes.
            columns: The columns that are read.
            converter: Converts the rows, with the hidden columns.
            hidden: Names of the hidden columns that come too, from which contexts are made.
            meter: Measures what is read.
            source_index: In a mixture, the index of this source.
            threads: Those that read; None: threads of its own.
        """
        rows = columns.open(
            self.manifest,
            self.storage,
            converter.schema,
            epoch=plan.epoch,
            selection=self.selection,
            hidden=hidden,
            source_index=source_index,
        )
        return LaneReader(plan, rows, converter.vectorized, self.prefetch_windows, meter, threads=threads)

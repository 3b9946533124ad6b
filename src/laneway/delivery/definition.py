"""What the definitions of a dataset and of a mixture have in common: what is delivered, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from laneway.core.cursor import Cursor
from laneway.delivery.item_stream import ItemStream
from laneway.delivery.lane_items import BatchMaker, LaneItems
from laneway.delivery.stream import BatchStream, Closeable, CutReading, RowStream
from laneway.metering import Meter
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.convert.columns import Output
    from laneway.core.assignment import Assignment
    from laneway.core.mixture_identity import MixtureIdentity
    from laneway.core.options import LaneOptions
    from laneway.core.plan import Identity
    from laneway.core.progress import Progress
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.delivered_columns import DeliveredColumns
    from laneway.delivery.item_maker import ItemMaker
    from laneway.delivery.item_stages import Stages
    from laneway.delivery.lane_items import PackReader
    from laneway.delivery.schedule import EpochSchedule
    from laneway.delivery.stream import Stream, TaggedStream
    from laneway.delivery.transforms import Transforms


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

    def common_arguments(self) -> dict[str, str]:
        """Return arguments that must be equal on all ranks and are not in states: name -> value, as errors show it."""
        return {}

    @property
    def lane_options(self) -> LaneOptions:
        """The lanes, turns and batches of a new cut: an item that stages make is a turn of its own without batches."""
        is_single = self.stages is not None and self.options.batch_size is None
        return replace(self.options, batch_size=1) if is_single else self.options

    def check_turns(self) -> None:
        """Check that turns are of one item if items that stages make are delivered one by one.

        Raises:
            ValueError: They are longer.
        """
        options = self.lane_options
        if options.turns_per_batch(options.default_turn_rows) is None:
            message = (
                f"turn_rows={options.turn_rows} counts the packs of a batch, and there are no batches: call batch(), "
                "or omit turn_rows"
            )
            raise ValueError(message)

    @property
    def is_endless(self) -> bool:
        """Whether there are always further rows, so that each pass goes on where the last one stopped."""
        return False

    @property
    def has_epochs(self) -> bool:
        """Whether passes end, if only after a number of batches."""
        return not self.is_endless

    @property
    def max_empty_rows(self) -> int | None:
        """How many rows of a lane in a row may make no items; None: any number, as the lane has an end."""
        return None

    @abstractmethod
    def resolve(self, progress: Progress, place: WorkerPlace) -> Assignment:
        """Return the assignment of the worker at `place`."""

    def plan_ahead(self, assignment: Assignment) -> None:  # noqa: B027 - what a dataset plans, it has when it is resolved
        """Plan what workers read first, so that those that are forked find it."""

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

    @abstractmethod
    def open_packs(self, assignment: Assignment, meter: Meter) -> tuple[ItemMaker, PackReader | None]:
        """Open what `open_items` does, and what makes the packs of the lanes, if these count packs."""

    def following(self, assignment: Assignment) -> Assignment | None:  # noqa: ARG002 - a mixture may go on
        """Return what the worker reads after an assignment has ended, in the same epoch; None: nothing."""
        return None

    def num_left(self, assignment: Assignment) -> int | None:
        """Return the number of batches or rows that the rank of an assignment has yet to deliver; None: unknown."""
        return assignment.num_items_left(self.options.batch_size) if self.identity.counts_items else None

    def with_stages(self, stages: Stages, *, counts_packs: bool = True) -> Self:  # noqa: ARG002 - if lengths are known
        """Return the definition of what stages make of its rows.

        Args:
            stages: The stages.
            counts_packs: Whether packs are counted if the lengths of their documents are known.

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

    def open_batches(self, assignment: Assignment, meter: Meter, *, keeps_open: bool = False) -> TaggedStream[Any]:
        """Open the stream of batches of a worker, up to the end of a cut.

        If there is no batch size, each turn of rows, or each item, is a batch.

        Args:
            assignment: What the worker reads.
            meter: Measures how.
            keeps_open: Whether batches are delivered as `OpenBatch`; only if no function is called on rows or batches.
        """
        if self.stages is not None:
            return self._open_stages(assignment, self.stages, meter, goes_on=False)
        cut = self._reading_of(assignment, partial(self.open_items, meter=meter), goes_on=False)
        return BatchStream(cut, meter, keeps_open=keeps_open)

    def _open_stages(self, assignment: Assignment, stages: Stages, meter: Meter, *, goes_on: bool) -> ItemStream:
        size, counts_items = self.options.batch_size, self.identity.counts_items

        def open_items(found: Assignment) -> LaneItems:
            rows, packs = self.open_packs(found, meter)
            is_numpy = self.columns.output == "numpy"
            maker = BatchMaker(rows, stages, self.collate_fn, is_batched=size is not None, is_numpy=is_numpy)
            return LaneItems(rows, maker, found, self.max_empty_rows, packs)

        # If lanes count items, they end where batches are dropped.
        drops = self.identity.settings.drop_last and not counts_items
        return ItemStream(
            self._reading_of(assignment, open_items, goes_on=goes_on),
            meter,
            turn_items=None if counts_items else assignment.cut.turn_rows,
            min_items=(size or 1) if drops else 1,
        )

    def _reading_of(
        self, assignment: Assignment, open_items: Callable[[Assignment], T], *, goes_on: bool
    ) -> CutReading[T]:
        """Return what the worker of an assignment delivers of its cut, and if it goes on, of those that follow."""

        def follow() -> CutReading[T] | None:
            found = self.following(assignment) if goes_on else None
            return None if found is None else self._reading_of(found, open_items, goes_on=True)

        return CutReading(Cursor(assignment), lambda: open_items(assignment), follow)

    def columns_to_read(self, columns: DeliveredColumns) -> DeliveredColumns:
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

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Estimated size of a row in memory, in bytes, at least 1."""

    @property
    def batch_bytes(self) -> int:
        """Estimated size of a batch in memory, in bytes; of a turn of rows, or an item, if there are no batches."""
        pack = None if self.stages is None else self.stages.pack
        item_bytes = self.row_bytes if pack is None else pack.row_bytes
        turn_rows = self.options.turn_rows if self.stages is None else 1
        return (self.options.batch_size or turn_rows or 1) * item_bytes

    if TYPE_CHECKING:
        # As above.
        @property
        def columns(self) -> DeliveredColumns:
            """The columns of rows, before any function is called."""

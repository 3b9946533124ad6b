"""EpochPlan: what the ranks of a job do in an epoch, and which rows each of its steps has, without reading data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np

from laneway.arguments import check_int
from laneway.plans.cut_rows import SourceRowPlace
from laneway.wording import counted, rounded_size, span

if TYPE_CHECKING:
    from laneway.core.stretches import Stretch
    from laneway.plans.costs import Costs
    from laneway.plans.cut_rows import AnyRowPlace, CutRows


class RowDelivery(NamedTuple):
    """When a row is delivered, and where it is in its batch."""

    step: int
    """The step of the epoch, zero-based."""
    rank: int
    """The rank."""
    worker: int | None
    """The worker of the rank; None: unknown, as a state doesn't say how many workers read what was delivered before."""
    batch_index: int
    """Index of the row, or of the pack, in the batch of the rank."""


class PlannedCut(NamedTuple):
    """Some steps of an epoch, all in one cut."""

    first_step: int
    """The first step."""
    stretch: Stretch
    """What each rank takes of the lanes."""
    rows: CutRows
    """The rows of the lanes."""
    costs: Costs | None
    """The plan of the cut, and what reading it costs; None for a mixture, and for what was delivered before."""
    is_delivered: bool
    """Whether these steps were taken before."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class EpochPlan:
    """What the ranks of a job do in an epoch: a function of files and settings, computed without reading data.

    Steps are counted from the start of the epoch: at each, every rank takes one batch. Without batches, a step takes
    one turn of each rank, which is `turn_rows` rows, by default one.

    If documents of known lengths are packed, lanes, steps and batches consist of packs, and all numbers of rows are
    numbers of packs.

    Where rows are selected by filters, splits or slices, row numbers are those of the files, so `rows_of` and `where`
    read the columns of the filters.

    In the plan of a state, the steps before `next_step` were delivered. They are told as if the ranks had shared the
    lanes of a cut in the same way all the time: each step has these rows, but if a job went on with another number of
    ranks in the same lanes, as is possible with `lanes=`, another rank may have had them. The state of a mixture
    forgets cuts of which nothing is left: their steps are counted as if each had taken as many rows as those that
    follow.
    """

    epoch: int
    """The epoch, zero-based."""
    world_size: int
    """Number of ranks."""
    num_workers: int
    """Workers of each rank; a rank that reads its own data counts as one."""
    batch_size: int | None
    """Rows of a batch; None: steps consist of turns."""
    next_step: int
    """The next step of the job: 0, or for the plan of a state the one after those that were delivered."""
    num_rows: int | None
    """Rows of the epoch, or packs; None: it has no end."""
    _cuts: tuple[PlannedCut, ...]
    _sources: tuple[str, ...] = ()
    _item: str = "row"
    """What batches consist of."""

    @property
    def _is_endless(self) -> bool:
        return self.num_rows is None

    @property
    def _current(self) -> PlannedCut:
        return next((cut for cut in self._cuts if not cut.is_delivered), self._cuts[-1])

    @property
    def num_lanes(self) -> int:
        """Lanes of the current cut."""
        return self._current.stretch.num_lanes

    @property
    def num_windows(self) -> int | None:
        """Windows of the epoch; None for a mixture."""
        costs = self._current.costs
        return None if costs is None else len(costs.plan.windows.lane)

    @property
    def num_steps(self) -> int | None:
        """Steps of the epoch, those before `next_step` included; None: it has no end."""
        last = self._cuts[-1]
        return None if self._is_endless else last.first_step + last.stretch.num_steps

    @cached_property
    def batches_per_rank(self) -> tuple[int, ...] | None:
        """Batches that each rank has yet to take, shape (world_size,); None: the epoch has no end."""
        # If nothing is left, the last cut is that of other ranks.
        left = [cut.stretch.num_batches for cut in self._cuts if not cut.is_delivered and cut.stretch.num_steps]
        if self._is_endless:
            return None
        return tuple(sum(left, start=np.zeros(self.world_size, np.int64)).tolist())

    @cached_property
    def rows_repeated(self) -> int | None:
        """Rows that are delivered twice, so that ranks deliver equally many; None for a mixture."""
        costs, ends = self._current.costs, self._current.stretch.ends
        return None if costs is None else int(np.maximum(ends - costs.plan.lanes.rows, 0).sum())

    @cached_property
    def rows_dropped(self) -> int | None:
        """Rows that are left out by `remainder="drop"` or `drop_last`; None for a mixture."""
        costs, ends = self._current.costs, self._current.stretch.ends
        return None if costs is None else int(np.maximum(costs.plan.lanes.rows - ends, 0).sum())

    @cached_property
    def bytes_per_rank(self) -> tuple[int, ...] | None:
        """About how many bytes of the files each rank has yet to read, with all columns; None for a mixture.

        Row groups are read as a whole, and again for each window and each lane that has some of their rows. The last
        rows of an epoch, which are too few for a whole turn of each lane, are a window of their own, so their row
        groups are read twice.
        """
        costs, stretch = self._current.costs, self._current.stretch
        if costs is None:
            return None
        if not stretch.num_steps:
            return (0,) * self.world_size
        return tuple(costs.bytes_of_ranks(stretch.starts, stretch.ends, stretch.sharing))

    @cached_property
    def worker_memory_bytes(self) -> int | None:
        """Bytes of decoded rows that a worker holds at most, as docs/explanation/performance.md says; None: a mixture.

        An estimate from the metadata of the files, with all columns.
        """
        lanes = -(-self.num_lanes // (self.world_size * self.num_workers))
        costs = self._current.costs
        return None if costs is None else costs.worker_memory(lanes, self.num_workers)

    def rows_of(self, step: int) -> list[list[AnyRowPlace]]:
        """Return the rows of the batch of each rank at a step.

        Args:
            step: The step of the epoch, >= 0.

        Returns:
            For each rank, its rows in the order of its batch: `(path, row)`, or in a mixture
            `(path, row, source, epoch)`. Of packs, the documents in their order, `(path, row, start, stop, pack)` or
            `(path, row, source, epoch, start, stop, pack)`: tokens [start, stop) of the row are in this pack of the
            batch. A rank that has no batch left has none.

        Raises:
            ValueError: The epoch has no such step.
            CheckpointMismatchError: The plan is that of a state of a mixture, and the state has forgotten which rows
                the step had: it knows the cuts of which rows of epochs under way are left.
            DataFileError: The rows are selected, and a file that tells which can't be read.
        """
        found = check_int("step", step, minimum=0)
        for cut in self._cuts:
            own = found - cut.first_step
            if 0 <= own < cut.stretch.num_steps:
                ranks = range(cut.stretch.sharing.world_size)
                return [cut.rows.rows(cut.stretch.ranges(own, rank)) for rank in ranks]
        message = f"there is no step {found:,}: epoch {self.epoch} has {counted(self.num_steps or 0, 'step')}"
        raise ValueError(message)

    def where(self, path: str, row: int, *, source: str | None = None, epoch: int | None = None) -> list[RowDelivery]:
        """Return when a row is delivered, or each pack that has tokens of it.

        Args:
            path: The data file, relative to the dataset's root.
            row: The number of the row in the file, >= 0.
            source: In a mixture, the name of the source.
            epoch: In a mixture, the epoch of the source; None: 0.

        Returns:
            Usually one delivery. None if the row is left out of the epoch, several if it is repeated, or in several
            packs.

        Raises:
            ValueError: There is no such file or row, or it is not selected.
            CheckpointMismatchError: The state of a mixture has forgotten when rows of this epoch came.
            DataFileError: The rows are selected, and a file that tells which can't be read.
        """
        self._check_source(source, epoch)
        wanted = SourceRowPlace(path, check_int("row", row, minimum=0), source or "", epoch or 0)
        found = []
        for cut in self._cuts:
            for lane, lane_row in cut.rows.find(wanted):
                taken = cut.stretch.taken(lane, lane_row)
                if taken is not None:
                    worker = None if cut.is_delivered else taken.worker
                    found.append(RowDelivery(cut.first_step + taken.step, taken.rank, worker, taken.batch_index))
        return sorted(found, key=lambda each: each[:2])

    def _check_source(self, source: str | None, epoch: int | None) -> None:
        sources = self._sources
        if not sources and (source is not None or epoch is not None):
            message = "source= and epoch= are for mixtures: the plan of a dataset is that of one epoch"
            raise ValueError(message)
        if sources and source not in sources:
            message = f"source must be one of {', '.join(map(repr, sources))}, not {source!r}"
            raise ValueError(message)

    def __repr__(self) -> str:
        lines = [
            f"epoch {self.epoch} on {counted(self.world_size, 'rank')} with {counted(self.num_workers, 'worker')}",
            f"{'endless' if self.num_rows is None else counted(self.num_rows, self._item)}, {self._unit}",
        ]
        windows = "" if self.num_windows is None else f", {counted(self.num_windows, 'window')}"
        lines.append(f"{counted(self.num_lanes, 'lane')}{windows}")
        if self.batches_per_rank is not None:
            done = f" after {counted(self.next_step, 'step')}" if self.next_step else ""
            lines.append(f"batches per rank: {span(self.batches_per_rank)}{done}")
        if self.rows_repeated is not None:
            lines.append(f"{self._item}s repeated: {self.rows_repeated:,}, left out: {self.rows_dropped:,}")
        if self.bytes_per_rank is not None and self.worker_memory_bytes is not None:
            lines.append(f"each rank reads {span(self.bytes_per_rank, rounded_size)}")
            lines.append(f"each worker holds up to {rounded_size(self.worker_memory_bytes)}")
        return "EpochPlan(\n  " + ",\n  ".join(lines) + "\n)"

    @property
    def _unit(self) -> str:
        return "no batches" if self.batch_size is None else f"batches of {self.batch_size:,}"


def item_of(plan: EpochPlan) -> str:
    """Return what batches consist of: "row" or "pack"."""
    return plan._item  # noqa: SLF001 - of this module


def cuts_of(plan: EpochPlan) -> tuple[PlannedCut, ...]:
    """Return the steps of an epoch, cut by cut."""
    return plan._cuts  # noqa: SLF001 - of this module

"""Assignments: the lanes of an epoch that a worker reads, and their progress.

A new epoch is cut into lanes for the current workers. A resumed epoch keeps its cut if these workers can share its
lanes; otherwise its undelivered rows are cut again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.differences import place_differences
from laneway.core.lanes import rows_to_deliver
from laneway.core.progress import CutProgress, Progress, current_cut
from laneway.core.turns import WorkerPlace, has_one_owner_per_lane, turns_taken
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.options import LaneOptions
    from laneway.core.plan import Identity, Plan


@dataclass(frozen=True, eq=False)
class Assignment:
    """An epoch in its current cut, its progress, and the worker that reads its share of the lanes from there."""

    plan: Plan
    """Windows and lanes of the epoch."""
    progress: Progress
    """Progress of the epoch, which has been cut."""
    turns_per_batch: int = 1
    """Turns of one batch."""
    place: WorkerPlace = field(default_factory=WorkerPlace)
    """The worker."""

    @property
    def cut(self) -> CutProgress:
        """Progress of the current cut."""
        return current_cut(self.progress)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Rows that each lane delivers in this cut, shape (num_lanes,)."""
        return rows_to_deliver(
            self.plan.lanes.rows,
            remainder=self.progress.remainder,
            turn_rows=self.cut.turn_rows,
            drop_last=self.plan.identity.settings.drop_last,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the known lanes have delivered all their rows of this epoch."""
        return all(position.rows >= self.ends[lane] for lane, position in self.cut.positions.items())

    @property
    def own_lanes(self) -> list[int]:
        """The lanes that the worker reads, in the order of their first turns."""
        return self.place.own_lanes(self.cut.next_turn, self.cut.num_lanes, self.turns_per_batch)

    def is_fresh(self, options: LaneOptions) -> bool:
        """Return whether the epoch starts here, in the cut that every worker derives from the epoch number alone."""
        remainder = self.plan.identity.settings.remainder_for(self.place.world_size)
        return self.progress == Progress(self.progress.epoch, remainder, options.fresh_cut(self.place))

    def of_rank(self) -> Assignment:
        """Return the assignment of a process that reads for the whole rank."""
        return replace(self, place=self.place.of_rank())

    def rows_at(self, next_turn: int) -> NDArray[np.int64]:
        """Return the rows delivered from each lane after all turns before `next_turn`, shape (num_lanes,)."""
        cut = self.cut
        turns = turns_taken(next_turn, np.arange(cut.num_lanes), cut.num_lanes)
        return np.minimum(turns * cut.turn_rows, self.ends)

    def is_in_lockstep(self, *, num_ranks_mid_turn: int) -> bool:
        """Return whether all lanes are at the positions that follow from the job's next turn.

        Args:
            num_ranks_mid_turn: Number of ranks that may each have taken the same part of their next turn, which happens
                if rows are delivered one by one.
        """
        cut, rows = self.cut, self.cut.rows()
        ahead = rows - self.rows_at(cut.next_turn)
        taking = (cut.next_turn + np.arange(num_ranks_mid_turn)) % cut.num_lanes
        part = rows[taking] % cut.turn_rows
        if np.all(ahead[taking] == part) and np.all(part == part[:1]):
            ahead[taking] = 0
        return not ahead.any()

    def num_items_left(self, batch_size: int | None) -> int:
        """Return the number of batches, or rows if `batch_size` is None, that the rank has yet to deliver."""
        if self.is_complete:
            return 0
        cut, own = self.cut, self.of_rank().own_lanes
        rows, ends = cut.rows()[own], self.ends[own]
        rows_left = np.maximum(ends - rows, 0)
        if batch_size is None:
            return int(rows_left.sum())
        turns_left = np.where(rows_left, -(-ends // cut.turn_rows) - rows // cut.turn_rows, 0)
        return int(turns_left.reshape(-1, self.turns_per_batch).max(axis=1).sum())


def assign_whole_job(identity: Identity, progress: Progress) -> Assignment:
    """Return the assignment of a single worker that reads all lanes of the current cut."""
    return Assignment(identity.plan(progress), progress)


def resolve_cut(identity: Identity, progress: Progress, place: WorkerPlace, options: LaneOptions) -> Assignment:
    """Return the assignment of the worker at `place`: in the current cut of an epoch, or in a new cut for the job.

    All workers of all ranks arrive at the same cut.

    Args:
        identity: The files and settings.
        progress: Progress of the whole job; or of a single rank or worker, which is then the only one that can resume.
        place: The worker.
        options: Lanes and turns of a new cut, and the batch size.

    Returns:
        The assignment. A complete epoch is assigned to a single worker, since its lanes no longer need to be shared.

    Raises:
        CheckpointMismatchError: The progress is that of one worker, and the worker at `place` can't resume from it.
    """
    remainder = identity.settings.remainder_for(place.world_size)
    if progress.cut is None:
        progress = replace(progress, cut=options.fresh_cut(place), remainder=remainder)
    found = assign_whole_job(identity, progress)
    if progress.place is None and found.is_complete:
        return found
    found = replace(found, progress=replace(progress, remainder=remainder))
    if progress.place is not None:
        _check_is_own(found.cut, progress.place, place, options)
    elif not _can_be_shared(found, place, options):
        found = _cut_again(found, place, options)
    if progress.place is None and found.is_complete:
        return found
    return replace(found, turns_per_batch=options.turns_per_batch(found.cut.turn_rows) or 1, place=place)


def _can_be_shared(found: Assignment, place: WorkerPlace, options: LaneOptions) -> bool:
    """Return whether the workers of the job can resume an epoch in its current cut, from the same turn."""
    turns_per_batch = options.turns_per_batch(found.cut.turn_rows)
    return (
        turns_per_batch is not None
        and has_one_owner_per_lane(found.cut.num_lanes, place, turns_per_batch)
        and found.cut.next_turn % (place.world_size * turns_per_batch) == 0
        and found.is_in_lockstep(num_ranks_mid_turn=options.num_ranks_mid_turn(place))
    )


def _cut_again(found: Assignment, place: WorkerPlace, options: LaneOptions) -> Assignment:
    """Return an epoch whose undelivered rows are cut for the workers of the job."""
    earlier = (*found.progress.earlier, found.cut.all_positions())
    progress = replace(found.progress, cut=options.fresh_cut(place), earlier=earlier)
    return assign_whole_job(found.plan.identity, progress)


def _check_is_own(cut: CutProgress, saved: WorkerPlace, place: WorkerPlace, options: LaneOptions) -> None:
    """Check that progress of some lanes covers all lanes that the worker at `place` reads."""
    turns_per_batch = options.turns_per_batch(cut.turn_rows)
    # The lanes of a whole rank may be read by a different number of workers, if these can share them.
    reader = place.of_rank() if saved.num_workers == 1 else place
    lines = place_differences(saved, reader)
    if not lines and (
        turns_per_batch is None
        or not has_one_owner_per_lane(cut.num_lanes, place, turns_per_batch)
        or not cut.positions.keys() >= {*reader.own_lanes(cut.next_turn, cut.num_lanes, turns_per_batch)}
    ):
        known = f"lanes: this state holds {len(cut.positions)} of {cut.num_lanes}, in turns of {cut.turn_rows:,} rows"
        problem = f"{place.num_workers} worker(s) with batches of this size can't share them"
        way_out = "use the batch_size and num_workers of the run that saved it, or load merge_states() of all ranks"
        lines = [f"{known}: {problem} ({way_out})"]
    if lines:
        message = "\n  ".join(["this checkpoint does not belong to this worker", *lines])
        raise CheckpointMismatchError(message)

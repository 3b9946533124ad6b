"""Assignments: the lanes of an epoch that a worker reads, and their progress.

A new epoch is cut into lanes for the current workers. A resumed epoch keeps its cut if these workers can share its
lanes; otherwise its undelivered rows are cut again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.differences import place_differences
from laneway.core.division import divide
from laneway.core.lanes import MAX_EARLIER_LANES
from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut, ended_cut
from laneway.core.turns import WorkerPlace, has_one_owner_per_lane, turns_taken
from laneway.errors import CheckpointMismatchError
from laneway.wording import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.options import LaneOptions
    from laneway.core.plan import Identity


@dataclass(frozen=True, eq=False)
class Assignment:
    """An epoch in its current cut, its progress, and the worker that reads its share of the lanes from there."""

    progress: Progress
    """Progress of the epoch, which has been cut."""
    ends: NDArray[np.int64]
    """Rows that each lane delivers in this cut, shape (num_lanes,)."""
    turns_per_batch: int = 1
    """Turns of one batch."""
    place: WorkerPlace = field(default_factory=WorkerPlace)
    """The worker."""
    is_last: bool = True
    """Whether the epoch ends with these lanes; otherwise another cut follows."""
    is_endless: bool = False
    """Whether it never ends."""
    has_stages: bool = False
    """Whether turns take items that stages make of rows, and how many rows these are depends on the data."""
    turn_end: int | None = None
    """The job's turn with which the epoch ends, wherever lanes are, and go on in the next one; None: lanes end."""

    @property
    def cut(self) -> CutProgress:
        """Progress of the current cut."""
        return current_cut(self.progress)

    @property
    def is_complete(self) -> bool:
        """Whether the known lanes have delivered all their rows of this epoch."""
        if self.turn_end is not None and self.cut.next_turn >= self.turn_end:
            return True
        return self.is_last and all(position.rows >= self.ends[lane] for lane, position in self.cut.positions.items())

    @property
    def own_lanes(self) -> list[int]:
        """The lanes that the worker reads, in the order of their first turns."""
        return self.place.own_lanes(self.cut.next_turn, self.cut.num_lanes, self.turns_per_batch)

    @property
    def num_batches_taken(self) -> int:
        """Number of batches that each rank has taken in this cut, among them empty ones of lanes that have ended."""
        return self.cut.next_turn // self.progress.sharing.job_turns

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
        if self.turn_end is not None:
            return (self.turn_end - self.cut.next_turn) // self.progress.sharing.job_turns
        cut, own = self.cut, self.of_rank().own_lanes
        rows, ends = cut.rows()[own], self.ends[own]
        rows_left = np.maximum(ends - rows, 0)
        if batch_size is None:
            return int(rows_left.sum())
        turns_left = np.where(rows_left, -(-ends // cut.turn_rows) - rows // cut.turn_rows, 0)
        return int(turns_left.reshape(-1, self.turns_per_batch).max(axis=1).sum())


def assign_whole_job(identity: Identity, progress: Progress) -> Assignment:
    """Return the assignment of a single worker that reads all lanes of the current cut."""
    has_stages = not identity.counts_items
    # Of items that stages make, a short batch is dropped where it is made.
    drop_last = identity.settings.drop_last and not has_stages
    ends = identity.plan(progress).division.ends(progress.sharing.remainder, drop_last=drop_last)
    return Assignment(progress, ends, has_stages=has_stages)


def is_fresh(identity: Identity, assignment: Assignment, options: LaneOptions) -> bool:
    """Return whether an epoch starts here, in the cut that every worker derives from the epoch number alone."""
    progress = assignment.progress
    return progress == _begin(identity, Progress(progress.epoch), assignment.place, options)


def _begin(identity: Identity, progress: Progress, place: WorkerPlace, options: LaneOptions) -> Progress:
    """Return the progress of an epoch that begins a new cut for the workers of the job."""
    turns_per_batch = options.turns_per_batch(options.default_turn_rows) or 1
    sharing = identity.sharing(place.world_size, turns_per_batch)
    return replace(progress, cut=options.fresh_cut(place), sharing=sharing)


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
    if progress.cut is None:
        progress = _begin(identity, progress, place, options)
    found = assign_whole_job(identity, progress)
    if progress.place is None and found.is_complete:
        return found
    if progress.place is not None:
        check_is_own(found.cut, progress.place, place, options)
    resumed = _in_same_cut(identity, found, place, options)
    if resumed is None:
        if progress.place is not None:
            raise not_shared(found.cut, place)
        resumed = assign_whole_job(identity, _begin(identity, _without_cut(progress), place, options))
    if progress.place is None and resumed.is_complete:
        return resumed
    return replace(resumed, turns_per_batch=resumed.progress.sharing.turns_per_batch, place=place)


def _without_cut(progress: Progress) -> Progress:
    """Return the progress of an epoch whose current cut has ended, so that its undelivered rows can be cut again.

    Raises:
        CheckpointMismatchError: The epoch was cut too often for a state to hold another cut.
    """
    cut = current_cut(progress)
    if any(position.offset for position in cut.positions.values()):
        message = (
            "this checkpoint was saved within rows whose items were half delivered, so its lanes can't be cut again: "
            f"resume it with ranks, workers and batches that can share its {cut.num_lanes:,} lane(s); the states of "
            "repeat(1), one epoch, and of repeat(), without an end, can be resumed by any, and so can those of packs "
            "of known lengths"
        )
        raise CheckpointMismatchError(message)
    is_untouched = {*cut.positions.values()} <= {LanePosition()}
    if is_untouched and progress.order_version > 1:
        return replace(progress, cut=None)
    earlier = (*progress.earlier, ended_cut(progress))
    num_lanes = sum(each.num_lanes for each in earlier)
    if num_lanes > MAX_EARLIER_LANES:
        message = (
            f"this epoch was cut {counted(len(earlier), 'time')}, into {num_lanes:,} lanes in all, and a state can "
            f"hold {MAX_EARLIER_LANES:,}: resume it with ranks, workers and batches that can share its "
            f"{cut.num_lanes:,}"
        )
        raise CheckpointMismatchError(message)
    return replace(progress, cut=None, earlier=earlier)


def _in_same_cut(identity: Identity, found: Assignment, place: WorkerPlace, options: LaneOptions) -> Assignment | None:
    """Return an epoch in its current cut as the workers of the job share it, or None if they can't resume in it."""
    cut, progress = found.cut, found.progress
    turns_per_batch = options.turns_per_batch(cut.turn_rows)
    if turns_per_batch is None or not has_one_owner_per_lane(cut.num_lanes, place, turns_per_batch):
        return None
    version = progress.order_version
    sharing = identity.sharing(place.world_size, turns_per_batch)
    if sharing[:2] != progress.sharing[:2]:
        # What was delivered must be the same rows, however the last batch is spread over these ranks.
        before = identity.plan(progress).division
        division = divide(version, before.num_rows, cut.num_lanes, cut.turn_rows, sharing)
        if np.any(cut.rows() > np.minimum(division.settled_rows, before.settled_rows)):
            return None
    resumed = assign_whole_job(identity, replace(progress, sharing=sharing))
    # Of items that stages make, each lane is delivered at its own pace.
    is_in_step = progress.place is not None or (
        cut.next_turn % sharing.job_turns == 0
        and (resumed.has_stages or resumed.is_in_lockstep(num_ranks_mid_turn=options.num_ranks_mid_turn(place)))
    )
    return resumed if is_in_step else None


def check_is_own(cut: CutProgress, saved: WorkerPlace, place: WorkerPlace, options: LaneOptions) -> None:
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
        raise not_shared(cut, place)
    if lines:
        raise _not_of_worker(*lines)


def not_shared(cut: CutProgress, place: WorkerPlace) -> CheckpointMismatchError:
    """Return the error for lanes of one worker or rank that the workers of the rank can't share."""
    known = (
        f"lanes: this state holds {len(cut.positions)} of {cut.num_lanes}, in turns of {counted(cut.turn_rows, 'row')}"
    )
    problem = f"{counted(place.num_workers, 'worker')} with batches of this size can't share them"
    way_out = "use the batch_size and num_workers of the run that saved it, or load merge_states() of all ranks"
    return _not_of_worker(f"{known}: {problem} ({way_out})")


def _not_of_worker(*lines: str) -> CheckpointMismatchError:
    return CheckpointMismatchError("\n  ".join(["this checkpoint does not belong to this worker", *lines]))

"""Lockstep: what one rank knows of the whole job, where all ranks take equally many batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.progress import CutProgress, LaneProgress, Progress, present_cut

if TYPE_CHECKING:
    from laneway.plan import Plan


class JobProgress(NamedTuple):
    """What the whole job has delivered."""

    progress: Progress
    """Of all lanes."""
    is_complete: bool
    """Whether that is all of the epoch."""


class Lockstep:
    """What one rank knows of the whole job in one cut of an epoch."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        """Prepare for the cut that `progress` is in, the plan of which is `plan`."""
        cut = present_cut(progress)
        self._ends = plan.rows_to_deliver(progress.remainder, cut.turn_rows)
        self._lanes = np.arange(cut.num_lanes)
        turns = -(-self._ends // cut.turn_rows)
        self._num_common_turns = int(turns.min()) * cut.num_lanes
        """Up to here no turn is empty, so all ranks deliver equally many batches."""
        last_turns = np.where(turns, (turns - 1) * cut.num_lanes + self._lanes + 1, 0)
        self._num_turns = int(last_turns.max())

    def job(self, progress: Progress, *, is_complete: bool) -> JobProgress | None:
        """Return what the whole job has delivered if it is in step with one rank, or None where that can't be assumed.

        It can't where the lanes of this rank are not where its turn says, as after batches that came out of order, nor
        where ranks deliver unequally many batches: near the end of an epoch that keeps its remainder.

        Args:
            progress: What the rank has delivered of its lanes.
            is_complete: Whether that is all it delivers of the epoch.
        """
        if progress.place is None:
            return JobProgress(progress, is_complete)
        cut = present_cut(progress)
        num_lanes, turn_rows, next_turn = cut.num_lanes, cut.turn_rows, cut.next_turn
        turns = (next_turn - self._lanes + num_lanes - 1) // num_lanes
        rows = np.minimum(turns * turn_rows, self._ends).tolist()
        # Where rows are delivered one by one, every rank is equally far within its next turn.
        own = (next_turn + progress.place.rank) % num_lanes
        part = cut.lanes.rows.get(own, 0) - rows[own]
        for rank in range(progress.place.world_size if part > 0 else 0):
            lane = (next_turn + rank) % num_lanes
            rows[lane] += part
            if rows[lane] >= self._ends[lane]:
                return None
        if any(rows[lane] != delivered for lane, delivered in cut.lanes.rows.items()):
            return None
        whole_is_complete = next_turn >= self._num_turns
        if not whole_is_complete and (is_complete or next_turn > self._num_common_turns):
            return None
        job_cut = CutProgress(num_lanes, turn_rows, next_turn, LaneProgress.of(rows))
        job = Progress(progress.epoch, progress.remainder, job_cut, progress.earlier)
        return JobProgress(job, whole_is_complete)

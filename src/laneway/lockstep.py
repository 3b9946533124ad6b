"""Lockstep: what one rank knows of the whole job, where all ranks take equally many batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.progress import CutProgress, LaneProgress, Progress, present_cut

if TYPE_CHECKING:
    from laneway.cursor import Settled
    from laneway.turns import Place


class JobProgress(NamedTuple):
    """What the whole job has delivered."""

    progress: Progress
    """Of all lanes."""
    is_complete: bool
    """Whether that is all of the epoch."""


class Lockstep:
    """What one rank knows of the whole job in one cut of an epoch."""

    def __init__(self, settled: Settled, place: Place, *, yields_rows: bool) -> None:
        """Prepare for a pass that begins.

        Args:
            settled: The epoch as the workers of `place` read it.
            place: Any worker of the rank.
            yields_rows: Whether ranks deliver row by row, and not batch by batch.
        """
        cut, group = present_cut(settled.progress), settled.turns_per_batch
        self._ends = settled.plan.rows_to_deliver(settled.progress.remainder, cut.turn_rows)
        self._lanes = np.arange(cut.num_lanes)
        turns = -(-self._ends // cut.turn_rows)
        # A last turn that is shorter on some ranks than on others counts only where it is delivered at once.
        is_even = not yields_rows or self._ends.min() == self._ends.max()
        self._num_common_turns = int((turns if is_even else self._ends // cut.turn_rows).min()) * cut.num_lanes
        """Up to here ranks deliver equally much."""
        self._num_turns = int(turns.max()) * cut.num_lanes
        self._is_last = True
        """Whether this rank is at its end no sooner than all others."""
        if cut.num_lanes % (place.world_size * group) == 0:
            taken = (cut.next_turn - self._lanes + cut.num_lanes - 1) // cut.num_lanes
            left = (self._ends - taken * cut.turn_rows) if yields_rows else turns - taken
            of_ranks = np.maximum(left, 0).reshape(-1, place.world_size, group).max(axis=2).sum(axis=0)
            self._is_last = bool(of_ranks[place.rank] == of_ranks.max())

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
        next_turn = cut.next_turn
        if is_complete and self._is_last:
            # Ranks that deliver fewer batches came to their end before.
            next_turn, rows = self._num_turns, self._ends.tolist()
        elif is_complete or next_turn > self._num_common_turns:
            return None
        else:
            rows = self._rows_at(next_turn, cut, progress.place)
        if any(rows[lane] != delivered for lane, delivered in cut.lanes.rows.items()):
            return None
        job_cut = CutProgress(cut.num_lanes, cut.turn_rows, next_turn, LaneProgress.of(rows))
        return JobProgress(Progress(progress.epoch, progress.remainder, job_cut, progress.earlier), is_complete)

    def _rows_at(self, next_turn: int, cut: CutProgress, place: Place) -> list[int]:
        turns = (next_turn - self._lanes + cut.num_lanes - 1) // cut.num_lanes
        rows: list[int] = np.minimum(turns * cut.turn_rows, self._ends).tolist()
        # Where rows are delivered one by one, every rank is equally far within its next turn.
        own = (next_turn + place.rank) % cut.num_lanes
        part = cut.lanes.rows.get(own, 0) - rows[own]
        for rank in range(place.world_size if part > 0 else 0):
            lane = (next_turn + rank) % cut.num_lanes
            rows[lane] += part
            if rows[lane] >= self._ends[lane]:
                # That rank has come to the end of its lane, or past it: it is no longer in the same turn.
                rows[own] = -1
        return rows

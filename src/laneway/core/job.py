"""Lockstep: what one rank knows of the whole job, where all ranks take equally many batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.progress import present_cut
from laneway.core.turns import turns_taken

if TYPE_CHECKING:
    from laneway.core.cursor import Settled
    from laneway.core.progress import Progress
    from laneway.core.turns import WorkerPlace


class JobTurn(NamedTuple):
    """How far the whole job has come, all of whose lanes are in step."""

    next_turn: int
    """All turns before this one have been taken, and no other."""
    part_rows: int
    """Rows that each rank has taken of its next turn, where rows are delivered one by one."""
    is_complete: bool
    """Whether that is all of the epoch."""


class Lockstep:
    """What one rank knows of the whole job in one cut of an epoch."""

    def __init__(self, settled: Settled, place: WorkerPlace, *, yields_rows: bool, in_order: bool = True) -> None:
        """Prepare for a pass that begins.

        Args:
            settled: The epoch as the workers of `place` read it.
            place: Any worker of the rank.
            yields_rows: Whether ranks deliver row by row, and not batch by batch.
            in_order: Whether every rank delivers its batches in their order. Otherwise none knows which another has.
        """
        cut, group = present_cut(settled.progress), settled.turns_per_batch
        ends = settled.plan.rows_to_deliver(settled.progress.remainder, cut.turn_rows)
        self._ends: list[int] = ends.tolist()
        turns = -(-ends // cut.turn_rows)
        # A last turn that is shorter on some ranks than on others counts only where it is delivered at once.
        is_even = not yields_rows or ends.min() == ends.max()
        self._num_common_turns = int((turns if is_even else ends // cut.turn_rows).min()) * cut.num_lanes
        """Up to here ranks deliver equally much."""
        if not in_order:
            self._num_common_turns = -1
        self._num_turns = int(turns.max()) * cut.num_lanes
        self._is_last = True
        """Whether this rank is at its end no sooner than all others."""
        if cut.num_lanes % (place.world_size * group) == 0:
            taken = turns_taken(cut.next_turn, np.arange(cut.num_lanes), cut.num_lanes)
            left = (ends - taken * cut.turn_rows) if yields_rows else turns - taken
            of_ranks = np.maximum(left, 0).reshape(-1, place.world_size, group).max(axis=2).sum(axis=0)
            self._is_last = bool(of_ranks[place.rank] == of_ranks.max())

    def job(self, progress: Progress, *, is_complete: bool) -> JobTurn | None:
        """Return how far the whole job has come if it is in step with one rank, or None where that can't be assumed.

        It can't where the lanes of this rank are not where its turn says, as after batches that came out of order, nor
        where ranks deliver unequally many batches: near the end of an epoch that keeps its remainder.

        Args:
            progress: What the rank has delivered of its lanes.
            is_complete: Whether that is all it delivers of the epoch.
        """
        place, cut = progress.place, present_cut(progress)
        if place is None or (is_complete and not self._is_last):
            return None
        if is_complete:
            # Ranks that deliver fewer batches came to their end before.
            return JobTurn(self._num_turns, 0, is_complete)
        next_turn, num_lanes, rows = cut.next_turn, cut.num_lanes, cut.lanes.rows
        if next_turn > self._num_common_turns:
            return None
        # Where rows are delivered one by one, every rank is equally far within its next turn.
        own = (next_turn + place.rank) % num_lanes
        part_rows = rows[own] % cut.turn_rows if own in rows and rows[own] < self._ends[own] else 0
        in_part = {(next_turn + rank) % num_lanes for rank in range(place.world_size)} if part_rows else ()
        if any(rows[own] >= self._ends[lane] for lane in in_part):
            return None
        for lane, delivered in rows.items():
            whole_turns = turns_taken(next_turn, lane, num_lanes) * cut.turn_rows
            expected = min(whole_turns, self._ends[lane]) + (part_rows if lane in in_part else 0)
            if delivered != expected:
                return None
        return JobTurn(next_turn, part_rows, is_complete)

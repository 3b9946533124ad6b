"""The progress of the whole job, inferred from that of one rank if all ranks take the same number of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from laneway.core.progress import JobTurn, current_cut
from laneway.core.turns import turns_taken

if TYPE_CHECKING:
    from laneway.core.assignment import Assignment
    from laneway.core.progress import Progress


class JobInference:
    """Infers the progress of the whole job from that of one rank, in one cut of an epoch."""

    def __init__(self, assignment: Assignment, *, yields_rows: bool, in_order: bool = True) -> None:
        """Prepare for a new pass.

        Args:
            assignment: The assignment of this rank.
            yields_rows: Whether ranks deliver row by row instead of batch by batch.
            in_order: Whether every rank delivers its batches in order; if not, nothing can be inferred mid-epoch.
        """
        cut, group, place, ends = assignment.cut, assignment.turns_per_batch, assignment.place, assignment.ends
        self._ends: list[int] = ends.tolist()
        turns = -(-ends // cut.turn_rows)
        self._num_turns = int(turns.max()) * cut.num_lanes
        self._num_common_turns = -1
        """Up to this turn, all ranks deliver the same number of items."""
        self._ends_last = True
        """Whether no other rank reaches its end after this one."""
        self._turn_end = assignment.turn_end
        self._follows = not assignment.has_stages
        """Whether positions follow from turns, and not from what stages make of the rows."""
        if cut.num_lanes % (place.world_size * group) == 0:
            of_ranks = (-1, place.world_size, group)
            # Number of batches of each rank (second axis) from each of its groups of lanes (first axis).
            batches = turns.reshape(of_ranks).max(axis=2)
            common = batches.min(axis=1)
            if yields_rows:
                # A last turn that is shorter on some ranks than on others would end after other numbers of rows.
                rows = ends.reshape(of_ranks).max(axis=2)
                is_even = rows.min(axis=1) == rows.max(axis=1)
                common = np.where(is_even, common, rows.min(axis=1) // cut.turn_rows)
            if in_order:
                # The groups take turns: the first batch that not all ranks have is the end.
                first_uneven = common * len(common) + np.arange(len(common))
                self._num_common_turns = int(first_uneven.min()) * place.world_size * group
            taken = turns_taken(cut.next_turn, np.arange(cut.num_lanes), cut.num_lanes)
            left = np.maximum((ends - taken * cut.turn_rows) if yields_rows else turns - taken, 0)
            of_each = left.reshape(of_ranks).max(axis=2).sum(axis=0)
            self._ends_last = bool(of_each[place.rank] == of_each.max())

    def job_turn(self, progress: Progress, *, is_complete: bool) -> JobTurn | None:
        """Return the progress of the whole job, assuming that all ranks have taken as many batches as this one.

        This can't be assumed if the lanes of this rank are not at the positions that follow from its turn, as after
        batches that arrived out of order, nor if ranks deliver different numbers of batches, as near the end of an
        epoch that keeps its remainder, nor if stages make items of the rows.

        Args:
            progress: Progress of this rank.
            is_complete: Whether the rank has delivered all its rows of the epoch.

        Returns:
            The progress of the job, or None if it can't be inferred.
        """
        place, cut = progress.place, current_cut(progress)
        if place is None or not self._follows or (is_complete and not self._ends_last):
            return None
        if is_complete and self._turn_end is None:
            # Ranks that deliver fewer batches reached their end earlier.
            return JobTurn(self._num_turns, 0, is_complete)
        next_turn, num_lanes, positions = cut.next_turn, cut.num_lanes, cut.positions
        if next_turn > self._num_common_turns:
            return None
        # If rows are delivered one by one, every rank has taken the same number of rows of its next turn.
        own = (next_turn + place.rank) % num_lanes
        own_rows = positions[own].rows if own in positions else self._ends[own]
        part_rows = own_rows % cut.turn_rows if own_rows < self._ends[own] else 0
        in_part = {(next_turn + rank) % num_lanes for rank in range(place.world_size)} if part_rows else ()
        if any(own_rows >= self._ends[lane] for lane in in_part):
            return None
        for lane, position in positions.items():
            whole_turns = turns_taken(next_turn, lane, num_lanes) * cut.turn_rows
            expected = min(whole_turns, self._ends[lane]) + (part_rows if lane in in_part else 0)
            if position != (expected, 0):
                return None
        return JobTurn(next_turn, part_rows, is_complete)

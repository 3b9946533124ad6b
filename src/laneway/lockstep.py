"""Lockstep: what one rank knows of the whole job, where all ranks take equally many batches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from laneway.plan import is_complete, positions_at
from laneway.progress import LaneProgress, present_cut

if TYPE_CHECKING:
    from laneway.plan import Plan
    from laneway.progress import Progress


def progress_of_job(plan: Plan, progress: Progress) -> Progress | None:
    """Return what the whole job has delivered if it is in lockstep with one rank, or None where that can't be assumed.

    It can't where this rank's lanes are not where its turn says, as after batches that came out of order, nor
    where ranks deliver unequally many batches: near the end of an epoch that keeps its remainder.

    Args:
        plan: The plan that belongs to `progress`.
        progress: What the rank has delivered of its lanes.
    """
    if progress.place is None:
        return progress
    cut = present_cut(progress)
    ends = plan.rows_to_deliver(progress.remainder, cut.turn_rows)
    positions = positions_at(plan, progress, cut.next_turn)
    # Where rows are delivered one by one, every rank is equally far within its next turn.
    ranks = np.arange(progress.place.world_size)
    taking = (cut.next_turn + ranks) % cut.num_lanes
    own = cut.lanes.get(int(taking[progress.place.rank]))
    positions[taking] += own.rows % cut.turn_rows if own and own.rows < ends[taking[progress.place.rank]] else 0
    if any(lane_progress.rows != positions[lane] for lane, lane_progress in cut.lanes.items()):
        return None
    lanes = dict(enumerate(map(LaneProgress, positions.tolist())))
    whole = replace(progress, cut=replace(cut, lanes=lanes), place=None)
    if is_complete(plan, whole):
        return whole
    num_common_turns = int(-(-ends // cut.turn_rows).min()) * cut.num_lanes
    is_common = cut.next_turn <= num_common_turns and bool(np.all(positions <= ends))
    return whole if is_common and not is_complete(plan, progress) else None

"""Progress: how much of an epoch has been delivered, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from laneway.core.lanes import Remainder
    from laneway.core.turns import WorkerPlace


class LanePosition(NamedTuple):
    """How much of a lane the training loop has received."""

    rows: int = 0
    """Rows that are finished: everything that was made from them has been delivered."""
    offset: int = 0
    """How much of what comes next has been delivered: 0, unless a stage turns one row into several items."""


LanePositions = tuple[LanePosition, ...]
"""The positions of lanes 0, 1, 2, ... of a cut."""


@dataclass(frozen=True, slots=True)
class CutProgress:
    """How far the lanes of the present cut of an epoch have come."""

    num_lanes: int
    """Number of lanes of the cut."""
    turn_rows: int
    """Rows of a turn."""
    next_turn: int
    """The job's next turn; where only some lanes are known, the next turn as seen by the workers that read them."""
    positions: Mapping[int, LanePosition]
    """Lane -> position, of the lanes that are known."""

    def rows(self) -> NDArray[np.int64]:
        """Return the rows delivered of each lane, 0 for a lane that is not known, shape (num_lanes,)."""
        rows = np.zeros(self.num_lanes, np.int64)
        rows[[*self.positions]] = [position.rows for position in self.positions.values()]
        return rows

    def all_positions(self) -> LanePositions:
        """Return the position of every lane, the start of the lane for one that is not known."""
        return tuple(self.positions.get(lane, LanePosition()) for lane in range(self.num_lanes))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an epoch has come."""

    epoch: int
    """Zero-based."""
    remainder: Remainder = "keep"
    """What happens to the row by which the lanes of the present cut differ."""
    cut: CutProgress | None = None
    """The present cut; None while the epoch has not been cut at all."""
    earlier: tuple[LanePositions, ...] = ()
    """How far the lanes of each earlier cut of this epoch came, oldest first."""
    place: WorkerPlace | None = None
    """The worker (or the rank, if it has a single worker) whose lanes are known; None: every lane is."""


class JobTurn(NamedTuple):
    """How far a whole job has come whose lanes are all in step."""

    next_turn: int
    """All turns before this one have been taken, and no other."""
    part_rows: int
    """Rows that each rank has taken of its next turn, where rows are delivered one by one."""
    is_complete: bool
    """Whether that is the end of the epoch."""


def fresh_cut(num_lanes: int, turn_rows: int) -> CutProgress:
    """Return the progress of a cut of which nothing has been delivered."""
    return CutProgress(num_lanes, turn_rows, 0, dict.fromkeys(range(num_lanes), LanePosition()))


def present_cut(progress: Progress) -> CutProgress:
    """Return the cut that an epoch is in.

    Raises:
        ValueError: The epoch has not been cut.
    """
    if progress.cut is None:
        message = f"epoch {progress.epoch} has not been cut into lanes yet"
        raise ValueError(message)
    return progress.cut

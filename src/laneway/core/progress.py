"""Progress: values that describe how much of an epoch has been delivered."""

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
    """Number of finished rows: every item built from them has been delivered."""
    offset: int = 0
    """Number of items delivered after those rows; always 0 unless a stage builds several items from one row."""


LanePositions = tuple[LanePosition, ...]
"""The positions of lanes 0, 1, 2, ... of a cut."""


@dataclass(frozen=True, slots=True)
class CutProgress:
    """Progress of the lanes in the current cut of an epoch."""

    num_lanes: int
    """Number of lanes of the cut."""
    turn_rows: int
    """Rows of a turn."""
    next_turn: int
    """Next turn of the job; if only some lanes are known, the next turn as seen by the workers that read them."""
    positions: Mapping[int, LanePosition]
    """Lane -> position, for the lanes that are known."""

    def rows(self) -> NDArray[np.int64]:
        """Return the number of rows delivered from each lane, 0 for unknown lanes, shape (num_lanes,)."""
        rows = np.zeros(self.num_lanes, np.int64)
        rows[[*self.positions]] = [position.rows for position in self.positions.values()]
        return rows

    def all_positions(self) -> LanePositions:
        """Return the position of every lane; unknown lanes are at their start."""
        return tuple(self.positions.get(lane, LanePosition()) for lane in range(self.num_lanes))


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of an epoch."""

    epoch: int
    """Zero-based."""
    remainder: Remainder = "keep"
    """How to handle lanes of the current cut whose lengths differ by one row."""
    cut: CutProgress | None = None
    """Progress of the current cut; None if the epoch has not been cut yet."""
    earlier: tuple[LanePositions, ...] = ()
    """Last positions of the lanes of each earlier cut of this epoch, oldest first."""
    place: WorkerPlace | None = None
    """The worker (or the rank, if it has a single worker) whose lanes are known; None: all lanes are known."""


class JobTurn(NamedTuple):
    """Progress of a whole job whose lanes are all in step."""

    next_turn: int
    """All turns before this one have been taken, and no others."""
    part_rows: int
    """Number of rows that each rank has taken of its next turn, if rows are delivered one by one."""
    is_complete: bool
    """Whether the job has delivered the whole epoch."""


def fresh_cut(num_lanes: int, turn_rows: int) -> CutProgress:
    """Return the progress of a cut from which nothing has been delivered."""
    return CutProgress(num_lanes, turn_rows, 0, dict.fromkeys(range(num_lanes), LanePosition()))


def current_cut(progress: Progress) -> CutProgress:
    """Return the progress of the current cut of an epoch.

    Raises:
        ValueError: The epoch has not been cut.
    """
    if progress.cut is None:
        message = f"epoch {progress.epoch} has not been cut into lanes yet"
        raise ValueError(message)
    return progress.cut

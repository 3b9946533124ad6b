"""Progress: how much of an epoch has been delivered, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from laneway.core.lanes import Remainder
    from laneway.core.turns import WorkerPlace


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """How far lanes have come. A type of its own, since a stage may come to need more of a lane than its rows."""

    rows: Mapping[int, int]
    """Lane -> rows of it that the training loop has received."""

    @classmethod
    def of(cls, rows: Iterable[int]) -> Self:
        """Return the progress of lanes 0, 1, 2, ..."""
        return cls(dict(enumerate(rows)))

    def positions(self, num_lanes: int) -> NDArray[np.int64]:
        """Return the rows delivered of each lane, 0 where that isn't known, shape (num_lanes,)."""
        positions = np.zeros(num_lanes, np.int64)
        positions[[*self.rows]] = [*self.rows.values()]
        return positions


@dataclass(frozen=True, slots=True)
class CutProgress:
    """How far the lanes of the epoch's present cut have come."""

    num_lanes: int
    """Number of lanes of the cut."""
    turn_rows: int
    """Rows of a turn."""
    next_turn: int
    """The job's next turn; where not all lanes are known, as those who read them have come to it."""
    lanes: LaneProgress
    """Progress of the lanes that are known."""

    def positions(self) -> NDArray[np.int64]:
        """Return the rows delivered of each lane, 0 where that isn't known, shape (num_lanes,)."""
        return self.lanes.positions(self.num_lanes)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an epoch has come."""

    epoch: int
    """Zero-based."""
    remainder: Remainder = "keep"
    """What is done about the row by which the lanes of the present cut differ."""
    cut: CutProgress | None = None
    """The present cut; None while the epoch has not been cut at all."""
    earlier: tuple[LaneProgress, ...] = ()
    """How far the lanes of each earlier cut of this epoch came, oldest first."""
    place: WorkerPlace | None = None
    """Whose lanes are known: a worker's, or a rank's where that is its only worker; None: every lane is."""


def fresh_cut(num_lanes: int, turn_rows: int) -> CutProgress:
    """Return the progress of a cut of which nothing has been delivered."""
    return CutProgress(num_lanes, turn_rows, 0, LaneProgress.of([0] * num_lanes))


def present_cut(progress: Progress) -> CutProgress:
    """Return the cut that an epoch is in.

    Raises:
        ValueError: The epoch has not been cut.
    """
    if progress.cut is None:
        message = f"epoch {progress.epoch} has not been cut into lanes yet"
        raise ValueError(message)
    return progress.cut

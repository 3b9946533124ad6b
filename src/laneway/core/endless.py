"""The lanes of a source that runs on without end: one epoch after another, and first what is left of those begun.

Lane `l` of a mixture reads one lane of each epoch of a source: what an earlier cut has left of epochs that had begun,
oldest first, and then the next epochs. In epoch `e` this is lane `(l + e) % num_lanes` of the epoch, so that no lane
has more rows than others in every epoch: after any number of whole epochs of as many rows, lanes differ by one row at
most, and a source that has fewer rows than there are lanes still has rows for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.division import Sharing
from laneway.core.epoch_lanes import EpochRange
from laneway.core.order import ORDER_VERSION
from laneway.core.progress import EarlierCut, LanePosition, Rest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from laneway.core.epoch_lanes import Epochs, LaneShares


class Begun(NamedTuple):
    """An epoch of a source that had begun when a cut ended."""

    rest: Rest
    """What the cut had of the epoch when it began."""
    delivered: NDArray[np.int64]
    """Rows that were delivered from each lane of the epoch's plan, padding included, shape (num_lanes,)."""
    is_complete: bool
    """Whether all lanes have delivered all that they deliver of the epoch."""
    rows_left: int
    """Rows that were not delivered."""

    def ended_cut(self) -> EarlierCut:
        """Return the cut of the epoch as one that ends here."""
        num_lanes = len(self.delivered)
        positions = tuple(map(LanePosition, self.delivered.tolist()))
        return EarlierCut(num_lanes, sharing=Sharing(num_lanes), positions=positions)


@dataclass(frozen=True, slots=True)
class SourceLanes:
    """The lanes of a source in one cut of a mixture."""

    shares: LaneShares
    """How lanes share the rows of an epoch."""
    rests: tuple[Rest, ...]
    """What is left of epochs that have begun, oldest first."""
    next_epoch: int
    """The epoch after these; others follow it."""
    epochs: Epochs
    """The epochs from that one on."""
    order_version: int = ORDER_VERSION
    """The order in which these epochs begin."""
    files: str = ""
    """The files and settings with which they begin."""

    @property
    def num_lanes(self) -> int:
        """Number of lanes."""
        return self.shares.num_lanes

    @property
    def sharing(self) -> Sharing:
        """How each epoch is shared: as if each lane were a rank, so lanes differ by the one row of `remainder`."""
        return Sharing(self.num_lanes, 1, self.shares.remainder)

    @property
    def has_end(self) -> bool:
        """Whether the next epochs have no rows to deliver, so that the source ends with its rests."""
        return self.epochs.has_end

    def began(self, epoch: int) -> Rest:
        """Return what the cut had of an epoch when it began: what was left of it, or all of it."""
        rests = (rest for rest in self.rests if rest.epoch == epoch)
        return next(rests, None) or Rest(epoch, self.epochs.rows_in(epoch), self.order_version, self.files)

    def ranges(self, lane: int, start: int, stop: int) -> Iterator[EpochRange]:
        """Yield where rows [start, stop) of a lane are: in which epochs, and where in their lanes.

        Raises:
            ValueError: The source ends before `stop`, because its epochs have no rows to deliver.
        """
        for rest in self.rests:
            if start >= stop:
                return
            epoch_lane = (lane + rest.epoch) % self.num_lanes
            end = self.shares.end(rest.num_rows, epoch_lane)
            if start < end:
                yield EpochRange(rest.epoch, epoch_lane, start, min(stop, end))
            start, stop = max(start - end, 0), stop - end
        if start >= stop:
            return
        if self.has_end:
            num_rows = self.epochs.rows_in(self.next_epoch)
            message = f"a source with {num_rows:,} rows in {self.num_lanes:,} lanes has none to deliver"
            raise ValueError(message)
        yield from self.epochs.ranges(lane, start, stop)

    def begun(self, rows: NDArray[np.int64]) -> tuple[list[Begun], int]:
        """Return the epochs that have begun, oldest first, and the number of the epoch after them.

        Epochs that came after the rests, and that all lanes have completed, are left out.

        Args:
            rows: Rows delivered from each lane, shape (num_lanes,).
        """
        found, left, epoch = [], rows, self.next_epoch
        for rest in self.rests:
            found.append(self._begun(rest, left))
            left = np.maximum(left - self._ends(rest), 0)
        if left.any() and not self.has_end:
            num_complete = self.epochs.num_complete(left)
            left = left - self.epochs.rows_of(num_complete)
            epoch += num_complete
        while left.any() and not self.has_end:
            rest = self.began(epoch)
            found.append(self._begun(rest, left))
            left = np.maximum(left - self._ends(rest), 0)
            epoch += 1
        return found, epoch

    def rows_before(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows that each lane delivers before an epoch, what is left of earlier ones included."""
        rows = self.epochs.rows_of(max(0, epoch - self.next_epoch))
        for rest in self.rests:
            if rest.epoch < epoch:
                rows = rows + self._ends(rest)
        return rows

    def _ends(self, rest: Rest) -> NDArray[np.int64]:
        """Return the rows that each lane of the source delivers of an epoch, shape (num_lanes,)."""
        return self.shares.ends(rest.num_rows, rest.epoch)

    def _begun(self, rest: Rest, rows: NDArray[np.int64]) -> Begun:
        """Return an epoch, given the rows that each lane of the source has delivered of it and of later ones."""
        ends = self._ends(rest)
        delivered = np.minimum(rows, ends)
        of_epoch = np.roll(delivered, rest.epoch)
        rows_left = rest.num_rows - int(np.minimum(of_epoch, self.shares.parts(rest.num_rows)).sum())
        return Begun(rest, of_epoch, bool(np.all(delivered >= ends)), rows_left)

"""The lanes of a source that runs on without end: one epoch after another, and first what is left of those begun.

Lane `l` of a mixture reads one lane of each epoch of a source: what an earlier cut has left of epochs that had begun,
oldest first, and then the next epochs. In epoch `e` this is lane `(l + e) % num_lanes` of the epoch, so that no lane
has more rows than others in every epoch: after any number of whole epochs, lanes differ by one row at most, and a
source that has fewer rows than there are lanes still has rows for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.division import Sharing
from laneway.core.order import ORDER_VERSION
from laneway.core.progress import EarlierCut, LanePosition, Rest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from laneway.core.lanes import Remainder


class EpochRange(NamedTuple):
    """Rows [start, stop) of a lane of one epoch of a source."""

    epoch: int
    lane: int
    """Lane of the epoch's plan."""
    start: int
    stop: int


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

    num_lanes: int
    """Number of lanes."""
    remainder: Remainder
    """How to handle the one row by which the lanes of an epoch differ."""
    rests: tuple[Rest, ...]
    """What is left of epochs that have begun, oldest first."""
    next_epoch: int
    """The epoch after these; others follow it."""
    epoch_rows: int
    """Rows of each epoch from `next_epoch` on."""
    order_version: int = ORDER_VERSION
    """The order in which these epochs begin."""
    files: str = ""
    """The files and settings with which they begin."""

    @property
    def sharing(self) -> Sharing:
        """How each epoch is shared: as if each lane were a rank, so lanes differ by the one row of `remainder`."""
        return Sharing(self.num_lanes, 1, self.remainder)

    @property
    def has_end(self) -> bool:
        """Whether the next epochs have no rows to deliver, so that the source ends with its rests."""
        return self.delivered_rows(self.epoch_rows) == 0

    def delivered_rows(self, num_rows: int) -> int:
        """Return the rows that all lanes deliver of an epoch with `num_rows` rows, padding included."""
        if self.remainder == "keep":
            return num_rows
        return (num_rows + (self.num_lanes - 1 if self.remainder == "pad" else 0)) // self.num_lanes * self.num_lanes

    def _end(self, num_rows: int, epoch_lane: int) -> int:
        """Return the rows that a lane of an epoch with `num_rows` rows delivers."""
        rows = self.delivered_rows(num_rows)
        return (epoch_lane + 1) * rows // self.num_lanes - epoch_lane * rows // self.num_lanes

    def ranges(self, lane: int, start: int, stop: int) -> Iterator[EpochRange]:
        """Yield where rows [start, stop) of a lane are: in which epochs, and where in their lanes.

        Raises:
            ValueError: The source ends before `stop`, because its epochs have no rows to deliver.
        """
        for rest in self.rests:
            if start >= stop:
                return
            epoch_lane = (lane + rest.epoch) % self.num_lanes
            end = self._end(rest.num_rows, epoch_lane)
            if start < end:
                yield EpochRange(rest.epoch, epoch_lane, start, min(stop, end))
            start, stop = max(start - end, 0), stop - end
        if start < stop and self.has_end:
            message = f"a source with {self.epoch_rows:,} rows in {self.num_lanes:,} lanes has none to deliver"
            raise ValueError(message)
        # Epoch e has rows [i * rows // num_lanes, (i + 1) * rows // num_lanes) of an endless lane, for i = lane + e.
        rows, first = self.delivered_rows(self.epoch_rows), lane + self.next_epoch
        offset = first * rows // self.num_lanes
        start, stop = start + offset, stop + offset
        while start < stop:
            index = ((start + 1) * self.num_lanes - 1) // rows
            low, end = index * rows // self.num_lanes, (index + 1) * rows // self.num_lanes
            yield EpochRange(index - lane, index % self.num_lanes, start - low, min(stop, end) - low)
            start = end

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
            num_complete = int(left.min()) * self.num_lanes // self.delivered_rows(self.epoch_rows)
            left = left - self._rows_of_epochs(num_complete)
            epoch += num_complete
        while left.any() and not self.has_end:
            rest = Rest(epoch, self.epoch_rows, self.order_version, self.files)
            found.append(self._begun(rest, left))
            left = np.maximum(left - self._ends(rest), 0)
            epoch += 1
        return found, epoch

    def rows_before(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows that each lane delivers before an epoch, what is left of earlier ones included."""
        rows = self._rows_of_epochs(max(0, epoch - self.next_epoch))
        for rest in self.rests:
            if rest.epoch < epoch:
                rows = rows + self._ends(rest)
        return rows

    def _rows_of_epochs(self, num_epochs: int) -> NDArray[np.int64]:
        """Return the rows that each lane delivers of `num_epochs` epochs from the next one on."""
        quotient, rest = divmod(self.delivered_rows(self.epoch_rows), self.num_lanes)
        # Of whole rounds of `num_lanes` epochs, each lane delivers the same.
        first = (np.arange(self.num_lanes, dtype=np.int64) + self.next_epoch) % self.num_lanes
        more = (first + num_epochs % self.num_lanes) * rest // self.num_lanes - first * rest // self.num_lanes
        return num_epochs * quotient + num_epochs // self.num_lanes * rest + more

    def _ends(self, rest: Rest) -> NDArray[np.int64]:
        """Return the rows that each lane of the source delivers of an epoch, shape (num_lanes,)."""
        return np.roll(self._lane_rows(self.delivered_rows(rest.num_rows)), -rest.epoch)

    def _lane_rows(self, num_rows: int) -> NDArray[np.int64]:
        """Return the parts of `num_rows` in each lane of an epoch, shape (num_lanes,)."""
        quotient, rest = divmod(num_rows, self.num_lanes)
        return quotient + np.diff(np.arange(self.num_lanes + 1, dtype=np.int64) * rest // self.num_lanes)

    def _begun(self, rest: Rest, rows: NDArray[np.int64]) -> Begun:
        """Return an epoch, given the rows that each lane of the source has delivered of it and of later ones."""
        ends = self._ends(rest)
        delivered = np.minimum(rows, ends)
        of_epoch = np.roll(delivered, rest.epoch)
        rows_left = rest.num_rows - int(np.minimum(of_epoch, self._lane_rows(rest.num_rows)).sum())
        return Begun(rest, of_epoch, bool(np.all(delivered >= ends)), rows_left)

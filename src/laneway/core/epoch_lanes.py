"""The lanes of a source over its next epochs: how many rows each epoch has in each lane, if all have as many or not.

In epoch `e`, lane `l` of a mixture reads lane `(l + e) % num_lanes` of the epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from laneway.core.lanes import Remainder

_MAX_EMPTY_EPOCHS: Final = 1_000
"""Epochs in a row that may have no rows to deliver: then none ever will."""


class EpochRange(NamedTuple):
    """Rows [start, stop) of a lane of one epoch of a source."""

    epoch: int
    lane: int
    """Lane of the epoch's plan."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LaneShares:
    """How the rows of an epoch are shared by lanes."""

    num_lanes: int
    """Number of lanes."""
    remainder: Remainder
    """How to handle the one row by which the lanes of an epoch differ."""

    def delivered(self, num_rows: int) -> int:
        """Return the rows that all lanes deliver of an epoch with `num_rows` rows, padding included."""
        if self.remainder == "keep":
            return num_rows
        return (num_rows + (self.num_lanes - 1 if self.remainder == "pad" else 0)) // self.num_lanes * self.num_lanes

    def end(self, num_rows: int, epoch_lane: int) -> int:
        """Return the rows that a lane of an epoch with `num_rows` rows delivers."""
        rows = self.delivered(num_rows)
        return (epoch_lane + 1) * rows // self.num_lanes - epoch_lane * rows // self.num_lanes

    def ends(self, num_rows: int, epoch: int) -> NDArray[np.int64]:
        """Return the rows that each lane of the source delivers of an epoch, shape (num_lanes,)."""
        return np.roll(self.parts(self.delivered(num_rows)), -epoch)

    def parts(self, num_rows: int) -> NDArray[np.int64]:
        """Return the parts of `num_rows` in each lane of an epoch, shape (num_lanes,)."""
        quotient, rest = divmod(num_rows, self.num_lanes)
        return quotient + np.diff(np.arange(self.num_lanes + 1, dtype=np.int64) * rest // self.num_lanes)


class Epochs(Protocol):
    """The epochs of a source from one on."""

    @property
    def has_end(self) -> bool:
        """Whether they have no rows to deliver."""

    def rows_in(self, epoch: int) -> int:
        """Return the rows of an epoch."""

    def ranges(self, lane: int, start: int, stop: int) -> Iterator[EpochRange]:
        """Yield where rows [start, stop) of a lane are."""

    def rows_of(self, num_epochs: int) -> NDArray[np.int64]:
        """Return the rows that each lane delivers of the first `num_epochs` epochs, shape (num_lanes,)."""

    def num_complete(self, rows: NDArray[np.int64]) -> int:
        """Return how many epochs are complete after some rows of each lane, shape (num_lanes,)."""


@final
@dataclass(frozen=True, slots=True)
class EqualEpochs:
    """Epochs that all have as many rows: where a row is takes no step for each epoch before it."""

    shares: LaneShares
    """How lanes share them."""
    first: int
    """The first epoch."""
    epoch_rows: int
    """Rows of each."""

    @property
    def _delivered(self) -> int:
        return self.shares.delivered(self.epoch_rows)

    @property
    def has_end(self) -> bool:
        """See Epochs."""
        return self._delivered == 0

    def rows_in(self, epoch: int) -> int:  # noqa: ARG002 - all are alike
        """See Epochs."""
        return self.epoch_rows

    def ranges(self, lane: int, start: int, stop: int) -> Iterator[EpochRange]:
        """See Epochs."""
        # Epoch e has rows [i * rows // num_lanes, (i + 1) * rows // num_lanes) of an endless lane, for i = lane + e.
        rows, num_lanes, first = self._delivered, self.shares.num_lanes, lane + self.first
        offset = first * rows // num_lanes
        start, stop = start + offset, stop + offset
        while start < stop:
            index = ((start + 1) * num_lanes - 1) // rows
            low, end = index * rows // num_lanes, (index + 1) * rows // num_lanes
            yield EpochRange(index - lane, index % num_lanes, start - low, min(stop, end) - low)
            start = end

    def rows_of(self, num_epochs: int) -> NDArray[np.int64]:
        """See Epochs."""
        num_lanes = self.shares.num_lanes
        quotient, rest = divmod(self._delivered, num_lanes)
        # Of whole rounds of `num_lanes` epochs, each lane delivers the same.
        first = (np.arange(num_lanes, dtype=np.int64) + self.first) % num_lanes
        more = (first + num_epochs % num_lanes) * rest // num_lanes - first * rest // num_lanes
        return num_epochs * quotient + num_epochs // num_lanes * rest + more

    def num_complete(self, rows: NDArray[np.int64]) -> int:
        """See Epochs."""
        return int(rows.min()) * self.shares.num_lanes // self._delivered


@final
@dataclass(frozen=True, slots=True)
class VaryingEpochs:
    """Epochs that have other numbers of rows each, such as packs of documents that come in another order.

    What comes before an epoch is added up, once for each.
    """

    shares: LaneShares
    """How lanes share them."""
    first: int
    """The first epoch."""
    rows_in: Callable[[int], int]
    """Returns the rows of an epoch."""
    _before: list[NDArray[np.int64]] = field(default_factory=list, init=False, repr=False, compare=False)
    """Rows of each lane before the first epochs."""

    @property
    def has_end(self) -> bool:
        """See Epochs."""
        return self.shares.delivered(self.rows_in(self.first)) == 0

    def rows_of(self, num_epochs: int) -> NDArray[np.int64]:
        """See Epochs."""
        if not self._before:
            self._before.append(np.zeros(self.shares.num_lanes, np.int64))
        while len(self._before) <= num_epochs:
            epoch = self.first + len(self._before) - 1
            self._before.append(self._before[-1] + self.shares.ends(self.rows_in(epoch), epoch))
        return self._before[num_epochs]

    def ranges(self, lane: int, start: int, stop: int) -> Iterator[EpochRange]:
        """See Epochs.

        Raises:
            ValueError: No epoch has rows to deliver any more.
        """
        self._extend(lambda before: bool(before[lane] >= stop))
        index = bisect_right(self._before, start, key=lambda before: int(before[lane])) - 1
        while start < stop:
            low, end = int(self.rows_of(index)[lane]), int(self.rows_of(index + 1)[lane])
            if start < end:
                epoch = self.first + index
                epoch_lane = (lane + epoch) % self.shares.num_lanes
                yield EpochRange(epoch, epoch_lane, start - low, min(stop, end) - low)
                start = end
            index += 1

    def num_complete(self, rows: NDArray[np.int64]) -> int:
        """See Epochs."""
        self._extend(lambda before: bool((before > rows).any()))
        return next(index for index in reversed(range(len(self._before))) if (self._before[index] <= rows).all())

    def _extend(self, is_enough: Callable[[NDArray[np.int64]], bool]) -> None:
        """Add up epochs until what comes before the last one is enough.

        Raises:
            ValueError: It never is, as epochs have no rows to deliver.
        """
        num_empty = 0
        while not is_enough(self.rows_of(max(len(self._before) - 1, 0))):
            before = self._before[-1]
            num_empty = num_empty + 1 if (self.rows_of(len(self._before)) == before).all() else 0
            if num_empty > _MAX_EMPTY_EPOCHS:
                message = f"a source has no rows to deliver in {self.shares.num_lanes:,} lanes"
                raise ValueError(message)

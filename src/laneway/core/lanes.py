"""Lanes and windows: the values that say which rows of an epoch come from where, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_LANES = 2**20
"""Maximum number of lanes of a cut: a process holds an integer for each, and so may a state."""

MAX_EARLIER_LANES = 2**24
"""Maximum number of lanes of all earlier cuts of an epoch: replaying them takes time and memory for each lane."""

Remainder = Literal["pad", "drop", "keep"]
"""How to handle the one row by which ranks differ: repeat a row, leave rows out, or deliver each row once."""


class Pieces(NamedTuple):
    """A line of items, cut into intervals: each piece belongs to one item and one interval."""

    item: NDArray[np.int64]
    """Item of each piece, interval after interval, shape (num_pieces,)."""
    start: NDArray[np.int64]
    """First row of each piece, counted in its item, shape (num_pieces,)."""
    stop: NDArray[np.int64]
    """One past the last row of each piece, shape (num_pieces,)."""
    interval_starts: NDArray[np.int64]
    """Index of each interval's first piece, shape (num_intervals + 1,)."""


def cut_items(
    lengths: NDArray[np.int64], ends: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> Pieces:
    """Cut intervals out of a line of items, through an item where needed.

    Args:
        lengths: Rows of each item.
        ends: Rows of the line up to the end of each item: the cumulative sum of `lengths`.
        low: Where each interval begins in the line, in any order.
        high: Where each interval ends; one that ends at or before its start is empty.
    """
    # Intervals are few, items may be millions: only the ends of intervals are looked up.
    own = np.flatnonzero(low < high)
    first, last = np.searchsorted(ends, low[own], side="right"), np.searchsorted(ends, high[own], side="left")
    counts = np.zeros(len(low), np.int64)
    counts[own] = last - first + 1
    interval_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    begins, stops = interval_starts[own], interval_starts[own + 1]
    item = np.ones(interval_starts[-1], np.int64)
    item[begins] = first - np.append(0, last)[:-1]
    np.cumsum(item, out=item)
    start, stop = np.zeros_like(item), lengths[item]
    start[begins] = low[own] - ends[first] + lengths[first]
    stop[stops - 1] = high[own] - ends[last] + lengths[last]
    if len(lengths) and not lengths.min():
        kept = start < stop
        interval_starts = np.concatenate([[0], np.cumsum(kept)])[interval_starts]
        item, start, stop = item[kept], start[kept], stop[kept]
    return Pieces(item, start, stop, interval_starts)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a window's order."""

    window: int
    """Index of the window in the epoch."""
    start: int
    """First row, counted in the window's order."""
    stop: int
    """One past the last row."""


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of an epoch: consecutive shard pieces, whose rows are shuffled together."""

    shard: NDArray[np.int64]
    """Shard of each piece, shape (num_pieces,)."""
    start: NDArray[np.int64]
    """First row of each piece, counted in its shard, shape (num_pieces,)."""
    stop: NDArray[np.int64]
    """One past the last row of each piece, shape (num_pieces,)."""
    piece_starts: NDArray[np.int64]
    """Index of each window's first piece, shape (num_windows + 1,)."""
    lane: NDArray[np.int64]
    """Lane of each window in the epoch's first cut, non-decreasing, shape (num_windows,).

    The windows of the rows that several lanes share have the number of lanes here, one past the last lane.
    """

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each window, shape (num_windows,)."""
        rows = self.stop - self.start
        # Each window has at least one piece, and here often exactly one.
        return rows if len(self.piece_starts) > len(rows) else np.add.reduceat(rows, self.piece_starts[:-1])

    def index_in_lane(self, window: int) -> int:
        """Return the zero-based index of a window within its lane."""
        return window - int(np.searchsorted(self.lane, self.lane[window], side="left"))


@dataclass(frozen=True, eq=False)
class Lanes:
    """One cut of an epoch: for each lane, the segments that it delivers, in order."""

    window: NDArray[np.int64]
    """Window of each segment, lane after lane, shape (num_segments,)."""
    start: NDArray[np.int64]
    """First row of each segment, counted in its window's order, shape (num_segments,)."""
    stop: NDArray[np.int64]
    """One past the last row of each segment, shape (num_segments,)."""
    segment_starts: NDArray[np.int64]
    """Index of each lane's first segment, shape (num_lanes + 1,)."""

    @property
    def num_lanes(self) -> int:
        """Number of lanes."""
        return len(self.segment_starts) - 1

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """Rows of the line before each segment, shape (num_segments + 1,)."""
        # In place, here and below: new memory for millions of items takes longer than the arithmetic.
        starts = np.zeros(len(self.start) + 1, np.int64)
        np.subtract(self.stop, self.start, out=starts[1:])
        return np.cumsum(starts, out=starts)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each lane before padding or dropping the remainder, shape (num_lanes,)."""
        return np.diff(self.row_starts[self.segment_starts])

    @property
    def num_rows(self) -> int:
        """Rows of all lanes."""
        return int(self.row_starts[-1])

    def segments(self, lane: int, start: int = 0, stop: int | None = None) -> Iterator[Segment]:
        """Yield the segments that hold rows [start, stop) of a lane; by default up to the end of the lane.

        Row `rows[lane]`, one past the end, is the padding: the last row of the lane, or a row of a neighbouring lane if
        the lane is empty.
        """
        first, end = self.segment_starts[lane], self.segment_starts[lane + 1]
        lane_start, lane_stop = int(self.row_starts[first]), int(self.row_starts[end])
        line_stop = lane_stop if stop is None else lane_start + stop
        yield from self._line(lane_start + start, min(line_stop, lane_stop))
        if line_stop > lane_stop:
            padding = max(lane_stop - 1, 0)
            yield from self._line(padding, padding + 1)

    def _line(self, start: int, stop: int) -> Iterator[Segment]:
        """Yield the segments that hold rows [start, stop), counted over all lanes."""
        i = int(np.searchsorted(self.row_starts, start, side="right")) - 1
        while start < stop:
            segment_start, segment_stop = int(self.row_starts[i]), int(self.row_starts[i + 1])
            offset = int(self.start[i]) - segment_start
            end = min(stop, segment_stop)
            if start < end:
                yield Segment(int(self.window[i]), start + offset, end + offset)
            start = max(start, end)
            i += 1

    def delivered(self, rows: NDArray[np.int64]) -> Lanes:
        """Return the delivered part of each lane: its first `rows` rows, `rows` of shape (num_lanes,)."""
        return self.between(np.zeros_like(rows), rows)

    def undelivered(self, rows: NDArray[np.int64]) -> Lanes:
        """Return the undelivered part of each lane: all but its first `rows` rows, `rows` of shape (num_lanes,)."""
        return self.between(rows, self.rows)

    def between(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Lanes:
        """Return rows [start, stop) of each lane, as far as it has them; both arguments of shape (num_lanes,)."""
        if (starts <= 0).all() and (stops >= self.rows).all():
            return self  # there may be millions of segments
        before = self.row_starts[self.segment_starts[:-1]]
        low, high = (before + np.minimum(rows, self.rows) for rows in (starts, stops))
        pieces = cut_items(self.stop - self.start, self.row_starts[1:], low, high)
        return self.of_pieces(pieces)

    def of_pieces(self, pieces: Pieces) -> Lanes:
        """Return lanes that consist of pieces of these segments, a lane for each interval; overwrites the pieces."""
        start = self.start[pieces.item]
        np.add(pieces.start, start, out=pieces.start)
        np.add(pieces.stop, start, out=pieces.stop)
        return Lanes(self.window[pieces.item], pieces.start, pieces.stop, pieces.interval_starts)

"""Lanes: cutting the line of an epoch into windows and lanes, and cutting what is left of it again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from laneway.core.order import shard_order
from laneway.core.shards import group_by_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from laneway.core.shards import ShardTable

MAX_LANES = 2**16
"""Lanes of a cut at the most: a state holds an integer for each."""

MAX_WINDOW_SHARDS = 128
"""Pieces of shards in a window at the most: each is a file to open, where files are small."""

Remainder = Literal["pad", "drop", "keep"]
"""What to do about the row by which lanes differ in length."""


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
    """The windows of an epoch: runs of consecutive shard pieces of one lane, whose rows are shuffled together."""

    shard: NDArray[np.int64]
    """Shard of each piece, shape (num_pieces,)."""
    start: NDArray[np.int64]
    """First row of each piece, counted in its shard, shape (num_pieces,)."""
    stop: NDArray[np.int64]
    """One past the last row of each piece, shape (num_pieces,)."""
    piece_starts: NDArray[np.int64]
    """Index of each window's first piece, shape (num_windows + 1,)."""
    lane: NDArray[np.int64]
    """Lane of each window in the epoch's first cut, non-decreasing, shape (num_windows,)."""

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each window, shape (num_windows,)."""
        ends = np.concatenate([[0], np.cumsum(self.stop - self.start)])
        return np.diff(ends[self.piece_starts])

    def index_in_lane(self, window: int) -> int:
        """Return which window of its lane `window` is, from 0."""
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
        return np.concatenate([[0], np.cumsum(self.stop - self.start)]).astype(np.int64)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each lane, the remainder neither padded nor dropped, shape (num_lanes,)."""
        return np.diff(self.row_starts[self.segment_starts])

    @property
    def num_rows(self) -> int:
        """Rows of all lanes."""
        return int(self.row_starts[-1])

    def segments(self, lane: int, start: int, stop: int) -> list[Segment]:
        """Return the segments that hold rows [start, stop) of a lane.

        Row `rows[lane]` exists too: it is the row that pads the lane, its own last one, or for an empty lane a
        neighbour's.
        """
        first_segment, stop_segment = self.segment_starts[lane], self.segment_starts[lane + 1]
        lane_start, lane_stop = int(self.row_starts[first_segment]), int(self.row_starts[stop_segment])
        found = self._line(lane_start + start, min(lane_start + stop, lane_stop))
        if lane_start + stop > lane_stop:
            padding = max(lane_stop - 1, 0)
            found += self._line(padding, padding + 1)
        return found

    def segments_from(self, lane: int, position: int) -> Iterator[Segment]:
        """Yield what is left of the segment that holds row `position` of a lane, and all segments after it."""
        row = int(self.row_starts[self.segment_starts[lane]]) + position
        first = int(np.searchsorted(self.row_starts, row, side="right")) - 1
        for i in range(first, int(self.segment_starts[lane + 1])):
            skipped = max(row - int(self.row_starts[i]), 0)
            if self.start[i] + skipped < self.stop[i]:
                yield Segment(int(self.window[i]), int(self.start[i]) + skipped, int(self.stop[i]))

    def _line(self, start: int, stop: int) -> list[Segment]:
        found = []
        i = int(np.searchsorted(self.row_starts, start, side="right")) - 1
        while start < stop:
            segment_start, segment_stop = int(self.row_starts[i]), int(self.row_starts[i + 1])
            offset = int(self.start[i]) - segment_start
            end = min(stop, segment_stop)
            if start < end:
                found.append(Segment(int(self.window[i]), start + offset, end + offset))
            start = max(start, end)
            i += 1
        return found

    def before(self, positions: NDArray[np.int64]) -> Lanes:
        """Return the same lanes, each ended at its position: what has been delivered."""
        starts = self.row_starts[self.segment_starts]
        return self._clip(starts[:-1], np.minimum(starts[:-1] + positions, starts[1:]))

    def after(self, positions: NDArray[np.int64]) -> Lanes:
        """Return the same lanes, each begun at its position: what has not been delivered."""
        starts = self.row_starts[self.segment_starts]
        return self._clip(np.minimum(starts[:-1] + positions, starts[1:]), starts[1:])

    def _clip(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> Lanes:
        lane = np.repeat(np.arange(self.num_lanes), np.diff(self.segment_starts))
        start = np.maximum(self.row_starts[:-1], low[lane])
        stop = np.minimum(self.row_starts[1:], high[lane])
        kept = start < stop
        offset = (self.start - self.row_starts[:-1])[kept]
        counts = np.bincount(lane[kept], minlength=self.num_lanes)
        return Lanes(
            window=self.window[kept],
            start=start[kept] + offset,
            stop=stop[kept] + offset,
            segment_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )


@dataclass(frozen=True, eq=False)
class _Pieces:
    """A line of items, cut into lanes: each piece lies in one item and in one lane."""

    item: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    lane: NDArray[np.int64]


def _cut_line(lengths: NDArray[np.int64], num_lanes: int) -> _Pieces:
    """Cut a line of items at `lane * rows // num_lanes`, through an item where needed."""
    ends = np.cumsum(lengths)
    num_rows = int(ends[-1]) if len(ends) else 0
    bounds = np.array([lane * num_rows // num_lanes for lane in range(num_lanes + 1)], np.int64)
    cuts = np.sort(np.concatenate([bounds, ends]), kind="stable")
    distinct = cuts[:-1] < cuts[1:]
    start, stop = cuts[:-1][distinct], cuts[1:][distinct]
    item = np.searchsorted(ends, start, side="right")
    offset = (ends - lengths)[item]
    lane = np.searchsorted(bounds, start, side="right") - 1
    return _Pieces(item=item, start=start - offset, stop=stop - offset, lane=lane)


def _starts(owner: NDArray[np.int64], num_owners: int) -> NDArray[np.int64]:
    return np.searchsorted(owner, np.arange(num_owners + 1), side="left").astype(np.int64)


def cut_epoch(
    shards: ShardTable, *, num_lanes: int, window_bytes: int, shuffle: bool, seed: int, epoch: int
) -> tuple[Windows, Lanes]:
    """Lay an epoch's shards in a line and cut it into lanes, and each lane into windows.

    Args:
        shards: All shards of the dataset.
        num_lanes: Number of lanes, >= 1.
        window_bytes: Wanted uncompressed size of a window, where `shuffle` is true; a window has no more than
            `MAX_WINDOW_SHARDS` pieces of shards. Otherwise the order doesn't depend on windows, and each piece of a
            shard is one, so that reading holds as little as possible.
        shuffle: Whether the shards are permuted, and later the rows of each window.
        seed: Any int in [0, 2**63).
        epoch: Zero-based.

    Returns:
        The windows, and the lanes: each the list of its own windows.
    """
    order = shard_order(len(shards), seed=seed, epoch=epoch) if shuffle else np.arange(len(shards), dtype=np.int64)
    lengths = shards.row_length[order]
    pieces = _cut_line(lengths, num_lanes)
    if shuffle:
        share = (pieces.stop - pieces.start) / lengths[pieces.item]
        sizes = (shards.num_bytes[order][pieces.item] * share).astype(np.int64)
        # Many small files make no window that takes seconds to open: the line itself mixes those.
        sizes = np.maximum(sizes, window_bytes // MAX_WINDOW_SHARDS)
        first_pieces = group_by_size(sizes, pieces.lane, window_bytes)
    else:
        first_pieces = np.arange(len(pieces.item), dtype=np.int64)
    windows = Windows(
        shard=order[pieces.item],
        start=pieces.start,
        stop=pieces.stop,
        piece_starts=np.append(first_pieces, len(pieces.item)).astype(np.int64),
        lane=pieces.lane[first_pieces],
    )
    lanes = Lanes(
        window=np.arange(len(first_pieces), dtype=np.int64),
        start=np.zeros(len(first_pieces), np.int64),
        stop=windows.rows,
        segment_starts=_starts(windows.lane, num_lanes),
    )
    return windows, lanes


def cut_again(lanes: Lanes, positions: NDArray[np.int64], num_lanes: int) -> Lanes:
    """Lay what lanes have not delivered in a new line, lane after lane, and cut it evenly into new lanes.

    Args:
        lanes: The cut before.
        positions: Rows that each of its lanes has delivered, padding included, shape (lanes.num_lanes,).
        num_lanes: Number of new lanes, >= 1.
    """
    rest = lanes.after(positions)
    pieces = _cut_line(rest.stop - rest.start, num_lanes)
    return Lanes(
        window=rest.window[pieces.item],
        start=rest.start[pieces.item] + pieces.start,
        stop=rest.start[pieces.item] + pieces.stop,
        segment_starts=_starts(pieces.lane, num_lanes),
    )


def rows_to_deliver(
    lane_rows: NDArray[np.int64], *, remainder: Remainder, turn_rows: int, drop_last: bool
) -> NDArray[np.int64]:
    """Return how many rows each lane delivers, the remainder taken care of.

    Args:
        lane_rows: Rows of each lane, which differ by one at most, shape (num_lanes,).
        remainder: "pad" fills every lane to the longest one's rows, "drop" ends each with the shortest, "keep"
            leaves them as they are.
        turn_rows: Rows of a turn.
        drop_last: Whether only whole turns are delivered, and of every lane equally many.

    Returns:
        int64 array of shape (num_lanes,).
    """
    if remainder == "pad":
        lane_rows = np.full_like(lane_rows, lane_rows.max())
    elif remainder == "drop" or drop_last:
        lane_rows = np.full_like(lane_rows, lane_rows.min())
    return lane_rows // turn_rows * turn_rows if drop_last else lane_rows

"""Lanes: cut the line of an epoch into lanes and windows, and cut its undelivered rows again."""

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
"""Maximum number of lanes of a cut: a state holds an integer for each."""

MAX_WINDOW_SHARDS = 128
"""Maximum number of shard pieces in a window: if files are small, each piece is a file to open."""

Remainder = Literal["pad", "drop", "keep"]
"""How to handle lanes whose lengths differ by one row."""


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
    """The windows of an epoch: consecutive shard pieces of one lane, whose rows are shuffled together."""

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
        return np.concatenate([[0], np.cumsum(self.stop - self.start)]).astype(np.int64)

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
        starts = self.row_starts[self.segment_starts]
        return self._clip(starts[:-1], np.minimum(starts[:-1] + rows, starts[1:]))

    def undelivered(self, rows: NDArray[np.int64]) -> Lanes:
        """Return the undelivered part of each lane: all but its first `rows` rows, `rows` of shape (num_lanes,)."""
        starts = self.row_starts[self.segment_starts]
        return self._clip(np.minimum(starts[:-1] + rows, starts[1:]), starts[1:])

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


def lane_bounds(num_rows: int, num_lanes: int) -> NDArray[np.int64]:
    """Return where a line of rows is cut into lanes: lane `l` holds rows [bounds[l], bounds[l + 1]).

    Args:
        num_rows: Rows of the line, >= 0.
        num_lanes: Number of lanes, >= 1.

    Returns:
        int64 array of shape (num_lanes + 1,).
    """
    return np.array([lane * num_rows // num_lanes for lane in range(num_lanes + 1)], np.int64)


def _cut_line(lengths: NDArray[np.int64], num_lanes: int) -> _Pieces:
    """Cut a line of items at the bounds of lanes, through an item where needed."""
    ends = np.cumsum(lengths)
    num_rows = int(ends[-1]) if len(ends) else 0
    bounds = lane_bounds(num_rows, num_lanes)
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
        window_bytes: Target uncompressed size of a window in bytes, if `shuffle`; a window has at most
            `MAX_WINDOW_SHARDS` pieces of shards. Without `shuffle` the order doesn't depend on windows, and each piece
            of a shard is a window of its own, so that reading holds as little memory as possible.
        shuffle: Whether to permute the shards and, later, the rows of each window.
        seed: Any int in [0, 2**63).
        epoch: Zero-based.

    Returns:
        The windows, and the lanes, each of which consists of its own windows.
    """
    order = shard_order(len(shards), seed=seed, epoch=epoch) if shuffle else np.arange(len(shards), dtype=np.int64)
    lengths = shards.row_length[order]
    pieces = _cut_line(lengths, num_lanes)
    if shuffle:
        share = (pieces.stop - pieces.start) / lengths[pieces.item]
        sizes = (shards.num_bytes[order][pieces.item] * share).astype(np.int64)
        # A window of thousands of small files would take seconds to open, and the permuted line mixes them anyway.
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


def cut_again(lanes: Lanes, rows: NDArray[np.int64], num_lanes: int) -> Lanes:
    """Lay the undelivered rows of all lanes in a new line, lane after lane, and cut it evenly into new lanes.

    Args:
        lanes: The previous cut.
        rows: Rows delivered from each of its lanes, including padding, shape (lanes.num_lanes,).
        num_lanes: Number of new lanes, >= 1.
    """
    rest = lanes.undelivered(rows)
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
    """Return the number of rows that each lane delivers after padding or dropping the remainder.

    Args:
        lane_rows: Rows of each lane, which differ by at most one, shape (num_lanes,).
        remainder: "pad" extends every lane to the length of the longest, "drop" truncates it to the shortest, "keep"
            leaves lanes as they are.
        turn_rows: Rows of a turn.
        drop_last: Whether to deliver only whole turns, the same number from every lane.

    Returns:
        int64 array of shape (num_lanes,).
    """
    if remainder == "pad":
        lane_rows = np.full_like(lane_rows, lane_rows.max())
    elif remainder == "drop" or drop_last:
        lane_rows = np.full_like(lane_rows, lane_rows.min())
    return lane_rows // turn_rows * turn_rows if drop_last else lane_rows

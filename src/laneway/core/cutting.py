"""Cutting: lays an epoch's shards in a line, and cuts the line, or what is left of it, into windows and lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.lanes import Lanes, Windows
from laneway.core.order import shard_order
from laneway.core.shards import group_by_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.division import Division
    from laneway.core.shards import ShardTable

MAX_WINDOW_SHARDS = 128
"""Maximum number of shard pieces in a window: if files are small, each piece is a file to open."""
SHARED_WINDOW_SHARE = 8
"""The windows that lanes share are smaller by this factor than those of one lane."""


class _Pieces(NamedTuple):
    """A line of items, cut into intervals: each piece belongs to one item and one interval."""

    item: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    interval: NDArray[np.int64]


def _cut_line(lengths: NDArray[np.int64], bounds: NDArray[np.int64]) -> _Pieces:
    """Cut a line of items at the bounds of intervals, through an item where needed.

    Args:
        lengths: Rows of each item.
        bounds: Where intervals begin and end, non-decreasing, from 0 to the rows of the line.
    """
    ends = np.cumsum(lengths)
    # Bounds are few, items may be millions: only bounds are looked up.
    item_of_bound = np.searchsorted(ends, bounds, side="right")
    item_start = np.concatenate([[0], ends])[item_of_bound]
    is_within = (bounds > item_start) & np.append(True, np.diff(bounds) > 0)
    cut_item, offset = item_of_bound[is_within], (bounds - item_start)[is_within]
    item = np.insert(np.arange(len(lengths), dtype=np.int64), cut_item, cut_item)
    # The piece before each of these cuts; a piece of an item is followed by its next one.
    before = cut_item + np.arange(len(cut_item))
    start, stop = np.zeros(len(item), np.int64), lengths[item]
    start[before + 1] = stop[before] = offset
    first_pieces = item_of_bound + np.cumsum(is_within)
    first_pieces[0], first_pieces[-1] = 0, len(item)
    interval = np.repeat(np.arange(len(bounds) - 1), np.diff(first_pieces))
    if len(lengths) and not lengths.min():
        kept = start < stop
        item, start, stop, interval = item[kept], start[kept], stop[kept], interval[kept]
    return _Pieces(item=item, start=start, stop=stop, interval=interval)


def _cut_lanes(
    window: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64], division: Division
) -> Lanes:
    """Cut a line of segments `(window, start, stop)` into lanes."""
    pieces = _cut_line(stop - start, division.bounds)
    lane = division.lane[pieces.interval]
    # Stable: the intervals of a lane stay in the order of the line.
    order = np.argsort(lane, kind="stable")
    item = pieces.item[order]
    first = start[item]
    return Lanes(
        window=window[item],
        start=first + pieces.start[order],
        stop=first + pieces.stop[order],
        segment_starts=np.searchsorted(lane[order], np.arange(division.num_lanes + 1), side="left").astype(np.int64),
    )


def cut_epoch(
    shards: ShardTable, division: Division, *, window_bytes: int, shuffle: bool, seed: int, epoch: int
) -> tuple[Windows, Lanes]:
    """Lay an epoch's shards in a line, and cut it into windows and lanes.

    Args:
        shards: All shards of the dataset.
        division: Divides the rows of the shards among lanes.
        window_bytes: Target size of a window in bytes, if `shuffle`; a window has at most `MAX_WINDOW_SHARDS` pieces of
            shards, and one that lanes share is smaller. Without `shuffle` the order doesn't depend on windows, and each
            piece of a shard is a window of its own, so that reading holds as little memory as possible.
        shuffle: Whether to permute the shards and, later, the rows of each window.
        seed: Any int in [0, 2**63).
        epoch: Zero-based.

    Returns:
        The windows, and the lanes. A window belongs to one lane, except for those of the rows that lanes share.
    """
    order = shard_order(len(shards), seed=seed, epoch=epoch) if shuffle else np.arange(len(shards), dtype=np.int64)
    lengths = shards.row_length[order]
    owner = division.owner
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    pieces = _cut_line(lengths, np.append(division.bounds[firsts], division.bounds[-1]))
    piece_owner, shard = owner[firsts][pieces.interval], order[pieces.item]
    if shuffle:
        sizes = shards.num_bytes[shard]
        parts = np.flatnonzero(pieces.stop - pieces.start != lengths[pieces.item])
        share = (pieces.stop - pieces.start)[parts] / lengths[pieces.item[parts]]
        sizes[parts] = (sizes[parts] * share).astype(np.int64)
        # A window of thousands of small files would take seconds to open, and the permuted line mixes them anyway.
        sizes = np.maximum(sizes, window_bytes // MAX_WINDOW_SHARDS)
        if division.bounds[division.num_lanes] > 0:
            # Each lane reads all pieces of a shared window for one turn of rows. If no lane has rows of its own, the
            # shared windows are the whole epoch, and must be shuffled as well as any other.
            sizes[piece_owner == division.num_lanes] *= SHARED_WINDOW_SHARE
        first_pieces = group_by_size(sizes, piece_owner, window_bytes)
    else:
        first_pieces = np.arange(len(pieces.item), dtype=np.int64)
    windows = Windows(
        shard=shard,
        start=pieces.start,
        stop=pieces.stop,
        piece_starts=np.append(first_pieces, len(pieces.item)).astype(np.int64),
        lane=piece_owner[first_pieces],
    )
    line = np.arange(len(first_pieces), dtype=np.int64)
    return windows, _cut_lanes(line, np.zeros_like(line), windows.rows, division)


def cut_again(rest: Lanes, division: Division) -> Lanes:
    """Lay the undelivered rows of all lanes in a new line, lane after lane, and cut it into new lanes.

    Args:
        rest: The undelivered rows of the previous cut.
        division: Divides these rows among the new lanes.
    """
    return _cut_lanes(rest.window, rest.start, rest.stop, division)

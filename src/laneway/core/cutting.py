"""Cutting: lays an epoch's shards in a line, and cuts the line, or what is left of it, into windows and lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from laneway.core.lanes import Lanes, Windows, cut_items
from laneway.core.order import shard_order
from laneway.core.shards import group_by_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.division import Division
    from laneway.core.lanes import Pieces
    from laneway.core.shards import ShardTable

MAX_WINDOW_SHARDS = 128
"""Maximum number of shard pieces in a window: if files are small, each piece is a file to open."""
SHARED_WINDOW_SHARE = 8
"""The windows that lanes share are smaller by this factor than those of one lane."""


def _cut_lanes(lengths: NDArray[np.int64], division: Division) -> Pieces:
    """Cut a line of segments into lanes."""
    # Stable: the intervals of a lane stay in the order of the line.
    order, bounds = np.argsort(division.lane, kind="stable"), division.bounds
    pieces = cut_items(lengths, np.cumsum(lengths), bounds[:-1][order], bounds[1:][order])
    firsts = np.searchsorted(division.lane[order], np.arange(division.num_lanes + 1), side="left")
    return pieces._replace(interval_starts=pieces.interval_starts[firsts])


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
    order = shard_order(len(shards), seed=seed, epoch=epoch) if shuffle else None
    lengths = shards.row_length if order is None else shards.row_length[order]
    owner = division.owner
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    bounds = np.append(division.bounds[firsts], division.bounds[-1])
    pieces = cut_items(lengths, np.cumsum(lengths), bounds[:-1], bounds[1:])
    piece_owner = np.repeat(owner[firsts], np.diff(pieces.interval_starts))
    shard = pieces.item if order is None else order[pieces.item]
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
        piece_starts, window_owner = np.append(first_pieces, len(shard)), piece_owner[first_pieces]
    else:
        piece_starts, window_owner = np.arange(len(shard) + 1, dtype=np.int64), piece_owner
    windows = Windows(
        shard=shard,
        start=pieces.start,
        stop=pieces.stop,
        piece_starts=piece_starts,
        lane=window_owner,
    )
    return windows, Lanes(*_cut_lanes(windows.rows, division))


def cut_again(rest: Lanes, division: Division) -> Lanes:
    """Lay the undelivered rows of all lanes in a new line, lane after lane, and cut it into new lanes.

    Args:
        rest: The undelivered rows of the previous cut.
        division: Divides these rows among the new lanes.
    """
    return rest.of_pieces(_cut_lanes(rest.stop - rest.start, division))

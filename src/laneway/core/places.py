"""Places: which rows of the data files a lane consists of, and in which lane a row of a file is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.order import rank_in_window, window_part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from laneway.core.cursor import LaneRange
    from laneway.core.lanes import Lanes, Segment
    from laneway.core.plan import Plan


class FileRows(NamedTuple):
    """Rows of data files, of those that are selected."""

    file_index: NDArray[np.int64]
    """The file of each, shape (rows,)."""
    row: NDArray[np.int64]
    """Which of the selected rows of the file it is, shape (rows,)."""

    @classmethod
    def joined(cls, parts: Iterable[FileRows]) -> FileRows:
        """Return the rows of all parts, in order."""
        columns = [*zip(*parts, strict=True)] or [(), ()]
        return cls(*(np.concatenate([np.empty(0, np.int64), *column]) for column in columns))


def rows_of_lanes(plan: Plan, ranges: Iterable[LaneRange]) -> FileRows:
    """Return where rows of lanes are in the files, padding included."""
    return FileRows.joined(rows_of_segment(plan, each) for lane in ranges for each in plan.lanes.segments(*lane))


def rows_of_segment(plan: Plan, segment: Segment) -> FileRows:
    """Return where the rows of a segment are in the files."""
    windows, shards = plan.windows, plan.shards
    window, start, stop = segment.window, segment.start, segment.stop
    if plan.identity.settings.shuffle:
        rows = window_part(int(windows.rows[window]), start, stop, **plan.window_key(window))
    else:
        rows = np.arange(start, stop, dtype=np.int64)
    pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
    lengths = windows.stop[pieces] - windows.start[pieces]
    ends = np.cumsum(lengths)
    piece = np.searchsorted(ends, rows, side="right")
    shard = windows.shard[pieces][piece]
    offset = rows - (ends - lengths)[piece] + windows.start[pieces][piece]
    return FileRows(shards.file_index[shard], shards.row_offset[shard] + offset)


class LaneRow(NamedTuple):
    """A row of a lane."""

    lane: int
    row: int


def find_row(plan: Plan, ends: NDArray[np.int64], file_index: int, row: int) -> list[LaneRow]:
    """Return where a row of a file is in the lanes of the current cut: nowhere, once, or again as padding.

    Args:
        plan: The plan.
        ends: Rows that each lane delivers, shape (num_lanes,).
        file_index: The file.
        row: Which of its selected rows.
    """
    shards, windows = plan.shards, plan.windows
    first, stop = np.searchsorted(shards.file_index, [file_index, file_index + 1])
    shard = int(first + np.searchsorted(shards.row_offset[first:stop], row, side="right")) - 1
    if shard < first or row >= shards.row_offset[shard] + shards.row_length[shard]:
        return []
    offset = row - int(shards.row_offset[shard])
    is_in = (windows.shard == shard) & (windows.start <= offset) & (offset < windows.stop)
    piece = int(np.flatnonzero(is_in)[0])
    window = int(np.searchsorted(windows.piece_starts, piece, side="right")) - 1
    first_piece = windows.piece_starts[window]
    before = int((windows.stop[first_piece:piece] - windows.start[first_piece:piece]).sum())
    place = before + offset - int(windows.start[piece])
    if plan.identity.settings.shuffle:
        place = rank_in_window(int(windows.rows[window]), place, **plan.window_key(window))
    return find_in_lanes(plan.lanes, ends, window, place)


def find_in_lanes(lanes: Lanes, ends: NDArray[np.int64], window: int, place: int) -> list[LaneRow]:
    """Return where a row of a window is in lanes, given the rows that each lane delivers, shape (num_lanes,)."""
    found = []
    for segment in np.flatnonzero((lanes.window == window) & (lanes.start <= place) & (place < lanes.stop)).tolist():
        line = int(lanes.row_starts[segment] - lanes.start[segment]) + place
        lane = int(np.searchsorted(lanes.segment_starts, segment, side="right")) - 1
        starts = lanes.row_starts[lanes.segment_starts]
        row = line - int(starts[lane])
        if row < ends[lane]:
            found.append(LaneRow(lane, row))
        is_padding = (ends > lanes.rows) & (np.maximum(starts[1:] - 1, 0) == line)
        found += [LaneRow(each, int(lanes.rows[each])) for each in np.flatnonzero(is_padding).tolist()]
    return found

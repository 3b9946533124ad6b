"""Reads rows of lanes: one window per lane in memory, the next ones prefetched."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from laneway.reading.windows import WindowReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from laneway.convert.columns import ToStored
    from laneway.convert.open_rows import OpenRows
    from laneway.core.cursor import LaneRange
    from laneway.core.lanes import Segment
    from laneway.core.plan import Plan
    from laneway.reading.reader import RowReader
    from laneway.reading.windows import PendingWindow


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """The rows that a lane delivers of a window, in memory."""

    bounds: list[int]
    """Position in the lane at which each part begins, then the position at which the last one ends."""
    parts: list[OpenRows]
    """The rows; several parts only if a column is too long for one array."""

    def slice(self, start: int, stop: int) -> OpenRows:
        """Return the rows at positions [start, stop), up to the end of the part that contains `start`."""
        i = bisect_right(self.bounds, start) - 1
        first, end = self.bounds[i], self.bounds[i + 1]
        return self.parts[i].slice(start - first, min(stop, end) - first)


class _ReadAhead:
    """The windows of one lane from a position on, prefetched in order."""

    def __init__(self, windows: WindowReader, segments: Iterator[Segment], position: int) -> None:
        self._windows = windows
        self._segments = segments
        self._pending: deque[PendingWindow] = deque()
        self.position = position
        """Position in the lane at which the next window begins."""

    def next_window(self, num_ahead: int) -> _OpenWindow:
        """Return the next window, and have the `num_ahead` windows after it read meanwhile."""
        for segment in islice(self._segments, num_ahead + 1 - len(self._pending)):
            self._pending.append(self._windows.begin(segment))
        parts = self._windows.finish(self._pending.popleft())
        bounds = [*accumulate((part.num_rows for part in parts), initial=self.position)]
        self.position = bounds[-1]
        return _OpenWindow(bounds, parts)

    def cancel(self) -> None:
        """Cancel the reads that have not started."""
        for window in self._pending:
            window.cancel()


class LaneReader:
    """Reads rows of lanes.

    For each lane it holds one window, the prefetched windows, and a copy of the last row once that has been read.
    """

    def __init__(self, plan: Plan, rows: RowReader, vectorized: Mapping[str, ToStored], num_ahead: int) -> None:
        """Read lanes of `plan`.

        Args:
            plan: The lanes.
            rows: Reads the data files.
            vectorized: Columns to convert once per window; see `BatchConverter.vectorized`.
            num_ahead: Windows to prefetch in each lane.
        """
        self._plan = plan
        self._windows = WindowReader(plan, rows, vectorized)
        # If the iterator is dropped mid-epoch, stop its threads instead of draining the queue.
        self._end = weakref.finalize(self, self._windows.end)
        self._num_ahead = self._windows.num_segments_ahead(num_ahead)
        self._lane_rows: list[int] = plan.lanes.rows.tolist()
        self._open: dict[int, _OpenWindow] = {}
        self._ahead: dict[int, _ReadAhead] = {}
        self._last_rows: dict[int, OpenRows] = {}
        """Lane -> a copy of its last row, which may be delivered again to pad the lane."""

    def read(self, wanted: LaneRange) -> list[OpenRows]:
        """Return rows of a lane, as slices of its windows."""
        lane, start, stop = wanted
        lane_rows = self._lane_rows[lane]
        slices = []
        while start < min(stop, lane_rows):
            rows = self._window(lane, start).slice(start, stop)
            slices.append(rows)
            start += rows.num_rows
        if slices and stop >= lane_rows:
            # Copied before a user sees it, so that changes in place don't reach the row that pads the lane.
            self._last_rows[lane] = slices[-1].copy_row(slices[-1].num_rows - 1)
        if stop > lane_rows:
            slices.append(self._last_rows.get(lane) or self._read_padding(lane))
        return slices

    def _read_padding(self, lane: int) -> OpenRows:
        """Return the row that pads a lane: its last one, or for an empty lane a neighbour's."""
        (segment,) = self._plan.lanes.segments(lane, self._lane_rows[lane], self._lane_rows[lane] + 1)
        # A memory-mapped file is mapped again: a user may have changed its rows in place.
        self._windows.close()
        return self._windows.finish(self._windows.begin(segment))[0].copy_row(0)

    def _window(self, lane: int, position: int) -> _OpenWindow:
        window = self._open.get(lane)
        if window is not None and window.bounds[0] <= position < window.bounds[-1]:
            return window
        # The old window is released first, so that memory never holds it together with all prefetched ones.
        self._open.pop(lane, None)
        del window
        ahead = self._ahead.get(lane)
        if ahead is None or ahead.position != position:
            self._cancel(lane)
            ahead = _ReadAhead(self._windows, self._plan.lanes.segments(lane, position), position)
        # Put back only on success: after an error, the next call reads the window again.
        self._ahead.pop(lane, None)
        window = self._open[lane] = ahead.next_window(self._num_ahead)
        self._ahead[lane] = ahead
        return window

    def _cancel(self, lane: int) -> None:
        ahead = self._ahead.pop(lane, None)
        if ahead is not None:
            ahead.cancel()

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:
        """Return the data file of row `row_index` of these ranges, and the row's number in that file, for a message."""
        for lane_range in wanted:
            for segment in self._plan.lanes.segments(*lane_range):
                if row_index < segment.stop - segment.start:
                    path, row = self._plan.locate(segment, row_index)
                    return f"row {row:,} of {path}"
                row_index -= segment.stop - segment.start
        message = f"row {row_index} lies outside {wanted}"
        raise IndexError(message)

    def end(self) -> None:
        """Release everything and end the threads; the reader can't be used any more."""
        self.close()
        self._end()

    def close(self) -> None:
        """Release windows and close files; the next read opens them again."""
        for lane in list(self._ahead):
            self._cancel(lane)
        self._open.clear()
        self._last_rows.clear()
        self._windows.close()

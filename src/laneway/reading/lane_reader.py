"""Reads rows of lanes: one window per lane in memory, the next ones prefetched."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from laneway.convert.open_rows import OpenRows
from laneway.reading.windows import WindowReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from laneway.convert.columns import ToStored
    from laneway.core.cursor import LaneRange
    from laneway.core.lanes import Segment
    from laneway.core.plan import Plan
    from laneway.metering import Meter
    from laneway.reading.rows import Rows
    from laneway.reading.threads import Caller
    from laneway.reading.windows import PendingWindow, ReadAhead


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


class _PendingLane:
    """The segments of one lane from a position on, of which the first are being read."""

    def __init__(self, windows: WindowReader, segments: Iterator[Segment], position: int) -> None:
        self._windows = windows
        self._segments = windows.split(segments)
        self._next = next(self._segments, None)
        """The first segment that is not being read, if any."""
        self._pending: deque[tuple[PendingWindow, int]] = deque()
        """The segments that are being read, and their bytes."""
        self.position = position
        """Position in the lane at which the next window begins."""

    def next_window(self, ahead: ReadAhead) -> _OpenWindow:
        """Return the next window, after starting to read those that follow it."""
        if not self._pending:
            self.begin()
        num_bytes = sum(size for _, size in self._pending) - self._pending[0][1]
        while self._next is not None and len(self._pending) <= ahead.max_segments:
            num_bytes += self._next.num_bytes
            if len(self._pending) > ahead.num_segments and num_bytes > ahead.num_bytes:
                break
            self.begin()
        window, _ = self._pending.popleft()
        parts = self._windows.finish(window)
        bounds = [*accumulate((part.num_rows for part in parts), initial=self.position)]
        self.position = bounds[-1]
        return _OpenWindow(bounds, parts)

    def begin(self) -> None:
        """Start to read the next segment, if there is one."""
        if self._next is not None:
            segment, num_bytes = self._next
            self._pending.append((self._windows.begin(segment), num_bytes))
            self._next = next(self._segments, None)

    def cancel(self) -> None:
        """Cancel the reads that have not started."""
        for window, _ in self._pending:
            window.cancel()


class LaneReader:
    """Reads rows of lanes.

    For each lane it holds one window, the prefetched windows, and a copy of the last row once that has been read.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Rows,
        vectorized: Mapping[str, ToStored],
        num_ahead: int,
        meter: Meter,
        *,
        threads: Caller | None = None,
    ) -> None:
        """Read lanes of `plan`.

        Args:
            plan: The lanes.
            rows: Reads the data files.
            vectorized: Columns to convert once per window; see `BatchConverter.vectorized`.
            num_ahead: Windows to prefetch in each lane.
            meter: Measures what is read.
            threads: Those that read, which are shared with other readers; None: threads of its own.
        """
        self._plan = plan
        self._rows = rows
        self._windows = WindowReader(plan, rows, vectorized, meter, threads)
        # If the iterator is dropped mid-epoch, stop its threads instead of draining the queue.
        self._end = weakref.finalize(self, self._windows.end)
        self._read_ahead = self._windows.read_ahead(num_ahead)
        self._lane_rows: list[int] = plan.lanes.rows.tolist()
        self._open: dict[int, _OpenWindow] = {}
        self._ahead: dict[int, _PendingLane] = {}
        self._last_rows: dict[int, OpenRows] = {}
        """Lane -> a copy of its last row, which may be delivered again to pad the lane."""

    def begin(self, lane: int, position: int) -> None:
        """Begin to read a lane, without waiting, unless it is being read."""
        if lane not in self._open and lane not in self._ahead and position < self._lane_rows[lane]:
            self._ahead[lane] = _PendingLane(self._windows, self._plan.lanes.segments(lane, position), position)
            self._ahead[lane].begin()

    def read(self, wanted: LaneRange) -> list[OpenRows]:
        """Return rows of a lane, as slices of its windows."""
        lane, start, stop = wanted
        lane_rows = self._lane_rows[lane]
        window = self._open.get(lane)
        if window is not None and window.bounds[0] <= start and stop <= window.bounds[1] and stop < lane_rows:
            # The usual case. A batch may consist of hundreds of ranges.
            numbers, rest, _, _ = window.parts[0]
            first = window.bounds[0]
            return [OpenRows(numbers, rest, start - first, stop - first)]
        del window  # so that the next window doesn't find it in memory
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

    def read_on(self, lane: int, start: int, stop: int) -> OpenRows:
        """Return the first rows of [start, stop) of a lane, as many as are in memory together; at least one."""
        return self._window(lane, start).slice(start, stop)

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
        ahead = self._ahead.pop(lane, None)
        if ahead is None or ahead.position != position:
            if ahead is not None:
                ahead.cancel()
            ahead = _PendingLane(self._windows, self._plan.lanes.segments(lane, position), position)
        try:
            window = self._open[lane] = ahead.next_window(self._read_ahead)
        except BaseException:
            # The next call reads the window again, and shouldn't wait for those after it.
            ahead.cancel()
            raise
        self._ahead[lane] = ahead
        return window

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:
        """Return the data file of row `row_index` of these ranges, and the row's number in that file, for a message."""
        for lane_range in wanted:
            for segment in self._plan.lanes.segments(*lane_range):
                if row_index < segment.stop - segment.start:
                    file_index, row = self._plan.locate(segment, row_index)
                    row = self._rows.row_in_file(file_index, row)
                    return f"row {row:,} of {self._plan.identity.files.paths[file_index]}"
                row_index -= segment.stop - segment.start
        message = f"row {row_index} is outside {wanted}"
        raise IndexError(message)

    def end(self) -> None:
        """Release everything and end the threads; the reader can't be used any more."""
        self.close()
        self._end()

    def close(self) -> None:
        """Release windows and close files; the next read opens them again."""
        for ahead in self._ahead.values():
            ahead.cancel()
        self._ahead.clear()
        self._open.clear()
        self._last_rows.clear()
        self._windows.close()

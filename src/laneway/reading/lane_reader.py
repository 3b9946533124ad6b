"""Rows of lanes: the window that a lane is in, and some that are read ahead."""

from __future__ import annotations

import weakref
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from laneway.reading.windows import Slice, WindowReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.convert.batches import BatchConverter
    from laneway.core.cursor import LaneRange
    from laneway.core.lanes import Segment
    from laneway.core.plan import Plan
    from laneway.reading.reader import RowReader
    from laneway.reading.windows import OpenWindow, PendingWindow


class _LaneAhead:
    """The windows of one lane, read ahead from a position on."""

    def __init__(
        self, segments: Iterator[Segment], position: int, read: Callable[[Segment, int], PendingWindow]
    ) -> None:
        self.position = position
        """Where the next window begins."""
        self._segments = segments
        self._read = read
        self._end = position
        self._reading: deque[PendingWindow] = deque()

    def next_window(self, num_ahead: int) -> OpenWindow:
        """Return the next window, and have so many after it read."""
        for segment in islice(self._segments, num_ahead + 1 - len(self._reading)):
            self._reading.append(self._read(segment, self._end))
            self._end += segment.stop - segment.start
        opened = self._reading.popleft().result()
        self.position = opened.bounds[-1]
        return opened

    def close(self) -> None:
        """Read no more."""
        for window in self._reading:
            window.cancel()


class LaneReader:
    """Reads rows of lanes.

    It holds one window per lane, so many more as are read ahead, and a copy of the last row of lanes that are at their
    end.
    """

    def __init__(self, plan: Plan, rows: RowReader, converter: BatchConverter, num_ahead: int) -> None:
        """Read lanes of `plan`.

        Args:
            plan: The lanes.
            rows: Reads the data files, in threads of its own.
            converter: Opens what was read.
            num_ahead: Windows of each lane that are read ahead.
        """
        self._plan = plan
        self._windows = WindowReader(plan, rows, converter)
        # Threads of an iterator that is dropped midway would still read all that is queued.
        self._end = weakref.finalize(self, self._windows.end)
        self._converter = converter
        self._num_ahead = self._windows.num_ahead(num_ahead)
        self._lane_rows: list[int] = plan.lanes.rows.tolist()
        self._open: dict[int, OpenWindow] = {}
        self._ahead: dict[int, _LaneAhead] = {}
        self._last_rows: dict[int, Slice] = {}
        """Lane -> a copy of its last row, which may be delivered again to pad the lane."""

    def read(self, wanted: LaneRange) -> list[Slice]:
        """Return rows of a lane, as slices of its windows."""
        lane, start, stop = wanted
        lane_rows = self._lane_rows[lane]
        found = []
        while start < min(stop, lane_rows):
            rows = self._window(lane, start).slice(start, stop)
            found.append(rows)
            start += rows.stop - rows.start
        if found and stop >= lane_rows:
            # Copied before a user sees it: what pads the lane stays apart from changes in place.
            opened, _, last = found[-1]
            self._last_rows[lane] = Slice(self._converter.copied(opened, last - 1), 0, 1)
        if stop > lane_rows:
            found.append(self._last_rows.get(lane) or self._padding(lane))
        return found

    def _padding(self, lane: int) -> Slice:
        """Return the row that pads a lane: its last one, or for an empty lane a neighbour's."""
        (segment,) = self._plan.lanes.segments(lane, self._lane_rows[lane], self._lane_rows[lane] + 1)
        # What is memory-mapped is mapped anew: a user may have changed it in place.
        self._windows.close()
        opened, start, _ = self._windows.begin(segment, 0).result().slice(0, 1)
        return Slice(self._converter.copied(opened, start), 0, 1)

    def _window(self, lane: int, position: int) -> OpenWindow:
        opened = self._open.get(lane)
        if opened is not None and opened.bounds[0] <= position < opened.bounds[-1]:
            return opened
        # The old window goes first: it is not held beside all that are read ahead.
        self._open.pop(lane, None)
        ahead = self._ahead.get(lane)
        if ahead is None or ahead.position != position:
            self._stop_reading(lane)
            ahead = _LaneAhead(self._plan.lanes.segments(lane, position), position, self._windows.begin)
        # Put back only when all went well: asked again after an error, it is read again.
        self._ahead.pop(lane, None)
        opened = self._open[lane] = ahead.next_window(self._num_ahead)
        self._ahead[lane] = ahead
        return opened

    def _stop_reading(self, lane: int) -> None:
        ahead = self._ahead.pop(lane, None)
        if ahead is not None:
            ahead.close()

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:
        """Return path and row in the data file of row `row_index` of what was read, as text."""
        for lane_range in wanted:
            for segment in self._plan.lanes.segments(*lane_range):
                if row_index < segment.stop - segment.start:
                    path, row = self._plan.locate(segment, row_index)
                    return f"row {row:,} of {path}"
                row_index -= segment.stop - segment.start
        message = f"row {row_index} lies outside {wanted}"
        raise IndexError(message)

    def end(self) -> None:
        """Let go of all, threads too: nothing more will be read."""
        self.close()
        self._end()

    def close(self) -> None:
        """Let go of windows and files."""
        for lane in list(self._ahead):
            self._stop_reading(lane)
        self._open.clear()
        self._last_rows.clear()
        self._windows.close()

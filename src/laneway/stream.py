"""A worker's stream: from the lanes it reads to the rows or batches that it yields.

The way of a row: the cursor names lane ranges, the lanes their segments, a segment lies in a window, and the window
is read from the data files, put in order once and cut into slices. What is yielded is counted first.
"""

from __future__ import annotations

import weakref
from collections import deque
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from laneway.convert import NullInColumnError
from laneway.cursor import LaneRange, RowRun
from laneway.packing import packed
from laneway.windows import Slice, WindowReader
from laneway.workers import is_in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.convert import BatchConverter
    from laneway.cursor import Cursor, Step
    from laneway.gather import OpenRows
    from laneway.lanes import Segment
    from laneway.plan import Plan
    from laneway.reader import RowReader
    from laneway.windows import OpenWindow, PendingWindow

_ROWS_AT_ONCE = 1024
"""Rows that are converted together where rows are yielded one by one."""


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
            ahead = _LaneAhead(self._plan.lanes.segments_from(lane, position), position, self._windows.begin)
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


class Stream:
    """Iterates over what one worker delivers in one epoch; asked again after an error, it tries the same again."""

    def __init__(
        self,
        cursor: Cursor,
        lanes: LaneReader,
        converter: BatchConverter,
        transform: Callable[[Any], Any] | None,
    ) -> None:
        """Go on from where `cursor` stands.

        Args:
            cursor: The worker's place in the epoch; it is moved as things are yielded.
            lanes: Reads the lanes of the cursor's plan.
            converter: Makes what is yielded out of Arrow.
            transform: Called on each thing before it is yielded.
        """
        self._cursor = cursor
        self._is_sent = is_in_worker()
        self._lanes = lanes
        self._converter = converter
        self._transform = transform

    @property
    def cursor(self) -> Cursor:
        """The worker's place in the epoch."""
        return self._cursor

    def __iter__(self) -> Iterator[Any]:
        """Return self."""
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a user's transform may return anything
        """Return the next row or batch; it counts as delivered from now on."""
        raise NotImplementedError

    def _converted(self, convert: Callable[[OpenRows, int, int], Any], ranges: list[LaneRange]) -> list[Any]:
        """Return what the rows of lane ranges become, in one part or in several."""
        slices = [found for lane_range in ranges for found in self._lanes.read(lane_range)]
        parts: list[Any] = []
        try:
            for found in slices:
                parts.append(convert(*found))  # noqa: PERF401 - an error has to know how many were converted
        except NullInColumnError as error:
            if error.row_index is None:
                raise
            row_index = sum(stop - start for _, start, stop in slices[: len(parts)]) + error.row_index
            raise error.at(self._lanes.locate(ranges, row_index)) from None
        return parts

    def _rows(self, ranges: list[LaneRange]) -> list[Any]:
        parts = self._converted(self._converter.slice_rows, ranges)
        return parts[0] if len(parts) == 1 else [*chain.from_iterable(parts)]

    def _called(self, function: Callable[[Any], Any] | None, item: Any) -> Any:  # noqa: ANN401 - it is a user's
        if function is None:
            return item
        try:
            return function(item)
        except StopIteration as error:
            self._forget()
            message = "the transform or collate_fn raised StopIteration, which would end the epoch unseen"
            raise RuntimeError(message) from error
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        """Let go of what a user's function that failed may have changed half-way: asked again, it is read again."""
        self._lanes.close()


class BatchStream(Stream):
    """Yields batches."""

    def __next__(self) -> Any:  # noqa: ANN401 - a user's transform may return anything
        """Return the next batch; it counts as delivered from now on."""
        step = self.cursor.next_batch()
        if step is None:
            self._lanes.end()
            raise StopIteration
        batch = self._make(step)
        self.cursor.deliver_batch(step)
        return packed(batch) if self._is_sent else batch

    def _make(self, step: Step) -> Any:  # noqa: ANN401 - a user's transform may return anything
        parts = self._converted(self._converter.slice, step.ranges)
        return self._called(self._transform, parts[0] if len(parts) == 1 else self._converter.joined(parts))


class CollatedStream(BatchStream):
    """Yields batches that a function makes of a list of rows."""

    def __init__(
        self,
        cursor: Cursor,
        lanes: LaneReader,
        converter: BatchConverter,
        transform: Callable[[Any], Any] | None,
        collate_fn: Callable[[list[Any]], Any],
    ) -> None:
        """Go on from where `cursor` stands; `transform` is called on rows, `collate_fn` on the rows of a batch."""
        super().__init__(cursor, lanes, converter, transform)
        self._collate_fn = collate_fn

    def _make(self, step: Step) -> Any:  # noqa: ANN401 - a user's function may return anything
        rows = self._rows(step.ranges)
        if self._transform is not None:
            rows = [self._called(self._transform, row) for row in rows]
        return self._called(self._collate_fn, rows)


class RowStream(Stream):
    """Yields rows. They are converted many at once and handed out one by one."""

    def __init__(
        self,
        cursor: Cursor,
        lanes: LaneReader,
        converter: BatchConverter,
        transform: Callable[[Any], Any] | None,
    ) -> None:
        """Go on from where `cursor` stands; see Stream."""
        super().__init__(cursor, lanes, converter, transform)
        self._run = RowRun(cursor)
        self._ahead: dict[int, tuple[int, list[Any]]] = {}
        """Lane -> position of its first converted row, and the converted rows."""

    @property
    def cursor(self) -> Cursor:
        """The worker's place in the epoch."""
        self._run.count()
        return self._cursor

    def __next__(self) -> Any:  # noqa: ANN401 - a user's transform may return anything
        """Return the next row; it counts as delivered from now on."""
        if not self._run.rows:
            self._next_run()
        if self._transform is None:
            return self._run.rows.pop()
        row = self._called(self._transform, self._run.rows[-1])
        self._run.rows.pop()
        return row

    def _forget(self) -> None:
        super()._forget()
        self._ahead.clear()
        self._run.drop()

    def _next_run(self) -> None:
        run = self.cursor.next_run(_ROWS_AT_ONCE)
        if run is None:
            self._lanes.end()
            raise StopIteration
        lane, start, stop = run.ranges[0]
        first, rows = self._ahead.get(lane, (0, []))
        if not first <= start < first + len(rows):
            wanted = LaneRange(lane, start, min(start + _ROWS_AT_ONCE, self.cursor.end_of(lane)))
            first, rows = start, self._rows([wanted])
            self._ahead[lane] = (first, rows)
        self._run.begin(run, rows[start - first : stop - first])

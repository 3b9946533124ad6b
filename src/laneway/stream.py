"""A worker's stream: from the lanes it reads to the rows or batches that it yields.

The way of a row: the cursor names lane ranges, the lanes their segments, a segment lies in a window, and the window
is read from the data files, put in order once and cut into slices. What is yielded is counted first.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from laneway.convert import NullInColumnError
from laneway.cursor import LaneRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from laneway.convert import BatchConverter
    from laneway.cursor import Cursor, Step
    from laneway.lanes import Segment
    from laneway.plan import Plan
    from laneway.reader import RowReader

_ROWS_AT_ONCE = 1024
"""Rows that are converted together where rows are yielded one by one."""


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """The rows of a window in memory, in the order of delivery, from row `start` on."""

    window: int
    start: int
    batches: list[pa.RecordBatch]
    """One batch, or several where a column is too long for one."""
    bounds: list[int]
    """Row of the window's order at which each batch begins, and where the last ends."""

    def slices(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows [start, stop) of the window's order, without a copy."""
        while start < stop:
            i = bisect_right(self.bounds, start) - 1
            end = min(stop, self.bounds[i + 1])
            yield self.batches[i].slice(start - self.bounds[i], end - start)
            start = end


class LaneReader:
    """Reads rows of lanes. It holds one window per lane, and a copy of the last row of lanes that are at their end."""

    def __init__(self, plan: Plan, rows: RowReader) -> None:
        """Read lanes of `plan` from the data files behind `rows`."""
        self._plan = plan
        self._rows = rows
        self._open: dict[int, _OpenWindow] = {}
        self._last_rows: dict[int, pa.RecordBatch] = {}
        """Lane -> a copy of its last row, which may be delivered again to pad the lane."""

    def segments(self, wanted: LaneRange) -> list[Segment]:
        """Return where rows of a lane lie."""
        return self._plan.lanes.segments(*wanted)

    def read(self, wanted: LaneRange) -> list[pa.RecordBatch]:
        """Return rows of a lane, as slices of its windows."""
        lane, start, stop = wanted
        lane_rows = int(self._plan.lanes.rows[lane])
        if start == lane_rows and lane in self._last_rows:
            return [self._last_rows[lane]]
        found = [
            rows
            for segment in self.segments(wanted)
            for rows in self._window(lane, segment).slices(segment.start, segment.stop)
        ]
        if start < lane_rows <= stop:
            # Copied before a user sees it: what pads the lane stays apart from changes in place.
            own = found[: len(found) - (stop - lane_rows)]
            self._last_rows[lane] = own[-1].take([len(own[-1]) - 1])
        return found

    def _window(self, lane: int, segment: Segment) -> _OpenWindow:
        opened = self._open.get(lane)
        if opened is None or opened.window != segment.window or opened.start > segment.start:
            # The old window goes first: two of them are never held for one lane.
            self._open.pop(lane, None)
            opened = self._open[lane] = self._read_window(segment.window, segment.start)
        return opened

    def _read_window(self, window: int, start: int) -> _OpenWindow:
        files, order = self._plan.window_files(window), self._plan.window_order(window)
        if order is None:
            (file,) = files
            table = self._rows.read(file.file_index, file.start + start, file.stop)
        else:
            table = pa.concat_tables([self._rows.read(*file) for file in files]).take(order[start:])
        batches = table.combine_chunks().to_batches()
        return _OpenWindow(window, start, batches, [*accumulate((len(b) for b in batches), initial=start)])

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:
        """Return path and row in the data file of row `row_index` of what was read, as text."""
        for lane_range in wanted:
            for segment in self.segments(lane_range):
                if row_index < segment.stop - segment.start:
                    path, row = self._plan.locate(segment, row_index)
                    return f"row {row:,} of {path}"
                row_index -= segment.stop - segment.start
        message = f"row {row_index} lies outside {wanted}"
        raise IndexError(message)

    def close(self) -> None:
        """Let go of windows and files."""
        self._open.clear()
        self._last_rows.clear()
        self._rows.close()


class Stream:
    """Iterates over what one worker delivers in one epoch; asked again after an error, it tries the same again."""

    def __init__(
        self,
        cursor: Cursor,
        rows: RowReader,
        converter: BatchConverter,
        transform: Callable[[Any], Any] | None,
    ) -> None:
        """Go on from where `cursor` stands.

        Args:
            cursor: The worker's place in the epoch; it is moved as things are yielded.
            rows: Reads the data files.
            converter: Makes what is yielded out of Arrow.
            transform: Called on each thing before it is yielded.
        """
        self.cursor = cursor
        self._lanes = LaneReader(cursor.plan, rows)
        self._converter = converter
        self._transform = transform

    def __iter__(self) -> Iterator[Any]:
        """Return self."""
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a user's transform may return anything
        """Return the next row or batch; it counts as delivered from now on."""
        raise NotImplementedError

    def _converted(self, convert: Callable[[pa.RecordBatch], Any], ranges: list[LaneRange]) -> Any:  # noqa: ANN401
        slices = [batch for lane_range in ranges for batch in self._lanes.read(lane_range)]
        batch = slices[0] if len(slices) == 1 else _joined(slices)
        try:
            return convert(batch)
        except NullInColumnError as error:
            if error.row_index is None:
                raise
            raise error.at(self._lanes.locate(ranges, error.row_index)) from None

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
            self._lanes.close()
            raise StopIteration
        batch = self._make(step)
        self.cursor.deliver_batch(step)
        return batch

    def _make(self, step: Step) -> Any:  # noqa: ANN401 - a user's transform may return anything
        return self._called(self._transform, self._converted(self._converter.batch, step.ranges))


class CollatedStream(BatchStream):
    """Yields batches that a function makes of a list of rows."""

    def __init__(
        self,
        cursor: Cursor,
        rows: RowReader,
        converter: BatchConverter,
        transform: Callable[[Any], Any] | None,
        collate_fn: Callable[[list[Any]], Any],
    ) -> None:
        """Go on from where `cursor` stands; `transform` is called on rows, `collate_fn` on the rows of a batch."""
        super().__init__(cursor, rows, converter, transform)
        self._collate_fn = collate_fn

    def _make(self, step: Step) -> Any:  # noqa: ANN401 - a user's function may return anything
        rows = self._converted(self._converter.rows, step.ranges)
        return self._called(self._collate_fn, [self._called(self._transform, row) for row in rows])


class RowStream(Stream):
    """Yields rows. They are converted many at once and handed out one by one."""

    _run: Step
    _ready: tuple[Sequence[Any], int, int] = ((), 0, 0)
    """Converted rows of one lane, the next of them, and where those of this run end."""
    _ahead: Mapping[int, tuple[int, list[Any]]] = MappingProxyType({})
    """Lane -> position of its first converted row, and the converted rows."""

    def __next__(self) -> Any:  # noqa: ANN401 - a user's transform may return anything
        """Return the next row; it counts as delivered from now on."""
        rows, index, stop = self._ready
        if index == stop:
            rows, index, stop = self._next_run()
        row = rows[index] if self._transform is None else self._called(self._transform, rows[index])
        self.cursor.deliver_row(self._run)
        self._ready = (rows, index + 1, stop)
        return row

    def _forget(self) -> None:
        super()._forget()
        self._ready, self._ahead = ((), 0, 0), {}

    def _next_run(self) -> tuple[Sequence[Any], int, int]:
        run = self.cursor.next_run(_ROWS_AT_ONCE)
        if run is None:
            self._lanes.close()
            raise StopIteration
        lane, start, stop = run.ranges[0]
        first, rows = self._ahead.get(lane, (0, []))
        if not first <= start < first + len(rows):
            wanted = LaneRange(lane, start, min(start + _ROWS_AT_ONCE, self.cursor.end_of(lane)))
            first, rows = start, self._converted(self._converter.rows, [wanted])
            self._ahead = {**self._ahead, lane: (first, rows)}
        self._run = run
        return rows, start - first, min(stop - first, len(rows))


def _joined(slices: list[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(slices).combine_chunks().to_batches()
    return batch

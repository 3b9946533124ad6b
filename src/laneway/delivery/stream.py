"""A worker's stream: from the lanes it reads to the rows or batches that it yields.

The way of a row: the cursor names lane ranges, the lanes their segments, a segment lies in a window, and the window
is read from the data files, put in order once and cut into slices. What is yielded is counted first.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from laneway.convert.batches import NullInColumnError
from laneway.core.cursor import LaneRange, RowRun
from laneway.delivery.packing import pack
from laneway.delivery.workers import is_in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.convert.batches import BatchConverter
    from laneway.convert.open_rows import OpenRows
    from laneway.core.cursor import Cursor, Step
    from laneway.reading.lane_reader import LaneReader

_ROWS_AT_ONCE = 1024
"""Rows that are converted together where rows are yielded one by one."""


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

    def _converted(self, convert: Callable[[OpenRows], Any], ranges: list[LaneRange]) -> list[Any]:
        """Return what the rows of lane ranges become, in one part or in several."""
        slices = [found for lane_range in ranges for found in self._lanes.read(lane_range)]
        parts: list[Any] = []
        try:
            for found in slices:
                parts.append(convert(found))  # noqa: PERF401 - an error has to know how many were converted
        except NullInColumnError as error:
            if error.row_index is None:
                raise
            row_index = sum(rows.num_rows for rows in slices[: len(parts)]) + error.row_index
            raise error.at(self._lanes.locate(ranges, row_index)) from None
        return parts

    def _rows(self, ranges: list[LaneRange]) -> list[Any]:
        parts = self._converted(self._converter.to_rows, ranges)
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
        return pack(batch) if self._is_sent else batch

    def _make(self, step: Step) -> Any:  # noqa: ANN401 - a user's transform may return anything
        parts = self._converted(self._converter.to_batch, step.ranges)
        return self._called(self._transform, parts[0] if len(parts) == 1 else self._converter.concatenate(parts))


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

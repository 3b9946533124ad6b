"""Builds the items that a stream delivers: converts slices of windows, and calls the user's functions.

`LaneReader` reads the ranges of lanes that the cursor returns as slices of windows.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from types import GeneratorType, NoneType
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import default_collate

from laneway.activity import LANE, ROW, STAGE, Stage
from laneway.core.cursor import LaneRange
from laneway.delivery.row_errors import SKIPPED
from laneway.delivery.sent_rows import OpenBatch
from laneway.errors import ColumnConversionError, NullInColumnError
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from laneway.convert.columns import ToStored
    from laneway.convert.open_rows import OpenRows
    from laneway.delivery.context import AnyContexts, BatchContext, RowContext
    from laneway.delivery.transforms import Expansion, Transforms
    from laneway.metering import Meter
    from laneway.reading.rows import LaneRows

# As plain ints, which are stored several times as fast.
_WAIT, _CONVERT, _TRANSFORM, _SEND = map(int, (Stage.WAIT, Stage.CONVERT, Stage.TRANSFORM, Stage.SEND))
ROWS_PER_CONVERSION = 1024
"""Number of rows that are converted together if rows are yielded one by one."""
_NO_ITEM = (NoneType, GeneratorType)
"""Results of a user's function that are not a row or batch."""


def unchanged(item: Any) -> Any:  # noqa: ANN401 - a user's transform may return anything
    """Return `item`: a collate_fn that leaves rows as they are."""
    return item


class Converter(Protocol):
    """Converts rows from Arrow."""

    @property
    def vectorized(self) -> Mapping[str, ToStored]:
        """The columns that are converted once per window, and how."""

    def gather(self, parts: Sequence[OpenRows]) -> Any:  # noqa: ANN401 - columns in any output
        """Return the columns of several parts, at least one, as one batch."""

    def gather_rows(self, parts: Sequence[OpenRows]) -> list[Any]:
        """Return one object per row of several parts, at least one."""


class ItemMaker:
    """Builds the items that are yielded from ranges of lanes."""

    def __init__(
        self,
        lanes: LaneRows,
        converter: Converter,
        transform: Transforms,
        contexts: AnyContexts | None,
        collate_fn: Callable[[list[Any]], Any] | None,
        *,
        meter: Meter,
    ) -> None:
        """Prepare to build items.

        Args:
            lanes: Reads the rows.
            converter: Converts them from Arrow.
            transform: Called on each row, or on each batch of columns.
            contexts: Makes the contexts that it takes; None: it takes none.
            collate_fn: Builds a batch from a list of rows; None: batches are built column by column.
            meter: Measures how.
        """
        self._lanes = lanes
        self._meter = meter
        self._cells = meter.cells
        self._converter = converter
        self.transform = transform
        """The user's functions."""
        self._contexts = contexts
        self._collate_fn = collate_fn
        # Any other collate_fn may drop None, or consume a generator.
        self._delivers_results = collate_fn in {None, unchanged, default_collate}
        self._latest_rows: dict[int, tuple[list[LaneRange], list[Any]]] = {}
        """Lane -> the rows that `rows` returned last, so that an error can name its row."""

    def open_batch(self, ranges: list[LaneRange]) -> Any:  # noqa: ANN401 - columns or rows in any output
        """Return the batch of these rows as an `OpenBatch`, if no function is called on them.

        If a number can't be converted, it is converted here, so that its error names its row.
        """
        parts = self._read(ranges)
        if all(len(part.numbers) == len(self._converter.vectorized) for part in parts):
            return OpenBatch(parts)
        to_items = self._converter.gather if self._collate_fn is None else self._converter.gather_rows
        return self._converted(to_items, parts, ranges)

    def batch(self, ranges: list[LaneRange]) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the batch of these rows; `SKIPPED` if nothing is delivered for any of them."""
        if self._collate_fn is None:
            batch = self._convert(self._converter.gather, ranges)
            if not self.transform and self._contexts is None:
                return batch
            began = perf_counter()
            self._cells[STAGE] = _TRANSFORM
            item, context = (batch, None) if self._contexts is None else self._contexts.of_batch(batch)
            result = self._transform(item, context, ranges)
        else:
            rows = self._convert(self._converter.gather_rows, ranges)
            began = perf_counter()
            self._cells[STAGE] = _TRANSFORM
            result = self._collate(self._collate_fn, rows, ranges)
        self._meter.transform_s += perf_counter() - began
        return result

    def _collate(self, collate_fn: Callable[[list[Any]], Any], rows: list[Any], ranges: list[LaneRange]) -> Any:  # noqa: ANN401
        """Return the batch of these rows, after calling `transform` on each."""
        if self.transform:
            rows = [self._row(row, ranges, index) for index, row in enumerate(rows)]
            self._cells[ROW] = 0
            self._check_keys(rows)
            if self.transform.errors is not None and collate_fn is not unchanged:
                rows = [row for row in rows if row is not SKIPPED]
                if not rows:
                    return SKIPPED
        return self._call(collate_fn, rows, ranges)

    def rows(self, ranges: list[LaneRange]) -> list[Any]:
        """Return these rows one by one, before `transform`."""
        rows: list[Any] = self._convert(self._converter.gather_rows, ranges)
        self._latest_rows[ranges[0].lane] = (ranges, rows)
        return rows

    def transform_row(self, row: Any) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the result of `transform` for a row that `rows` returned; `SKIPPED` if nothing is delivered for it."""
        try:
            result = self._row(row)
            self._check_keys([result])
        except Exception as error:
            place = self._latest_place(row)
            if place is not None:
                error.add_note(self._description(*place))
            raise
        return result

    def _check_keys(self, rows: list[Any]) -> None:
        """Check that rows which are delivered together have the keys of a filler, if there may be one among them."""
        if self.transform.errors is not None:
            self.transform.errors.check_keys(rows, is_collated=self._collate_fn is default_collate)

    def _latest_place(self, row: Any) -> tuple[list[LaneRange], int] | None:  # noqa: ANN401 - a row in any output
        """Return the place of a row that `rows` returned: its index in ranges of lanes."""
        for ranges, rows in self._latest_rows.values():
            for index, each in enumerate(rows):
                if each is row:
                    return ranges, index
        return None

    def _name_of(self, row: Any, ranges: list[LaneRange] | None, index: int | None) -> str:  # noqa: ANN401 - see above
        """Return the file and number of a row; without its place, of one that `rows` returned."""
        place = self._latest_place(row) if ranges is None or index is None else (ranges, index)
        return self._lanes.locate(*place) if place else "unknown"

    def _row(self, row: Any, ranges: list[LaneRange] | None = None, index: int | None = None) -> Any:  # noqa: ANN401
        """Return the result of the user's functions for a row, or what is delivered instead."""
        if index is not None:
            self._cells[ROW] = index + 1
        errors = self.transform.errors
        if errors is None:
            return self._transform(*self._with_context(row), ranges, index)
        item, context = self._with_context(row)
        try:
            result = self.transform(item, context)
        except Exception as error:  # noqa: BLE001 - the user's functions may raise any
            self._meter.hidden_rows += 1
            return errors.hide(error, item, lambda: self._name_of(row, ranges, index))
        return errors.accept(self._checked(result, is_delivered=self._delivers_results))

    def read_on(self, lane: int, start: int, stop: int) -> OpenRows:
        """Return the first rows of [start, stop) of a lane as they were read; see `LaneReader.read_on`."""
        began = perf_counter()
        self._cells[STAGE] = _WAIT
        rows = self._lanes.read_on(lane, start, stop)
        self._cells[STAGE] = _TRANSFORM
        self._meter.wait_s += perf_counter() - began
        return rows

    def expanded(self, lane: int, start: int, stop: int, expansion: Expansion) -> Iterator[list[Any]]:
        """Yield the items that the user's functions make of each of the first rows of [start, stop) of a lane.

        These are as many as are in memory together, at least one.
        """
        errors, cells = self.transform.errors, self._cells

        def items_of(row: Any, context: RowContext | None) -> list[Any]:  # noqa: ANN401 - a row in any output
            return expansion(self.transform(row, context), context)

        rows = self.read_on(lane, start, min(stop, start + ROWS_PER_CONVERSION))
        ranges = [LaneRange(lane, start, start + rows.num_rows)]
        for index, row in enumerate(self._converted(self._converter.gather_rows, [rows], ranges)):
            cells[STAGE], cells[LANE], cells[ROW] = _TRANSFORM, lane + 1, start + index + 1
            item, context = self._with_context(row)
            if errors is None:
                yield self._call(partial(items_of, context=context), item, ranges, index)
                continue
            try:
                items = items_of(item, context)
            except Exception as error:  # noqa: BLE001 - the user's functions may raise any
                self._meter.hidden_rows += 1
                errors.hide(error, item, partial(self._lanes.locate, ranges, index))
                items = []
            yield items

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:  # noqa: ANN401 - a user's function
        """Return the result of a user's function for an item or a batch."""
        return self._call(function, item, is_delivered=True)

    def name_of_row(self, lane: int, row: int) -> str:
        """Return the file and number of a row of a lane."""
        return self._lanes.locate([LaneRange(lane, row, row + 1)], 0)

    def close(self) -> None:
        """Release windows, files and threads at the end of the stream."""
        self._latest_rows.clear()
        self._lanes.end()

    def _convert(self, convert: Callable[[list[OpenRows]], Any], ranges: list[LaneRange]) -> Any:  # noqa: ANN401
        """Return the converted rows of lane ranges."""
        return self._converted(convert, self._read(ranges), ranges)

    def _read(self, ranges: list[LaneRange]) -> list[OpenRows]:
        """Return the rows of lane ranges."""
        read, began = self._lanes.read, perf_counter()
        self._cells[STAGE] = _WAIT
        rows = [found for lane_range in ranges for found in read(lane_range)]
        self._meter.wait_s += perf_counter() - began
        return rows

    def _converted(
        self,
        convert: Callable[[list[OpenRows]], Any],
        rows: list[OpenRows],
        ranges: list[LaneRange],
    ) -> Any:  # noqa: ANN401 - columns or rows in any output
        """Return the converted rows of lane ranges, which were read."""
        began = perf_counter()
        self._cells[STAGE] = _CONVERT
        try:
            result = convert(rows)
        except NullInColumnError as error:
            if error.row_index is None:
                raise
            raise error.at(self._lanes.locate(ranges, error.row_index)) from None
        self._meter.convert_s += perf_counter() - began
        return result

    def _with_context(self, row: Any) -> tuple[Any, RowContext | None]:  # noqa: ANN401 - a row in any output
        return (row, None) if self._contexts is None else self._contexts.of_row(row)

    def _transform(
        self,
        item: Any,  # noqa: ANN401 - an item of the user
        context: RowContext | BatchContext | None,
        ranges: list[LaneRange] | None = None,
        index: int | None = None,
    ) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the result of the user's functions for the rows of `ranges`, or for row `index` of them."""
        if not self.transform:
            return item
        transform = self.transform if context is None else partial(self.transform, context=context)
        return self._call(transform, item, ranges, index, is_delivered=self._delivers_results)

    def _call(
        self,
        function: Callable[[Any], Any],
        item: Any,  # noqa: ANN401 - an item of the user
        ranges: list[LaneRange] | None = None,
        index: int | None = None,
        *,
        is_delivered: bool = False,
    ) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the result of a user's function for the rows of `ranges`, or for row `index` of them."""
        try:
            return self._checked(function(item), is_delivered=is_delivered)
        except StopIteration as error:
            self._lanes.close()
            message = "the transform or collate_fn raised StopIteration, which would end the epoch silently"
            stopped = RuntimeError(message)
            self._describe(stopped, ranges, index)
            raise stopped from error
        except BaseException as error:
            # The function may have changed a window in place before it failed, so the next call reads it again.
            self._lanes.close()
            self._describe(error, ranges, index)
            if function is default_collate and isinstance(item, list) and ranges is not None:
                self._check_nulls(item, ranges)
            raise

    @staticmethod
    def _checked(result: Any, *, is_delivered: bool) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the result of a user's function; raise an error if it is delivered, but is not a row or batch."""
        if not is_delivered or not isinstance(result, _NO_ITEM):
            return result
        what = "None" if result is None else "a generator"
        message = (
            f"transform returned {what}, but it must return the row or batch to deliver (is a return missing?): it "
            "can't drop rows, as .filter() can, or turn one into several"
        )
        raise TypeError(message)

    def _check_nulls(self, rows: list[Any], ranges: list[LaneRange]) -> None:
        """Raise an error that names the first null among rows that can't be collated."""
        for index, row in enumerate(rows):
            for name, value in row.items() if isinstance(row, dict) else ():
                if value is None:
                    message = (
                        f"{name!r} is null in {self._lanes.locate(ranges, index)}, and torch's default_collate can't "
                        f"collate None: give a replacement, such as fill_null={{{name!r}: 0}}, or a collate_fn that "
                        f"accepts None"
                    )
                    raise ColumnConversionError(message)

    def _describe(self, error: BaseException, ranges: list[LaneRange] | None, index: int | None) -> None:
        """Add the place of the rows to an error, as a note: it keeps its class and message."""
        if ranges is not None:
            error.add_note(self._description(ranges, index))

    def _description(self, ranges: list[LaneRange], index: int | None) -> str:
        if index is not None:
            return f"the transform failed for {self._lanes.locate(ranges, index)}"
        num_rows = sum(stop - start for _, start, stop in ranges)
        return f"this batch has {counted(num_rows, 'row')}; the first one is {self._lanes.locate(ranges, 0)}"

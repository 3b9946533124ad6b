"""Assembles a window: puts its rows, which are read in parallel, in the order of the window.

Fixed-size lists are scattered to their final rows as soon as they have been read, so that memory holds them once. All
other columns wait for the last rows and are then put in order by one `take` each, column after column: scattering
single numbers is three times slower than one `take`, because their targets are far apart in memory.
"""

from __future__ import annotations

import math
import operator
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from laneway.convert.arrays import record_batch, take_rows
from laneway.convert.column_types import decoded_type
from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError
from laneway.convert.open_rows import OpenRows
from laneway.errors import ColumnConversionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from laneway.convert.columns import ToStored

_MAX_SMALL_BYTES = 1 << 16
"""Arrays up to this size take less time to allocate than buffers of Arrow's pool."""


class NotVectorizableError(Exception):
    """A column holds a value that can't be converted; only its batch may fail."""


class Order:
    """The order of the rows of a window, which is computed once, by the thread that needs it first."""

    def __init__(self, num_rows: int, compute: Callable[[], NDArray[np.int64]]) -> None:
        """Prepare to compute.

        Args:
            num_rows: Number of output rows.
            compute: Returns the source row of each output row, shape (num_rows,).
        """
        self.num_rows = num_rows
        """Number of output rows."""
        self._compute = compute
        self._rows: NDArray[np.int64] | None = None
        self._lock = threading.Lock()

    @property
    def rows(self) -> NDArray[np.int64]:
        """The source row of each output row."""
        with self._lock:
            if self._rows is None:
                self._rows = self._compute()
            return self._rows


class WindowAssembler:
    """Puts the rows of several tables in one order. The tables may come in any order, and from several threads."""

    def __init__(self, vectorized: Mapping[str, ToStored], order: Order, num_rows: int, files: str) -> None:
        """Expect tables.

        Args:
            vectorized: Column -> converter to an array of its values, in the order of the schema. All other columns
                stay Arrow.
            order: The source row of each output row. It may leave rows out.
            num_rows: Number of source rows.
            files: The data files that they come from, for messages.
        """
        self._vectorized = vectorized
        self._order = order
        self._num_rows = num_rows
        self._files = files
        self._tables: list[tuple[int, pa.Table]] = []
        """The first source row of each table, and its columns that `finish` puts in order."""
        self._numbers: dict[str, NDArray[Any]] = {}
        self._scratch: NDArray[np.uint8] = np.empty(0, np.uint8)
        """Shared by all columns of numbers: page faults of new memory cost more than copying."""
        self._num_missing = num_rows
        self._lock = threading.Lock()

    @cached_property
    def _output_rows(self) -> NDArray[np.int64]:
        """Output row of each source row, -1 for rows to leave out; the inverse of `_order`, which only lists need."""
        order, output_rows = self._order.rows, np.full(self._num_rows, -1)
        output_rows[order] = np.arange(len(order))
        return output_rows

    def put(self, start: int, table: pa.Table) -> bool:
        """Add source rows from `start` on, and return whether they were the last ones missing.

        Raises:
            NotVectorizableError: The lists contain a null, or a value that can't be converted.
        """
        lists = [name for name in self._vectorized if _is_list(table.schema.field(name).type)]
        if lists:
            first = start
            # As batches: each column may be cut into chunks of its own.
            for batch in table.select(lists).to_batches():
                self._put_lists(first, batch)
                first += len(batch)
        others = [name for name in table.column_names if name not in lists] if lists else table.column_names
        with self._lock:
            if others:
                self._tables.append((start, table.select(others) if lists else table))
            self._num_missing -= table.num_rows
            return not self._num_missing

    def _put_lists(self, start: int, batch: pa.RecordBatch) -> None:
        lists = {
            name: self._convert(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        num_wanted = self._order.num_rows
        with self._lock:
            for name, values in lists.items():
                if name not in self._numbers:
                    self._numbers[name] = empty_array((num_wanted, *values.shape[1:]), values.dtype)
        output_rows = self._output_rows[start : start + len(batch)]
        is_wanted = None if num_wanted == self._num_rows else output_rows >= 0
        if is_wanted is not None:
            output_rows = output_rows[is_wanted]
        for name, values in lists.items():
            self._numbers[name][output_rows] = values if is_wanted is None else values[is_wanted]

    def _convert(self, name: str, column: pa.Array[Any]) -> NDArray[Any]:
        try:
            return self._vectorized[name](column)
        except (NullFoundError, *CONVERSION_ERRORS):
            raise NotVectorizableError from None

    def _take_numbers(self, name: str, chunks: list[pa.Array[Any]], order: NDArray[np.int64]) -> NDArray[Any]:
        """Return the numbers of a column in order; empties `chunks`, as `take_rows` does."""
        values, *others = [self._convert(name, chunk) for chunk in chunks]
        dtype = values.dtype
        if others:
            if len(self._scratch) < self._num_rows * dtype.itemsize:
                self._scratch = np.empty(self._num_rows * dtype.itemsize, np.uint8)
            scratch = self._scratch[: self._num_rows * dtype.itemsize].view(dtype)
            values = np.concatenate([values, *others], out=scratch)
            others.clear()
        chunks.clear()
        # "clip" checks no index; "raise" would make another copy.
        return values.take(order, out=empty_array((len(order),), dtype), mode="clip")

    def finish(self) -> OpenRows:
        """Return all rows in order, once none is missing.

        Raises:
            NotVectorizableError: The numbers contain a null, or a value that can't be converted.
            ColumnConversionError: Arrow can't put the rows of a column in order.
        """
        tables = [table for _, table in sorted(self._tables, key=operator.itemgetter(0))]
        self._tables.clear()
        schema = tables[0].schema if tables else pa.schema([])
        fields = list(schema)
        columns = [[chunk for table in tables for chunk in table.column(i).chunks] for i in range(len(fields))]
        tables.clear()
        rows = self._order.rows
        order = cast("pa.Int64Array", pa.array(rows))
        arrow: list[pa.Array[Any]] = []
        arrow_fields: list[pa.Field[Any]] = []
        for field, chunks in zip(fields, columns, strict=True):
            if field.name in self._vectorized:
                self._numbers[field.name] = self._take_numbers(field.name, chunks, rows)
            else:
                arrow.append(self._take_arrow(field, chunks, order))
                arrow_fields.append(field)
        self._scratch = np.empty(0, np.uint8)
        numbers = {name: self._numbers[name] for name in self._vectorized}
        rest = record_batch(arrow, pa.schema(arrow_fields, cast("Any", schema.metadata))) if arrow else None
        return OpenRows(numbers, rest, 0, len(rows))

    def _take_arrow(self, field: pa.Field[Any], chunks: list[pa.Array[Any]], order: pa.Int64Array) -> pa.Array[Any]:
        try:
            return take_rows(chunks, field.type, order)
        except pa.ArrowException as error:
            message = (
                f"column {field.name!r} of type {field.type} can't be shuffled: {error}\n"
                f"the rows are from {self._files}: read without this column, with shuffle=False or with a smaller "
                f"window_bytes"
            )
            raise ColumnConversionError(message) from error


def _is_list(data_type: pa.DataType) -> bool:
    """Return whether values are fixed-size lists, which are long enough to be worth scattering."""
    while (inner := decoded_type(data_type)) is not None:
        data_type = inner
    return isinstance(data_type, pa.FixedSizeListType)


def empty_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised array; if large, in memory of Arrow's pool, which reuses what others have released."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes <= _MAX_SMALL_BYTES:
        return np.empty(shape, dtype)
    return np.frombuffer(cast("Any", pa.allocate_buffer(num_bytes)), dtype).reshape(shape)

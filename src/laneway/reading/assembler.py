"""Assembles a window: puts the rows of its pieces, which are read in parallel, in the order of the window.

Fixed-size lists are scattered to their final rows as soon as a piece has been read, so that memory holds them once. All
other columns wait for the last piece and are then put in order by one `take` each, column after column: scattering
single numbers is three times slower than one `take`, because their targets are far apart in memory.
"""

from __future__ import annotations

import math
import threading
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.convert.column_types import decoded_type
from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError
from laneway.convert.open_rows import OpenRows, copy_array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.convert.columns import ToStored


class NotVectorizableError(Exception):
    """A column holds a value that can't be converted; only its batch may fail."""


class WindowAssembler:
    """Puts the rows of several pieces in one order. Pieces may come in any order, and from several threads."""

    def __init__(self, vectorized: Mapping[str, ToStored], order: NDArray[np.int64], piece_rows: Sequence[int]) -> None:
        """Expect pieces.

        Args:
            vectorized: Column -> converter to an array of its values, in the order of the schema. All other columns
                stay Arrow.
            order: Source row of each output row, counted over all pieces, shape (rows,). It may leave rows out.
            piece_rows: Rows of each piece.
        """
        self._vectorized = vectorized
        self._order = order
        self._starts = np.concatenate([[0], np.cumsum(piece_rows, dtype=np.int64)])
        self._tables: list[pa.Table | None] = [None] * len(piece_rows)
        """Columns of each piece that `finish` puts in order."""
        self._numbers: dict[str, NDArray[Any]] = {}
        self._num_missing = len(piece_rows)
        self._lock = threading.Lock()

    @cached_property
    def _output_rows(self) -> NDArray[np.int64]:
        """Output row of each source row, -1 for rows to leave out; the inverse of `_order`, which only lists need."""
        output_rows = np.full(self._starts[-1], -1)
        output_rows[self._order] = np.arange(len(self._order))
        return output_rows

    def put(self, piece_index: int, table: pa.Table) -> bool:
        """Add the rows of a piece, and return whether it was the last one missing.

        Raises:
            NotVectorizableError: The lists contain a null, or a value that can't be converted.
        """
        start = int(self._starts[piece_index])
        lists = [name for name in self._vectorized if _is_list(table.schema.field(name).type)]
        if lists:
            # As batches: each column may be cut into chunks of its own.
            for batch in table.select(lists).to_batches():
                self._put_lists(start, batch)
                start += len(batch)
        others = [name for name in table.column_names if name not in lists]
        self._tables[piece_index] = table.select(others) if others else None
        with self._lock:
            self._num_missing -= 1
            return not self._num_missing

    def _put_lists(self, start: int, batch: pa.RecordBatch) -> None:
        lists = {
            name: self._convert(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        with self._lock:
            for name, values in lists.items():
                if name not in self._numbers:
                    self._numbers[name] = _empty((len(self._order), *values.shape[1:]), values.dtype)
        output_rows = self._output_rows[start : start + len(batch)]
        is_wanted = None if len(self._order) == self._starts[-1] else output_rows >= 0
        if is_wanted is not None:
            output_rows = output_rows[is_wanted]
        for name, values in lists.items():
            self._numbers[name][output_rows] = values if is_wanted is None else values[is_wanted]

    def _convert(self, name: str, column: pa.Array[Any]) -> NDArray[Any]:
        try:
            return self._vectorized[name](column)
        except (NullFoundError, *CONVERSION_ERRORS):
            raise NotVectorizableError from None

    def _take_numbers(self, name: str, chunks: list[pa.Array[Any]], scratch: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers of a column in order; empties `chunks`, as `take_rows` does."""
        arrays = [self._convert(name, chunk) for chunk in chunks]
        values = np.concatenate(arrays, out=scratch.view(arrays[0].dtype)[: self._starts[-1]])
        arrays.clear()
        chunks.clear()
        # "clip" checks no index; "raise" would make another copy.
        return values.take(self._order, out=_empty((len(self._order),), values.dtype), mode="clip")

    def finish(self) -> list[OpenRows]:
        """Return all rows in order, after the last piece; in several parts only if a column is too long for one array.

        Raises:
            NotVectorizableError: The numbers contain a null, or a value that can't be converted.
        """
        tables = [table for table in self._tables if table is not None]
        self._tables.clear()
        fields = list(tables[0].schema) if tables else []
        columns = [[chunk for table in tables for chunk in table.column(i).chunks] for i in range(len(fields))]
        tables.clear()
        order = cast("pa.Int64Array", pa.array(self._order))
        # Shared by all columns: page faults of new memory cost more than copying. 16 bytes: no number is larger.
        scratch = np.empty(self._starts[-1], np.complex128)
        arrow: dict[str, pa.ChunkedArray[Any]] = {}
        for field, chunks in zip(fields, columns, strict=True):
            if field.name in self._vectorized:
                self._numbers[field.name] = self._take_numbers(field.name, chunks, scratch)
            else:
                arrow[field.name] = take_rows(chunks, field.type, order)
        numbers = {name: self._numbers[name] for name in self._vectorized}
        if not arrow:
            return [OpenRows(numbers, None, 0, len(order))]
        schema = pa.schema([field for field in fields if field.name in arrow])
        batches = pa.Table.from_arrays([*arrow.values()], schema=schema).combine_chunks().to_batches()
        starts = accumulate((len(batch) for batch in batches), initial=0)
        return [
            OpenRows({name: all_[start : start + len(batch)] for name, all_ in numbers.items()}, batch, 0, len(batch))
            for start, batch in zip(starts, batches, strict=False)
        ]


def _is_list(data_type: pa.DataType) -> bool:
    """Return whether values are fixed-size lists, which are long enough to be worth scattering."""
    while (inner := decoded_type(data_type)) is not None:
        data_type = inner
    return isinstance(data_type, pa.FixedSizeListType)


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised array in memory of Arrow's pool, which reuses what other threads have released."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return (
        np.frombuffer(cast("Any", pa.allocate_buffer(num_bytes)), dtype).reshape(shape)
        if num_bytes
        else np.empty(shape, dtype)
    )


def take_rows(chunks: list[pa.Array[Any]], data_type: Any, order: pa.Int64Array) -> pa.ChunkedArray[Any]:  # noqa: ANN401
    """Return the rows of a column at the given indices. Unlike `pyarrow.ChunkedArray.take` it supports all types.

    Args:
        chunks: The column. The list is emptied as soon as its values have been copied, so that no more than two copies
            are in memory if the caller holds no other reference to the chunks.
        data_type: Type of the column.
        order: The indices.
    """
    # Stubs lack the functions for run ends, and chunked arrays of such types.
    compute: Any = pc
    chunked: Callable[..., pa.ChunkedArray[Any]] = pa.chunked_array
    if isinstance(data_type, pa.RunEndEncodedType):
        values = chunked([compute.run_end_decode(chunk) for chunk in chunks], data_type.value_type)
        chunks.clear()
        encoded = [compute.run_end_encode(chunk, data_type.run_end_type) for chunk in values.take(order).chunks]
        return chunked(encoded, data_type)
    if pa.types.is_string_view(data_type) or pa.types.is_binary_view(data_type):
        plain = pa.large_string() if pa.types.is_string_view(data_type) else pa.large_binary()
        cast_ = chunked(chunks, data_type).cast(plain)
        chunks.clear()
        return cast_.take(order).cast(data_type)
    if pa.types.is_nested(data_type):
        # Arrow's take fails on slices of nested fixed-size lists, and doesn't move the values of list views.
        rows = chunked([copy_array(chunk) if chunk.offset else chunk for chunk in chunks], data_type).take(order)
        chunks.clear()
        return chunked([copy_array(chunk) for chunk in rows.chunks], data_type)
    # `take` combines several chunks too, but holds them meanwhile.
    combined = pa.Table.from_arrays([chunked(chunks, data_type)], names=[""]).combine_chunks()
    chunks.clear()
    return combined.column(0).take(order)

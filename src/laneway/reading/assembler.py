"""Rows in memory that are handed out in slices, and how those of several runs are put in another order.

Lists of numbers are copied to their places as soon as a run has been read, so that a window of them is held once. All
other columns are put together and taken in order when all runs are there, one column after the other: to fetch single
numbers from where they are takes a third of the time of bringing them to where they belong, since what is read lies
closer together than what is written.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.convert.column_types import decoded_type
from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.convert.columns import ToStored


@dataclass(frozen=True, slots=True)
class OpenRows:
    """Rows that are handed out in slices."""

    num_rows: int
    """How many."""
    numbers: dict[str, NDArray[Any]]
    """Column -> its numbers, of shape (rows, *shape of one value)."""
    rest: pa.RecordBatch | None
    """The other columns, and maybe more; None: there are none."""


class NotVectorizableError(Exception):
    """Not all numbers of a column can be converted: some of its rows are an error, when they are asked for."""


class WindowAssembler:
    """Rows of several runs on their way to one order. Runs may come in any order, and from several threads."""

    def __init__(self, vectorized: Mapping[str, ToStored], order: NDArray[np.int64], run_rows: Sequence[int]) -> None:
        """Wait for runs.

        Args:
            vectorized: Column -> what makes an array of its numbers, in the order of the schema.
            order: The row of the runs, counted over all of them, that comes at each place; shape (rows,).
            run_rows: Rows of each run.
        """
        self._vectorized = vectorized
        self._order = order
        self._starts = np.concatenate([[0], np.cumsum(run_rows, dtype=np.int64)])
        self._rest: list[pa.Table | None] = [None] * len(run_rows)
        """Columns that are not in their places yet, run by run."""
        self._numbers: dict[str, NDArray[Any]] = {}
        self._num_missing = len(run_rows)
        self._lock = threading.Lock()

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Where each row of the runs comes, -1: nowhere. Only lists are brought there; all else is fetched."""
        places = np.full(self._starts[-1], -1)
        places[self._order] = np.arange(len(self._order))
        return places

    def put(self, run_index: int, table: pa.Table) -> bool:
        """Take the rows of a run, and tell whether it was the last one.

        Raises:
            NotVectorizableError: A null, or a value that can't be converted, is among the lists.
        """
        start = int(self._starts[run_index])
        lists = [name for name in self._vectorized if _is_list(table.schema.field(name).type)]
        if lists:
            # As batches: columns may be cut into chunks each in its own way.
            for batch in table.select(lists).to_batches():
                self._put_lists(start, batch)
                start += len(batch)
        rest = [name for name in table.column_names if name not in lists]
        self._rest[run_index] = table.select(rest) if rest else None
        with self._lock:
            self._num_missing -= 1
            return not self._num_missing

    def _put_lists(self, start: int, batch: pa.RecordBatch) -> None:
        found = {
            name: self._converted(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        with self._lock:
            for name, values in found.items():
                if name not in self._numbers:
                    self._numbers[name] = _empty((len(self._order), *values.shape[1:]), values.dtype)
        places = self._places[start : start + len(batch)]
        is_wanted = None if len(self._order) == self._starts[-1] else places >= 0
        if is_wanted is not None:
            places = places[is_wanted]
        for name, values in found.items():
            self._numbers[name][places] = values if is_wanted is None else values[is_wanted]

    def _converted(self, name: str, column: pa.Array[Any]) -> NDArray[Any]:
        try:
            return self._vectorized[name](column)
        except (NullFoundError, *CONVERSION_ERRORS):
            raise NotVectorizableError from None

    def _fetched(self, name: str, chunks: list[pa.Array[Any]], scratch: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers of a column in their order; the list is emptied, as by `taken`."""
        found = [self._converted(name, chunk) for chunk in chunks]
        values = np.concatenate(found, out=scratch.view(found[0].dtype)[: self._starts[-1]])
        found.clear()
        chunks.clear()
        # "clip" looks at no index, where "raise" copies once more.
        return values.take(self._order, out=_empty((len(self._order),), values.dtype), mode="clip")

    def finish(self) -> list[OpenRows]:
        """Return all rows; several parts only where a column is too long for one.

        Raises:
            NotVectorizableError: A null, or a value that can't be converted, is among the numbers.
        """
        runs = [run for run in self._rest if run is not None]
        self._rest.clear()
        fields = list(runs[0].schema) if runs else []
        columns = [[chunk for run in runs for chunk in run.column(i).chunks] for i in range(len(fields))]
        runs.clear()
        order = cast("pa.Int64Array", pa.array(self._order))
        # Used again by each column, for new memory takes longer than the copying. 16 bytes: no number is larger.
        scratch = np.empty(self._starts[-1], np.complex128)
        found: dict[str, pa.ChunkedArray[Any]] = {}
        for field, chunks in zip(fields, columns, strict=True):
            if field.name in self._vectorized:
                self._numbers[field.name] = self._fetched(field.name, chunks, scratch)
            else:
                found[field.name] = taken(chunks, field.type, order)
        numbers = {name: self._numbers[name] for name in self._vectorized}
        if not found:
            return [OpenRows(len(order), numbers, None)]
        schema = pa.schema([field for field in fields if field.name in found])
        batches = pa.Table.from_arrays([*found.values()], schema=schema).combine_chunks().to_batches()
        starts = accumulate((len(batch) for batch in batches), initial=0)
        return [
            OpenRows(len(batch), {name: all_[start : start + len(batch)] for name, all_ in numbers.items()}, batch)
            for start, batch in zip(starts, batches, strict=False)
        ]


def _is_list(data_type: pa.DataType) -> bool:
    """Return whether values are fixed-size lists, and so worth copying to their places one by one."""
    while (inner := decoded_type(data_type)) is not None:
        data_type = inner
    return isinstance(data_type, pa.FixedSizeListType)


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in memory of Arrow's pool, which gives back and uses again what other threads let go of."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return (
        np.frombuffer(cast("Any", pa.allocate_buffer(num_bytes)), dtype).reshape(shape)
        if num_bytes
        else np.empty(shape, dtype)
    )


def taken(chunks: list[pa.Array[Any]], data_type: Any, order: pa.Int64Array) -> pa.ChunkedArray[Any]:  # noqa: ANN401
    """Return the rows of a column at these places. Unlike `pyarrow.ChunkedArray.take` it knows all types.

    Args:
        chunks: The column. The list is emptied when its values have been copied, so that no more than two copies are
            held where nobody else holds the first.
        data_type: Of the column.
        order: The places.
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
        # Arrow's take goes astray in slices of nested fixed-size lists, and leaves the values of list views in place.
        found = chunked([copied(chunk) if chunk.offset else chunk for chunk in chunks], data_type).take(order)
        chunks.clear()
        return chunked([copied(chunk) for chunk in found.chunks], data_type)
    # Several chunks are put together by `take` too, but while they are held.
    together = pa.Table.from_arrays([chunked(chunks, data_type)], names=[""]).combine_chunks()
    chunks.clear()
    return together.column(0).take(order)


def copied(array: pa.Array[Any]) -> pa.Array[Any]:
    """Return the same values in memory of their own."""
    return pa.concat_arrays([array, array.slice(0, 0)])

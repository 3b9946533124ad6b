"""Arrow record batches become columns of tensors, arrays or Python values: what users see of the conversion."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, final, get_args

import numpy as np
import pyarrow as pa
import torch

from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError, Output, column_converter, vectorized
from laneway.convert.fill import FillNull, fill_scalars
from laneway.errors import ColumnConversionError, SchemaMismatchError
from laneway.reading.assembler import OpenRows, WindowAssembler, copied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from laneway.convert.columns import ColumnConverter

__all__ = ["BatchConverter", "FillNull", "NullInColumnError", "Output"]


class NullInColumnError(ColumnConversionError):
    """A null sits where a tensor or an array has no place for one."""

    # The text alone makes one: DataLoader raises a worker's exception again from its text.
    def __init__(
        self,
        message: str,
        *,
        column: str | None = None,
        type_name: str | None = None,
        row_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.column = column
        """Name of the column."""
        self.type_name = type_name
        """The column's Arrow type as text."""
        self.row_index = row_index
        """Index of the row within the batch that was converted."""

    @classmethod
    def found(cls, column: str, type_name: str, row_index: int, place: str | None = None) -> NullInColumnError:
        """Return the error for a null of `column` in a row, known to users as `place`."""
        place = place or f"row {row_index} of this batch"
        message = (
            f"column {column!r} of type {type_name} has a null in {place}, and numbers in a tensor or an "
            f"array can't be null: say what to put there, as in fill_null={{{column!r}: 0}}, "
            f'or take output="python" or "arrow", which keep nulls'
        )
        return cls(message, column=column, type_name=type_name, row_index=row_index)

    def at(self, place: str) -> NullInColumnError:
        """Return the same error for a row that users know as `place`, such as "row 7 of part-0.parquet"."""
        if self.column is None or self.type_name is None or self.row_index is None:
            return self
        return self.found(self.column, self.type_name, self.row_index, place)


@final
class BatchConverter:
    """Converts the record batches of one schema to what `output` asks for.

    | Arrow type | "torch" | "numpy" |
    |---|---|---|
    | integer, float, bool | tensor of the same dtype | array of the same dtype |
    | timestamp, date | tensor of what Arrow stores | `datetime64` in the type's unit |
    | duration, time of day | tensor of what Arrow stores | `timedelta64` in the type's unit |
    | fixed-size list of these | tensor (rows, size, ...) | array (rows, size, ...) |
    | list of these | list of tensors | list of arrays |
    | all others | list of Python values | array of Python objects |

    What Arrow stores is an int64 in the type's own unit, but an int32 of days for date32 and an int32 for
    time32; date64 is in ms. Times count from 1970-01-01 (UTC, if the type has a time zone) or from midnight.
    Lists may be large, views or nested, and a list that is null is None. Dictionary- and run-end-encoded
    values are decoded, extension types are taken as their storage. "python" makes lists of the values of
    pyarrow's `to_pylist`; "arrow" leaves the batch as it is.

    Numbers are views of the batch's memory if that is writable, so that changing a tensor in place changes
    the batch; bools, filled columns and memory that is read-only are copied. Memory lives as long as its last
    view.

    Args:
        schema: Schema of every batch to come.
        output: "python", "numpy", "torch" or "arrow".
        fill_null: What stands for a null: a mapping from column to value, or one value for every column of
            numbers, bools or times. An integer for a time is in the column's own unit. A fixed-size list of
            numbers that is null is filled in every place; other lists stay None, and are filled inside.

    Raises:
        SchemaMismatchError: `fill_null` names a column that `schema` lacks.
        ColumnConversionError: A fill value does not fit its column; `fill_null` is given with "arrow";
            `output` is unknown; or two columns share a name, of which a dict would lose one.

    Example:
        >>> batch = pa.record_batch({"x": [1, None], "name": ["a", "b"]})
        >>> BatchConverter(batch.schema, "torch", fill_null={"x": -1}).batch(batch)
        {'x': tensor([ 1, -1]), 'name': ['a', 'b']}
    """

    __slots__ = ("_columns", "_output", "_schema", "_vectorized", "_wrap")

    def __init__(self, schema: pa.Schema, output: Output, fill_null: FillNull | None = None) -> None:
        if output not in get_args(Output):
            message = f"output is {output!r}: it must be one of {', '.join(map(repr, get_args(Output)))}"
            raise ColumnConversionError(message)
        if output == "arrow" and fill_null is not None:
            message = 'fill_null has no effect on output="arrow", which keeps nulls: leave one of them out'
            raise ColumnConversionError(message)
        twice = [name for i, name in enumerate(schema.names) if schema.get_field_index(name) != i]
        if twice and output != "arrow":
            message = f'several columns are named {twice[0]!r}: rename them or take output="arrow"'
            raise ColumnConversionError(message)
        fills = fill_scalars(schema, fill_null)
        self._schema = schema
        self._output = output
        converted = () if output == "arrow" else schema
        self._wrap: Callable[[NDArray[Any]], Any] = torch.from_numpy if output == "torch" else _as_it_is
        self._columns = tuple((f.name, column_converter(f.type, output, fills.get(f.name))) for f in converted)
        to_arrays = ((name, vectorized(convert)) for name, convert in self._columns)
        self._vectorized = {name: to_array for name, to_array in to_arrays if to_array is not None}

    def batch(self, batch: pa.RecordBatch) -> dict[str, Any] | pa.RecordBatch:
        """Return the columns of `batch` by name, in the schema's order, or `batch` itself for "arrow".

        Raises:
            NullInColumnError: A null where a tensor or an array needs a value, and no `fill_null` for it.
            ColumnConversionError: A value that Python can't express, such as text that is not UTF-8.
            SchemaMismatchError: `batch` has another schema.
        """
        self._check(batch)
        if self._output == "arrow":
            return batch
        return {
            name: self._convert(name, convert, column)
            for (name, convert), column in zip(self._columns, batch.columns, strict=True)
        }

    def open(self, batch: pa.RecordBatch) -> OpenRows:
        """Return the rows of a batch, to be handed out in slices; what can be converted once for all of them is.

        Raises:
            SchemaMismatchError: `batch` has another schema.
        """
        self._check(batch)
        numbers = {}
        for name, to_array in self._vectorized.items():
            # A null that can't be converted is an error of the slice that it lies in.
            with suppress(NullFoundError, *CONVERSION_ERRORS):
                numbers[name] = to_array(batch.column(name))
        is_all = len(numbers) == len(self._columns) and self._output != "arrow"
        return OpenRows(len(batch), numbers, None if is_all else batch)

    def gathering(
        self, order: NDArray[np.int64], run_rows: Sequence[int], *, vectorized: bool = True
    ) -> WindowAssembler:
        """Return what puts rows of several runs in order; see WindowAssembler.

        Args:
            order: The row of the runs, counted over all of them, that comes at each place; shape (rows,).
            run_rows: Rows of each run.
            vectorized: Whether numbers are converted once, for all slices together.
        """
        return WindowAssembler(self._vectorized if vectorized else {}, order, run_rows)

    def slice(self, rows: OpenRows, start: int, stop: int) -> dict[str, Any] | pa.RecordBatch:
        """Return what `batch` returns for rows [start, stop) of open rows."""
        rest = None if rows.rest is None else rows.rest.slice(start, stop - start)
        if self._output == "arrow" and rest is not None:
            return rest
        numbers, wrap = rows.numbers, self._wrap
        if rest is None:
            return {name: wrap(values[start:stop]) for name, values in numbers.items()}
        return {
            name: wrap(numbers[name][start:stop])
            if name in numbers
            else self._convert(name, convert, rest.column(name))
            for name, convert in self._columns
        }

    def joined(self, parts: Sequence[Any]) -> Any:  # noqa: ANN401 - as `slice` returns
        """Return what `slice` would return for the rows of all its results, of one output, together."""
        if isinstance(parts[0], pa.RecordBatch):
            (batch,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
            return batch
        return {name: _JOIN[type(first)]([part[name] for part in parts]) for name, first in parts[0].items()}

    def copied(self, rows: OpenRows, index: int) -> OpenRows:
        """Return one of open rows by itself, in memory of its own."""
        numbers = {name: values[[index]] for name, values in rows.numbers.items()}
        if rows.rest is None:
            return OpenRows(1, numbers, None)
        rest = [copied(column.slice(index, 1)) for column in rows.rest.columns]
        return OpenRows(1, numbers, pa.RecordBatch.from_arrays(rest, schema=rows.rest.schema))

    def _check(self, batch: pa.RecordBatch) -> None:
        if not batch.schema.equals(self._schema):
            message = (
                f"this batch has another schema than its converter was made for\n"
                f"  converter: {_summary(self._schema)}\n  batch: {_summary(batch.schema)}\n"
                f"make a BatchConverter for the batch's own schema"
            )
            raise SchemaMismatchError(message)

    def _convert(self, name: str, convert: ColumnConverter, column: pa.Array[Any]) -> Any:  # noqa: ANN401
        try:
            return convert(column)
        except NullFoundError as error:
            raise NullInColumnError.found(name, str(column.type), error.index) from None
        except CONVERSION_ERRORS as error:
            message = (
                f"column {name!r} of type {column.type} can't be converted to {self._output!r}: {error}\n"
                f'read without this column, or take output="arrow"'
            )
            raise ColumnConversionError(message) from error

    def rows(self, batch: pa.RecordBatch) -> list[Any]:
        """Return one object per row: a dict of the row's values by column, or a batch of one row for "arrow".

        A row's tensors (of shape () for single numbers) and arrays are views of the columns that `batch`
        would return; single numbers of "numpy" are numpy scalars.

        Raises:
            NullInColumnError: As `batch`.
            ColumnConversionError: As `batch`.
            SchemaMismatchError: As `batch`.
        """
        return _as_rows(self.batch(batch), batch.num_rows)

    def slice_rows(self, rows: OpenRows, start: int, stop: int) -> list[Any]:
        """Return what `rows` returns for rows [start, stop) of open rows."""
        return _as_rows(self.slice(rows, start, stop), stop - start)


def _as_rows(converted: dict[str, Any] | pa.RecordBatch, num_rows: int) -> list[Any]:
    if isinstance(converted, pa.RecordBatch):
        return [converted.slice(i, 1) for i in range(num_rows)]
    if not converted:
        return [{} for _ in range(num_rows)]
    columns = [c.unbind() if isinstance(c, torch.Tensor) else c for c in converted.values()]
    return _row_maker(tuple(converted))(*columns)


@lru_cache(64)
def _row_maker(names: tuple[str, ...]) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that makes of columns a list of rows, each a dict.

    A dict display with the names written out is faster than dict(zip(names, row)).
    """
    values = [f"v{index}" for index in range(len(names))]
    items = ", ".join(f"{name!r}: {value}" for name, value in zip(names, values, strict=True))
    source = f"lambda *columns: [{{{items}}} for {', '.join(values)}, in zip(*columns, strict=True)]"
    maker: Callable[..., list[dict[str, Any]]] = eval(source, {"zip": zip})  # noqa: S307 - names are literals in it
    return maker


def _as_it_is(array: NDArray[Any]) -> NDArray[Any]:
    return array


_JOIN: dict[type, Callable[[list[Any]], Any]] = {
    # By numpy: torch.cat starts threads, for which a batch is too small.
    torch.Tensor: lambda tensors: torch.from_numpy(np.concatenate([tensor.numpy() for tensor in tensors])),
    np.ndarray: np.concatenate,
    list: lambda lists: [*chain.from_iterable(lists)],
}


def _summary(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)

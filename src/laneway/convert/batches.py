"""Conversion of Arrow rows to batches for users: columns of tensors, arrays or Python values."""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, final, get_args

import numpy as np
import pyarrow as pa
import torch

from laneway.convert.arrays import fit, join, record_batch
from laneway.convert.column_types import is_plain_number
from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError, Output, column_converter, vectorize
from laneway.convert.fill import fill_scalars
from laneway.convert.nested import copy_array
from laneway.convert.open_rows import OpenRows
from laneway.errors import ColumnConversionError, NullInColumnError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.convert.columns import ColumnConverter, ToStored
    from laneway.convert.fill import FillNull


@final
class BatchConverter:
    """Converts rows of one schema to tensors, arrays or Python values.

    | Arrow type | "torch" | "numpy" |
    |---|---|---|
    | integer, float, bool | tensor of the same dtype | array of the same dtype |
    | timestamp, date | tensor of the stored integers | `datetime64` in the type's unit |
    | duration, time of day | tensor of the stored integers | `timedelta64` in the type's unit |
    | fixed-size list of these | tensor (rows, size, ...) | array (rows, size, ...) |
    | list of these | list of tensors | list of arrays |
    | all others | list of Python values | array of Python objects |

    Arrow stores times as int64 in the type's own unit, except for date32 (int32 of days), time32 (int32) and
    date64 (int64 of ms). They count from 1970-01-01 (UTC, if the type has a time zone) or from midnight.
    Lists may be large, views or nested; a null list is None. Dictionary- and run-end-encoded values are
    decoded, and extension types are converted as their storage type. "python" returns the values of pyarrow's
    `to_pylist` as lists; "arrow" returns record batches.

    Numbers are views of Arrow's memory if that is writable, so changing a tensor in place changes the batch;
    bools, filled columns and read-only memory are copied. Memory lives as long as its last view.

    Args:
        schema: Schema of all rows.
        output: "python", "numpy", "torch" or "arrow".
        fill_null: Replacement for nulls: a mapping from column to value, or one value for every column of
            numbers, bools or times. An integer for a time is in the column's own unit. A null fixed-size list
            of numbers is filled in every element; other null lists stay None, but nulls inside lists are filled.

    Raises:
        SchemaMismatchError: `fill_null` names a column that is not in `schema`.
        ColumnConversionError: A fill value does not fit its column; `fill_null` is given with "arrow";
            `output` is unknown; or two columns share a name, and a dict can hold only one of them.

    Examples:
        >>> from laneway.convert.open_rows import OpenRows
        >>> batch = pa.record_batch({"x": [1, None], "name": ["a", "b"]})
        >>> converter = BatchConverter(batch.schema, "torch", fill_null={"x": -1})
        >>> converter.to_batch(OpenRows.from_batch(batch, converter.vectorized))
        {'x': tensor([ 1, -1]), 'name': ['a', 'b']}
    """

    __slots__ = ("_columns", "_output", "_schema", "_vectorized", "_wrap")

    def __init__(self, schema: pa.Schema, output: Output, fill_null: FillNull | None = None) -> None:
        if output not in get_args(Output):
            message = f"output is {output!r}, but must be one of {', '.join(map(repr, get_args(Output)))}"
            raise ColumnConversionError(message)
        if output == "arrow" and fill_null is not None:
            message = 'fill_null has no effect on output="arrow", which keeps nulls: omit one of them'
            raise ColumnConversionError(message)
        twice = [name for i, name in enumerate(schema.names) if schema.get_field_index(name) != i]
        if twice and output != "arrow":
            message = f'several columns are named {twice[0]!r}: rename them or use output="arrow"'
            raise ColumnConversionError(message)
        fills = fill_scalars(schema, fill_null)
        self._output = output
        self._schema = schema
        fields = () if output == "arrow" else schema
        self._wrap: Callable[[NDArray[Any]], Any] = torch.from_numpy if output == "torch" else _identity
        self._columns = tuple((f.name, column_converter(f.type, output, fills.get(f.name))) for f in fields)
        to_arrays = ((name, vectorize(convert)) for name, convert in self._columns)
        self._vectorized = {name: to_array for name, to_array in to_arrays if to_array is not None}

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows."""
        return self._schema

    def with_columns(self, extra: pa.Schema) -> BatchConverter:
        """Return a converter of rows that have further columns, in which nothing is null."""
        of_extra = BatchConverter(extra, self._output)
        changed = copy(self)
        changed._schema = pa.schema([*self._schema, *extra])  # noqa: SLF001 - a copy of this object
        changed._columns = self._columns + of_extra._columns  # noqa: SLF001
        changed._vectorized = {**self._vectorized, **of_extra._vectorized}  # noqa: SLF001
        return changed

    @property
    def vectorized(self) -> Mapping[str, ToStored]:
        """Column -> converter to an array that can be sliced into batches: columns to convert once per window."""
        return self._vectorized

    @property
    def is_cheap(self) -> bool:
        """Whether converting rows costs no more than pickling what they are converted to, and finds nothing wrong."""
        fields = {field.name: field.type for field in self._schema}
        others = [name for name, _ in self._columns if name not in self._vectorized]
        return self._output != "arrow" and all(_is_cheap(fields[name], self._output) for name in others)

    def joined(self, parts: Sequence[OpenRows]) -> OpenRows:
        """Return the rows of several parts, at least one, as one part: a copy unless they are adjacent in memory.

        Its `rest` has the columns that are not in `vectorized`.

        Args:
            parts: The rows, in which all columns in `vectorized` are converted already.

        Raises:
            ColumnConversionError: The strings don't fit into one array.
        """
        runs = [parts[0]]
        for part in parts[1:]:
            numbers, rest, start, stop = runs[-1]
            if part.numbers is numbers and part.rest is rest and part.start == stop:
                runs[-1] = OpenRows(numbers, rest, start, part.stop)
            else:
                runs.append(part)
        others = [field for field in self._schema if field.name not in self._vectorized]
        if len(runs) == 1:
            numbers, rest, start, stop = runs[0]
            if rest is not None and rest.num_columns > len(others):
                rest = rest.select([field.name for field in others]) if others else None
            return OpenRows(numbers, rest, start, stop)
        numbers = {
            name: np.concatenate([run.numbers[name][run.start : run.stop] for run in runs]) for name in self._vectorized
        }
        rest = None
        if others:
            rest = record_batch([self._join(runs, field.name, field.type) for field in others], pa.schema(others))
        return OpenRows(numbers, rest, 0, sum(run.num_rows for run in runs))

    def to_batch(self, rows: OpenRows) -> dict[str, Any] | pa.RecordBatch:
        """Return the columns of `rows` by name, in the order of the schema; for "arrow", a record batch.

        Args:
            rows: Rows of the converter's schema, with any of the columns in `vectorized` converted already.

        Raises:
            NullInColumnError: A null where a tensor or an array needs a value, and no `fill_null` for it.
            ColumnConversionError: A value that Python can't represent, such as a string that is not UTF-8.
        """
        (numbers, rest, start, stop), wrap = rows, self._wrap
        if rest is None:
            return {name: wrap(values[start:stop]) for name, values in numbers.items()}
        rest = rest.slice(start, stop - start)
        if self._output == "arrow":
            return rest if rest.schema.equals(self._schema) else self._fit(rest)
        return {
            name: wrap(numbers[name][start:stop])
            if name in numbers
            else self._convert(name, convert, rest.column(name))
            for name, convert in self._columns
        }

    def to_rows(self, rows: OpenRows) -> list[Any]:
        """Return one object per row: a dict of the row's values by column, or a batch of one row for "arrow".

        A row's tensors (of shape () for single numbers) and arrays are views of the columns that `to_batch`
        returns; single numbers of "numpy" are numpy scalars.

        Raises:
            NullInColumnError: As `to_batch`.
            ColumnConversionError: As `to_batch`.
        """
        return self._rows(self.to_batch(rows), rows.num_rows)

    def _rows(self, converted: dict[str, Any] | pa.RecordBatch, num_rows: int) -> list[Any]:
        if isinstance(converted, pa.RecordBatch):
            return [converted.slice(i, 1) for i in range(num_rows)]
        if not converted:
            return [{} for _ in range(num_rows)]
        columns = [c.unbind() if isinstance(c, torch.Tensor) else c for c in converted.values()]
        return _row_builder(tuple(converted))(*columns)

    def gather(self, parts: Sequence[OpenRows]) -> dict[str, Any] | pa.RecordBatch:
        """Return the columns of several parts, at least one, as one batch; see `to_batch`."""
        if len(parts) == 1:
            return self.to_batch(parts[0])
        if self._output == "arrow":
            arrays = [self._join(parts, field.name, field.type) for field in self._schema]
            return record_batch(arrays, self._schema)
        batch: dict[str, Any] = {}
        for name, convert in self._columns:
            to_stored = self._vectorized.get(name)
            if to_stored is None:
                column = self._join(parts, name, self._schema.field(name).type)
                batch[name] = self._convert(name, convert, column)
            else:
                batch[name] = self._wrap(np.concatenate(self._numbers(parts, name, to_stored)))
        return batch

    def gather_rows(self, parts: Sequence[OpenRows]) -> list[Any]:
        """Return one object per row of several parts, at least one; see `to_rows`."""
        return self._rows(self.gather(parts), sum(part.num_rows for part in parts))

    def _numbers(self, parts: Sequence[OpenRows], name: str, to_stored: ToStored) -> list[NDArray[Any]]:
        """Return the numbers of each part of a column."""
        try:
            return [numbers[name][start:stop] for numbers, _, start, stop in parts]
        except KeyError:  # a window with a value that can't be converted
            arrays, num_rows = [], 0
        for part in parts:
            if name in part.numbers:
                arrays.append(part.numbers[name][part.start : part.stop])
            else:
                arrays.append(self._convert(name, to_stored, part.column(name), num_rows))
            num_rows += part.num_rows
        return arrays

    def _join(self, parts: Sequence[OpenRows], name: str, data_type: pa.DataType) -> pa.Array[Any]:
        """Return an Arrow column of several parts."""
        try:
            return join([part.column(name) for part in parts], data_type)
        except pa.ArrowException as error:
            message = (
                f"the rows of column {name!r} of type {data_type} can't be joined to a batch: {error}\n"
                f"read without this column, or with a smaller batch_size"
            )
            raise ColumnConversionError(message) from error

    def _fit(self, rest: pa.RecordBatch) -> pa.RecordBatch:
        """Return a slice of wide columns in the types of the schema, if its own values fit into them."""
        columns = zip(rest.columns, self._schema, strict=True)
        arrays = [
            column if column.type.equals(field.type) else fit(copy_array(column), field.type)
            for column, field in columns
        ]
        return record_batch(arrays, self._schema)

    def _convert(self, name: str, convert: ColumnConverter, column: pa.Array[Any], num_before: int = 0) -> Any:  # noqa: ANN401
        """Return a converted column, whose first row is row `num_before` of the batch."""
        try:
            return convert(column)
        except NullFoundError as error:
            raise NullInColumnError.found(name, str(column.type), num_before + error.index) from None
        except CONVERSION_ERRORS as error:
            message = (
                f"column {name!r} of type {column.type} can't be converted to {self._output!r}: {error}\n"
                f'read without this column, or use output="arrow"'
            )
            raise ColumnConversionError(message) from error


def _is_cheap(data_type: pa.DataType, output: Output) -> bool:
    types = pa.types
    if types.is_string(data_type) or types.is_large_string(data_type):
        return True
    if types.is_binary(data_type) or types.is_large_binary(data_type):
        return True
    return output == "python" and is_plain_number(data_type)


@lru_cache(64)
def _row_builder(names: tuple[str, ...]) -> Callable[..., list[dict[str, Any]]]:
    """Return a function from columns to a list of rows, each a dict.

    A dict display with the names written out is faster than dict(zip(names, row)).
    """
    values = [f"v{index}" for index in range(len(names))]
    items = ", ".join(f"{name!r}: {value}" for name, value in zip(names, values, strict=True))
    source = f"lambda *columns: [{{{items}}} for {', '.join(values)}, in zip(*columns, strict=True)]"
    build: Callable[..., list[dict[str, Any]]] = eval(source, {"zip": zip})  # noqa: S307 - names are literals in it
    return build


def _identity(array: NDArray[Any]) -> NDArray[Any]:
    return array

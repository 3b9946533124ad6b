"""Arrow record batches become columns of tensors, arrays or Python values: what users see of the conversion."""

from __future__ import annotations

from typing import Any, final, get_args

import pyarrow as pa
import torch

from laneway.columns import NullFoundError, Output, column_converter
from laneway.errors import ColumnConversionError, SchemaMismatchError
from laneway.fill import FillNull, fill_scalars

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

    __slots__ = ("_columns", "_output", "_schema")

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
        self._columns = tuple((f.name, column_converter(f.type, output, fills.get(f.name))) for f in converted)

    def batch(self, batch: pa.RecordBatch) -> dict[str, Any] | pa.RecordBatch:
        """Return the columns of `batch` by name, in the schema's order, or `batch` itself for "arrow".

        Raises:
            NullInColumnError: A null where a tensor or an array needs a value, and no `fill_null` for it.
            ColumnConversionError: A value that Python can't express, such as text that is not UTF-8.
            SchemaMismatchError: `batch` has another schema.
        """
        if not batch.schema.equals(self._schema):
            message = (
                f"this batch has another schema than its converter was made for\n"
                f"  converter: {_summary(self._schema)}\n  batch: {_summary(batch.schema)}\n"
                f"make a BatchConverter for the batch's own schema"
            )
            raise SchemaMismatchError(message)
        if self._output == "arrow":
            return batch
        converted: dict[str, Any] = {}
        for (name, convert), column in zip(self._columns, batch.columns, strict=True):
            try:
                converted[name] = convert(column)
            except NullFoundError as error:
                raise NullInColumnError.found(name, str(column.type), error.index) from None
            except (ValueError, ArithmeticError, LookupError, pa.ArrowNotImplementedError) as error:
                message = (
                    f"column {name!r} of type {column.type} can't be converted to {self._output!r}: {error}\n"
                    f'read without this column, or take output="arrow"'
                )
                raise ColumnConversionError(message) from error
        return converted

    def rows(self, batch: pa.RecordBatch) -> list[Any]:
        """Return one object per row: a dict of the row's values by column, or a batch of one row for "arrow".

        A row's tensors (of shape () for single numbers) and arrays are views of the columns that `batch`
        would return; single numbers of "numpy" are numpy scalars.

        Raises:
            NullInColumnError: As `batch`.
            ColumnConversionError: As `batch`.
            SchemaMismatchError: As `batch`.
        """
        converted = self.batch(batch)
        if isinstance(converted, pa.RecordBatch):
            return [batch.slice(i, 1) for i in range(batch.num_rows)]
        if not converted:
            return [{} for _ in range(batch.num_rows)]
        names = tuple(converted)
        columns = [c.unbind() if isinstance(c, torch.Tensor) else c for c in converted.values()]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _summary(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)

"""Arrow record batches become tensors, arrays or Python values, column by column.

What a column becomes is decided once, from its type; a batch then costs a few calls per column. Tensors and
arrays are views of Arrow's memory where that memory may be written to, and copies where it may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast, final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from laneway.errors import ColumnConversionError, SchemaMismatchError

Output = Literal["python", "numpy", "torch", "arrow"]
FillValue = bool | int | float | Decimal | str | bytes | date | time | timedelta
FillNull = Mapping[str, FillValue] | FillValue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # pyarrow's classes are generic in its stubs only.
    _Array = pa.Array[Any]
    _Converter = Callable[[_Array], Any]
    _Dense = Callable[[_Array], NDArray[Any]]


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
        fills = _fills(schema, fill_null)
        self._schema = schema
        self._output = output
        self._columns = tuple((f.name, _converter(f.type, output, fills.get(f.name))) for f in schema)

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
            except _NullFoundError as error:
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


# From a column's type to its converter, once.


def _converter(data_type: pa.DataType, output: Output, fill: pa.Scalar[Any] | None) -> _Converter:
    decode, inner = _encoding(data_type)
    if decode is not None and not (output == "python" and isinstance(data_type, pa.BaseExtensionType)):
        return _Decoded(decode, _converter(inner, output, fill))
    if output in ("numpy", "torch"):
        dense = _dense(data_type, fill)
        if dense is not None:
            return _ToTensor(dense) if output == "torch" else _ToArray(dense, _numpy_dtype(_leaf(data_type)))
        # Fixed-size lists get here if they hold lists, which share no shape.
        if _is_list(data_type) and _is_number(_leaf(data_type)):
            return _ToLists(_converter(_value_type(data_type), output, fill))
    values = _ToValues(data_type, None if fill is None else fill.as_py())
    return _ToObjects(values) if output == "numpy" else values


def _dense(data_type: pa.DataType, fill: pa.Scalar[Any] | None) -> _Dense | None:
    """Return what makes one array of what Arrow stores, or None for types that are no numbers."""
    decode, inner = _encoding(data_type)
    if decode is not None:
        item = _dense(inner, fill)
        return None if item is None else _Decoded(decode, item)
    if isinstance(data_type, pa.FixedSizeListType):
        item = _dense(data_type.value_type, fill)
        return None if item is None else _FixedSizeLists(item, data_type.list_size, _stored(fill))
    if not _is_number(data_type):
        return None
    if pa.types.is_boolean(data_type):
        return _Bools(_stored(fill))
    if pa.types.is_temporal(data_type):
        return _Numbers(np.dtype(f"i{data_type.bit_width // 8}"), _stored(fill))
    return _Numbers(np.dtype(data_type.to_pandas_dtype()), _stored(fill))


def _stored(fill: pa.Scalar[Any] | None) -> Any:  # noqa: ANN401
    """Return the number that Arrow stores for a fill value."""
    if fill is None:
        return None
    return cast("Any", fill).value if pa.types.is_temporal(fill.type) else fill.as_py()


def _numpy_dtype(data_type: pa.DataType) -> np.dtype[Any] | None:
    """Return the dtype of a type of times, or None for a type whose values numpy has as Arrow stores them."""
    if pa.types.is_date(data_type):
        return np.dtype("M8[D]" if pa.types.is_date32(data_type) else "M8[ms]")
    if isinstance(data_type, pa.TimestampType):
        return np.dtype(f"M8[{data_type.unit}]")
    if isinstance(data_type, (pa.DurationType, pa.Time32Type, pa.Time64Type)):
        return np.dtype(f"m8[{data_type.unit}]")
    return None


def _encoding(data_type: pa.DataType) -> tuple[_Converter | None, pa.DataType]:
    """Return what undoes the wrapping of the values, and the type inside; (None, data_type) if none is."""
    if isinstance(data_type, pa.DictionaryType):
        return _decode_dictionary, data_type.value_type
    if isinstance(data_type, pa.RunEndEncodedType):
        return _decode_runs, data_type.value_type
    if isinstance(data_type, pa.BaseExtensionType):
        return _take_storage, data_type.storage_type
    return None, data_type


def _decode_dictionary(array: _Array) -> _Array:
    return cast("pa.DictionaryArray[Any, Any]", array).dictionary_decode()


def _decode_runs(array: _Array) -> _Array:
    return cast("_Array", pc.call_function("run_end_decode", [array]))


def _take_storage(array: _Array) -> _Array:
    return cast("_Array", cast("pa.ExtensionArray[Any]", array).storage)


def _is_list(data_type: pa.DataType) -> bool:
    types = pa.types
    if types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type):
        return True
    return types.is_list_view(data_type) or types.is_large_list_view(data_type)


def _value_type(data_type: pa.DataType) -> pa.DataType:
    return cast("pa.DataType", cast("Any", data_type).value_type)


def _leaf(data_type: pa.DataType) -> pa.DataType:
    """Return the type of the values inside all lists and encodings."""
    while True:
        decode, inner = _encoding(data_type)
        if decode is None and not _is_list(data_type):
            return data_type
        data_type = inner if decode is not None else _value_type(data_type)


def _is_number(data_type: pa.DataType) -> bool:
    """Tell whether a tensor can hold the values: numbers, bools and times, but not calendar intervals."""
    types = pa.types
    if types.is_integer(data_type) or types.is_floating(data_type) or types.is_boolean(data_type):
        return True
    return types.is_temporal(data_type) and not types.is_interval(data_type)


# Fill values, checked once.


def _fills(schema: pa.Schema, fill_null: FillNull | None) -> dict[str, pa.Scalar[Any]]:
    """Return the fill value of each column that has one, in the type of the column's innermost values."""
    if fill_null is None:
        return {}
    if not isinstance(fill_null, Mapping):
        return {field.name: _fill(field, fill_null) for field in schema if _is_number(_leaf(field.type))}
    unknown = sorted(set(fill_null) - set(schema.names))
    if unknown:
        message = f"fill_null names {unknown}, but the columns are {schema.names}: name columns that are read"
        raise SchemaMismatchError(message)
    return {field.name: _fill(field, fill_null[field.name]) for field in schema if field.name in fill_null}


def _fill(field: pa.Field[Any], value: FillValue) -> pa.Scalar[Any]:
    try:
        return _scalar(_leaf(field.type), value.item() if isinstance(value, np.generic) else value)
    except (ValueError, TypeError, ArithmeticError, NotImplementedError) as error:
        message = (
            f"fill_null can't put {value!r} into column {field.name!r} of type {field.type}: {error}\n"
            f"give a value that it holds, column by column if need be: fill_null={{{field.name!r}: ...}}"
        )
        raise ColumnConversionError(message) from error


def _scalar(data_type: pa.DataType, value: FillValue) -> pa.Scalar[Any]:
    """Return `value` as `data_type`, or raise where it would become another value."""
    types = pa.types
    if types.is_nested(data_type) or types.is_null(data_type):
        message = "only numbers, bools, times, text and bytes can be filled in"
        raise TypeError(message)
    if types.is_boolean(data_type) and value in (0, 1):
        return pa.scalar(bool(value), data_type)
    if types.is_integer(data_type) and isinstance(value, float) and value.is_integer():
        value = int(value)
    # Made straight from Python, pyarrow's scalars drop what does not fit; a cast refuses.
    has_fraction = isinstance(value, float) and not types.is_floating(data_type)
    has_fraction = has_fraction or isinstance(value, (date, time, timedelta))
    scalar = pa.scalar(value).cast(data_type) if has_fraction else pa.scalar(value, data_type)
    stored = scalar.as_py()
    loses_time = types.is_date(data_type) and isinstance(value, datetime)
    overflows = isinstance(stored, float) and math.isinf(stored) and value not in (math.inf, -math.inf)
    if stored is None or loses_time or overflows:
        message = f"it would become {stored!r}"
        raise ValueError(message)
    return scalar


# Converters: what runs for every batch.


class _NullFoundError(Exception):
    """A null in the array that a converter was given, on its way up to where the column has a name."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Undoes an encoding, then converts."""

    decode: _Converter
    convert: _Converter

    def __call__(self, array: _Array) -> Any:  # noqa: ANN401
        return self.convert(self.decode(array))


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers and times -> array (rows,)."""

    dtype: np.dtype[Any]
    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        values = _view(array, self.dtype)
        return _filled(values, array, self.fill) if array.null_count else values


@dataclass(frozen=True, slots=True)
class _Bools:
    """Bools, which Arrow packs into bits -> array (rows,)."""

    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        if not array.null_count:
            return array.to_numpy(zero_copy_only=False)
        values = array.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
        return _filled(values, array, self.fill)


@dataclass(frozen=True, slots=True)
class _FixedSizeLists:
    """Fixed-size lists -> array (rows, size, *shape of one value)."""

    convert: _Dense
    size: int
    fill: Any

    def __call__(self, array: _Array) -> NDArray[Any]:
        num_rows = len(array)
        nulls = array.null_count
        if nulls and self.fill is None:
            index = _first_null(array)
            self(array.slice(0, index))  # A null inside an earlier row comes first.
            raise _NullFoundError(index)
        # `.values` does not know of slices, and `.flatten()` leaves null rows out.
        inside = cast("pa.FixedSizeListArray[Any, Any]", array).values
        try:
            values = self.convert(inside.slice(array.offset * self.size, num_rows * self.size))
        except _NullFoundError as error:
            raise _NullFoundError(error.index // self.size) from None
        values = values.reshape(num_rows, self.size, *values.shape[1:])
        return _filled(values, array, self.fill) if nulls else values


@dataclass(frozen=True, slots=True)
class _ToTensor:
    """Array -> tensor."""

    dense: _Dense

    def __call__(self, array: _Array) -> torch.Tensor:
        return torch.from_numpy(self.dense(array))


@dataclass(frozen=True, slots=True)
class _ToArray:
    """Array -> the same in numpy's dtype for times, if it is one of times."""

    dense: _Dense
    dtype: np.dtype[Any] | None

    def __call__(self, array: _Array) -> NDArray[Any]:
        values = self.dense(array)
        return values if self.dtype is None else values.astype(np.int64, copy=False).view(self.dtype)


@dataclass(frozen=True, slots=True)
class _ToLists:
    """Lists -> list of views, one per row, of what all their values become; None for a null list."""

    convert: _Converter

    def __call__(self, array: _Array) -> list[Any]:
        sizes = [size or 0 for size in pc.list_value_length(array).to_pylist()]
        stops = np.cumsum(sizes, dtype=np.int64)
        try:
            values = self.convert(cast("pa.ListArray[Any]", array).flatten())
        except _NullFoundError as error:
            raise _NullFoundError(int(np.searchsorted(stops, error.index, "right"))) from None
        rows = _split(values, sizes, stops.tolist())
        if array.null_count:
            valid = array.is_valid().to_pylist()
            return [row if is_row else None for row, is_row in zip(rows, valid, strict=True)]
        return rows


def _split(values: torch.Tensor | Sequence[Any], sizes: list[int], stops: list[int]) -> list[Any]:
    if isinstance(values, torch.Tensor):
        return list(values.split_with_sizes(sizes))
    return [values[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


@dataclass(frozen=True, slots=True)
class _ToValues:
    """Anything -> list of Python values."""

    data_type: pa.DataType
    fill: Any

    def __call__(self, array: _Array) -> list[Any]:
        values = array.to_pylist()
        return values if self.fill is None else _filled_values(values, self.data_type, self.fill)


@dataclass(frozen=True, slots=True)
class _ToObjects:
    """List of Python values -> array (rows,) of objects."""

    convert: _ToValues

    def __call__(self, array: _Array) -> NDArray[Any]:
        return np.fromiter(self.convert(array), dtype=object, count=len(array))


def _view(array: _Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the stored values of `array` as a writable view of its memory, or a copy if it is read-only."""
    count = len(array)
    buffer: Any = array.buffers()[1]
    values: NDArray[Any]
    if count == 0 or buffer is None:
        return np.empty(0, dtype)
    start = array.offset * dtype.itemsize
    # Arrow calls every slice of a buffer read-only; what it was sliced from knows whether its memory is.
    owner = buffer
    while not owner.is_mutable:
        if owner.parent is None:
            values = np.frombuffer(buffer, dtype, count, start)
            return values.copy()
        owner = owner.parent
    values = np.frombuffer(owner, dtype, count, buffer.address - owner.address + start)
    return values


def _first_null(array: _Array) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))


def _filled(values: NDArray[Any], array: _Array, fill: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return a copy of `values` with `fill` where `array` is null."""
    if fill is None:
        raise _NullFoundError(_first_null(array))
    values = values.copy()
    values[array.is_null().to_numpy(zero_copy_only=False)] = fill
    return values


def _filled_values(values: list[Any], data_type: pa.DataType, fill: Any) -> list[Any]:  # noqa: ANN401
    """Return Python values with `fill` for None, inside lists too; a list of free size stays None."""
    decode, inner = _encoding(data_type)
    if decode is not None:
        return _filled_values(values, inner, fill)
    if not _is_list(data_type):
        return [fill if value is None else value for value in values]
    item = _value_type(data_type)
    if isinstance(data_type, pa.FixedSizeListType) and _filled_values([None], item, fill) != [None]:
        values = [[None] * data_type.list_size if row is None else row for row in values]
    return [None if row is None else _filled_values(row, item, fill) for row in values]

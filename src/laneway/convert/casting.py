"""Casts of columns to other types, as pyarrow's with `safe=True`, for more types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from laneway.convert.arrays import decode, fit
from laneway.convert.column_types import decoded_type
from laneway.formats.nested_types import nullable, storage_type

if TYPE_CHECKING:
    # pyarrow's classes are generic in its stubs only.
    _Array = pa.Array[Any]
    _Column = pa.ChunkedArray[Any]


_nulls: Any = pa.nulls


def cast_column(column: _Column, data_type: pa.DataType) -> _Column:
    """Return a column in another type.

    Raises:
        pa.ArrowException: A value does not fit, or no column of this type can be cast.
    """
    chunks: Any = pa.chunked_array
    return cast("_Column", chunks([_cast(chunk, data_type) for chunk in column.chunks], data_type))


def cast_problem(source: pa.DataType, target: pa.DataType) -> str | None:
    """Return why no column of one type can be cast to another, or None if it depends on the values."""
    try:
        # A null, because Arrow casts an empty array even to types to which it can't cast a value.
        _cast(_nulls(1, source), nullable(target))
    except pa.ArrowException as error:
        return str(error)
    return None


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type of a column that has either type in the files, or None if they differ.

    Whether nested values may be null makes no difference, and neither do extension types, which are known only to
    processes that have registered them.
    """
    if first.equals(second):
        return first
    found, other = (nullable(storage_type(each)) for each in (first, second))
    return found if found.equals(other) else None


def _cast(array: _Array, data_type: pa.DataType) -> _Array:
    if nullable(storage_type(array.type)).equals(storage_type(data_type)):
        return fit(array, data_type)
    if pa.types.is_null(array.type):
        nulls: _Array = _nulls(len(array), data_type)
        return nulls
    try:
        return array.cast(data_type)
    except pa.ArrowNotImplementedError:
        # Arrow doesn't decode all encodings when it casts, nor encode all values.
        if decoded_type(array.type) is not None:
            return _cast(decode(array), data_type)
        decoded = decoded_type(data_type)
        if decoded is None:
            raise
    found = fit(_cast(array, decoded), data_type)
    if not found.type.equals(data_type):
        message = f"the rows have more values than {data_type} can hold"
        raise pa.ArrowInvalid(message)
    return found

"""Fill values, which replace nulls: checked once against the types of the columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pyarrow as pa

from laneway.convert.column_types import decoded_type, innermost_type, is_number, value_type
from laneway.errors import ColumnConversionError, SchemaMismatchError

FillValue = bool | int | float | Decimal | str | bytes | date | time | timedelta
FillNull = Mapping[str, FillValue] | FillValue


def fill_scalars(schema: pa.Schema, fill_null: FillNull | None) -> dict[str, pa.Scalar[Any]]:
    """Return the fill value of each column that has one, in the type of the column's innermost values.

    Args:
        schema: Schema of the columns.
        fill_null: A mapping from column to value, or one value for every column of numbers, bools or times.

    Raises:
        SchemaMismatchError: `fill_null` names a column that is not in `schema`.
        ColumnConversionError: A column can't hold its fill value without changing it.
    """
    if fill_null is None:
        return {}
    if not isinstance(fill_null, Mapping):
        return {field.name: _fill_scalar(field, fill_null) for field in schema if is_number(innermost_type(field.type))}
    unknown = sorted(set(fill_null) - set(schema.names))
    if unknown:
        message = f"fill_null names {unknown}, but the columns are {schema.names}: name only columns that are read"
        raise SchemaMismatchError(message)
    return {field.name: _fill_scalar(field, fill_null[field.name]) for field in schema if field.name in fill_null}


def stored_number(fill: pa.Scalar[Any] | None) -> Any:  # noqa: ANN401
    """Return the number that Arrow stores for a fill value: for a time, an int in its type's unit."""
    if fill is None:
        return None
    return cast("Any", fill).value if pa.types.is_temporal(fill.type) else fill.as_py()


def fill_nulls(values: list[Any], data_type: pa.DataType, fill: Any) -> list[Any]:  # noqa: ANN401
    """Replace None with `fill`, also inside lists; a list of variable size that is None stays None."""
    encoded = decoded_type(data_type)
    if encoded is not None:
        return fill_nulls(values, encoded, fill)
    inner = value_type(data_type)
    if inner is None:
        return [fill if value is None else value for value in values]
    if isinstance(data_type, pa.FixedSizeListType) and fill_nulls([None], inner, fill) != [None]:
        values = [[None] * data_type.list_size if row is None else row for row in values]
    return [None if row is None else fill_nulls(row, inner, fill) for row in values]


def _fill_scalar(field: pa.Field[Any], value: FillValue) -> pa.Scalar[Any]:
    try:
        return _scalar(innermost_type(field.type), value.item() if isinstance(value, np.generic) else value)
    except (ValueError, TypeError, ArithmeticError, NotImplementedError) as error:
        message = (
            f"fill_null can't put {value!r} into column {field.name!r} of type {field.type}: {error}\n"
            f"give a value that the type can hold, for each column if necessary: fill_null={{{field.name!r}: ...}}"
        )
        raise ColumnConversionError(message) from error


def _scalar(data_type: pa.DataType, value: FillValue) -> pa.Scalar[Any]:
    """Return `value` as a scalar of `data_type`, or raise an error if that would change it."""
    types = pa.types
    if types.is_nested(data_type) or types.is_null(data_type):
        message = "only numbers, bools, times, strings and bytes can be filled in"
        raise TypeError(message)
    if types.is_boolean(data_type) and value in (0, 1):
        return pa.scalar(bool(value), data_type)
    if types.is_integer(data_type) and isinstance(value, float) and value.is_integer():
        value = int(value)
    # pa.scalar silently truncates a value that doesn't fit the type; a cast raises.
    must_cast = isinstance(value, (date, time, timedelta))
    must_cast = must_cast or (isinstance(value, float) and not types.is_floating(data_type))
    scalar = pa.scalar(value).cast(data_type) if must_cast else pa.scalar(value, data_type)
    stored = scalar.as_py()
    loses_time = types.is_date(data_type) and isinstance(value, datetime)
    overflows = isinstance(stored, float) and math.isinf(stored) and value not in (math.inf, -math.inf)
    if stored is None or loses_time or overflows:
        message = f"it would become {stored!r}"
        raise ValueError(message)
    return scalar

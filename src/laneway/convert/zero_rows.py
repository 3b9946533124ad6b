"""A row of a schema in which all values are zero or empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as kinds

if TYPE_CHECKING:
    from collections.abc import Callable

# The stubs of pyarrow accept fewer types here.
_array: Any = pa.array
_nulls: Any = pa.nulls

_ZEROS: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
    (kinds.is_boolean, False),
    (kinds.is_floating, 0.0),
    (lambda type_: kinds.is_integer(type_) or kinds.is_decimal(type_) or kinds.is_temporal(type_), 0),
    (lambda type_: kinds.is_string(type_) or kinds.is_large_string(type_) or kinds.is_string_view(type_), ""),
    (lambda type_: kinds.is_binary(type_) or kinds.is_large_binary(type_) or kinds.is_binary_view(type_), b""),
    (lambda type_: kinds.is_list(type_) or kinds.is_large_list(type_) or kinds.is_map(type_), []),
)


def zero_row(schema: pa.Schema) -> pa.RecordBatch:
    """Return one row: numbers and times are 0, strings and lists empty, and other values null."""
    return pa.RecordBatch.from_arrays([_zero_array(type_) for type_ in schema.types], schema=schema)


def _zero_array(type_: pa.DataType) -> Any:  # noqa: ANN401 - an array
    try:
        return _array([_zero(type_)], type_)
    except (pa.ArrowException, TypeError, ValueError):
        return _nulls(1, type_)


def _zero(type_: Any) -> Any:  # noqa: ANN401 - a type, and a value
    if kinds.is_dictionary(type_):
        return _zero(type_.value_type)
    if kinds.is_fixed_size_list(type_):
        return [_zero(type_.value_type)] * type_.list_size
    if kinds.is_struct(type_):
        return {field.name: _zero(field.type) for field in type_}
    if kinds.is_fixed_size_binary(type_) and not kinds.is_decimal(type_):
        return bytes(type_.byte_width)
    return next((zero for is_kind, zero in _ZEROS if is_kind(type_)), None)

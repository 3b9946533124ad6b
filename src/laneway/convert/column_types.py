"""Arrow types of columns: the encodings and lists around their values, and the numpy dtype of the values."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa

_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)


def decoded_type(data_type: pa.DataType) -> pa.DataType | None:
    """Return the value type of a dictionary, run-end-encoded or extension type, or None for any other type."""
    if isinstance(data_type, (pa.DictionaryType, pa.RunEndEncodedType)):
        return cast("pa.DataType", data_type.value_type)
    if isinstance(data_type, pa.BaseExtensionType):
        return data_type.storage_type
    return None


def value_type(data_type: pa.DataType) -> pa.DataType | None:
    """Return the type of the values of a list of any kind, or None for any other type."""
    return cast("pa.DataType", data_type.value_type) if isinstance(data_type, _LISTS) else None


def fixed_width(data_type: pa.DataType) -> int | None:
    """Return the bytes of a value in an array of numbers, or None for a type of other values, or of any length."""
    inner = decoded_type(data_type)
    if inner is not None:
        return fixed_width(inner)
    if isinstance(data_type, pa.FixedSizeListType):
        width = fixed_width(data_type.value_type)
        return None if width is None else width * data_type.list_size
    return stored_dtype(data_type).itemsize if is_number(data_type) else None


def innermost_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type of the values inside all lists and encodings."""
    for inner in (decoded_type(data_type), value_type(data_type)):
        if inner is not None:
            return innermost_type(inner)
    return data_type


def is_number(data_type: pa.DataType) -> bool:
    """Return whether a tensor can hold the values: numbers, bools and times, but not calendar intervals."""
    types = pa.types
    if types.is_integer(data_type) or types.is_floating(data_type) or types.is_boolean(data_type):
        return True
    return types.is_temporal(data_type) and not types.is_interval(data_type)


def is_plain_number(data_type: pa.DataType) -> bool:
    """Return whether numpy and Arrow convert numbers of this type to the same Python numbers."""
    types = pa.types
    return types.is_integer(data_type) or types.is_float32(data_type) or types.is_float64(data_type)


def stored_dtype(data_type: pa.DataType) -> np.dtype[Any]:
    """Return the dtype of the numbers that Arrow stores, for a type for which `is_number` is true."""
    if pa.types.is_temporal(data_type):
        return np.dtype(f"i{data_type.bit_width // 8}")
    return pa.array([], data_type).to_numpy(zero_copy_only=False).dtype


def time_dtype(data_type: pa.DataType) -> np.dtype[Any] | None:
    """Return the datetime64 or timedelta64 dtype of a type of times, with its unit, or None for any other type."""
    if pa.types.is_date(data_type):
        return np.dtype("M8[D]" if pa.types.is_date32(data_type) else "M8[ms]")
    if isinstance(data_type, pa.TimestampType):
        return np.dtype(f"M8[{data_type.unit}]")
    if isinstance(data_type, (pa.DurationType, pa.Time32Type, pa.Time64Type)):
        return np.dtype(f"m8[{data_type.unit}]")
    return None

"""Nested Arrow arrays: their children, their offsets, and arrays of the same shape with other children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pyarrow as pa

from laneway.formats.nested_types import with_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    # pyarrow's classes are generic in its stubs only, which also lack some of them.
    _Array = Any
    _Type = Any

_OWN_BUFFERS: Final[Sequence[tuple[type, int]]] = (
    (pa.MapType, 2),
    (pa.ListType, 2),
    (pa.LargeListType, 2),
    (pa.ListViewType, 3),
    (pa.LargeListViewType, 3),
    (pa.FixedSizeListType, 1),
    (pa.StructType, 1),
    (pa.DenseUnionType, 3),
    (pa.SparseUnionType, 2),
)


def copy_array(array: pa.Array[Any]) -> pa.Array[Any]:
    """Return the values of an array in memory of their own."""
    return pa.concat_arrays([array, array.slice(0, 0)])


def offsets_of(array: _Array) -> NDArray[Any]:
    """Return the offsets of a list, map, string or binary array, including those before its own offset."""
    is_large = isinstance(array.type, pa.LargeListType) or array.type in {pa.large_string(), pa.large_binary()}
    return np.frombuffer(array.buffers()[1], np.int64 if is_large else np.int32)


def extent_of(array: _Array) -> int:
    """Return the bytes of an array of strings, or the number of values in an array of lists."""
    if not len(array):
        return 0
    if isinstance(array.type, (pa.ListViewType, pa.LargeListViewType)):
        return len(array.values)
    offsets = offsets_of(array)
    return int(offsets[array.offset + len(array)] - offsets[array.offset])


def without_offset(array: _Array) -> _Array:
    """Return a nested array whose first row begins with the first values of its children."""
    is_list = isinstance(array.type, (pa.ListType, pa.LargeListType)) and len(array) > 0
    # Maps always: their keys may be slices, which Arrow's accessor ignores.
    must_copy = array.offset or isinstance(array.type, pa.MapType) or (is_list and offsets_of(array)[0])
    return copy_array(array) if must_copy else array


def child_fields(data_type: _Type) -> list[Any]:
    """Return the fields of the children of a nested type."""
    return [data_type.field(i) for i in range(data_type.num_fields)]


def children_of(array: _Array) -> list[_Array]:
    """Return the children of a nested array, cut to the values that its rows have."""
    data_type = array.type
    if isinstance(data_type, pa.FixedSizeListType):
        size = data_type.list_size
        return [array.values.slice(array.offset * size, len(array) * size)]
    if isinstance(data_type, (pa.ListType, pa.LargeListType, pa.MapType)):
        first = offsets_of(array)[array.offset] if len(array) else 0
        return [array.values.slice(int(first), extent_of(array))]
    if isinstance(data_type, (pa.ListViewType, pa.LargeListViewType)):
        return [array.values]
    return [array.field(i) for i in range(data_type.num_fields)]


def with_children(data_type: _Type, types: Sequence[_Type]) -> _Type:
    """Return a nested type with children of other types."""
    fields = [field.with_type(type_) for field, type_ in zip(child_fields(data_type), types, strict=True)]
    return with_fields(data_type, fields)


def is_short_list(data_type: _Type) -> bool:
    """Return whether a type is one of lists with 32-bit offsets."""
    return isinstance(data_type, (pa.ListType, pa.ListViewType))


def large_list(data_type: _Type) -> _Type:
    """Return the type of lists with 64-bit offsets of the same values."""
    make = pa.large_list if isinstance(data_type, pa.ListType) else pa.large_list_view
    return make(data_type.value_field)


def rebuild(array: _Array, data_type: _Type, children: Sequence[_Array]) -> _Array:
    """Return a nested array without an offset, with other children and, for lists, offsets of another size."""
    (count,) = (count for class_, count in _OWN_BUFFERS if isinstance(array.type, class_))
    buffers = array.buffers()[:count]
    if is_short_list(data_type) is not is_short_list(array.type):
        old, new = (np.int32, np.int64) if is_short_list(array.type) else (np.int64, np.int32)
        buffers[1:] = [pa.py_buffer(cast("Any", np.frombuffer(buffer, old).astype(new))) for buffer in buffers[1:]]
    return pa.Array.from_buffers(data_type, len(array), buffers, array.null_count, 0, list(children))

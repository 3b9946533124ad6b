"""Arrays of any Arrow type are decoded, joined, and put in another order.

Arrow fails on some valid columns: it takes no rows from views inside lists, and joining overflows if strings need
larger offsets, or dictionaries larger indices, than their type has. So arrays are first cast to *plain* types, which
Arrow handles, and to wider ones if all of them together need that. `fit` casts them back to the type of their column.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.convert.column_types import decoded_type
from laneway.convert.nested import (
    child_fields,
    children_of,
    copy_array,
    extent_of,
    is_short_list,
    large_list,
    rebuild,
    with_children,
    without_offset,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    # pyarrow's classes are generic in its stubs only, which also lack some of them.
    _Array = Any
    _Type = Any

MAX_OFFSET: Final = 2**31 - 1
"""Largest 32-bit offset: strings of more bytes, and lists of more values, need the large types."""

_compute: Any = pc
_dictionary_array: Any = pa.DictionaryArray.from_arrays
_LARGE_FOR_VIEWS: Final[dict[_Type, _Type]] = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
_LARGE: Final[dict[_Type, _Type]] = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def decode(array: pa.Array[Any]) -> pa.Array[Any]:
    """Return the plain values of an array, which may be of a dictionary, run-end-encoded or extension type."""
    if isinstance(array, pa.ExtensionArray):
        return cast("pa.Array[Any]", array.storage)
    if isinstance(array, pa.DictionaryArray):
        return cast("pa.Array[Any]", _take(_plain(array.dictionary), array.indices))
    return cast("pa.Array[Any]", _decode_runs(array)) if isinstance(array, pa.RunEndEncodedArray) else array


def join(chunks: list[pa.Array[Any]], data_type: pa.DataType) -> pa.Array[Any]:
    """Return the rows of all chunks as one array, of `data_type`, or of a wider type if together they need one.

    Args:
        chunks: The column. The list is emptied as soon as its values have been copied, so that no more than two copies
            are in memory if the caller holds no other reference to the chunks.
        data_type: Type of the column.

    Raises:
        pa.ArrowException: Arrow can't join arrays of this type.
    """
    if len(chunks) == 1:
        return chunks.pop()
    return fit(_join_plain(chunks, data_type), data_type)


def take_rows(chunks: list[pa.Array[Any]], data_type: pa.DataType, order: pa.Int64Array) -> pa.Array[Any]:
    """Return the rows of a column at the given indices, of `data_type`, or of a wider type if they need one.

    Args:
        chunks: The column; the list is emptied, as `join` does.
        data_type: Type of the column.
        order: The indices.

    Raises:
        pa.ArrowException: Arrow can't join arrays of this type, or take rows from them.
    """
    return fit(_take(_join_plain(chunks, data_type), order), data_type)


def filter_rows(table: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
    """Return the rows of a table for which a mask is true, in its types, or in wider ones if they need these."""
    try:
        return table.filter(pa.array(mask))
    except pa.ArrowNotImplementedError:  # string views, at any depth
        order = cast("pa.Int64Array", pa.array(np.flatnonzero(mask)))
        columns = zip(table.columns, table.schema, strict=True)
        arrays = [take_rows(column.chunks, field.type, order) for column, field in columns]
        return pa.Table.from_batches([record_batch(arrays, table.schema)])


def fit(array: pa.Array[Any], data_type: pa.DataType) -> pa.Array[Any]:
    """Return an array in `data_type`, or in the closest wider type if its values need one.

    Args:
        array: Values of the column. Copy a slice first: fitting it would otherwise count the values of the rest.
        data_type: The type of the column that they come from.
    """
    return cast("pa.Array[Any]", _fit(array, data_type))


def record_batch(arrays: Sequence[pa.Array[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch of columns, which may be of wider types than the schema's."""
    fields = [field.with_type(array.type) for field, array in zip(schema, arrays, strict=True)]
    return pa.RecordBatch.from_arrays(list(arrays), schema=pa.schema(fields, cast("Any", schema.metadata)))


# -- Plain arrays -----------------------------------------------------------------------------------------------------


def _plain(array: _Array) -> _Array:
    return _cast(array, _plain_type(array.type))


def _plain_type(data_type: _Type) -> _Type:
    """Return the type in which Arrow can take rows: without views, runs, extensions and dictionaries of such values."""
    # Extension types may not be hashable, all other types are.
    is_extension = isinstance(data_type, pa.BaseExtensionType)
    return _plain_type(data_type.storage_type) if is_extension else _cached_plain_type(data_type)


@lru_cache(4096)
def _cached_plain_type(data_type: _Type) -> _Type:
    if isinstance(data_type, pa.RunEndEncodedType):
        return _plain_type(data_type.value_type)
    if isinstance(data_type, pa.DictionaryType):
        value_type = _plain_type(data_type.value_type)
        if pa.types.is_nested(value_type) or isinstance(value_type, pa.DictionaryType):
            return value_type  # Arrow can't unify dictionaries of these
        return pa.dictionary(data_type.index_type, value_type, data_type.ordered)
    if pa.types.is_nested(data_type):
        return with_children(data_type, [_plain_type(child.type) for child in child_fields(data_type)])
    return _LARGE_FOR_VIEWS.get(data_type, data_type)


def _is_fixed_width(data_type: _Type) -> bool:
    """Return whether arrays of the type can be joined and taken as they are, whatever their length."""
    types = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return False
    return types.is_primitive(data_type) or types.is_null(data_type) or types.is_fixed_size_binary(data_type)


def _join_plain(chunks: list[_Array], data_type: _Type) -> _Array:
    """Return all rows as one plain array, of a wider type if together they need one; empties `chunks`."""
    if not chunks:
        return pa.nulls(0, _plain_type(data_type))
    if not _is_fixed_width(data_type):
        plain = [_plain(chunk) for chunk in _drain(chunks)]
        common = reduce(_common_type, (array.type for array in plain))
        plain = [_cast(array, common) for array in _drain(plain)]
        wide_type = _wide_type(common, plain)
        chunks.extend(_cast(array, wide_type) for array in _drain(plain))
    joined = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    chunks.clear()
    return joined


def _drain(arrays: list[_Array]) -> list[_Array]:
    drained = arrays[:]
    arrays.clear()
    return drained


def _take(array: _Array, indices: _Array) -> _Array:
    """Return the rows of a plain array at the given indices."""
    if pa.types.is_nested(array.type):
        # Arrow's take fails on slices of nested fixed-size lists, and doesn't move the values of list views.
        taken = (copy_array(array) if array.offset else array).take(indices)
        return copy_array(taken) if _has_list_views(array.type) else taken
    return array.take(indices)


def _has_list_views(data_type: _Type) -> bool:
    if isinstance(data_type, (pa.ListViewType, pa.LargeListViewType)):
        return True
    return pa.types.is_nested(data_type) and any(_has_list_views(child.type) for child in child_fields(data_type))


def _decode_runs(array: _Array) -> _Array:
    values = _plain(array.values)
    positions = pa.array(np.arange(len(values)))
    runs: _Array = pa.RunEndEncodedArray.from_arrays(array.run_ends, positions)
    return _take(values, _compute.run_end_decode(runs.slice(array.offset, len(array))))


# -- Wider types ------------------------------------------------------------------------------------------------------


def _wide_type(data_type: _Type, arrays: Sequence[_Array]) -> _Type:
    """Return the plain type that holds the rows of all arrays, with larger offsets and indices if needed."""
    arrays = [array for array in arrays if len(array)]
    if len(arrays) < 2 or _is_fixed_width(data_type):  # noqa: PLR2004 - a single array fits its own type
        return data_type
    if data_type in _LARGE:
        return _LARGE[data_type] if sum(extent_of(array) for array in arrays) > MAX_OFFSET else data_type
    if isinstance(data_type, pa.DictionaryType):
        return _wide_dictionary_type(data_type, [array.dictionary for array in arrays])
    if not pa.types.is_nested(data_type):
        return data_type
    children = zip(*(children_of(array) for array in arrays), strict=True)
    types = [_wide_type(part[0].type, part) for part in children]
    if is_short_list(data_type) and sum(map(extent_of, arrays)) > MAX_OFFSET:
        return large_list(with_children(data_type, types))
    return with_children(data_type, types)


def _wide_dictionary_type(data_type: _Type, dictionaries: Sequence[_Array]) -> _Type:
    value_type = _wide_type(data_type.value_type, dictionaries)
    num_values = sum(map(len, dictionaries))
    has_nulls = any(each.null_count for each in dictionaries)
    is_too_long = num_values - 1 > _max_index(data_type.index_type)
    if not (has_nulls or is_too_long) or all(each.equals(dictionaries[0]) for each in dictionaries):
        return pa.dictionary(data_type.index_type, value_type, data_type.ordered)
    if has_nulls:  # Arrow can't unify dictionaries with nulls
        return _LARGE.get(value_type, value_type)
    return pa.dictionary(_index_type(num_values), value_type, data_type.ordered)


def _common_type(first: _Type, second: _Type) -> _Type:
    """Return the wider one of two plain types of a column, at any depth."""
    if first.equals(second):
        return first
    if isinstance(first, pa.DictionaryType) and isinstance(second, pa.DictionaryType):
        index_type = max(first.index_type, second.index_type, key=_max_index)
        return pa.dictionary(index_type, _common_type(first.value_type, second.value_type), first.ordered)
    if isinstance(first, pa.DictionaryType) or isinstance(second, pa.DictionaryType):
        return _common_type(*(decoded_type(each) or each for each in (first, second)))
    if not pa.types.is_nested(first):
        return _LARGE.get(first, first)
    types = map(_common_type, *([field.type for field in child_fields(each)] for each in (first, second)))
    return with_children(second if is_short_list(first) else first, [*types])


def _max_index(index_type: _Type) -> int:
    num_bits: int = index_type.bit_width - pa.types.is_signed_integer(index_type)
    return 2**num_bits - 1 if num_bits else 0


def _index_type(num_values: int) -> _Type:
    return pa.int32() if num_values <= _max_index(pa.int32()) else pa.int64()


# -- From a type to another of the same shape -------------------------------------------------------------------------


def _cast(array: _Array, data_type: _Type) -> _Array:
    """Return an array in a plain type, which has no smaller offsets or indices than its own."""
    if array.type.equals(data_type):
        return array
    is_dictionary = isinstance(data_type, pa.DictionaryType)
    if decoded_type(array.type) is not None and not (is_dictionary and isinstance(array, pa.DictionaryArray)):
        return _cast(decode(array), data_type)
    if is_dictionary:
        indices, dictionary = array.indices.cast(data_type.index_type), _cast(array.dictionary, data_type.value_type)
        return _dictionary_array(indices, dictionary, ordered=data_type.ordered)
    if not pa.types.is_nested(data_type):
        return array.cast(data_type)
    if not len(array):
        return pa.nulls(0, data_type)
    array = without_offset(array)
    types = [field.type for field in child_fields(data_type)]
    return rebuild(array, data_type, [*map(_cast, children_of(array), types)])


def _fit(array: _Array, data_type: _Type) -> _Array:
    if array.type.equals(data_type):
        return array
    if isinstance(array, pa.ExtensionArray) or isinstance(data_type, pa.BaseExtensionType):
        return _fit_extension(array, data_type)
    if isinstance(data_type, pa.RunEndEncodedType):
        return _fit_runs(array, data_type)
    if isinstance(data_type, pa.DictionaryType):
        return _fit_dictionary(array if isinstance(array, pa.DictionaryArray) else _encode(array), data_type)
    if pa.types.is_nested(data_type):
        return _fit_nested(array, data_type)
    is_too_long = data_type in _LARGE and extent_of(array) > MAX_OFFSET
    return array if is_too_long else array.cast(data_type)


def _fit_nested(array: _Array, data_type: _Type) -> _Array:
    if not len(array):
        return pa.nulls(0, data_type)
    array = without_offset(array)
    types = [field.type for field in child_fields(data_type)]
    children = [*map(_fit, children_of(array), types)]
    fitted = with_children(data_type, [child.type for child in children])
    if is_short_list(data_type) and len(children[0]) > MAX_OFFSET:
        fitted = large_list(fitted)
    return rebuild(array, fitted, children)


def _fit_extension(array: _Array, data_type: _Type) -> _Array:
    values = array.storage if isinstance(array, pa.ExtensionArray) else array
    if not isinstance(data_type, pa.BaseExtensionType):
        return _fit(values, data_type)
    storage = _fit(values, data_type.storage_type)
    is_exact = storage.type.equals(data_type.storage_type)
    return pa.ExtensionArray.from_storage(data_type, storage) if is_exact else storage


def _fit_runs(array: _Array, data_type: _Type) -> _Array:
    """Return runs, of one value each if Arrow can't compare the values; with longer run ends if needed."""
    is_encoded = isinstance(array.type, pa.RunEndEncodedType)
    values = _fit(_decode_runs(array) if is_encoded else array, data_type.value_type)
    run_end_type = data_type.run_end_type
    if len(values) > _max_index(run_end_type):
        run_end_type = _index_type(len(values))
    try:
        return _compute.run_end_encode(values, run_end_type)
    except pa.ArrowNotImplementedError:
        run_ends = pa.array(np.arange(1, len(values) + 1), run_end_type)
        return pa.RunEndEncodedArray.from_arrays(run_ends, values)


def _fit_dictionary(array: _Array, data_type: _Type) -> _Array:
    dictionary, indices, index_type = array.dictionary, array.indices, data_type.index_type
    if len(dictionary) - 1 > _max_index(index_type):
        used = pa.array(np.unique(indices.drop_null().to_numpy(zero_copy_only=False)), indices.type)
        dictionary, indices = _take(_plain(dictionary), used), _compute.index_in(indices, used)
        if len(dictionary) - 1 > _max_index(index_type):
            index_type = _index_type(len(dictionary))
    dictionary = _fit(dictionary, data_type.value_type)
    return _dictionary_array(indices.cast(index_type), dictionary, ordered=data_type.ordered)


def _encode(values: _Array) -> _Array:
    """Return values as a dictionary array, without merging equal values if Arrow can't compare them."""
    try:
        return values.dictionary_encode()
    except pa.ArrowNotImplementedError:
        return _dictionary_array(pa.array(np.arange(len(values))), values)

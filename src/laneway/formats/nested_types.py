"""The types inside an Arrow type: listing them, and replacing some of them at any depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable


def child_types(type_: pa.DataType) -> list[pa.DataType]:
    """Return the types of the child arrays of a type; those of a dictionary's values are not among them."""
    if not pa.types.is_nested(type_):
        return []
    if pa.types.is_run_end_encoded(type_):
        return [type_.run_end_type, type_.value_type]
    return [type_.field(i).type for i in range(type_.num_fields)]


def has_views(type_: pa.DataType) -> bool:
    """Return whether a type is one of string or binary views, or has one inside it: Arrow can't filter such arrays."""
    return type_ in _VIEWS or any(map(has_views, child_types(type_)))


def storage_type(type_: pa.DataType) -> pa.DataType:
    """Return how a type is stored, at any depth, where it is an extension type that a user registered.

    The extension types of pyarrow itself, which every process knows, are left unchanged.
    """
    return _replace(type_, lambda each: each.storage_type if isinstance(each, pa.ExtensionType) else None)


def unreadable_type(type_: pa.DataType) -> pa.DataType | None:
    """Return this type, or one inside it, if pyarrow has no Python arrays of it; None if it has."""
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return None  # there may be thousands of columns of numbers
    if pa.types.is_dictionary(type_):
        return unreadable_type(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return unreadable_type(type_.storage_type)
    if pa.types.is_nested(type_):
        return next((found for child in child_types(type_) if (found := unreadable_type(child)) is not None), None)
    try:
        _nulls(0, type_)
    except KeyError:  # an interval of months, or of days and milliseconds
        return type_
    return None


def nullable(type_: pa.DataType) -> pa.DataType:
    """Return a type whose nested values may be null, at any depth."""
    if pa.types.is_dictionary(type_):
        return _dictionary(type_.index_type, nullable(type_.value_type), type_.ordered)
    if pa.types.is_run_end_encoded(type_):
        return _run_end_encoded(type_.run_end_type, nullable(type_.value_type))
    if not pa.types.is_nested(type_):
        return type_
    if pa.types.is_map(type_):
        # The keys of a map can't be null.
        key, item = type_.key_field, _nullable_field(type_.item_field)
        return _map(key.with_type(nullable(key.type)), item, type_.keys_sorted)
    return with_fields(type_, [_nullable_field(type_.field(i)) for i in range(type_.num_fields)])


def _nullable_field(field: pa.Field[Any]) -> pa.Field[Any]:
    return field.with_type(nullable(field.type)).with_nullable(True)  # noqa: FBT003


def without_dictionaries(type_: pa.DataType) -> pa.DataType:
    """Return how a type is stored, at any depth, where a dictionary is replaced by its indices."""

    def replacement(each: pa.DataType) -> pa.DataType | None:
        if isinstance(each, pa.BaseExtensionType):
            return each.storage_type
        return cast("pa.DataType", each.index_type) if pa.types.is_dictionary(each) else None

    return _replace(type_, replacement)


def text_as_bytes(type_: pa.DataType) -> pa.DataType | None:
    """Return how a type is stored, at any depth, where strings are bytes: an array can be viewed as this type.

    None: it can't, because in views of lists, Arrow loses the length of values of the null type.
    """

    def replacement(each: pa.DataType) -> pa.DataType | None:
        return each.storage_type if isinstance(each, pa.BaseExtensionType) else _BYTES_OF_TEXT.get(each)

    found = _replace(type_, replacement)
    return None if _has_nulls_in_lists(found) else found


def _has_nulls_in_lists(type_: pa.DataType, *, is_in_list: bool = False) -> bool:
    if pa.types.is_null(type_):
        return is_in_list
    is_in_list = is_in_list or not pa.types.is_struct(type_)
    return any(_has_nulls_in_lists(child, is_in_list=is_in_list) for child in child_types(type_))


def with_fields(type_: pa.DataType, fields: list[pa.Field[Any]]) -> pa.DataType:
    """Return a nested type of the same kind with other fields."""
    return next(build(type_, fields) for is_kind, build in _BUILDERS if is_kind(type_))


def _replace(type_: pa.DataType, replacement: Callable[[pa.DataType], pa.DataType | None]) -> pa.DataType:
    found = replacement(type_)
    if found is not None:
        return _replace(found, replacement)
    if pa.types.is_dictionary(type_):
        values = _replace(type_.value_type, replacement)
        return type_ if values is type_.value_type else _dictionary(type_.index_type, values, type_.ordered)
    children = child_types(type_)
    replaced = [_replace(child, replacement) for child in children]
    if replaced == children:
        return type_
    if pa.types.is_run_end_encoded(type_):
        return _run_end_encoded(*replaced)
    fields = [type_.field(i).with_type(child) for i, child in enumerate(replaced)]
    return with_fields(type_, fields)


_VIEWS: Final = (pa.string_view(), pa.binary_view())
_BYTES_OF_TEXT: Final[dict[pa.DataType, pa.DataType]] = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
# The stubs of pyarrow accept fewer types here.
_nulls = cast("Callable[..., Any]", pa.nulls)
_dictionary = cast("Callable[..., pa.DataType]", pa.dictionary)
_run_end_encoded = cast("Callable[..., pa.DataType]", pa.run_end_encoded)
_map = cast("Callable[..., pa.DataType]", pa.map_)
# How a nested type of each kind is made from another one of its kind, with other fields.
_BUILDERS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any, list[Any]], pa.DataType]], ...]] = (
    (pa.types.is_struct, lambda _, fields: pa.struct(fields)),
    (pa.types.is_list, lambda _, fields: pa.list_(fields[0])),
    (pa.types.is_large_list, lambda _, fields: pa.large_list(fields[0])),
    (pa.types.is_list_view, lambda _, fields: pa.list_view(fields[0])),
    (pa.types.is_large_list_view, lambda _, fields: pa.large_list_view(fields[0])),
    (pa.types.is_fixed_size_list, lambda like, fields: pa.list_(fields[0], like.list_size)),
    (pa.types.is_map, lambda like, fields: _map(*map(fields[0].type.field, range(2)), like.keys_sorted)),
    (pa.types.is_union, lambda like, fields: pa.union(fields, like.mode, like.type_codes)),
)

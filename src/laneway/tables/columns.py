"""The columns of tables and of their files, also inside of lists, maps and structs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    Field = pa.Field[Any]
    Path = tuple[str, ...]
    FileKey = Callable[[Path, Field], object]
    """Returns what identifies a field of a file, given its path there; None: nothing does."""
    TableKey = Callable[[Field], object]
    """Returns what identifies a field of the table."""

FIELD_ID: Final = b"PARQUET:field_id"
"""Key of the metadata of a field that numbers it in its file."""
_types: Any = pa.types


def rename_fields(schema: pa.Schema, table: pa.Schema, file_key: FileKey, table_key: TableKey) -> pa.Schema:
    """Return the columns of a file with the names of those of the table that have the same key.

    Args:
        schema: The columns of the file.
        table: The columns of the table.
        file_key: See FileKey.
        table_key: See TableKey.
    """
    return pa.schema(_renamed(schema, table, (), file_key, table_key))


def plain(schema: Iterable[Field]) -> pa.Schema:
    """Return columns with nothing but names and types; strings, binaries and lists with offsets of 32 bits."""
    return pa.schema([_plain(each) for each in schema])


def _plain(field: Field) -> Field:
    return pa.field(field.name, _plain_type(field.type))


def _plain_type(type_: Any) -> Any:  # noqa: ANN401 - a type of pyarrow
    if _types.is_struct(type_):
        return pa.struct([_plain(each) for each in type_])
    if _types.is_map(type_):
        return pa.map_(_plain_type(type_.key_type), _plain_type(type_.item_type))
    if _types.is_list(type_) or _types.is_large_list(type_):
        return pa.list_(_plain_type(type_.value_type))
    if _types.is_large_string(type_):
        return pa.string()
    return pa.binary() if _types.is_large_binary(type_) else type_


def _renamed(
    fields: Iterable[Field], others: Iterable[Field], path: Path, file_key: FileKey, table_key: TableKey
) -> list[Field]:
    known = {table_key(each): each for each in others}
    taken = {each.name for each in known.values()}
    found = []
    for number, field in enumerate(fields):
        key = file_key((*path, field.name), field)
        other = None if key is None else known.get(key)
        if other is None:
            # A column that was dropped: the table may have another one of its name.
            found.append(pa.field(dropped_name(field.name, number, taken), field.type))
        else:
            type_ = _renamed_type(field.type, other.type, (*path, field.name), file_key, table_key)
            found.append(pa.field(other.name, type_, field.nullable))
    return found


def dropped_name(name: str, number: int, taken: Container[str]) -> str:
    """Return a name that no other column has, for a column of a file that the table doesn't have.

    Args:
        name: Its name in the file.
        number: Its place there.
        taken: The names of the columns of the table.
    """
    found = f"{name} (dropped, {number})"
    while found in taken:
        found += "'"
    return found


def _renamed_type(type_: Any, other: Any, path: Path, file_key: FileKey, table_key: TableKey) -> Any:  # noqa: ANN401
    def inner(field: Field, of_table: Field, step: str) -> Field:
        return field.with_type(_renamed_type(field.type, of_table.type, (*path, step), file_key, table_key))

    if _types.is_struct(type_) and _types.is_struct(other):
        return pa.struct(_renamed(type_, other, path, file_key, table_key))
    if _types.is_map(type_) and _types.is_map(other):
        key = inner(type_.key_field, other.key_field, "key")
        return pa.map_(key, inner(type_.item_field, other.item_field, "value"))
    if not (_is_list(type_) and _is_list(other)):
        return type_
    value = inner(type_.value_field, other.value_field, "element")
    if _types.is_fixed_size_list(type_):
        return pa.list_(value, type_.list_size)
    return pa.large_list(value) if _types.is_large_list(type_) else pa.list_(value)


def _is_list(type_: Any) -> bool:  # noqa: ANN401 - a type of pyarrow
    return bool(_types.is_list(type_) or _types.is_large_list(type_) or _types.is_fixed_size_list(type_))

"""Columns inside structs, which are selected by a path of names such as "image.bytes"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FieldPath = tuple[str, ...]
"""The names of a column and, inside of it, of fields of structs."""

# The stubs of pyarrow accept fewer types here.
_struct_field: Any = pc.struct_field
_chunks: Any = pa.chunked_array


def find_field(schema: pa.Schema, name: str) -> FieldPath | None:
    """Return the path of a column, or of a field of a struct that is written as a path; None if there is none.

    A column whose own name has dots comes before a path.
    """
    if schema.get_field_index(name) >= 0:
        return (name,)
    return _find(schema, name) if "." in name else None


def path_of(schema: pa.Schema, name: str) -> FieldPath:
    """Return the path of a field that exists; see `find_field`.

    Raises:
        KeyError: It doesn't.
    """
    found = find_field(schema, name)
    if found is None:
        raise KeyError(name)
    return found


def field_type(schema: pa.Schema, path: FieldPath) -> pa.DataType:
    """Return the type of a field."""
    found: Any = schema.field(path[0]).type
    for name in path[1:]:
        found = found.field(name).type
    type_: pa.DataType = found
    return type_


def select_fields(table: pa.Table, fields: Sequence[tuple[str, FieldPath]]) -> pa.Table:
    """Return a table of fields, each under the name that it is given. Where a struct is null, its fields are."""
    if all(len(path) == 1 for _, path in fields):
        return table.select([path[0] for _, path in fields])
    columns = [table[path[0]] if len(path) == 1 else _struct_field(table[path[0]], [*path[1:]]) for _, path in fields]
    return pa.table(columns, names=[name for name, _ in fields])


def stored_name(schema: pa.Schema, stored: pa.Schema, path: FieldPath) -> str:
    """Return the name of a field in a file, where a table gives other names to the same fields at the same places.

    Args:
        schema: The columns with the names of the table.
        stored: The same columns with the names in the file.
        path: The field in `schema`.
    """
    parent: Any = schema
    there: Any = stored
    names = []
    for name in path:
        index = parent.get_field_index(name)
        field = there.field(index)
        names.append(field.name)
        parent, there = parent.field(index).type, field.type
    return ".".join(names)


def renamed(table: pa.Table, names: Sequence[str], types: Sequence[pa.DataType]) -> pa.Table:
    """Return a table with other names of its columns, and of the fields inside of them.

    Args:
        table: The table.
        names: The names of its columns.
        types: The types of its columns, which differ in the names of fields only.
    """
    columns: list[Any] = [
        column if column.type.equals(type_) else _chunks([each.view(type_) for each in column.chunks], type_)
        for column, type_ in zip(table.columns, types, strict=True)
    ]
    # A table without columns still has rows.
    return pa.table(columns, names=[*names]) if columns else table


def fields_inside(fields: Iterable[pa.Field[Any]], prefix: str = "") -> Iterator[str]:
    """Yield the names of columns and the paths of the fields inside of their structs."""
    for field in fields:
        yield prefix + field.name
        if pa.types.is_struct(field.type):
            yield from fields_inside(field.type, f"{prefix}{field.name}.")


def _find(parent: Any, name: str) -> FieldPath | None:  # noqa: ANN401 - a schema or a struct
    if parent.get_field_index(name) >= 0:
        return (name,)
    stop = name.find(".")
    while stop >= 0:
        first, rest = name[:stop], name[stop + 1 :]
        if parent.get_field_index(first) >= 0 and pa.types.is_struct(parent.field(first).type):
            found = _find(parent.field(first).type, rest)
            if found is not None:
                return (first, *found)
        stop = name.find(".", stop + 1)
    return None

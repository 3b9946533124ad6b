"""Which columns a dataset delivers, and in which types: those that its files have in common, or those of a schema."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa

from laneway.convert.casting import cast_problem, common_type
from laneway.errors import SchemaMismatchError
from laneway.formats import FORMATS
from laneway.formats.field_paths import field_type, fields_inside, find_field, path_of
from laneway.formats.nested_types import unreadable_type
from laneway.reading.origin import PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laneway.catalog.contents import ManifestContents


def select_columns(
    manifest: ManifestContents,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    *,
    instead: str = "columns= without it",
) -> pa.Schema:
    """Return the names and types of the columns to deliver, after checking them against the columns of all files.

    Args:
        manifest: The files.
        columns: Names of the columns, in the order of the result, including those from directory names, and paths of
            fields inside of structs; None: all.
        schema: Names and types to deliver, whatever the types in the files; None: those of the table, or if the files
            were found in directories, the types in the files.
        instead: What users may pass instead of a column whose types in the files differ, for messages.

    Raises:
        SchemaMismatchError: A column does not exist or is selected twice; its types in the files differ, or can't be
            cast to that of `schema`; or pyarrow can't read its type.
    """
    existing = manifest.schema if schema is None else schema
    names = list(existing.names if columns is None else columns)
    _check_names(names, existing, "the columns are" if schema is None else "schema has")
    if schema is None and manifest.table is None:
        types = [_type_in_files(manifest, name, instead) for name in names]
    else:
        types = [field_type(existing, path_of(existing, name)) for name in names]
        for name, type_ in zip(names, types, strict=True):
            _check_castable(manifest, name, type_, instead)
    return pa.schema(list(zip(names, types, strict=True)))


def warn_of_missing(
    manifest: ManifestContents, names: Iterable[str], schema: pa.Schema | None, *, stacklevel: int
) -> None:
    """Warn of columns that a user's schema has, and no file.

    Args:
        manifest: The files.
        names: The columns that are used.
        schema: The schema; None: the user has given none.
        stacklevel: The user's line, as for `warnings.warn`, counted from the caller.
    """
    missing = [name for name in names if schema is not None and name in schema.names]
    for index in range(len(manifest.readable.distinct)):
        missing = [name for name in missing if _type_in(manifest, index, name) is None]
    for name in missing:
        message = f"no file has the column {name!r} of schema=, so it is null in all rows"
        if FORMATS[manifest.format].inference is not None:
            message = f"no row that was looked at has the column {name!r} of schema=, so it may be null in all rows"
        hint = _hint(name, manifest.schema)
        warnings.warn(f"{message}: {hint.strip()}" if hint else message, stacklevel=stacklevel + 1)


def schemas_to_read(manifest: ManifestContents, schema: pa.Schema, *, made: frozenset[str]) -> tuple[pa.Schema, ...]:
    """Return the columns of the files of each schema of `readable`, in the types as which they are decoded.

    These are their types in the files, or where types are inferred, those to parse.

    Args:
        manifest: The files.
        schema: The columns that are delivered, as `select_columns` returned them, and those of `made`.
        made: Names of columns that are in no file.
    """
    distinct, inference = manifest.readable.distinct, FORMATS[manifest.format].inference
    if inference is None:
        return distinct
    (inferred,) = distinct
    delivered = {each.name: each.type for each in schema if each.name not in made}
    keys = {each.name for each in manifest.partitions.fields}
    # A column that was given with its type may be in rows that nobody has looked at.
    types = {
        name: inference.parsed(None, type_)
        for name, type_ in delivered.items()
        if name not in keys and find_field(inferred, name) is None
    }
    for field in inferred:
        wanted = delivered.get(field.name)
        types[field.name] = field.type if wanted is None else inference.parsed(field.type, wanted)
    return (pa.schema(list(types.items())),)


def with_provenance(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the columns of `PROVENANCE` after its own.

    Raises:
        SchemaMismatchError: It has a column of that name.
    """
    taken = [name for name in PROVENANCE.names if name in schema.names]
    if taken:
        message = f"provenance=True adds a column {taken[0]!r}, but the files have one: leave it out with columns="
        raise SchemaMismatchError(message)
    return pa.schema([*schema, *PROVENANCE])


def _check_names(names: Sequence[str], existing: pa.Schema, what: str) -> None:
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        message = f"the column {repeated!r} is selected twice: select each column once"
        raise SchemaMismatchError(message)
    unknown = set(names).difference(existing.names)
    for name in names:
        if name in unknown and find_field(existing, name) is None:
            raise SchemaMismatchError(no_column(name, existing, what))


def no_column(name: str, existing: pa.Schema, what: str = "the columns are") -> str:
    """Return what an error says of a column that doesn't exist.

    Args:
        name: The column, or the path of a field.
        existing: The columns that there are.
        what: What they are.
    """
    return f"there is no column {name!r}: {_hint(name, existing)}{what} {', '.join(existing.names)}"


def _hint(name: str, existing: pa.Schema) -> str:
    close = difflib.get_close_matches(name, [*fields_inside(existing)])
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


def _type_in_files(manifest: ManifestContents, name: str, instead: str) -> pa.DataType:
    """Return the type of a column that all files have."""
    if FORMATS[manifest.format].inference is not None:
        _check_inferred(manifest, name, instead)
    if len(manifest.readable.distinct) == 1:
        only = field_type(manifest.schema, path_of(manifest.schema, name))
        _check_readable(manifest, 0, name, only, instead)
        return only
    found = [_type_in(manifest, index, name) for index in range(len(manifest.readable.distinct))]
    first, common = next((index, type_) for index, type_ in enumerate(found) if type_ is not None)
    _check_readable(manifest, first, name, common, instead)
    for index, type_ in enumerate(found):
        joined = None if type_ is None else common_type(common, type_)
        if joined is None:
            here, there = _path(manifest, first), _path(manifest, index)
            message = (
                f"the files have different columns: {name!r} is {found[first]} in {here} and "
                f"{'missing' if type_ is None else type_} in {there}: pass schema= with the type to deliver "
                f"(the column is null where it is missing), or {instead}"
            )
            raise SchemaMismatchError(message)
        common = joined
    return common


def _check_inferred(manifest: ManifestContents, name: str, instead: str) -> None:
    """Check that the types that were inferred for a column from the values of each file fit together."""
    first, common = 0, None
    inference = FORMATS[manifest.format].inference
    for index, schema in enumerate(manifest.schemas.distinct):
        path = find_field(schema, name)
        if inference is None or path is None:
            continue
        found = field_type(schema, path)
        joined = found if common is None else inference.join(common, found)
        if joined is None:
            paths = manifest.files.paths
            here, there = (paths[manifest.schemas.first_file(each)] for each in (first, index))
            message = (
                f"the files have different columns: {name!r} is {common} in {here} and {found} in {there}: correct "
                f"the files, or pass {instead}"
            )
            raise SchemaMismatchError(message)
        first, common = (index if common is None else first), joined


def _check_castable(manifest: ManifestContents, name: str, type_: pa.DataType, instead: str) -> None:
    """Check that a column can be cast to a type, as far as this doesn't depend on its values."""
    found = [_type_in(manifest, index, name) for index in range(len(manifest.readable.distinct))]
    for index, source in enumerate(found):
        if source is None or source.equals(type_):
            continue
        _check_readable(manifest, index, name, source, instead)
        problem = cast_problem(source, type_)
        if problem is not None:
            message = (
                f"the column {name!r} is {source} in {_path(manifest, index)}, which can't be cast to {type_}, the "
                f"type in schema= or of the table ({problem}): give it another type in schema=, or leave it out"
            )
            raise SchemaMismatchError(message)


def _check_readable(manifest: ManifestContents, index: int, name: str, type_: pa.DataType, instead: str) -> None:
    unreadable = unreadable_type(type_)
    if unreadable is not None:
        message = (
            f"the column {name!r} in {_path(manifest, index)} has the type {unreadable}, which pyarrow can't read in "
            f"Python: pass {instead}"
        )
        raise SchemaMismatchError(message)


def _type_in(manifest: ManifestContents, index: int, name: str) -> pa.DataType | None:
    """Return the type of a column in the files of one schema, or in the names of their directories."""
    schema: pa.Schema = manifest.readable.distinct[index]
    path = find_field(schema, name)
    if path is not None:
        return field_type(schema, path)
    types: dict[str, pa.DataType] = {field.name: field.type for field in manifest.partitions.fields}
    return types.get(name)


def _path(manifest: ManifestContents, index: int) -> str:
    return manifest.files.paths[manifest.readable.first_file(index)]

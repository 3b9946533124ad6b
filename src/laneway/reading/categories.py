"""Columns of categories: their values become int64 ids, the places of the values in a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa
import pyarrow.compute as pc

from laneway.convert.arrays import decode
from laneway.errors import ColumnConversionError, DataFileError, SchemaMismatchError
from laneway.reading.column_statistics import compared_type, distinct_values, with_one_zero
from laneway.reading.reader import RowReader
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.catalog.caching import CacheDir, CacheEntry
    from laneway.catalog.contents import ManifestContents
    from laneway.reading.rows import Rows
    from laneway.storage.filesystem import Storage

_VERSION: Final = "2"
"""Changes whenever the same files get another vocabulary."""
_ID_BITS: Final = 65
"""Bits that an id takes in memory, with the one that tells whether it is null."""

# The stubs of pyarrow accept fewer types here.
_array: Any = pa.array
_compute: Any = pc


@final
@dataclass(frozen=True, eq=False)
class Categories:
    """The vocabularies of some columns."""

    schema: pa.Schema
    """These columns, as they are in the files."""
    vocabularies: Mapping[str, Any]
    """Column -> its values as an array, of which none is null or repeated."""

    @property
    def text(self) -> str:
        """What states compare: names, numbers of values, and digests."""
        return ", ".join(f"{name}: {len(each):,} values {_digest(each)}" for name, each in self.vocabularies.items())

    def as_delivered(self, schema: pa.Schema) -> pa.Schema:
        """Return a schema in which these columns have ids."""
        return pa.schema([each.with_type(pa.int64()) if each.name in self.vocabularies else each for each in schema])

    def as_read(self, schema: pa.Schema) -> pa.Schema:
        """Return a schema in which these columns are as they are in the files."""
        return pa.schema([self.schema.field(each.name) if each.name in self.vocabularies else each for each in schema])


@final
class CategoryReader:
    """Reads rows with ids in the place of categories. It may be shared by threads."""

    def __init__(self, rows: Rows, categories: Categories, manifest: ManifestContents) -> None:
        """Prepare to read.

        Args:
            rows: Reads the rows as they are in the files.
            categories: The vocabularies.
            manifest: The files.
        """
        self._rows = rows
        self._categories = categories
        self._manifest = manifest

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a storage."""
        return self._rows.is_remote

    @property
    def is_instant(self) -> bool:
        """Whether a read only looks up addresses: it looks up values, too."""
        return False

    def row_bits(self, file_index: int) -> int | None:
        """See `Rows`."""
        found = self._rows.row_bits(file_index)
        return None if found is None else found + _ID_BITS * len(self._categories.vocabularies)

    def read(self, file_index: int, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of a data file; see `Rows`.

        Raises:
            ColumnConversionError: A value is not in the vocabulary.
        """
        table = self._rows.read(file_index, start, stop)
        for name, vocabulary in self._categories.vocabularies.items():
            position = table.schema.get_field_index(name)
            if position < 0:
                continue
            column = table.column(position)
            ids = pa.chunked_array([_ids(chunk, vocabulary) for chunk in column.chunks], pa.int64())
            if ids.null_count > _num_missing(column):
                self._refuse(file_index, start, name, column, ids)
            table = table.set_column(position, pa.field(name, pa.int64()), ids)
        return table

    def row_in_file(self, file_index: int, row: int) -> int:
        """Return the number in its file of a row, counted as for `read`."""
        return self._rows.row_in_file(file_index, row)

    def close(self) -> None:
        """Close the files. The reader can still be used, and opens them again."""
        self._rows.close()

    def _refuse(self, file_index: int, start: int, name: str, column: Any, ids: Any) -> None:  # noqa: ANN401 - columns
        is_unknown = _compute.and_(_compute.is_null(ids), _compute.invert(_is_missing(column)))
        index = _compute.index(is_unknown, pa.scalar(value=True)).as_py()
        row = self._rows.row_in_file(file_index, start + index)
        num_values = len(self._categories.vocabularies[name])
        message = (
            f"row {row:,} of {self._manifest.files.paths[file_index]} has {name!r} = {column[index].as_py()!r}, which "
            f"is not among the {num_values:,} values in categories=: add it there, or give None to take all values of "
            "the files"
        )
        raise ColumnConversionError(message)


def find_categories(
    given: Mapping[str, Sequence[Any] | None],
    manifest: ManifestContents,
    storage: Storage,
    schema: pa.Schema,
    cache_dir: CacheDir,
) -> Categories:
    """Return the vocabularies of columns.

    Args:
        given: Column -> its values; None: all values that the files have, sorted.
        manifest: The files.
        storage: Where they are.
        schema: The columns that are delivered, as they are in the files.
        cache_dir: Where vocabularies of files are cached; see `Manifest.scan`.

    Raises:
        SchemaMismatchError: A column is not delivered, or can't be one of categories.
        ValueError: Values have another type than their column, or one of them is null or repeated.
        DataFileError: A file can't be read.
    """
    if not isinstance(given, Mapping):
        message = f"categories must be a dict, column -> its values or None, not {given!r}"
        raise TypeError(message)
    unknown = [name for name in given if name not in schema.names]
    if unknown:
        message = f"categories= has {unknown[0]!r}, but the columns are {', '.join(schema.names)}"
        raise SchemaMismatchError(message)
    fields = pa.schema([schema.field(name) for name in given])
    found = {
        each.name: _listed(each, values)
        for each, values in zip(fields, given.values(), strict=True)
        if values is not None
    }
    planner = VocabularyPlanner(manifest, storage, cache_dir)
    collected = pa.schema([each for each in fields if each.name not in found])
    found |= planner.known(collected)
    missing = pa.schema([each for each in collected if each.name not in found])
    if missing.names:
        found |= planner.join(missing, [planner.collect(missing)])
    return Categories(fields, {name: found[name] for name in given})


@final
class VocabularyPlanner:
    """Collects the vocabularies of columns of one manifest, from all rows of the files."""

    def __init__(self, manifest: ManifestContents, storage: Storage, cache_dir: CacheDir) -> None:
        """Prepare to collect.

        Args:
            manifest: The files.
            storage: Where they are.
            cache_dir: Where vocabularies are cached; see `Manifest.scan`.
        """
        self._manifest = manifest
        self._storage = storage
        self._cache_dir = cache_dir

    def known(self, fields: pa.Schema) -> dict[str, Any]:
        """Return column -> values, sorted, for those of these columns that were collected earlier.

        Raises:
            SchemaMismatchError: A column can't be one of categories.
        """
        types = {each.name: _vocabulary_type(each) for each in fields}
        of_manifest = {(each.name, each.type): each.values for each in self._manifest.vocabularies}
        found: dict[str, Any] = {}
        for each in fields:
            values = of_manifest.get((each.name, each.type))
            if values is None and (entry := self._entry(each)) is not None:
                values = _cached(entry, types[each.name])
            if values is not None:
                found[each.name] = values
        return found

    def collect(self, fields: pa.Schema, blocks: slice | None = None) -> dict[str, Any]:
        """Return column -> the distinct values in some blocks, or in all, in no order.

        Raises:
            DataFileError: A file can't be read.
        """
        rows = RowReader(self._manifest, self._storage, fields)
        return distinct_values(rows, fields, self._manifest.files, blocks)

    def join(self, fields: pa.Schema, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return column -> all values, sorted, from what was collected in parts, and cache them."""
        found: dict[str, Any] = {}
        for each in fields:
            values = found[each.name] = _compute.unique(pa.concat_arrays([part[each.name] for part in parts])).sort()
            entry = self._entry(each)
            if entry is not None:
                entry.write(_encode(values))
        return found

    def _entry(self, field: pa.Field[Any]) -> CacheEntry | None:
        key = (f"version {_VERSION}", field.name, str(field.type))
        return self._manifest.cache_entry(self._cache_dir, self._storage, key, "vocabulary")


def _listed(field: pa.Field[Any], values: Sequence[Any]) -> Any:  # noqa: ANN401 - an array
    """Return the values that a user listed."""
    type_ = _vocabulary_type(field)
    if isinstance(values, (str, bytes)):
        message = f"categories={{{field.name!r}: {values!r}}} must be a list of values, or None for those of the files"
        raise TypeError(message)
    try:
        array = _array([*values], type_)
    except (pa.ArrowException, TypeError, ValueError) as error:
        message = f"categories={{{field.name!r}: ...}} must be values of type {type_}, as the column has: {error}"
        raise ValueError(message) from error
    if pa.types.is_floating(type_):
        array = with_one_zero(array)
    num_repeated = len(array) - len(_compute.unique(array))
    if array.null_count or num_repeated:
        what = "a null" if array.null_count else f"{counted(num_repeated, 'value')} more than once"
        message = f"categories={{{field.name!r}: ...}} has {what}: list each value once; a null in the files stays null"
        raise ValueError(message)
    return array


def _vocabulary_type(field: pa.Field[Any]) -> pa.DataType:
    type_ = compared_type(field.type)
    if type_ is None:
        message = f"the column {field.name!r} is of type {field.type}, which can't be one of categories"
        raise SchemaMismatchError(message)
    return type_


def _ids(values: Any, vocabulary: Any) -> Any:  # noqa: ANN401 - arrays
    plain = decode(values).cast(vocabulary.type)
    if pa.types.is_floating(plain.type):
        plain = with_one_zero(plain)
    return _compute.index_in(plain, value_set=vocabulary).cast(pa.int64())


def _is_missing(column: Any) -> Any:  # noqa: ANN401 - columns
    """Return which values are null or NaN."""
    return _compute.is_null(column, nan_is_null=True)


def _num_missing(column: Any) -> int:  # noqa: ANN401 - a column
    if not pa.types.is_floating(column.type):
        return int(column.null_count)
    return int(_compute.sum(_is_missing(column)).as_py() or 0)


def _digest(values: Any) -> str:  # noqa: ANN401 - an array
    return hashlib.blake2b(_encode(values), digest_size=8).hexdigest()


def _encode(values: Any) -> bytes:  # noqa: ANN401 - an array
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([pa.concat_arrays([values])], ["values"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _cached(entry: CacheEntry, type_: pa.DataType) -> Any:  # noqa: ANN401 - an array
    """Return a cached vocabulary, or None."""
    return entry.load(lambda data: _decode(data, type_, entry.redacted_path))


def _decode(data: memoryview, type_: pa.DataType, name: str) -> Any:  # noqa: ANN401 - an array
    try:
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        (values,) = table["values"].chunks
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        message = f"{name} is damaged: {error}"
        raise DataFileError(message) from error
    if not values.type.equals(type_) or values.null_count or len(_compute.unique(values)) < len(values):
        message = f"{name} is damaged: it is no vocabulary of type {type_}"
        raise DataFileError(message)
    return values

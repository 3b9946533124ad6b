"""Rows of data files as tables: decodes only the blocks that contain the rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import numpy as np
import pyarrow as pa

from laneway.catalog.partitions import keys_of
from laneway.convert.casting import cast_column
from laneway.errors import DataFileError
from laneway.formats import FORMATS
from laneway.formats.field_paths import field_type, find_field, path_of, renamed, stored_name
from laneway.metering import current_meter
from laneway.reading.block_runs import row_bits
from laneway.reading.open_files import OpenFiles
from laneway.reading.projection import schemas_to_read
from laneway.storage.entries import file_size
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow.compute as pc
    from numpy.typing import NDArray

    from laneway.catalog.contents import ManifestContents
    from laneway.formats import BlockMatches, BlockReader, SelectiveBlockReader
    from laneway.reading.origin import Origin
    from laneway.storage.filesystem import Storage

# The stubs of pyarrow accept fewer types here.
_nulls: Any = pa.nulls


@final
@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the columns come from, for files of one schema. Those that are in neither of these are null."""

    columns: list[str]
    """Those that are in the files."""
    stored: list[str]
    """Their names there."""
    types: list[pa.DataType]
    """Their types there, with the names that a table gives to the fields of structs."""
    keys: dict[str, int]
    """Those that are in the names of directories only -> index of the partition key."""
    checked_keys: list[str]
    """Those that are in both."""
    row_bits: int | None
    """See `Rows.row_bits`."""

    @classmethod
    def of(
        cls,
        manifest: ManifestContents,
        schema: pa.Schema,
        stored: pa.Schema | None,
        names: Sequence[str],
        delivered: pa.Schema,
    ) -> _Sources:
        in_files = {name for name in names if find_field(schema, name)}
        keys = {field.name: index for index, field in enumerate(manifest.partitions.fields)}
        columns = [name for name in names if name in in_files]
        # A table says itself which values a partition has.
        in_directories = {name for name, _ in keys_of(manifest.files.paths[0])} if manifest.table is None else set()
        paths = [path_of(schema, name) for name in columns]
        types = [field_type(schema, path) for path in paths]
        in_file = dict(zip(columns, types, strict=True))
        # Columns that are cast, which are in memory twice, and those that are not in the files.
        others = [each.type for each in delivered if in_file.get(each.name) != each.type]
        return cls(
            columns,
            columns if stored is None else [stored_name(schema, stored, path) for path in paths],
            types,
            {name: keys[name] for name in names if name in keys and name not in in_files},
            [name for name in columns if name in in_directories],
            row_bits([*types, *others]) if FORMATS[manifest.format].skips_columns else None,
        )


class _Blocks(NamedTuple):
    """The blocks of a file that rows come from."""

    file_index: int
    """The file."""
    first: int
    """The first block."""
    bounds: NDArray[np.int64]
    """Bounds of the blocks, counted from the first of the rows, shape (num_blocks + 1,)."""

    def first_that_fails(self, column: pa.ChunkedArray[Any], data_type: pa.DataType) -> int:
        """Return the first block whose values of a column can't be cast."""
        bounds = np.clip(self.bounds, 0, len(column)).tolist()
        for index, (start, stop) in enumerate(pairwise(bounds)):
            try:
                cast_column(column.slice(start, stop - start), data_type)
            except pa.ArrowException:
                return self.first + index
        return self.first


@final
class RowReader:
    """Reads rows of a dataset's files as tables.

    It may be pickled, used after a fork, and shared by threads.
    """

    def __init__(
        self,
        manifest: ManifestContents,
        storage: Storage,
        schema: pa.Schema,
        origin: Origin | None = None,
        *,
        is_closed: bool = False,
    ) -> None:
        """Prepare to read; a file is opened when its rows are requested.

        Args:
            manifest: The files.
            storage: Where they are; its root is the dataset's.
            schema: Names and types of the columns, as `select_columns` returned them, and those of `origin`.
            origin: Makes the columns that tell where rows come from; None: there are none.
            is_closed: Whether a field that is in none of the columns is an error, where types are inferred.
        """
        self._manifest = manifest
        self._storage = storage
        self._format = FORMATS[manifest.format]
        self.schema = schema
        """Schema of the tables that `read` returns."""
        self._types = dict(zip(schema.names, schema.types, strict=True))
        self._origin = origin
        self._sources: dict[int, _Sources] = {}
        """For each schema of files that were read, where the columns come from."""
        self._schemas = schemas_to_read(manifest, schema, made=frozenset() if origin is None else origin.names)
        """The columns of the files of each schema, in the types to decode."""
        self._files = OpenFiles(manifest, storage, self._schemas, is_closed=is_closed)

    def __repr__(self) -> str:
        return f"RowReader({self._manifest!r}, columns={self.schema.names})"

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a storage, so that a few large reads are faster than many small ones."""
        return not self._storage.is_local

    @property
    def skips_rows(self) -> bool:
        """Whether reading some rows of blocks takes less memory than reading all of them."""
        return self._storage.is_local and self._format.skips_rows

    @property
    def is_instant(self) -> bool:
        """Whether files are memory-mapped, so that a read only looks up addresses."""
        return self._storage.is_local and self._format.is_mapped

    def row_bits(self, file_index: int) -> int | None:
        """See `Rows`."""
        return self._sources_of(int(self._manifest.readable.indices[file_index])).row_bits

    def read(self, file_index: int, start: int, stop: int, mask: NDArray[np.bool_] | None = None) -> pa.Table:
        """Return the rows [start, stop) of a data file, or some of them.

        Only the row groups or record batches that contain these rows are decoded, and only the selected columns.

        Args:
            file_index: Index of the file in the manifest.
            start: First row, counted from the first row of the file.
            stop: One past the last row.
            mask: Which of these rows, which are those of whole blocks, to return, bool of shape (stop - start,), if
                `skips_rows`. None: all.

        Returns:
            A table of `schema` with these rows.

        Raises:
            DataFileError: The file is missing, unreadable or damaged, or changed since it was planned.
            IndexError: The rows are not all in the file.
        """
        files = self._manifest.files
        first_block, end_block = files.block_starts[file_index], files.block_starts[file_index + 1]
        row_starts = files.block_row_starts[first_block : end_block + 1]
        row_starts = row_starts - row_starts[0]
        if not 0 <= start <= stop <= row_starts[-1]:
            message = (
                f"rows {start:,} to {stop:,} of {files.paths[file_index]}: it has {counted(int(row_starts[-1]), 'row')}"
            )
            raise IndexError(message)
        if start == stop:
            return self.schema.empty_table()
        first = int(np.searchsorted(row_starts, start, side="right")) - 1
        end = int(np.searchsorted(row_starts, stop, side="left"))
        sources = self._sources_of(int(self._manifest.readable.indices[file_index]))
        num_rows = int(row_starts[end] - row_starts[first])
        table = self._decode(file_index, first, end, num_rows, sources.stored, mask=mask)
        if sources.stored is not sources.columns:
            table = renamed(table, sources.columns, sources.types)
        rows = None if self._origin is None else np.arange(start, stop)
        bounds = row_starts[first : end + 1] - start
        if mask is None:
            table = table.slice(start - int(row_starts[first]), stop - start)
        else:
            rows = None if rows is None else rows[mask]
            bounds = np.concatenate([[0], np.cumsum(mask)])[bounds]
        if sources.checked_keys:
            self._check_keys(table, file_index, sources.checked_keys)
        return self._complete(table, sources, _Blocks(file_index, first, bounds), rows)

    def row_in_file(self, file_index: int, row: int) -> int:  # noqa: ARG002 - rows of a selection depend on the file
        """Return the number in its file of a row, counted as for `read`."""
        return row

    def matches(self, file_index: int, conditions: Sequence[pc.Expression], schema: pa.Schema) -> BlockMatches | None:
        """Return what statistics tell of conditions for each block of a file, or None if they tell nothing.

        Args:
            file_index: Index of the file in the manifest.
            conditions: The conditions.
            schema: The columns that they look at, of the types that they are delivered in.

        Raises:
            DataFileError: The file is missing, unreadable or damaged, or changed since it was planned.
        """
        in_file = self._files.schema_of(file_index)
        if self._manifest.schemas.stored and not in_file.equals(self._manifest.schemas.stored_in(file_index)):
            # The statistics have other names than the conditions; those of the table have decided what they can.
            return None
        others = [field for field in schema if field.name not in in_file.names]
        if any(not in_file.field(each.name).type.equals(each.type) for each in schema if each not in others):
            return None
        known = {each.name: self._manifest.partitions.value(each.name, file_index, each.type) for each in others}
        reader = self._files.borrow(file_index)
        try:
            found = reader.matches(conditions, schema, known)
        except (pa.ArrowException, OSError, ValueError):
            # Statistics that can't be read, or for which a condition can't be computed, decide nothing.
            reader.close()
            return None
        self._files.give_back(file_index, reader)
        return found

    def close(self) -> None:
        """Close the files. The reader can still be used, and opens them again."""
        self._files.close()

    def _sources_of(self, schema_index: int) -> _Sources:
        found = self._sources.get(schema_index)
        if found is None:
            made = frozenset[str]() if self._origin is None else self._origin.names
            names = [name for name in self.schema.names if name not in made]
            in_table = self._manifest.schemas.stored
            stored = in_table[schema_index] if in_table else None
            found = _Sources.of(self._manifest, self._schemas[schema_index], stored, names, self.schema)
            self._sources[schema_index] = found
        return found

    def _decode(
        self,
        file_index: int,
        first: int,
        stop: int,
        num_rows: int,
        columns: list[str],
        *,
        mask: NDArray[np.bool_] | None,
    ) -> pa.Table:
        blocks = f"{self._format.block_name} {first}" + (f" to {stop - 1}" if stop - first > 1 else "")
        path = self._storage.join(self._manifest.files.paths[file_index])
        with self._decoding(file_index, blocks):
            reader = self._files.borrow(file_index)
            try:
                if mask is None:
                    table = self._read_blocks(reader, first, stop, columns)
                else:
                    num_rows = int(np.count_nonzero(mask))
                    table = cast("SelectiveBlockReader", reader).read_selected(first, stop, columns, mask)
            except DataFileError:
                reader.close()
                self._check_unchanged(file_index)
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                column = self._column_that_fails(reader, first, stop, columns, error)
                reader.close()
                self._check_unchanged(file_index)
                what = f"can't be decoded ({blocks}{f', column {column!r}' if column else ''})"
                raise self._storage.error_for(path, what, error) from self._storage.cause(error)
        self._files.give_back(file_index, reader)
        if table.num_rows != num_rows:
            difference = f"{blocks} had {counted(num_rows, 'row')} and now has {table.num_rows:,}"
            raise self._storage.change_error(path, difference)
        return table

    def _decoding(self, file_index: int, blocks: str) -> AbstractContextManager[None]:
        """Measure a block of code as decoding, if what this thread reads is measured."""
        meter = current_meter()
        return (
            nullcontext() if meter is None else meter.decoding(f"{blocks} of {self._manifest.files.paths[file_index]}")
        )

    def _read_blocks(self, reader: BlockReader, first: int, stop: int, columns: list[str]) -> pa.Table:
        try:
            return reader.read(first, stop, columns)
        except pa.ArrowNotImplementedError:
            # Together they may be longer than an array of nested values can be.
            if stop - first == 1:
                raise
            return pa.concat_tables([reader.read(block, block + 1, columns) for block in range(first, stop)])

    def _column_that_fails(
        self, reader: BlockReader, first: int, stop: int, names: list[str], error: Exception
    ) -> str | None:
        """Return the column that can't be decoded, or None if it isn't a single one."""
        if self.is_remote and isinstance(error, OSError):
            return None  # perhaps the storage doesn't answer
        columns = names
        while len(columns) > 1:
            half = len(columns) // 2
            can_read_half = self._can_read(reader, first, stop, columns[:half])
            columns = columns[half:] if can_read_half else columns[:half]
        others = [name for name in names if name not in columns]
        return columns[0] if columns and self._can_read(reader, first, stop, others) else None

    def _can_read(self, reader: BlockReader, first: int, stop: int, columns: list[str]) -> bool:
        try:
            reader.read(first, stop, columns)
        except (pa.ArrowException, OSError, ValueError):
            return False
        return True

    def _check_unchanged(self, file_index: int) -> None:
        """Raise an error if a file can't be read because it changed."""
        if self._format.reads_by_itself:
            return
        planned = self._manifest.planned(self._storage, file_index)
        if self.is_remote and planned.version:
            # The read itself compared versions, and a storage that doesn't answer should get no more requests.
            return
        size = file_size(self._storage, planned.path)
        if size != planned.size:
            difference = f"it had {planned.size:,} bytes and now has {size:,}"
            raise self._storage.change_error(planned.path, difference)

    def _complete(
        self, table: pa.Table, sources: _Sources, blocks: _Blocks, rows: NDArray[np.int64] | None
    ) -> pa.Table:
        """Return the table with the columns that are not in its file, all in the order and the types of `schema`."""
        if not self.schema.names or table.schema.equals(self.schema, check_metadata=True):
            return table
        columns: dict[str, Any] = dict(zip(table.column_names, table.columns, strict=True))
        if self._origin is not None and rows is not None:
            path = self._manifest.files.paths[blocks.file_index]
            for name in self._origin.names:
                columns[name] = self._origin.column(name, path, blocks.file_index, rows)
        arrays = []
        for name, type_ in self._types.items():
            column = columns.get(name)
            if column is None:
                key = sources.keys.get(name)
                num_rows = table.num_rows
                column = _nulls(num_rows, type_) if key is None else self._key_column(name, key, blocks, num_rows)
            elif not column.type.equals(type_):
                column = self._cast(column, name, blocks)
            arrays.append(column)
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _key_column(self, name: str, key: int, blocks: _Blocks, num_rows: int) -> Any:  # noqa: ANN401
        """Return the value that the directories of a file have for a partition key, for each row."""
        partitions = self._manifest.partitions
        value, key_type = partitions.values[key][blocks.file_index], partitions.fields[key].type
        if value is None:
            return _nulls(num_rows, self._types[name])
        column: Any = pa.chunked_array([pa.array([value], key_type)])
        try:
            return pa.repeat(cast_column(column, self._types[name])[0], num_rows)
        except pa.ArrowException as error:
            path = self._storage.join(self._manifest.files.paths[blocks.file_index])
            problem = f"lies in a directory {name}={value}, which doesn't fit the type {self._types[name]} in schema="
            raise self._storage.error_for(path, problem, error) from self._storage.cause(error)

    def _cast(self, column: pa.ChunkedArray[Any], name: str, blocks: _Blocks) -> pa.ChunkedArray[Any]:
        """Return a column in the type that `schema` gives it."""
        data_type = self._types[name]
        try:
            return cast_column(column, data_type)
        except pa.ArrowException as error:
            path = self._storage.join(self._manifest.files.paths[blocks.file_index])
            place = f"{self._format.block_name} {blocks.first_that_fails(column, data_type)}, column {name!r}"
            problem = (
                f"has a value that doesn't fit the type in schema= ({place}: {column.type} as {data_type}; give it "
                f"another type there, or leave it out)"
            )
            raise self._storage.error_for(path, problem, error) from self._storage.cause(error)

    def _check_keys(self, table: pa.Table, file_index: int, names: Sequence[str]) -> None:
        """Check that columns that are also keys of directories have the values of the directories."""
        path = self._manifest.files.paths[file_index]
        for name, value in keys_of(path):
            if name not in names:
                continue
            texts = table[name].cast(pa.large_string()).unique().to_pylist()
            others = [text for text in texts if text != value]
            if others:
                where = self._storage.redact(self._storage.join(path))
                message = (
                    f"{where} lies in a directory {name}={value}, but has rows with {name!r} = {others[0]!r}: rename "
                    "the directory or the column"
                )
                raise DataFileError(message)

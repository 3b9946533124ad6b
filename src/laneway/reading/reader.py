"""Rows of data files as tables: opens files and decodes only the blocks that contain the rows."""

from __future__ import annotations

import difflib
import os
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa

from laneway.catalog.partitions import keys_of
from laneway.convert.arrays import fit
from laneway.errors import DataFileError, SchemaMismatchError
from laneway.formats import FORMATS
from laneway.storage.entries import file_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.catalog.manifest import Manifest
    from laneway.formats import BlockReader
    from laneway.storage.filesystem import Storage

_OPEN_FILES = 16


@final
class RowReader:
    """Reads rows of a dataset's files as tables.

    It may be pickled, used after a fork, and shared by threads. A few files stay open for the process that opened them,
    and a thread that reads has an open file of its own.
    """

    def __init__(self, manifest: Manifest, storage: Storage, columns: Sequence[str] | None = None) -> None:
        """Prepare to read; a file is opened when its rows are requested.

        Args:
            manifest: The files.
            storage: Where they are; its root is the dataset's.
            columns: Names of the columns to read, in the order of the result, including columns from directory
                names; None reads all columns.

        Raises:
            SchemaMismatchError: A column does not exist or is selected twice.
        """
        self._manifest = manifest
        self._storage = storage
        self._format = FORMATS[manifest.format]
        names = list(manifest.schema.names if columns is None else columns)
        _check_columns(names, manifest.schema)
        self.schema = pa.schema([manifest.schema.field(name) for name in names])
        """Schema of the tables that `read` returns."""
        self._file_schema = manifest.file_schema
        in_files = set(manifest.file_schema.names)
        self._file_columns = [name for name in names if name in in_files]
        keys = [field.name for field in manifest.partitions.fields]
        self._keys = {name: keys.index(name) for name in names if name in keys}
        first_path = manifest.files.paths[0] if len(manifest.files.paths) else ""
        self._keys_in_files = [name for name, _ in keys_of(first_path) if name in self._file_columns]
        self._forget_files()

    def _forget_files(self) -> None:
        self._idle: deque[tuple[int, BlockReader]] = deque()
        """Index and reader of each open file that no thread is using, the most recently used last."""
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Omit the open files."""
        return {
            name: value for name, value in self.__dict__.items() if name not in {"_idle", "_opening", "_lock", "_pid"}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without open files."""
        self.__dict__.update(state)
        self._forget_files()

    def __repr__(self) -> str:
        return f"RowReader({self._manifest!r}, columns={self.schema.names})"

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a storage, so that a few large reads are faster than many small ones."""
        return not self._storage.is_local

    @property
    def is_instant(self) -> bool:
        """Whether files are memory-mapped, so that a read only looks up addresses."""
        return self._storage.is_local and self._format.is_mapped

    def read(self, file_index: int, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of a data file.

        Only the row groups or record batches that contain these rows are decoded, and only the selected columns.

        Args:
            file_index: Index of the file in the manifest.
            start: First row, counted from the first row of the file.
            stop: One past the last row.

        Returns:
            A table of `schema` with `stop - start` rows.

        Raises:
            DataFileError: The file is missing, unreadable or damaged, or changed since it was planned.
            IndexError: The rows are not all in the file.
        """
        files = self._manifest.files
        first_block, end_block = files.block_starts[file_index], files.block_starts[file_index + 1]
        row_starts = files.block_row_starts[first_block : end_block + 1]
        row_starts = row_starts - row_starts[0]
        if not 0 <= start <= stop <= row_starts[-1]:
            message = f"rows {start:,} to {stop:,} of {files.paths[file_index]}: it has {row_starts[-1]:,} rows"
            raise IndexError(message)
        if start == stop:
            return self.schema.empty_table()
        first = int(np.searchsorted(row_starts, start, side="right")) - 1
        end = int(np.searchsorted(row_starts, stop, side="left"))
        offset = start - int(row_starts[first])
        table = self._decode(file_index, first, end, int(row_starts[end] - row_starts[first]))
        return self._complete(table.slice(offset, stop - start), file_index)

    def close(self) -> None:
        """Close the files. The reader can still be used, and opens them again."""
        with self._lock:
            while self._idle:
                self._idle.popleft()[1].close()

    def _decode(self, file_index: int, first: int, stop: int, num_rows: int) -> pa.Table:
        reader = self._borrow(file_index)
        blocks = f"{self._format.block_name} {first}" + (f" to {stop - 1}" if stop - first > 1 else "")
        path = self._storage.join(self._manifest.files.paths[file_index])
        try:
            table = self._read_blocks(reader, first, stop)
        except DataFileError:
            reader.close()
            self._check_unchanged(file_index)
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            column = self._column_that_fails(reader, first, stop, error)
            reader.close()
            self._check_unchanged(file_index)
            what = f"can't be decoded ({blocks}{f', column {column!r}' if column else ''})"
            raise self._storage.error_for(path, what, error) from self._storage.cause(error)
        self._release(file_index, reader)
        if table.num_rows != num_rows:
            difference = f"{blocks} had {num_rows:,} rows and now has {table.num_rows:,}"
            raise self._storage.change_error(path, difference)
        return table

    def _read_blocks(self, reader: BlockReader, first: int, stop: int) -> pa.Table:
        try:
            return reader.read(first, stop, self._file_columns)
        except pa.ArrowNotImplementedError:
            # Together they may be longer than an array of nested values can be.
            if stop - first == 1:
                raise
            return pa.concat_tables([reader.read(block, block + 1, self._file_columns) for block in range(first, stop)])

    def _column_that_fails(self, reader: BlockReader, first: int, stop: int, error: Exception) -> str | None:
        """Return the column that can't be decoded, or None if it isn't a single one."""
        if self.is_remote and isinstance(error, OSError):
            return None  # perhaps the storage doesn't answer
        columns = self._file_columns
        while len(columns) > 1:
            half = len(columns) // 2
            can_read_half = self._can_read(reader, first, stop, columns[:half])
            columns = columns[half:] if can_read_half else columns[:half]
        others = [name for name in self._file_columns if name not in columns]
        return columns[0] if columns and self._can_read(reader, first, stop, others) else None

    def _can_read(self, reader: BlockReader, first: int, stop: int, columns: list[str]) -> bool:
        try:
            reader.read(first, stop, columns)
        except (pa.ArrowException, OSError, ValueError):
            return False
        return True

    def _check_unchanged(self, file_index: int) -> None:
        """Raise an error if a file can't be read because it changed."""
        planned = self._manifest.planned(self._storage, file_index)
        if self.is_remote and planned.version:
            # The read itself compared versions, and a storage that doesn't answer should get no more requests.
            return
        size = file_size(self._storage, planned.path)
        if size != planned.size:
            difference = f"it had {planned.size:,} bytes and now has {size:,}"
            raise self._storage.change_error(planned.path, difference)

    def _borrow(self, file_index: int) -> BlockReader:
        if self._pid != os.getpid():
            # Files that a parent process opened share offsets and connections with it: drop them without closing.
            self._forget_files()
        with self._lock:
            for index, (idle, reader) in enumerate(self._idle):
                if idle == file_index:
                    del self._idle[index]
                    return reader
            opening = self._opening.setdefault(file_index, threading.Lock())
        planned = self._manifest.planned(self._storage, file_index)
        # One at a time: the second open uses the metadata that the first one read.
        with opening:
            return self._format.open(self._storage, planned, self._file_schema)

    def _release(self, file_index: int, reader: BlockReader) -> None:
        with self._lock:
            self._idle.append((file_index, reader))
            if len(self._idle) > _OPEN_FILES:
                self._idle.popleft()[1].close()

    def _complete(self, table: pa.Table, file_index: int) -> pa.Table:
        """Return the table with the columns from directory names, in the order of `schema`."""
        if self._keys_in_files:
            self._check_keys(table, file_index)
        columns = dict(zip(table.column_names, table.columns, strict=True))
        for name, key in self._keys.items():
            value = self._manifest.partitions.values[key][file_index]
            columns[name] = pa.repeat(pa.scalar(value, self.schema.field(name).type), table.num_rows)
        if not columns:
            return table
        arrays = [_typed(columns[field.name], field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _check_keys(self, table: pa.Table, file_index: int) -> None:
        """Check that columns that are also keys of directories have the values of the directories."""
        path = self._manifest.files.paths[file_index]
        for name, value in keys_of(path):
            if name not in self._keys_in_files:
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


def _typed(column: Any, data_type: pa.DataType) -> Any:  # noqa: ANN401 - a column or a single array of it
    """Return a column in its type. An extension type may be registered here and not where the files were scanned."""
    if column.type.equals(data_type) or not isinstance(column, pa.ChunkedArray):
        return column
    chunked: Any = pa.chunked_array
    return chunked([fit(chunk, data_type) for chunk in column.chunks], data_type)


def _check_columns(names: Sequence[str], schema: pa.Schema) -> None:
    existing = schema.names
    unknown = set(names).difference(existing)
    for name in names:
        if name in unknown:
            close = difflib.get_close_matches(name, existing)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            message = f"there is no column {name!r}: {hint}the columns are {', '.join(existing)}"
            raise SchemaMismatchError(message)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        message = f"the column {repeated[0]!r} is selected twice: select each column once"
        raise SchemaMismatchError(message)

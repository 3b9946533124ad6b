"""From rows of a data file to a table: opens files, decodes the blocks that hold the rows, and no others."""

from __future__ import annotations

import difflib
import os
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa

from laneway.errors import DataFileError, SchemaMismatchError
from laneway.formats import FORMATS, changed_since_planned
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

    A few files stay open, for the process that opened them: a reader may be pickled, used after a fork, and by several
    threads, each of which has a file for itself while it reads.
    """

    def __init__(self, manifest: Manifest, storage: Storage, columns: Sequence[str] | None = None) -> None:
        """Prepare to read; no file is opened before its rows are asked for.

        Args:
            manifest: The files.
            storage: Where they are; its root is the dataset's.
            columns: Names of the columns to read, in the order in which they are wanted, among them those
                that directories add; None reads all of them.

        Raises:
            SchemaMismatchError: A column does not exist or is named twice.
        """
        self._manifest = manifest
        self._storage = storage
        self._format = FORMATS[manifest.format]
        names = list(manifest.schema.names if columns is None else columns)
        _check_columns(names, manifest.schema)
        self.schema = pa.schema([manifest.schema.field(name) for name in names])
        """What `read` returns."""
        self._file_schema = manifest.file_schema
        self._file_columns = [name for name in names if name in set(manifest.file_schema.names)]
        keys = [field.name for field in manifest.partitions.fields]
        self._keys = {name: keys.index(name) for name in names if name in keys}
        self._forget_files()

    def _forget_files(self) -> None:
        self._idle: deque[tuple[int, BlockReader]] = deque()
        """Index of the file and open file, of those that no thread reads now; the one used last comes last."""
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind."""
        return {
            name: value for name, value in self.__dict__.items() if name not in {"_idle", "_opening", "_lock", "_pid"}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without open files."""
        self.__dict__.update(state)
        self._forget_files()

    def __repr__(self) -> str:
        return f"RowReader({self._manifest!r}, columns={self.schema.names})"

    @property
    def is_remote(self) -> bool:
        """Whether each read asks a storage, so that few long ones are better than many."""
        return not self._storage.is_local

    @property
    def is_instant(self) -> bool:
        """Whether reading is no more than looking up where rows are in memory."""
        return self._storage.is_local and self._format.is_mapped

    def read(self, file_index: int, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of a data file.

        Only the row groups or record batches that hold these rows are decoded, and only these columns.

        Args:
            file_index: Index of the file in the manifest.
            start: First row, counted from the file's first.
            stop: Row behind the last one.

        Returns:
            A table of `schema` with `stop - start` rows.

        Raises:
            DataFileError: The file is missing, unreadable or damaged, or changed since it was planned.
            IndexError: The file has no such rows.
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
        decoded = self._decode(file_index, first, end, int(row_starts[end] - row_starts[first]))
        return self._complete(decoded.slice(offset, stop - start), file_index)

    def close(self) -> None:
        """Close the files. The reader can still be used: it opens them again."""
        with self._lock:
            while self._idle:
                self._idle.popleft()[1].close()

    def _decode(self, file_index: int, first: int, stop: int, num_rows: int) -> pa.Table:
        reader = self._borrow(file_index)
        blocks = f"{self._format.block_name} {first}" + (f" to {stop - 1}" if stop - first > 1 else "")
        path = self._storage.join(self._manifest.files.paths[file_index])
        try:
            table = reader.read(first, stop, self._file_columns)
        except DataFileError:
            reader.close()
            self._check_unchanged(file_index)
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            reader.close()
            self._check_unchanged(file_index)
            what = f"can't be decoded ({blocks})"
            raise self._storage.error_for(path, what, error) from self._storage.cause(error)
        self._give_back(file_index, reader)
        if table.num_rows != num_rows:
            difference = f"{blocks} had {num_rows:,} rows and now has {table.num_rows:,}"
            planned = self._manifest.planned(self._storage, file_index)
            raise changed_since_planned(self._storage, planned, difference)
        return table

    def _check_unchanged(self, file_index: int) -> None:
        """Raise if a file could not be read because it changed."""
        planned = self._manifest.planned(self._storage, file_index)
        if self.is_remote and planned.version:
            # The read itself has compared versions; a storage that doesn't answer is not asked again.
            return
        size = file_size(self._storage, planned.path)
        if size != planned.size:
            difference = f"it had {planned.size:,} bytes and now has {size:,}"
            raise changed_since_planned(self._storage, planned, difference)

    def _borrow(self, file_index: int) -> BlockReader:
        if self._pid != os.getpid():
            # Files that a parent opened share their offsets and connections with it: forget, don't close.
            self._forget_files()
        with self._lock:
            for index, (idle, reader) in enumerate(self._idle):
                if idle == file_index:
                    del self._idle[index]
                    return reader
            opening = self._opening.setdefault(file_index, threading.Lock())
        planned = self._manifest.planned(self._storage, file_index)
        # One after the other: the second finds what the first has read about the file.
        with opening:
            return self._format.open(self._storage, planned, self._file_schema)

    def _give_back(self, file_index: int, reader: BlockReader) -> None:
        with self._lock:
            self._idle.append((file_index, reader))
            if len(self._idle) > _OPEN_FILES:
                self._idle.popleft()[1].close()

    def _complete(self, table: pa.Table, file_index: int) -> pa.Table:
        """Return the table with the columns that directories add, as `schema` has them."""
        columns = dict(zip(table.column_names, table.columns, strict=True))
        for name, key in self._keys.items():
            value = self._manifest.partitions.values[key][file_index]
            columns[name] = pa.repeat(pa.scalar(value, self.schema.field(name).type), table.num_rows)
        if not columns:
            return table
        return pa.Table.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)


def _check_columns(names: Sequence[str], schema: pa.Schema) -> None:
    for name in names:
        if name not in schema.names:
            close = difflib.get_close_matches(name, schema.names)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            message = f"there is no column {name!r}: {hint}the columns are {', '.join(schema.names)}"
            raise SchemaMismatchError(message)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        message = f"the column {twice[0]!r} is selected twice: name each column once"
        raise SchemaMismatchError(message)

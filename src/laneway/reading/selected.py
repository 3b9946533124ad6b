"""Selected rows of data files as tables: the rows of a selection, as if there were no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import numpy as np
import pyarrow as pa

from laneway.convert.arrays import filter_rows
from laneway.errors import DataFileError
from laneway.formats.nested_types import has_views
from laneway.reading.categories import CategoryReader
from laneway.reading.reader import RowReader
from laneway.reading.steps import Run, select
from laneway.wording import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.catalog.contents import ManifestContents
    from laneway.reading.categories import Categories
    from laneway.reading.origin import Origin
    from laneway.reading.rows import Rows
    from laneway.reading.selecting import RowSelection
    from laneway.storage.filesystem import Storage


_APART_BYTES: Final = 1 << 20
"""Least bytes of blocks to read some columns of them before others: less is not worth opening a file twice."""
_APART_SHARE: Final = 0.5
"""Largest share of their rows that is selected: pieces that are selected are copied together."""


def open_rows(
    manifest: ManifestContents,
    storage: Storage,
    schema: pa.Schema,
    origin: Origin | None = None,
    *,
    selection: RowSelection | None = None,
    categories: Categories | None = None,
    is_closed: bool = False,
) -> Rows:
    """Return a reader of the rows of a selection, with ids in the place of categories.

    Args:
        manifest: The files.
        storage: Where they are.
        schema: The columns as they are delivered.
        origin: Makes the columns that tell where rows come from; None: there are none.
        selection: The rows; None: all.
        categories: The vocabularies of some columns; None: there are none.
        is_closed: See `RowReader`.
    """
    in_files = schema if categories is None else categories.as_read(schema)
    if selection is None:
        rows: Rows = RowReader(manifest, storage, in_files, origin, is_closed=is_closed)
    else:
        rows = SelectedReader(manifest, storage, in_files, origin, selection, is_closed=is_closed)
    return rows if categories is None else CategoryReader(rows, categories, manifest)


@final
class SelectedReader:
    """Reads the rows of a selection. It may be shared by threads."""

    def __init__(
        self,
        manifest: ManifestContents,
        storage: Storage,
        schema: pa.Schema,
        origin: Origin | None,
        selection: RowSelection,
        *,
        is_closed: bool = False,
    ) -> None:
        """Prepare to read; see `RowReader`."""
        # What only the selection looks at is read, too, and dropped.
        others = [each for each in selection.schema if each.name not in schema.names]
        everything = pa.schema([*schema, *others])
        self._all_rows = RowReader(manifest, storage, everything, origin, is_closed=is_closed)
        seen = {name for step in selection.steps for name in step.columns}
        self._seen = RowReader(
            manifest,
            storage,
            pa.schema([each for each in everything if each.name in seen]),
            is_closed=is_closed,
        )
        rest = pa.schema([each for each in schema if each.name not in seen])
        self._rest = RowReader(manifest, storage, rest, origin, is_closed=is_closed)
        self._manifest = manifest
        self._storage = storage
        self._selection = selection
        self._files = selection.rows.files(manifest.files)
        self.schema = schema
        """Schema of the tables that `read` returns."""

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a storage."""
        return self._all_rows.is_remote

    @property
    def is_instant(self) -> bool:
        """Whether a read only looks up addresses: it computes which rows are selected."""
        return False

    def row_bits(self, file_index: int) -> int | None:
        """See `Rows`."""
        return self._all_rows.row_bits(file_index)

    def read(self, file_index: int, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of a data file, counted in its selected rows.

        Blocks without selected rows are not read.

        Raises:
            DataFileError: As `RowReader.read`; or the steps select another number of rows than was planned.
            IndexError: The file has no such rows.
        """
        starts = self.starts(file_index)
        if not 0 <= start <= stop <= starts[-1]:
            path = self._manifest.files.paths[file_index]
            message = f"rows {start:,} to {stop:,} of {path}: {starts[-1]:,} of its rows are selected"
            raise IndexError(message)
        if start == stop:
            return self.schema.empty_table()
        first = int(np.searchsorted(starts, start, side="right")) - 1
        end = int(np.searchsorted(starts, stop, side="left"))
        has_rows = np.diff(starts[first : end + 1]) > 0
        edges = np.flatnonzero(np.diff(has_rows, prepend=False, append=False)).reshape(-1, 2) + first
        found = [self._select(file_index, run_first, run_stop)[0] for run_first, run_stop in edges.tolist()]
        table = found[0] if len(found) == 1 else pa.concat_tables(found)
        return table.slice(start - int(starts[first]), stop - start)

    def row_in_file(self, file_index: int, row: int) -> int:
        """Return the number in its file of a selected row."""
        starts = self.starts(file_index)
        block = int(np.searchsorted(starts, row, side="right")) - 1
        return int(self.rows_of_block(file_index, block)[row - int(starts[block])])

    def rows_of_block(self, file_index: int, block: int) -> NDArray[np.int64]:
        """Return the numbers in the file of the selected rows of a block, which reads what the steps look at."""
        return self._select(file_index, block, block + 1)[1]

    def close(self) -> None:
        """Close the files. The reader can still be used, and opens them again."""
        for reader in (self._all_rows, self._seen, self._rest):
            reader.close()

    def starts(self, file_index: int) -> NDArray[np.int64]:
        """Return the number of selected rows of a file before each of its blocks, and of all."""
        first, stop = self._manifest.files.block_starts[file_index : file_index + 2]
        starts = np.zeros(stop - first + 1, np.int64)
        np.cumsum(self._files.block_rows[first:stop], out=starts[1:])
        return starts

    def _select(self, file_index: int, first: int, stop: int) -> tuple[pa.Table, NDArray[np.int64]]:
        """Return the selected rows of the blocks [first, stop) of a file, and their numbers in the file."""
        base = int(self._manifest.files.block_starts[file_index])
        run = Run.of(self._manifest, file_index, first, stop)
        planned = self._files.block_rows[base + first : base + stop]
        where = file_index, run.first_row, run.first_row + run.num_rows
        rows = run.rows
        if (planned == np.diff(run.bounds)).all():
            table = self._all_rows.read(*where)
        else:
            is_apart = self._is_apart(base + first, base + stop)
            table = (self._seen if is_apart else self._all_rows).read(*where)
            mask = select(self._selection.steps, table, run)
            self._check_counts(run, first, planned, run.count_by_block(mask))
            table, rows = filter_rows(table, mask), rows[mask]
            if is_apart:
                rest = self._rest.read(*where, mask)
                columns = dict(
                    zip((*table.column_names, *rest.column_names), (*table.columns, *rest.columns), strict=True)
                )
                table = pa.Table.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)
        return table.select(self.schema.names), rows

    def _is_apart(self, first: int, stop: int) -> bool:
        """Return whether to read what the steps look at before the other columns, of which few rows are then needed."""
        files = self._manifest.files
        return (
            self._all_rows.skips_rows
            and bool(self._seen.schema.names and self._rest.schema.names)
            and not any(has_views(field.type) for field in self._rest.schema)
            and int(files.block_memory_bytes[first:stop].sum()) >= _APART_BYTES
            and int(self._files.block_rows[first:stop].sum()) <= _APART_SHARE * int(files.block_rows[first:stop].sum())
        )

    def _check_counts(self, run: Run, first: int, planned: NDArray[np.integer], found: NDArray[np.int64]) -> None:
        wrong = np.flatnonzero(found != planned)
        if len(wrong):
            where = self._storage.redact(self._storage.join(run.path))
            message = (
                f"{self._selection.rows.text} selected {counted(int(planned[wrong[0]]), 'row')} of block "
                f"{first + wrong[0]} of {where} when it was planned, and now selects {found[wrong[0]]:,}: the file was "
                "changed, or a function of the filter was changed or doesn't always return the same"
            )
            raise DataFileError(message)

"""What a dataset consists of: its files, rows and columns, and facts about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.arguments import check_columns, check_int, plain_int
from laneway.plans.looking import read_rows
from laneway.reading.column_statistics import ColumnStatistics, column_statistics
from laneway.reading.expressions import columns_of
from laneway.reading.selected import open_rows
from laneway.reading.selection_summary import SelectionSummary
from laneway.staged import StageableDataset
from laneway.tables.hf_features import class_names
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from laneway.catalog.caching import CacheDir
    from laneway.core.shards import ShardTable
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.manifest import Manifest


class DescribedDataset(StageableDataset):
    """A dataset that describes its files, rows and columns."""

    definition: DatasetDefinition
    _given_schema: pa.Schema | None
    _cache_dir: CacheDir

    @property
    def selection(self) -> SelectionSummary | None:
        """The filters, splits and slices that select the rows of this dataset; None: it has all rows of its files."""
        selection = self.definition.selection
        return None if selection is None else SelectionSummary.of(self.definition.manifest, selection)

    @property
    def manifest(self) -> Manifest:
        """The data files, with their sizes, rows, row groups and schema.

        It remembers the selection of this dataset: a dataset of it with the same filters counts no rows.
        """
        manifest, selection = self.definition.manifest, self.definition.selection
        return manifest if selection is None else manifest.with_selections(selection.known)

    @property
    def shards(self) -> ShardTable:
        """All shards of the dataset in file order, including those of other ranks.

        Where rows are selected, offsets and lengths count the selected rows of a file.
        """
        return self.definition.identity.shards

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of the columns that are delivered."""
        return self.definition.columns.schema

    def statistics(
        self, columns: Sequence[str] | None = None, *, max_distinct: int = 10_000, progress: bool | None = None
    ) -> dict[str, ColumnStatistics]:
        """Return statistics of columns over all rows of the dataset, those of all ranks, from one pass over the files.

        Args:
            columns: Names of the columns; None: those that are delivered.
            max_distinct: Maximum number of distinct values that are counted, >= 0; with more, `distinct` is None.
            progress: True shows a progress bar, False does not, None does if it takes longer than 2 s.

        Raises:
            ValueError: `max_distinct` is not an int >= 0.
            SchemaMismatchError: A column doesn't exist, or its types in the files differ.
            DataFileError: A file can't be read.

        Returns:
            Name -> statistics of a column.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": [1, 3, None]}), f"{folder}/part-0.parquet")
            >>> StatefulShardedDataset(folder).statistics()["x"]
            ColumnStatistics(count=2, nulls=1, nans=0, min=1, max=3, mean=2.0, std=1.0, distinct=2)
        """
        definition = self.definition
        names = check_columns(definition.columns.names_in_files if columns is None else columns) or ()
        schema = columns_of(definition.manifest, [*names], self._given_schema)
        rows = open_rows(definition.manifest, definition.storage, schema, selection=definition.selection)
        most = check_int("max_distinct", max_distinct, minimum=0)
        return column_statistics(rows, schema, definition.identity.selected, max_distinct=most, progress=progress)

    def read(self, path: str, rows: Sequence[int], *, epoch: int | None = None) -> Any:  # noqa: ANN401 - an item
        """Return some rows of a data file, converted as the dataset would deliver them, with its functions applied.

        Rows that filters leave out can be read too. Rows far apart are read row group by row group.

        Args:
            path: The data file, relative to the dataset's root, as `plan` and provenance columns name it.
            rows: Numbers of rows in the file, in any order.
            epoch: The epoch in the context that functions are passed; None: the `epoch` of the dataset.

        Returns:
            A list of rows in the order of `rows`; or if the dataset delivers batches, one batch of them. With
            `on_error="skip"`, rows for which functions fail are left out; None if no row of a batch is left.

        Raises:
            ValueError: There is no such file or row, or `flat_map` or `pack` make items of the rows.
            TypeError: `rows` is not a sequence of ints.
            DataFileError: The file can't be read.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": range(100)}), f"{folder}/part-0.parquet")
            >>> StatefulShardedDataset(folder).read("part-0.parquet", [7, 3])
            [{'x': 7}, {'x': 3}]
        """
        definition = self.definition
        if definition.stages is not None:
            message = "read() returns rows, and flat_map() and pack() make items of them: call it before these"
            raise ValueError(message)
        numbers = [plain_int(row) for row in rows]
        if None in numbers:
            message = f"rows must be a sequence of ints, not {rows!r}"
            raise TypeError(message)
        chosen = self.epoch if epoch is None else check_int("epoch", epoch, minimum=0)
        return read_rows(definition, path, [row for row in numbers if row is not None], chosen)

    @property
    def categories(self) -> dict[str, list[Any]]:
        """Column that is delivered as ids -> its values, in the order of their ids.

        Also the columns of a Hugging Face dataset that are a `ClassLabel`, with the names of their classes.
        """
        table, found = self.definition.manifest.table, self.definition.columns.categories
        names = {} if table is None else class_names(table.schema)
        given = {} if found is None else {name: values.to_pylist() for name, values in found.vocabularies.items()}
        return {name: values for name, values in {**names, **given}.items() if name in self.schema.names}

    def __repr__(self) -> str:
        definition = self.definition
        settings, place = definition.identity.settings, definition.place
        order = f"shuffled with seed {settings.seed}" if settings.shuffle else "in file order"
        rows = self.definition.identity.selection
        selected = "" if rows is None else f"  {counted(rows.num_rows, 'row')} selected by {rows.text},\n"
        selected += "" if settings.without is None else f"  without {settings.without},\n"
        names = self.schema.names
        shown = ", ".join(names[:8]) + (f", ... ({len(names):,} columns)" if len(names) > 8 else "")  # noqa: PLR2004
        return (
            f"{type(self).__name__}(\n"
            f"  {definition.manifest!r},\n"
            f"{selected}"
            f"  {counted(len(self.shards), 'shard')} {order},\n"
            f"  {definition.unit} as {definition.columns.output}: {shown},\n"
            f"  rank {place.rank} of {place.world_size}, epoch {self.epoch}\n)"
        )

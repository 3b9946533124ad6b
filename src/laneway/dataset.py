"""StatefulShardedDataset: the rows of Parquet and Arrow files, resumed exactly where a checkpoint left off."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from laneway.arguments import (
    check_callable,
    check_choice,
    check_columns,
    check_count,
    check_flag,
    check_int,
    check_schema,
    check_seed,
    check_size,
)
from laneway.convert.columns import Output
from laneway.copies import ChangeableDataset
from laneway.core.lanes import MAX_LANES, Remainder
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity, Settings
from laneway.core.turns import WorkerPlace
from laneway.delivery.dataset_definition import DatasetDefinition
from laneway.delivery.delivered_columns import DeliveredColumns
from laneway.delivery.row_errors import OnError, RowErrors
from laneway.delivery.schedule import EpochSchedule
from laneway.delivery.transforms import Transforms
from laneway.distributed import data_parallel_rank
from laneway.manifest import Manifest, open_source
from laneway.mixture import repeated
from laneway.plans.planners import DatasetPlanner
from laneway.reading.deletes import NotDeleted
from laneway.reading.selecting import rows_of
from laneway.tables.opening import catalog_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.fs
    from fsspec import AbstractFileSystem

    from laneway.catalog.caching import CacheDir
    from laneway.convert.fill import FillNull
    from laneway.core.shards import Shard
    from laneway.manifest import Source
    from laneway.mixture import Mixture
    from laneway.reading.selecting import RowSelection
    from laneway.storage.retries import RetryPolicy


class StatefulShardedDataset(ChangeableDataset):
    """The rows of Parquet or Arrow files as an iterable dataset that can stop anywhere and resume exactly there.

    Every rank and every DataLoader worker reads its own rows. Each pass is the next epoch, whether or not the previous
    one was read to its end; `set_epoch` chooses another. `state_dict` counts the rows that the training loop has
    received, never rows that were only read ahead. A loaded state applies to the next pass only.

    With DataLoader workers, the workers hold the progress: take the state from a `SavableLoader` or from torchdata's
    `StatefulDataLoader`, not from the dataset.

    Args:
        source: A directory (read recursively), a glob, a file, or a sequence of these, on any filesystem that fsspec
            opens by URL; "hf://datasets/org/name@revision/path" is pinned to a commit. Or a `Manifest`, so that no
            footer is read. Or a table: a `deltalake.DeltaTable` or "delta://path@version", a table or scan of pyiceberg
            or "iceberg://catalog/ns.table@snapshot", a `lance.LanceDataset` or "lance://path@version", a
            `datasets.Dataset`, or a `Catalog` of your own.
        format: Name of a format, such as "parquet" or "jsonl"; None: detected by suffix, else by the first bytes.
        columns: Names of the columns to deliver, in this order; None: all. Keys of Hive-style directories
            (`lang=en/part-0.parquet`) are columns too. A path such as "image.bytes" is a field of a struct, which is
            read without the other fields. Files may differ in other columns.
        filter: Condition on the rows to deliver: an expression of pyarrow, or tuples; see the method `filter`.
        schema: Names and types of the columns to deliver, for files whose columns differ. Values are cast
            as by pyarrow with `safe=True`; a column is null in files that don't have it. None: the types in the files.
        shuffle: Whether to shuffle the shards, and the rows of each window of shards, by seed and epoch.
        seed: Any int in [0, 2**63).
        shard_bytes: Target size of a shard, the unit of reading, in memory: bytes, or a string such as "64MiB". Row
            groups and record batches are never split.
        shard_rows: Target number of rows of a shard, instead of `shard_bytes`.
        window_bytes: Target size of a window, the shards whose rows are shuffled together, in memory: bytes, or a
            string. A worker holds one window for each lane it reads.
        prefetch_windows: Number of windows of each lane that threads read and decode ahead. A worker holds them in
            addition; 0: no read-ahead.
        lanes: Number of independent streams that an epoch is cut into. With a multiple of the total number of workers,
            the global order depends on neither ranks nor workers. None: one for each worker.
        turn_rows: Rows taken from a lane before it is the next lane's turn; divides `batch_size`. None: one batch.
        remainder: How to handle the one row by which ranks differ: "pad" repeats a row at the end of the epoch,
            "drop" omits one, so that ranks deliver the same number of batches; "keep" does neither. None: "keep" on
            one rank, else "pad".
        batch_size: Rows of a batch; None: single rows. Only the last batch of each rank may be shorter.
        drop_last: Whether to drop that batch on all ranks, unless all of them have a whole one.
        output: Type of the columns: "python", "numpy", "torch" or "arrow". None: "torch" for batches, "python" for
            rows. docs/how-to/convert-columns.md lists every type. (DataLoader itself converts arrays to tensors;
            `collate_fn=lambda batch: batch` prevents that.)
        transform: Called in the worker on each row, or each batch, before it is delivered.
        fill_null: Value that replaces nulls in columns of numbers: one value, or column -> value. Without it, a null is
            an error if a tensor or an array can't represent it.
        categories: Columns to deliver as int64 ids: column -> its values, whose places in the sequence are the ids;
            None: all values that the files have, sorted, which are collected now and cached as in `cache_dir`. Nulls
            stay null, and NaN becomes null. A value that is not listed is an error.
        on_error: What becomes of a single row for which `transform`, or a function given to `map`, raises an exception.
            "raise": it is raised. "mask": a filler is delivered, so that ranks still deliver the same number of rows,
            and each row has `_valid`, True or False. "skip": nothing is delivered; `len` counts the row nevertheless.
            Both log such rows, at most once a minute.
        filler: For "mask": what is delivered, such as a row that `transform` could return; `_path`, `_row` and `_epoch`
            in it are those of the row. None: a row as before `transform`, with zeros and empty values, if `transform`
            keeps the columns.
        provenance: Whether to add the columns `_path` (the data file of the row, relative to the source), `_row` (its
            number in the file) and `_epoch`.
        rank: Data-parallel rank, in [0, world_size). None: that of torch.distributed if it is initialised, else RANK
            and WORLD_SIZE of the environment, else 0 of 1.
        world_size: Number of data-parallel ranks.
        filesystem: An fsspec or pyarrow filesystem to use instead of the one that the URL names.
        storage_options: Arguments of the fsspec filesystem, such as credentials. They never appear in states, messages
            or the repr.
        retries: How often and for how long requests to remote storage are retried; None: `laneway.RetryPolicy()`.
        cache_dir: Directory or URL of cached file metadata, so that the next start lists the files and reads only the
            footers of new or changed ones. None: the user's cache directory for remote storage, no cache for local
            files; True: the user's cache directory; False: no cache.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument has the wrong type.
        DataFileError: A data file is missing or can't be read, or no data file was found.
        SchemaMismatchError: The data files differ in the selected columns, a column doesn't exist, or its type can't be
            cast to that of `schema`.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> dataset = StatefulShardedDataset(folder, batch_size=4)
        >>> batches = iter(dataset)
        >>> next(batches)["x"]
        tensor([0, 1, 2, 3])
        >>> state = dataset.state_dict()
        >>> resumed = StatefulShardedDataset(folder, batch_size=4)
        >>> resumed.load_state_dict(state)
        >>> [batch["x"].tolist() for batch in resumed]
        [[4, 5, 6, 7], [8, 9]]
    """

    def __init__(
        self,
        source: Source | Manifest,
        *,
        format: str | None = None,  # noqa: A002 - the name that pyarrow gives it
        columns: Sequence[str] | None = None,
        filter: pc.Expression | Sequence[Any] | None = None,  # noqa: A002 - the name that users know
        schema: pa.Schema | None = None,
        shuffle: bool = False,
        seed: int = 0,
        shard_bytes: int | str = "8MiB",
        shard_rows: int | None = None,
        window_bytes: int | str = "64MiB",
        prefetch_windows: int = 1,
        lanes: int | None = None,
        turn_rows: int | None = None,
        remainder: Remainder | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        output: Output | None = None,
        transform: Callable[[Any], Any] | None = None,
        fill_null: FillNull | None = None,
        categories: Mapping[str, Sequence[Any] | None] | None = None,
        on_error: OnError = "raise",
        filler: Mapping[str, Any] | None = None,
        provenance: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        filesystem: AbstractFileSystem | pyarrow.fs.FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
        cache_dir: CacheDir = None,
    ) -> None:
        options = _lane_options(lanes, turn_rows, batch_size, drop_last=drop_last)
        check_choice("remainder", remainder, get_args(Remainder), or_none=True)
        check_choice("output", output, get_args(Output), or_none=True)
        check_callable("transform", transform)
        check_flag("shuffle", shuffle)
        check_flag("provenance", provenance)
        columns, schema = check_columns(columns), check_schema(schema)
        prefetch_windows = check_int("prefetch_windows", prefetch_windows, minimum=0)
        settings = Settings(
            seed=check_seed(seed),
            shuffle=shuffle,
            shard_bytes=check_size("shard_bytes", shard_bytes),
            shard_rows=check_count("shard_rows", shard_rows),
            window_bytes=check_size("window_bytes", window_bytes),
            remainder=remainder,
            drop_last=drop_last,
        )
        catalog = None
        if not isinstance(source, Manifest):
            catalog = catalog_of(source, storage_options, has_filesystem=filesystem is not None)
        if output is None and catalog is not None:
            output = catalog.output
        self._asks_rank = rank is None and world_size is None
        place = WorkerPlace(*data_parallel_rank(rank, world_size))
        manifest, storage = open_source(
            source if catalog is None else catalog,
            format=format,
            filesystem=filesystem,
            storage_options=storage_options,
            retries=retries,
            cache_dir=cache_dir,
            condition=filter,
            schema=schema,
        )
        self._given_output = output
        output = output or ("python" if batch_size is None else "torch")
        delivered = DeliveredColumns.of(
            manifest,
            storage,
            names=columns,
            schema=schema,
            categories=categories,
            provenance=provenance,
            output=output,
            fill_null=fill_null,
            cache_dir=cache_dir,
        )
        if delivered.categories is not None:
            settings = replace(settings, categories=delivered.categories.text)
        table = manifest.table
        if table is not None:
            settings = replace(settings, table=table.version)
        elif storage.commit is not None:
            settings = replace(settings, table=f"commit {storage.commit} of a repository of the Hugging Face Hub")
        functions = Transforms(errors=RowErrors.of(on_error, filler, batch_size, output, delivered.converter))
        self.definition: DatasetDefinition = DatasetDefinition(
            identity=Identity(manifest.files, settings),
            options=options,
            place=place,
            manifest=manifest,
            storage=storage,
            columns=delivered,
            transform=functions if transform is None else functions.then(transform),
            prefetch_windows=prefetch_windows,
        )
        """The files, order and conversion."""
        self._given_schema, self._cache_dir = schema, cache_dir
        rows = rows_of(manifest)
        if rows is not None:
            self.definition = self.definition.with_selection(rows)
        if filter is not None:
            self.definition = self._with_filter(filter)
        _check_has_files(manifest, self.definition.selection)
        self.schedule = EpochSchedule()
        """The epoch of the next pass, and the progress of the last one."""

    def _with_filter(self, condition: object) -> DatasetDefinition:
        if callable(condition):
            message = "filter= must be an expression or tuples: pass a function to the method, .filter(fn, columns=...)"
            raise TypeError(message)
        (changed,) = self._definitions(*self._filter(condition, None, None))
        return changed

    def repeat(self, epochs: int | None = None, *, epoch_batches: int | None = None) -> Mixture:
        """Return the rows of several epochs as one pass, or of all epochs, without end: a mixture of one.

        With several ranks, each repeats up to one row of each lane at the end: all deliver equally many batches. After
        `flat_map` or `pack`, it is as if it had been called before: packs continue from one epoch into the next.

        Args:
            epochs: Number of epochs, >= 1; None: without end.
            epoch_batches: Number of batches of each rank after which a pass ends; the next pass continues there, and
                is the next epoch. Not with `epochs`.

        Raises:
            ValueError: An argument is out of its range, both are given, or the dataset delivers batches: call `repeat`
                before `batch`.
        """
        return repeated(self, check_count("epochs", epochs), epoch_batches)

    def _planner(self) -> DatasetPlanner:
        return DatasetPlanner(self.definition)

    def completed_shards(self) -> list[Shard]:
        """Return the shards of this epoch that have been delivered completely, as far as this process knows.

        Raises:
            StateUnavailableError: A loader holds the progress.
        """
        self._check_holds_progress()
        running = self.schedule.described
        progress = self.schedule.next_progress if running is None else running.progress()
        if progress.cut is None:
            return []
        plan = self.definition.identity.plan(progress)
        return [plan.shards[index] for index in plan.completed_shards(progress.cut.rows()).tolist()]


def _check_has_files(manifest: Manifest, selection: RowSelection | None) -> None:
    """Check that the files that a manifest of a table leaves out have no row that the dataset selects."""
    left_out_by = None if manifest.table is None else manifest.table.filter
    if left_out_by is None:
        return
    steps = [] if selection is None else [step.text for step in selection.steps if not isinstance(step, NotDeleted)]
    if steps[:1] != [left_out_by]:
        message = (
            f"the manifest has only the files of the table in which {left_out_by} may match: pass the same filter=, or "
            "scan the table without one"
        )
        raise ValueError(message)


def _lane_options(lanes: int | None, turn_rows: int | None, batch_size: int | None, *, drop_last: bool) -> LaneOptions:
    """Check the arguments for lanes, turns and batches, and return them as one value."""
    options = LaneOptions(
        lanes=check_count("lanes", lanes, MAX_LANES),
        turn_rows=check_count("turn_rows", turn_rows),
        batch_size=check_count("batch_size", batch_size),
    )
    check_flag("drop_last", drop_last)
    if options.turns_per_batch(options.default_turn_rows) is None:
        message = f"batch_size {batch_size} must be a multiple of turn_rows {turn_rows}: a batch consists of turns"
        raise ValueError(message)
    if drop_last and batch_size is None:
        message = "drop_last=True needs a batch_size: without one, there are no batches to drop"
        raise ValueError(message)
    return options

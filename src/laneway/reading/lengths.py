"""Lengths: how many tokens each row of a dataset has, from one pass over a column, and the cache of that."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.catalog.progress_bar import progress_bar
from laneway.errors import ColumnConversionError, DataFileError
from laneway.reading.block_runs import block_runs, num_reading_threads
from laneway.reading.selected import open_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from laneway.catalog.caching import CacheDir, CacheEntry
    from laneway.catalog.contents import ManifestContents
    from laneway.reading.selecting import RowSelection
    from laneway.storage.filesystem import Storage

MAX_LENGTH: Final = 2**30
"""Tokens that a document can't have."""
_VERSION: Final = "1"
"""Changes whenever the same key stands for other lengths."""

_types: Any = pa.types
# The stubs of pyarrow don't know all functions.
_compute: Any = pc


@final
@dataclass(frozen=True, eq=False)
class Lengths:
    """How many tokens each row of a dataset has."""

    rows: NDArray[np.int32]
    """Tokens of each selected row, in the order of the files, shape (num_rows,)."""

    def __post_init__(self) -> None:
        """Keep the lengths from being changed: they are shared."""
        self.rows.flags.writeable = False

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.rows.sum(dtype=np.int64))

    @cached_property
    def digest(self) -> str:
        """What states hold of them: 16 hexadecimal digits."""
        return hashlib.blake2b(self.rows.astype("<i4").tobytes(), digest_size=8).hexdigest()


class LengthsCache:
    """The cached lengths of the rows of one selection of one manifest."""

    def __init__(
        self, manifest: ManifestContents, storage: Storage, selection: RowSelection | None, cache_dir: CacheDir
    ) -> None:
        """Prepare to look for entries.

        Args:
            manifest: The files.
            storage: Where they are.
            selection: The rows; None: all.
            cache_dir: Where lengths are cached; see `Manifest.scan`.
        """
        steps = () if selection is None else selection.steps
        self._manifest = manifest
        self._storage = storage
        self._num_rows = manifest.num_rows if selection is None else selection.rows.num_rows
        self._text = "" if selection is None else selection.rows.text
        # What a function without a version selects may be something else in the next run.
        self._cache_dir = cache_dir if all(step.is_named for step in steps) else False

    def read(self, key: Sequence[str]) -> Lengths | None:
        """Return the lengths that are cached under a key, or None."""
        entry = self._entry(key)
        return None if entry is None else entry.load(lambda data: self._decode(data, entry.redacted_path))

    def write(self, key: Sequence[str], lengths: Lengths) -> None:
        """Cache lengths under a key."""
        entry = self._entry(key)
        if entry is None:
            return
        batch = pa.record_batch([pa.array(lengths.rows)], ["lengths"])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_batch(batch)
        entry.write(sink.getvalue().to_pybytes())

    def _entry(self, key: Sequence[str]) -> CacheEntry | None:
        whole = (f"version {_VERSION}", self._text, *key)
        return self._manifest.cache_entry(self._cache_dir, self._storage, whole, "lengths")

    def _decode(self, data: memoryview, name: str) -> Lengths:
        try:
            column = pa.ipc.open_stream(pa.py_buffer(data)).read_all()["lengths"]
            rows = np.array(column.to_numpy(), np.int32) if column.null_count == 0 else None
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            message = f"{name} is damaged: {error}"
            raise DataFileError(message) from error
        if rows is None or rows.shape != (self._num_rows,) or rows.min(initial=0) < 0:
            message = f"{name} does not hold the lengths of {self._num_rows:,} rows"
            raise DataFileError(message)
        return Lengths(rows)


def count_column(
    manifest: ManifestContents,
    storage: Storage,
    field: pa.Field[Any],
    selection: RowSelection | None,
    cache_dir: CacheDir,
    *,
    progress: bool | None,
) -> Lengths:
    """Return the lengths that a column holds: its numbers, or the lengths of its lists.

    Args:
        manifest: The files.
        storage: Where they are.
        field: The column.
        selection: The rows; None: all.
        cache_dir: Where lengths are cached; see `Manifest.scan`.
        progress: True shows a progress bar, False does not, None does if it takes longer than 2 s.

    Raises:
        ColumnConversionError: The column holds neither numbers of tokens nor lists, or has a null.
        DataFileError: A file can't be read.
    """
    lengths_of = _lengths_of(field)
    cache, key = LengthsCache(manifest, storage, selection, cache_dir), ("column", field.name, str(field.type))
    found = cache.read(key)
    if found is not None:
        return found
    rows = open_rows(manifest, storage, pa.schema([field]), selection=selection)
    files = manifest.files if selection is None else selection.rows.files(manifest.files)
    lengths = np.zeros(files.num_rows, np.int32)
    runs = [*block_runs(files, pa.schema([field]), files.block_rows > 0)]

    def read(run: tuple[int, int, int]) -> int:
        file_index, first, stop = run
        base = files.block_starts[file_index]
        starts = files.block_row_starts[base : base + stop + 1]
        start, end = int(starts[first] - starts[0]), int(starts[stop] - starts[0])
        column = rows.read(file_index, start, end).column(0)
        values = lengths_of(column)
        is_wrong = _compute.or_(_compute.less(values, 0), _compute.greater_equal(values, MAX_LENGTH))
        is_wrong = _compute.fill_null(is_wrong, fill_value=True).to_numpy()
        if is_wrong.any():
            index = int(np.argmax(is_wrong))
            name_of_row = f"row {rows.row_in_file(file_index, start + index):,} of {files.paths[file_index]}"
            raise _refused(name_of_row, field.name, column[index].as_py())
        lengths[starts[first] : starts[stop]] = values.to_numpy()
        return end - start

    bar = progress_bar(files.num_rows, "counting lengths", " rows", progress=progress)
    with ThreadPoolExecutor(num_reading_threads(is_remote=rows.is_remote)) as pool, bar:
        try:
            for num_rows in pool.map(read, runs):
                bar.update(num_rows)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            rows.close()
    counted = Lengths(lengths)
    cache.write(key, counted)
    return counted


def _lengths_of(field: pa.Field[Any]) -> Callable[[Any], Any]:
    """Return what turns a column into numbers of tokens.

    Raises:
        ColumnConversionError: There are none in such a column.
    """
    data_type: Any = field.type
    if _types.is_integer(data_type):
        return _unchanged
    if _types.is_list(data_type) or _types.is_large_list(data_type) or _types.is_fixed_size_list(data_type):
        return _compute.list_value_length  # type: ignore[no-any-return]
    message = (
        f"column {field.name!r} is {data_type}, but a column of lengths must hold ints, the numbers of tokens, or the "
        "lists of tokens themselves"
    )
    raise ColumnConversionError(message)


def _unchanged(column: Any) -> Any:  # noqa: ANN401 - a column
    return column


def _refused(name_of_row: str, column: str, value: Any) -> ColumnConversionError:  # noqa: ANN401 - of a column
    """Return the error for what is no number of tokens."""
    shown = "null" if value is None else f"a list of {len(value):,}" if isinstance(value, list) else f"{value:,}"
    message = (
        f"{name_of_row} has {column!r} = {shown}, but a number of tokens must be in [0, {MAX_LENGTH:,}): filter such "
        "rows out"
    )
    return ColumnConversionError(message)

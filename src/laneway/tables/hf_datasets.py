"""Datasets of Hugging Face: their Arrow files, with the rows and columns that were chosen of them."""

from __future__ import annotations

import itertools
import os
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import numpy as np
import pyarrow as pa

# Private: a dataset doesn't say in public which rows of which files it has. A test fails if this changes.
from datasets.table import ConcatenationTable, MemoryMappedTable

from laneway.errors import DataFileError
from laneway.tables.base import Catalog, TableFiles
from laneway.tables.columns import dropped_name
from laneway.tables.hf_cached import CachedSplit, left_out
from laneway.tables.hf_features import columns_of
from laneway.tables.hf_saved import OUTPUTS
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from datasets import Dataset
    from numpy.typing import NDArray

_SAVE = "write it with save_to_disk(), and open it with load_from_disk()"


class _Piece(NamedTuple):
    """Consecutive rows of an Arrow file."""

    path: str
    start: int
    stop: int
    changes: tuple[tuple[str, tuple[str, ...]], ...]
    """How columns were renamed and left out: the name of a method of a table, and its argument."""


@final
class HfCatalog(Catalog):
    """The rows of a `datasets.Dataset`."""

    format = "arrow"

    def __init__(self, dataset: Dataset) -> None:
        """Take the files, rows, columns and format of a dataset.

        Args:
            dataset: A dataset on disk: one that was loaded, mapped, filtered, shuffled, split, or saved.

        Raises:
            DataFileError: Some of it is only in memory, or it has a row twice.
            ValueError: Its format has no equal here.
        """
        self._dataset = dataset
        given = dataset.format
        if given["type"] not in OUTPUTS:
            kind = "a function" if given["type"] == "custom" else f"of type {given['type']!r}"
            message = (
                f"the format of the dataset is {kind}: reset it with with_format(None), and pass transform= or output= "
                "to StatefulShardedDataset"
            )
            raise ValueError(message)
        self.output = OUTPUTS[given["type"]]
        self._columns = cast("list[str]", given["columns"])
        self._pieces = [each for each in _pieces(dataset.data) if each.stop > each.start]
        if len(dataset) == 0:
            message = "the dataset has no rows: nothing says of which files it is"
            raise DataFileError(message)
        changes = {each.changes for each in self._pieces}
        if len(changes) > 1:
            message = f"the columns of the files of the dataset were renamed or left out differently: {_SAVE}"
            raise DataFileError(message)
        self._changes = changes.pop() if changes else ()

    @property
    def root(self) -> str:
        """See Catalog."""
        return os.path.commonpath([os.path.dirname(path) for path in self._paths] or [os.getcwd()])  # noqa: PTH109, PTH120

    @cached_property
    def _paths(self) -> list[str]:
        return [*dict.fromkeys(os.path.abspath(each.path) for each in self._pieces)]  # noqa: PTH100

    @cached_property
    def schema(self) -> pa.Schema:
        """See Catalog: the columns of the format."""
        return columns_of(self._dataset.data.schema, self._columns, self._dataset.features.to_dict())

    def files(self) -> TableFiles:
        """See Catalog."""
        missing = [path for path in self._paths if not os.path.exists(path)]  # noqa: PTH110
        if missing:
            message = f"{missing[0]} does not exist: load the dataset again"
            raise DataFileError(message)
        return TableFiles(paths=self._paths, sizes=[os.stat(path).st_size for path in self._paths])  # noqa: PTH116

    def rename(self, schema: pa.Schema) -> pa.Schema:
        """See Catalog: what was renamed is renamed, and what was left out can't be found."""
        places, names = [*range(len(schema))], schema.names
        for method, argument in self._changes:
            if method == "rename_columns":
                names = [*argument]
            else:
                kept = [i for i, name in enumerate(names) if (name in argument) == (method == "select")]
                places, names = [places[i] for i in kept], [names[i] for i in kept]
        found = dict(zip(places, names, strict=True))
        taken = {*names}
        return pa.schema(
            [
                schema.field(place).with_name(found.get(place) or dropped_name(schema.field(place).name, place, taken))
                for place in range(len(schema))
            ]
        )

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        """See Catalog: the rows of the files that were not chosen."""
        ranges = self._ranges()
        found: dict[int, NDArray[np.int64]] = {}
        for index in indices:
            kept = ranges[index]
            num_rows = _num_rows(self._paths[index])
            others = left_out(kept, num_rows)
            if len(others):
                found[index] = others
        return found

    def as_cached(self) -> CachedSplit | None:
        """Return the same rows without `datasets`; None: columns were renamed, or the rows are in another order."""
        places = [(os.path.abspath(each.path), each.start) for each in self._pieces]  # noqa: PTH100
        if self._changes or self._dataset._indices is not None or places != sorted(places):  # noqa: SLF001
            return None
        return CachedSplit(self.schema, self._paths, self._ranges(), [_num_rows(path) for path in self._paths])

    def _ranges(self) -> list[NDArray[np.int64]]:
        """Return the rows of each file that belong to the dataset, as ranges that are ascending."""
        place_of = {path: index for index, path in enumerate(self._paths)}
        files = np.array([place_of[os.path.abspath(each.path)] for each in self._pieces], np.int64)  # noqa: PTH100
        first = np.array([each.start for each in self._pieces], np.int64)
        lengths = np.array([each.stop - each.start for each in self._pieces], np.int64)
        indices = self._dataset._indices  # noqa: SLF001 - not public
        if indices is not None:
            # In rows: the place of each of them in the pieces, then in a file.
            rows = np.asarray(indices.column(0).to_numpy(), np.int64)
            pieces = np.searchsorted(np.cumsum(lengths), rows, side="right")
            first = first[pieces] + rows - (np.cumsum(lengths) - lengths)[pieces]
            files, lengths = files[pieces], np.ones(len(rows), np.int64)
        order = np.lexsort((first, files))
        sorted_paths = sorted(range(len(self._paths)), key=self._paths.__getitem__)
        rank = np.argsort(np.array(sorted_paths, np.int64))[files] if len(files) else files
        is_behind = (np.diff(rank) < 0) | ((np.diff(rank) == 0) & (np.diff(first) < 0))
        files, first, stop = files[order], first[order], (first + lengths)[order]
        is_twice = (np.diff(files) == 0) & (first[1:] < stop[:-1])
        if is_twice.any():
            row, path = int(first[1:][is_twice][0]), self._paths[int(files[1:][is_twice][0])]
            message = f"the dataset has row {row:,} of {path} twice ({counted(int(is_twice.sum()), 'such row')})"
            msg = f"{message}: {_SAVE}"
            raise DataFileError(msg)
        if is_behind.any():
            warnings.warn(
                "the rows of the dataset are not in the order of its files: they are delivered in the order of the "
                f"files, or with shuffle=True, in a random one; for the order of the dataset, {_SAVE}",
                stacklevel=2,
            )
        starts = np.searchsorted(files, np.arange(len(self._paths) + 1))
        pairs = np.stack([first, stop], axis=1)
        return [pairs[begin:end] for begin, end in itertools.pairwise(starts)]


def _pieces(table: Any) -> Iterator[_Piece]:  # noqa: ANN401 - a table of datasets
    if isinstance(table, ConcatenationTable):
        for blocks in table.blocks:
            several = blocks if isinstance(blocks, (list, tuple)) else [blocks]
            if len(several) != 1:
                message = f"the dataset has columns that are only in memory: {_SAVE}"
                raise DataFileError(message)
            yield from _pieces(several[0])
    elif isinstance(table, MemoryMappedTable):
        yield _piece(table)
    elif table.num_rows:
        message = f"the dataset has {counted(table.num_rows, 'row')} only in memory: {_SAVE}"
        raise DataFileError(message)


def _piece(table: MemoryMappedTable) -> _Piece:
    start, stop = 0, -1
    changes: list[tuple[str, tuple[str, ...]]] = []
    for name, arguments, options in table.replays or ():
        if name == "slice":
            offset = arguments[0] if arguments else options.get("offset", 0)
            length = arguments[1] if len(arguments) > 1 else options.get("length")
            start += offset
            stop = stop if length is None else start + length
        elif name in {"rename_columns", "drop", "select"}:
            changes.append((name, tuple(arguments[0] if arguments else next(iter(options.values())))))
        elif name not in {"cast", "combine_chunks", "replace_schema_metadata"}:
            message = f"the dataset was changed in memory by {name}(): {_SAVE}"
            raise DataFileError(message)
    # A slice may reach beyond the end.
    return _Piece(table.path, start, start + table.num_rows, tuple(changes))


def _num_rows(path: str) -> int:
    """Return the number of rows of an Arrow file, whose batches are only mapped."""
    with pa.memory_map(path) as source:
        try:
            return sum(batch.num_rows for batch in pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            return sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))

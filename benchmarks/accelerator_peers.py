"""What feeds an emulated accelerator: laneway, pyarrow alone, the readers that DLIO describes, and other libraries.

Each returns an endless iterable of batches, which are dicts of tensors of `batch_rows` rows. Files come in a random
order, rows of a file as they are stored, as in the workloads of MLPerf Storage; laneway knows no such order, and reads
without shuffling. All readers but laneway have one DataLoader worker for each accelerator, so that decoding goes on
while the accelerator computes; laneway has threads for that, and is measured with a worker too.
"""

from __future__ import annotations

import bisect
import importlib
import importlib.util
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from laneway import SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from benchmarks.accelerator_shapes import Shape
    from benchmarks.corpora import FileFormat

Batch = dict[str, torch.Tensor]
FEW_ROWS = 32
"""Rows of a shuffle buffer, for libraries that permute files only together with rows."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one accelerator reads."""

    shape: Shape
    """The workload."""
    folders: dict[FileFormat, Path]
    """Format -> folder with its files."""
    own: Path
    """Where a library may store files of its own."""
    seed: int
    """Decides the order of files: the number of the accelerator."""

    def files(self, file_format: FileFormat = "parquet") -> list[str]:
        """Return the files in a random order."""
        found = sorted(map(str, self.folders[file_format].iterdir()))
        return [found[i] for i in np.random.default_rng(self.seed).permutation(len(found))]


def tensors_of(table: pa.Table | pa.RecordBatch) -> Batch:
    """Return numbers, or fixed-size lists of numbers, as views of their memory if they have one chunk."""

    def tensor(column: Any) -> torch.Tensor:  # noqa: ANN401 - pyarrow's classes are generic in its stubs only
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.FixedSizeListArray):
            size = cast("Any", array.type).list_size
            return torch.from_numpy(array.flatten().to_numpy()).view(len(array), size)
        return torch.from_numpy(array.to_numpy())

    return {name: tensor(column) for name, column in zip(table.schema.names, table.columns, strict=True)}


def batches_of(tables: Iterable[pa.Table], batch_rows: int) -> Iterator[Batch]:
    """Yield batches across the bounds of tables; the rows of the last one that make none are dropped."""
    rest: pa.Table | None = None
    for table in tables:
        joined = table if rest is None or not len(rest) else pa.concat_tables([rest, table])
        whole = len(joined) // batch_rows * batch_rows
        for start in range(0, whole, batch_rows):
            yield tensors_of(joined.slice(start, batch_rows))
        rest = joined.slice(whole)


# laneway.


def _laneway(file_format: FileFormat, num_workers: int, reading: Reading) -> Iterator[Batch]:
    dataset = StatefulShardedDataset(
        reading.folders[file_format],
        columns=list(reading.shape.columns),
        batch_size=reading.shape.batch_rows,
        drop_last=True,
        rank=0,
        world_size=1,
    )
    loader = SavableLoader(dataset, num_workers=num_workers, persistent_workers=bool(num_workers))
    while True:
        yield from loader


# pyarrow alone: a row group after another.


class RowGroups(IterableDataset[Batch]):
    """Batches of row groups that pyarrow reads one after another.

    DLIO's iterable Parquet reader is described like this too, but that it drops what it has read instead of decoding
    it: the footers once, then row group after row group, whose rows are put together to batches.
    """

    def __init__(self, reading: Reading, file_format: FileFormat = "parquet") -> None:
        """Read the files of `reading`."""
        self._reading, self._format = reading, file_format

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of all files, again and again."""
        while True:
            yield from batches_of(self._tables(), self._reading.shape.batch_rows)

    def _tables(self) -> Iterator[pa.Table]:
        columns = list(self._reading.shape.columns)
        for path in self._reading.files(self._format):
            if self._format == "arrow":
                file = pa.ipc.open_file(pa.memory_map(path))
                for index in range(file.num_record_batches):
                    yield pa.Table.from_batches([file.get_batch(index)]).select(columns)
            else:
                parquet = pq.ParquetFile(path)
                for index in range(parquet.num_row_groups):
                    yield parquet.read_row_group(index, columns=columns, use_threads=False)


def _pyarrow_alone(reading: Reading) -> Iterator[Batch]:
    return iter(RowGroups(reading))


def _in_dataloader(reading: Reading) -> Iterator[Batch]:
    return iter(DataLoader(RowGroups(reading), batch_size=None, num_workers=1))


# DLIO's reader by index, from its description.


class RowsByIndex(Dataset[Batch]):
    """Rows by their number, as DLIO's Parquet reader for local files is described.

    A row is asked for by its number. The footer of a file is read once, and bisecting the first rows of its row groups
    finds the one that has the row. The row group that was read last is kept; here it is decoded, which DLIO doesn't.
    """

    def __init__(self, reading: Reading) -> None:
        """Read the files of `reading`."""
        self._reading, self._paths = reading, reading.files()
        counts = [pq.read_metadata(path).num_rows for path in self._paths]
        self._file_starts = [0, *itertools.accumulate(counts)]
        self._open: dict[int, tuple[pq.ParquetFile, list[int]]] = {}
        self._last: tuple[int, int] | None = None
        self._columns: Batch = {}

    def __len__(self) -> int:
        """Return the number of rows of all files."""
        return self._file_starts[-1]

    def __getitem__(self, index: int) -> Batch:
        """Return a row."""
        file_index = bisect.bisect_right(self._file_starts, index) - 1
        row = index - self._file_starts[file_index]
        if file_index not in self._open:
            file = pq.ParquetFile(self._paths[file_index])
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._open[file_index] = file, [0, *itertools.accumulate(counts)]
        file, starts = self._open[file_index]
        group = bisect.bisect_right(starts, row) - 1
        if self._last != (file_index, group):
            self._columns = tensors_of(file.read_row_group(group, columns=list(self._reading.shape.columns)))
            self._last = file_index, group
        return {name: column[row - starts[group]] for name, column in self._columns.items()}


def _dlio_by_index(reading: Reading) -> Iterator[Batch]:
    loader = DataLoader(
        RowsByIndex(reading),
        batch_size=reading.shape.batch_rows,
        num_workers=1,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        yield from loader


# Other libraries.


def _load(module: str) -> Any:  # noqa: ANN401 - the types of optional libraries are unknown
    return importlib.import_module(module)


def _unbatched(batch: Any) -> Batch:  # noqa: ANN401 - a Table
    """Undo `batch()` of HF datasets, which puts several rows into one row of lists."""
    lists: list[Any] = [column.combine_chunks() for column in batch.columns]
    return tensors_of(pa.RecordBatch.from_arrays([column.flatten() for column in lists], batch.column_names))


def _datasets(reading: Reading) -> Iterator[Batch]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    dataset = _load("datasets").load_dataset(
        "parquet",
        data_files=reading.files(),
        split="train",
        streaming=True,
        columns=list(reading.shape.columns),
        cache_dir=str(reading.own),
    )
    # As Arrow: its own conversion to tensors is several times slower.
    batches = dataset.with_format("arrow").batch(reading.shape.batch_rows, drop_last_batch=True)
    loader = DataLoader(batches, batch_size=None, num_workers=1, collate_fn=_unbatched, persistent_workers=True)
    while True:
        yield from loader


def _dataloader_utils(reading: Reading) -> Iterator[Batch]:
    loader, _ = _load("torch_dataloader_utils").StructuredDataset.create_dataloader(
        str(reading.folders["parquet"]),
        "parquet",
        batch_size=reading.shape.batch_rows,
        columns=list(reading.shape.columns),
        num_workers=1,
        # As Arrow, because its own conversion turns lists of numbers into Python lists.
        output_format="arrow",
        collate_fn=tensors_of,
    )
    while True:
        yield from loader


def _rows_of_file(path: str, columns: list[str]) -> Iterator[Batch]:
    file = pq.ParquetFile(path)
    for index in range(file.num_row_groups):
        tensors = tensors_of(file.read_row_group(index, columns=columns))
        for row in range(len(next(iter(tensors.values())))):
            yield {name: column[row].clone() for name, column in tensors.items()}


def convert_for_litdata(reading: Reading) -> None:
    """Write the rows in litdata's own format, unless they exist."""
    folder = reading.own
    if (folder / "index.json").exists():
        return
    columns = list(reading.shape.columns)
    _load("litdata").optimize(
        fn=_Rows(columns), inputs=sorted(reading.files()), output_dir=str(folder), chunk_bytes="64MB", num_workers=1
    )


class _Rows(NamedTuple):
    """Yields the rows of a file; can be pickled."""

    columns: list[str]

    def __call__(self, path: str) -> Iterator[Batch]:
        # litdata recognises a generator function.
        yield from _rows_of_file(path, self.columns)


def _litdata(reading: Reading) -> Iterator[Batch]:
    litdata = _load("litdata")
    dataset = litdata.StreamingDataset(str(reading.own), shuffle=False, drop_last=False)
    loader = litdata.StreamingDataLoader(dataset, batch_size=reading.shape.batch_rows, num_workers=1)
    while True:
        yield from loader


@dataclass(frozen=True, slots=True)
class Contender:
    """What feeds an accelerator."""

    open: Callable[[Reading], Iterator[Batch]]
    """Returns its batches, without end."""
    module: str | None = None
    """The module of the library, if it is another one."""
    convert: Callable[[Reading], None] | None = None
    """Writes the rows in a format of its own, once."""
    is_peer: bool = True
    """Whether laneway is compared with it."""

    @property
    def problem(self) -> str | None:
        """Why it can't take part, if it can't."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f"{self.module} is not installed"


ALONE = "pyarrow alone"
CONTENDERS = {
    "laneway, Parquet": Contender(lambda reading: _laneway("parquet", 0, reading), is_peer=False),
    "laneway, Parquet, a worker": Contender(lambda reading: _laneway("parquet", 1, reading), is_peer=False),
    "laneway, Arrow": Contender(lambda reading: _laneway("arrow", 0, reading), is_peer=False),
    ALONE: Contender(_pyarrow_alone, is_peer=False),
    "pyarrow in a DataLoader": Contender(_in_dataloader),
    "DLIO's reader by index": Contender(_dlio_by_index),
    "torch-dataloader-utils": Contender(_dataloader_utils, "torch_dataloader_utils"),
    "HF datasets": Contender(_datasets, "datasets"),
    "litdata": Contender(_litdata, "litdata", convert_for_litdata),
}
"""Name -> contender. `ALONE` decodes in the process of the loop, and is what pyarrow permits."""

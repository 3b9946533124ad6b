"""The baseline: pyarrow alone reads the same files and yields the same rows as the same objects, with minimal code.

Row groups are read one after another and sliced into batches. Shuffled, row groups come in random order and the rows
of each in random order. Nothing is read ahead and nothing can be resumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import torch
from torch.utils.data import IterableDataset, get_worker_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.corpora import FileFormat

    ReadBlock = Callable[[], pa.Table]


class RawPyarrow(IterableDataset[Any]):
    """Rows or batches of files, divided among DataLoader workers.

    Args:
        files: Paths.
        file_format: Format of the files; Arrow files are memory-mapped.
        shuffle: Whether row groups, and rows within each, come in random order.
        batch_rows: Rows of a batch of tensors; None: rows one by one, as dicts of Python values.
        is_packed: Whether a batch is a single uint8 tensor with the bytes of all columns, instead of a dict.
        use_threads: Whether a row group's columns are decoded in parallel.
    """

    def __init__(
        self,
        files: list[str],
        file_format: FileFormat,
        *,
        shuffle: bool,
        batch_rows: int | None,
        is_packed: bool = False,
        use_threads: bool = True,
    ) -> None:
        """See the class."""
        self._files, self._file_format = files, file_format
        self._shuffle, self._batch_rows, self._is_packed = shuffle, batch_rows, is_packed
        self._use_threads = use_threads

    def __iter__(self) -> Iterator[Any]:
        """Return a pass over the files of this worker, or over all of them."""
        worker = get_worker_info()
        files = self._files if worker is None else self._files[worker.id :: worker.num_workers]
        generator = np.random.default_rng(0)
        read = self._parquet_blocks if self._file_format == "parquet" else self._arrow_blocks
        blocks = [block for path in files for block in read(path)]
        if self._shuffle:
            generator.shuffle(blocks)
        for read_block in blocks:
            table = read_block()
            if self._shuffle:
                table = table.take(generator.permutation(len(table)))
            if self._batch_rows is None:
                yield from table.to_pylist()
            else:
                yield from self._batches(table, self._batch_rows)

    def _parquet_blocks(self, path: str) -> list[ReadBlock]:
        file = pq.ParquetFile(path)

        def read(index: int) -> ReadBlock:
            return lambda: file.read_row_group(index, use_threads=self._use_threads)

        return [read(index) for index in range(file.num_row_groups)]

    def _arrow_blocks(self, path: str) -> list[ReadBlock]:
        file = pa.ipc.open_file(pa.memory_map(path))

        def read(index: int) -> ReadBlock:
            return lambda: pa.Table.from_batches([file.get_batch(index)])

        return [read(index) for index in range(file.num_record_batches)]

    def _batches(self, table: pa.Table, batch_rows: int) -> Iterator[Any]:
        columns = {name: _tensor(column) for name, column in zip(table.column_names, table.columns, strict=True)}
        for start in range(0, len(table), batch_rows):
            batch = {name: column[start : start + batch_rows] for name, column in columns.items()}
            yield (
                torch.cat([column.reshape(-1).view(torch.uint8) for column in batch.values()])
                if (self._is_packed)
                else batch
            )


def _tensor(column: pa.ChunkedArray[Any]) -> torch.Tensor:
    """Return numbers, or fixed-size lists of numbers, as a view of their memory; no nulls, no slices."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.FixedSizeListArray):
        size = cast("Any", array.type).list_size
        return torch.from_numpy(array.flatten().to_numpy()).view(-1, size)
    return torch.from_numpy(cast("pa.Array[Any]", array).to_numpy())

"""Other ways to read what a filter selects from the corpus of bench_filter.py, as dicts of tensors with equal rows."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from laneway import SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

BATCH_ROWS = 256
COLUMNS = ["id", "tokens"]
SHUFFLE_BUFFER_ROWS = 10_000
"""For libraries with a shuffle buffer: about as many rows as the others shuffle at a time, those of a row group."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read."""

    folder: Path
    """Parquet files with a column `score` in [0, 1), and a list of equally many tokens in each row."""
    share: float
    """The rows with a lesser score are selected."""
    shuffle: bool
    num_workers: int

    @property
    def condition(self) -> pc.Expression:
        """The filter."""
        return pc.field("score") < self.share


def tensors_of(table: pa.Table | pa.RecordBatch) -> dict[str, torch.Tensor]:
    """Return numbers and lists of equally many numbers as tensors, in memory of their own."""
    found = {}
    for name in COLUMNS:
        column: Any = table.column(name)
        array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        is_list = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
        values = (array.flatten() if is_list else array).to_numpy(zero_copy_only=False)
        tensor = torch.from_numpy(values.copy())
        found[name] = tensor.view(len(array), -1) if is_list else tensor
    return found


# laneway.


def open_laneway(reading: Reading, _: Path) -> Iterable[Any]:
    """Return an epoch of laneway; the rows were counted before."""
    dataset = StatefulShardedDataset(
        reading.folder,
        columns=COLUMNS,
        batch_size=BATCH_ROWS,
        filter=reading.condition,
        shuffle=reading.shuffle,
        cache_dir=reading.folder.parent / "cache",
    )
    return SavableLoader(dataset, num_workers=reading.num_workers) if reading.num_workers else dataset


# pyarrow's filtered scan of the same row groups.


class _Scan(IterableDataset[Any]):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __iter__(self) -> Iterator[Any]:
        worker, reading = get_worker_info(), self._reading
        generator = np.random.default_rng(0)
        dataset = pads.dataset(str(reading.folder), format="parquet")
        groups = [group for fragment in dataset.get_fragments() for group in fragment.split_by_row_group()]
        if reading.shuffle:
            generator.shuffle(groups)
        for group in groups if worker is None else groups[worker.id :: worker.num_workers]:
            table = group.to_table(columns=COLUMNS, filter=reading.condition, schema=dataset.schema)
            if not len(table):
                continue
            if reading.shuffle:
                table = table.take(generator.permutation(len(table)))
            columns = tensors_of(table)
            for start in range(0, len(table), BATCH_ROWS):
                yield {name: column[start : start + BATCH_ROWS] for name, column in columns.items()}


def open_pyarrow(reading: Reading, _: Path) -> Iterable[Any]:
    """Return batches of pyarrow's filtered scan. It reads no row ahead, and the last batch of a row group is short."""
    scan = _Scan(reading)
    loader: Iterable[Any] = DataLoader(scan, batch_size=None, num_workers=reading.num_workers)
    return loader if reading.num_workers else scan


# HF datasets.


def _unbatched(batch: Any) -> pa.RecordBatch:  # noqa: ANN401 - a Table
    lists: list[Any] = [column.combine_chunks() for column in batch.columns]
    return pa.RecordBatch.from_arrays([column.flatten() for column in lists], batch.column_names)


def _open_datasets(reading: Reading, directory: Path) -> Iterable[Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    dataset = importlib.import_module("datasets").load_dataset(
        "parquet",
        data_files=[str(path) for path in sorted(reading.folder.iterdir())],
        split="train",
        streaming=True,
        cache_dir=str(directory),
        columns=COLUMNS,
        filters=reading.condition,
    )
    dataset = dataset.reshard()
    if reading.shuffle:
        dataset = dataset.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER_ROWS, max_buffer_input_shards=1)
    dataset = dataset.with_format("arrow")
    if not reading.num_workers:
        return map(tensors_of, dataset.iter(batch_size=BATCH_ROWS))
    loader: Iterable[Any] = DataLoader(
        dataset.batch(BATCH_ROWS),
        batch_size=None,
        num_workers=reading.num_workers,
        collate_fn=lambda batch: tensors_of(_unbatched(batch)),
    )
    return loader


# torch-dataloader-utils.


def _open_dataloader_utils(reading: Reading, _: Path) -> Iterable[Any]:
    loader, _dataset = importlib.import_module("torch_dataloader_utils").StructuredDataset.create_dataloader(
        str(reading.folder),
        "parquet",
        batch_size=BATCH_ROWS,
        columns=COLUMNS,
        filters=reading.condition,
        shuffle=reading.shuffle,
        shuffle_buffer_size=SHUFFLE_BUFFER_ROWS if reading.shuffle else None,
        num_workers=reading.num_workers,
        output_format="arrow",
        collate_fn=tensors_of,
    )
    found: Iterable[Any] = loader
    return found


# LanceDB, in its own tables.


def _rows_of(batch: pa.RecordBatch) -> list[dict[str, torch.Tensor]]:
    columns = tensors_of(batch)
    return [{name: column[index] for name, column in columns.items()} for index in range(len(batch))]


def _open_lancedb(reading: Reading, directory: Path) -> Iterable[Any]:
    lancedb = importlib.import_module("lancedb")
    database = lancedb.connect(str(directory / "lance"))
    if "corpus" not in database.table_names():
        database.create_table("corpus", pq.read_table(reading.folder))
    dataset = importlib.import_module("lancedb.streaming").StreamingDataset(
        database.open_table("corpus"),
        num_splits=max(1, reading.num_workers),
        shuffle=reading.shuffle,
        shuffle_seed=0,
        columns=COLUMNS,
        filter=f"score < {reading.share}",
        transform=_rows_of,
        read_batch_size=BATCH_ROWS,
        # As many rows at a time as the others shuffle; single rows, its default, are read many times more slowly.
        shuffle_clump_size=BATCH_ROWS if reading.shuffle else None,
    )
    loader: Iterable[Any] = DataLoader(
        dataset,
        batch_size=BATCH_ROWS,
        num_workers=reading.num_workers,
        multiprocessing_context="spawn" if reading.num_workers else None,
    )
    return loader


Opens: TypeAlias = "Callable[[Reading, Path], Iterable[Any]]"
"""Returns the batches of an epoch; may store its own files in the directory."""

PEERS: dict[str, tuple[str, Opens]] = {
    "HF datasets, filters=": ("datasets", _open_datasets),
    "torch-dataloader-utils, filters=": ("torch_dataloader_utils", _open_dataloader_utils),
    "lancedb StreamingDataset, filter=": ("lancedb", _open_lancedb),
}
"""Name -> module, and what opens an epoch."""


def installed_peers() -> dict[str, Opens]:
    """Return name -> what opens an epoch, for the libraries that can be imported."""
    return {name: work for name, (module, work) in PEERS.items() if importlib.util.find_spec(module) is not None}

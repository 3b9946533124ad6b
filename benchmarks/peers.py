"""Other libraries that read the same corpora, each with a short adapter that follows the library's documentation.

If a library has its own file format, the corpus is converted once, before anything is measured.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch.utils.data import Sampler

    from benchmarks.corpora import Corpus, FileFormat

BATCH_ROWS = 256
SHUFFLE_BUFFER_ROWS = 10_000
"""For libraries with a shuffle buffer: about as many rows as raw pyarrow shuffles, those of a row group."""
FEW_FILES = 10
"""With fewer data files than this, files are cut at row groups."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The files to read, and the objects to yield."""

    corpus: Corpus
    file_format: FileFormat
    shuffle: bool
    num_workers: int
    is_row_by_row: bool = False
    """Whether workers send rows one by one; otherwise they send lists of rows."""

    @property
    def yields_rows(self) -> bool:
        """Whether to yield rows as dicts of Python values, instead of batches as dicts of tensors."""
        return self.corpus.name == "text"

    @property
    def rows_per_item(self) -> int | None:
        """Rows per yielded batch or list; None: single rows. The same for all libraries."""
        return None if self.yields_rows and (self.is_row_by_row or not self.num_workers) else BATCH_ROWS


@dataclass(frozen=True, slots=True)
class Peer:
    """A library to compare with."""

    module: str
    """Name of the module."""
    open: Callable[[Reading, Path], Iterable[Any]]
    """Returns an iterable of rows or batches; may store its own files in the directory."""
    reads_arrow: bool = False
    """Whether it reads Arrow files; otherwise it is only compared on Parquet, or on a conversion of it."""

    @property
    def is_installed(self) -> bool:
        """Whether the module can be imported."""
        return importlib.util.find_spec(self.module) is not None


def _load(module: str) -> Any:  # noqa: ANN401 - the types of optional libraries are unknown
    return importlib.import_module(module)


# Conversion of pyarrow's objects, which several libraries can yield.


def _rows_of(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    return batch.to_pylist()


def _tensors_of(batch: pa.RecordBatch | pa.Table) -> dict[str, torch.Tensor]:
    def tensor(column: Any) -> torch.Tensor:  # noqa: ANN401 - pyarrow's classes are generic in its stubs only
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.FixedSizeListArray):
            return torch.from_numpy(array.flatten().to_numpy()).view(len(array), -1)
        return torch.from_numpy(array.to_numpy())

    return {name: tensor(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _objects_of(reading: Reading) -> Callable[[Any], Any]:
    return _rows_of if reading.yields_rows else _tensors_of


def _rows_or_batches(batches: Iterable[Any], reading: Reading) -> Iterable[Any]:
    """Return batches as they are, or single rows if the reading asks for them."""
    return (row for batch in batches for row in batch) if reading.rows_per_item is None else batches


# HF datasets, both kinds with the "arrow" format: its own conversion to tensors and rows is several times slower.


def _unbatched(batch: Any) -> pa.RecordBatch:  # noqa: ANN401 - a Table, which the types of DataLoader don't allow
    """Undo `batch()`, which puts several rows into one row of lists."""
    lists: list[Any] = [column.combine_chunks() for column in batch.columns]
    return pa.RecordBatch.from_arrays([column.flatten() for column in lists], batch.column_names)


def stream_datasets(
    files: list[str], reading: Reading, directory: Path, *, buffer_rows: int = SHUFFLE_BUFFER_ROWS
) -> Any:  # noqa: ANN401 - as above
    """Return a streaming dataset of HF datasets.

    A small number of files is cut at row groups, as its documentation recommends. The buffer is filled from one of
    these after another: with several at a time, the default, it waits far longer than it computes.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    dataset = _load("datasets").load_dataset(
        reading.file_format, data_files=files, split="train", streaming=True, cache_dir=str(directory)
    )
    if reading.file_format == "parquet" and len(files) < FEW_FILES:
        dataset = dataset.reshard()
    if reading.shuffle:
        dataset = dataset.shuffle(seed=0, buffer_size=buffer_rows, max_buffer_input_shards=1)
    return dataset.with_format("arrow")


def _open_datasets(reading: Reading, directory: Path) -> Iterable[Any]:
    dataset = stream_datasets(reading.corpus.files(reading.file_format), reading, directory)
    convert = _objects_of(reading)
    if not reading.num_workers:
        return _rows_or_batches(map(convert, dataset.iter(batch_size=BATCH_ROWS)), reading)
    batches: Iterable[Any] = DataLoader(
        dataset.batch(BATCH_ROWS),
        batch_size=None,
        num_workers=reading.num_workers,
        collate_fn=lambda batch: convert(_unbatched(batch)),
    )
    return batches


def _open_datasets_map(reading: Reading, directory: Path) -> Iterable[Any]:
    """Open the map-style dataset, which stores the corpus in its own Arrow files."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    files = reading.corpus.files(reading.file_format)
    dataset = _load("datasets").load_dataset(
        reading.file_format, data_files=files, split="train", cache_dir=str(directory)
    )
    dataset = dataset.with_format("arrow")
    convert = _objects_of(reading)
    if not reading.shuffle and not reading.num_workers:
        return _rows_or_batches(map(convert, dataset.iter(batch_size=BATCH_ROWS)), reading)
    # Rows are requested one batch at a time, as its documentation recommends.
    order: Sampler[int] = RandomSampler(dataset) if reading.shuffle else SequentialSampler(dataset)
    batches: Iterable[Any] = DataLoader(
        dataset,
        sampler=BatchSampler(order, BATCH_ROWS, drop_last=False),
        batch_size=None,
        num_workers=reading.num_workers,
        collate_fn=convert,
    )
    return _rows_or_batches(batches, reading)


# torch-dataloader-utils.


def _open_dataloader_utils(reading: Reading, _: Path) -> Iterable[Any]:
    # As Arrow, because its own conversion turns tokens into Python lists.
    loader, _dataset = _load("torch_dataloader_utils").StructuredDataset.create_dataloader(
        str(reading.corpus.folder("parquet")),
        "parquet",
        batch_size=BATCH_ROWS,
        shuffle=reading.shuffle,
        shuffle_buffer_size=SHUFFLE_BUFFER_ROWS if reading.shuffle else None,
        num_workers=reading.num_workers,
        output_format="arrow",
        collate_fn=_objects_of(reading),
    )
    return _rows_or_batches(loader, reading)


# litdata, in its own format.


def _rows_of_file(path: str) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _tokens_of_file(path: str) -> Iterator[torch.Tensor]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from _tensors_of(batch)["tokens"]


def stream_litdata(
    files: list[str], reading: Reading, directory: Path, *, multiprocessing_context: str | None = None
) -> Any:  # noqa: ANN401 - as above
    """Return litdata's loader over files in its own format, and write these to the directory if they don't exist.

    Rows come in lists: its dataset alone, which yields single rows, is slower.
    """
    litdata = _load("litdata")
    is_tokens = reading.corpus.name == "tokens"
    item_loader = litdata.TokensLoader(block_size=1_024) if is_tokens else None
    if not (directory / "index.json").exists():
        litdata.optimize(
            fn=_tokens_of_file if is_tokens else _rows_of_file,
            inputs=files,
            output_dir=str(directory),
            # Enough chunks for its shuffling and two workers.
            chunk_size=1 << 21 if is_tokens else None,
            chunk_bytes=None if is_tokens else "8MB",
            num_workers=1,
            item_loader=item_loader,
        )
    dataset = litdata.StreamingDataset(
        str(directory), item_loader=item_loader, shuffle=reading.shuffle, drop_last=False, seed=0
    )
    return litdata.StreamingDataLoader(
        dataset,
        batch_size=BATCH_ROWS,
        num_workers=reading.num_workers,
        collate_fn=list if reading.yields_rows else None,
        multiprocessing_context=multiprocessing_context,
    )


def _open_litdata(reading: Reading, directory: Path) -> Iterable[Any]:
    return _rows_or_batches(stream_litdata(reading.corpus.files("parquet"), reading, directory), reading)


# mosaicml-streaming, in its own format.


def _mds_type(field: pa.Field[Any]) -> str:
    if isinstance(field.type, pa.FixedSizeListType):
        return f"ndarray:int32:{field.type.list_size}"
    return {"int64": "int64", "int8": "int8", "float": "float32", "string": "str"}[str(field.type)]


def _write_mds(corpus: Corpus, directory: Path) -> None:
    files = [pq.ParquetFile(path) for path in corpus.files("parquet")]
    types = {field.name: _mds_type(field) for field in files[0].schema_arrow}
    with _load("streaming").MDSWriter(out=str(directory), columns=types) as writer:
        for file in files:
            for batch in file.iter_batches():
                arrays = (
                    batch.to_pydict()
                    if corpus.name == "text"
                    else {name: tensor.numpy() for name, tensor in _tensors_of(batch).items()}
                )
                for row in zip(*arrays.values(), strict=True):
                    writer.write(dict(zip(types, row, strict=True)))


def _open_streaming(reading: Reading, directory: Path) -> Iterable[Any]:
    streaming = _load("streaming")
    if not (directory / "index.json").exists():
        _write_mds(reading.corpus, directory)
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(directory), shuffle=reading.shuffle, batch_size=BATCH_ROWS)
    if reading.rows_per_item is None:
        rows: Iterable[Any] = dataset
        return rows
    collate = list if reading.yields_rows else None
    loader: Iterable[Any] = DataLoader(
        dataset, batch_size=BATCH_ROWS, num_workers=reading.num_workers, collate_fn=collate
    )
    return loader


PEERS = {
    "datasets": Peer("datasets", _open_datasets, reads_arrow=True),
    "datasets map": Peer("datasets", _open_datasets_map, reads_arrow=True),
    "torch-dataloader-utils": Peer("torch_dataloader_utils", _open_dataloader_utils),
    "litdata": Peer("litdata", _open_litdata),
    "mosaicml-streaming": Peer("streaming", _open_streaming),
}
"""Name -> library; "datasets map" is the map-style dataset of HF datasets, and "datasets" the streaming one."""

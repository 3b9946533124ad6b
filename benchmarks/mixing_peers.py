"""How others mix sources by weight and pack documents: for bench_mixture.py and bench_packing.py.

Each adapter follows the documentation of its library. What has a file format of its own is converted before anything
is measured.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import default_collate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from benchmarks import energon_peer
else:
    import energon_peer

SHUFFLE_BUFFER_ROWS = 1_000
GROUP_DOCUMENTS = 1_000
"""Documents that a batched map gets at a time, by default."""
OPEN_PACKS = 64
"""Packs that grain fills at the same time."""


class MixingPeer(NamedTuple):
    """A library that mixes sources by weight."""

    package: str
    """The package."""
    open: Callable[[Sequence[Path], Sequence[float], int | None, Path], Iterable[Any]]
    """Returns a mixture of files, in batches of arrays or tensors, or row by row (None); given a folder to keep files
    in."""

    @property
    def is_installed(self) -> bool:
        """Whether the package can be imported."""
        return _is_installed(self.package)


class PackingPeer(NamedTuple):
    """A library that packs the tokens of documents."""

    package: str
    """The package."""
    open: Callable[[Sequence[Path], int, int, Path], Iterable[Any]]
    """Returns batches with `input_ids`, shape (packs, length), or the batches of tokens alone, of the column
    `input_ids` of files; given the length, the number of packs of a batch, and a folder to keep files in."""
    padding: tuple[str, int] | None = None
    """The tensor of a batch, and its value where there is padding; None: there is none."""

    @property
    def is_installed(self) -> bool:
        """Whether the package can be imported."""
        return _is_installed(self.package)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def _load(module: str) -> Any:  # noqa: ANN401 - the types of optional libraries are unknown
    return importlib.import_module(module)


# -- HF datasets -------------------------------------------------------------------------------------------------------


def _stream(paths: Sequence[Path]) -> Any:  # noqa: ANN401 - of an untyped package
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets = _load("datasets")
    datasets.disable_progress_bars()
    files = [str(path) for path in paths]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def _hf_mixture(paths: Sequence[Path], weights: Sequence[float], batch_rows: int | None, _: Path) -> Iterable[Any]:
    """Draw the source of each row."""
    datasets = _load("datasets")
    sources = [_stream([path]).shuffle(seed=1, buffer_size=SHUFFLE_BUFFER_ROWS) for path in paths]
    shares = [weight / sum(weights) for weight in weights]
    mixed = datasets.interleave_datasets(sources, shares, seed=1, stopping_strategy="all_exhausted")
    found: Iterable[Any] = mixed if batch_rows is None else mixed.with_format("numpy").batch(batch_rows)
    return found


def _hf_packs(paths: Sequence[Path], length: int, num_packs: int, _: Path) -> Iterable[Any]:
    """Pack as its users do: a batched map concatenates and cuts, and the rest of each group is left out."""

    def pack(group: dict[str, Any]) -> dict[str, Any]:
        tokens = np.concatenate(group["input_ids"])
        whole = len(tokens) // length * length
        return {"input_ids": tokens[:whole].reshape(-1, length)}

    rows = _stream(paths).with_format("numpy")
    packs = rows.map(pack, batched=True, batch_size=GROUP_DOCUMENTS)
    found: Iterable[Any] = packs.with_format("torch").batch(num_packs)
    return found


# -- litdata -----------------------------------------------------------------------------------------------------------


def _lists_of(path: str) -> Iterator[torch.Tensor]:
    """Yield the tokens of each document, or row, of a file."""
    for batch in pq.ParquetFile(path).iter_batches():
        column: Any = batch.column(0)
        for tokens in column:
            yield torch.from_numpy(tokens.values.to_numpy().copy())


def _rows_of(path: str) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _litdata_source(paths: Sequence[Path], folder: Path, block_tokens: int | None, *, shuffle: bool) -> Any:  # noqa: ANN401 - as above
    litdata = _load("litdata")
    loader = litdata.TokensLoader(block_size=block_tokens) if block_tokens else None
    if not (folder / "index.json").exists():
        litdata.optimize(
            fn=_lists_of if block_tokens else _rows_of,
            inputs=[str(path) for path in paths],
            output_dir=str(folder),
            chunk_size=1 << 21 if block_tokens else None,
            chunk_bytes=None if block_tokens else "8MB",
            num_workers=1,
            item_loader=loader,
        )
    return litdata.StreamingDataset(str(folder), item_loader=loader, shuffle=shuffle, drop_last=False, seed=1)


def _litdata_mixture(
    paths: Sequence[Path], weights: Sequence[float], batch_rows: int | None, folder: Path
) -> Iterable[Any]:
    """Draw the source of each row, until one of them is exhausted."""
    litdata, field = _load("litdata"), pq.read_schema(paths[0]).field(0)
    block = field.type.list_size if isinstance(field.type, pa.FixedSizeListType) else None
    sources = [_litdata_source([path], folder / f"litdata-{path.stem}", block, shuffle=True) for path in paths]
    shares = [weight / sum(weights) for weight in weights]
    mixed = litdata.CombinedStreamingDataset(sources, seed=1, weights=shares, iterate_over_all=False)
    if batch_rows is None:
        rows: Iterable[Any] = mixed
        return rows
    batches: Iterable[Any] = litdata.StreamingDataLoader(mixed, batch_size=batch_rows)
    return batches


def _litdata_packs(paths: Sequence[Path], length: int, num_packs: int, folder: Path) -> Iterable[Any]:
    """Cut blocks of the tokens of chunks; the rest of each chunk is left out."""
    source = _litdata_source(paths, folder / "litdata-packs", length, shuffle=False)
    batches: Iterable[Any] = _load("litdata").StreamingDataLoader(source, batch_size=num_packs)
    return batches


# -- grain -------------------------------------------------------------------------------------------------------------


def _grain_mixture(paths: Sequence[Path], weights: Sequence[float], batch_rows: int | None, _: Path) -> Iterable[Any]:
    """Take rows in proportion to the weights."""
    grain, experimental = _load("grain"), _load("grain.experimental")
    sources = [
        experimental.WindowShuffleIterDataset(
            experimental.RepeatIterDataset(experimental.ParquetIterDataset(str(path))),
            window_size=SHUFFLE_BUFFER_ROWS,
            seed=1,
        )
        for path in paths
    ]
    mixed = grain.IterDataset.mix(sources, [weight / sum(weights) for weight in weights])
    found: Iterable[Any] = mixed if batch_rows is None else mixed.batch(batch_rows)
    return found


def _grain_documents(paths: Sequence[Path]) -> Any:  # noqa: ANN401 - as above
    rows = _load("grain.experimental").ParquetIterDataset([str(path) for path in paths])
    return rows.map(lambda row: {"input_ids": np.asarray(row["input_ids"], np.int32)})


def _grain_chunks(paths: Sequence[Path], length: int, num_packs: int, _: Path) -> Iterable[Any]:
    """Concatenate and cut."""
    cut = _load("grain.experimental").ConcatThenSplitIterDataset(
        _grain_documents(paths), length_struct={"input_ids": length}
    )
    found: Iterable[Any] = cut.batch(num_packs)
    return found


def _grain_best_fit(paths: Sequence[Path], length: int, num_packs: int, _: Path) -> Iterable[Any]:
    """Put each document into the fullest open pack that has room; longer ones are cut before."""
    experimental = _load("grain.experimental")

    class Cut(experimental.FlatMapTransform):  # type: ignore[misc, name-defined]
        max_fan_out = 1_000

        def flat_map(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            tokens = row["input_ids"]
            return [{"input_ids": tokens[start : start + length]} for start in range(0, len(tokens), length)]

    pieces = experimental.FlatMapIterDataset(_grain_documents(paths), Cut())
    packs = experimental.BestFitPackIterDataset(
        pieces, length_struct={"input_ids": length}, num_packing_bins=OPEN_PACKS, shuffle_bins=False
    )
    found: Iterable[Any] = packs.batch(num_packs)
    return found


# -- lancedb -----------------------------------------------------------------------------------------------------------


def _lancedb_packs(paths: Sequence[Path], length: int, num_packs: int, folder: Path) -> Iterable[Any]:
    """Join documents with a separator and cut; what exceeds its estimate of the number of packs is left out."""
    lancedb, streaming = _load("lancedb"), _load("lancedb.streaming")
    database = lancedb.connect(str(folder / "lancedb"))
    if not (folder / "lancedb" / "documents.lance").exists():
        database.create_table("documents", pa.concat_tables(map(pq.read_table, paths)))
    dataset = streaming.StreamingDataset(
        database.open_table("documents"),
        shuffle=False,
        columns=["input_ids"],
        pack_sequences=length,
        eos_id=0,
        pad_id=-1,
        blocks_per_epoch="auto",
    )
    packs = iter(dataset)
    while batch := [*islice(packs, num_packs)]:
        yield default_collate(batch)


MIXING_PEERS = {
    "HF datasets": MixingPeer("datasets", _hf_mixture),
    "litdata": MixingPeer("litdata", _litdata_mixture),
    "grain": MixingPeer("grain", _grain_mixture),
    "energon": MixingPeer("megatron.energon", energon_peer.mixture),
}
"""Name -> library that mixes."""
PACKING_PEERS = {
    "HF datasets: a batched map that cuts": PackingPeer("datasets", _hf_packs),
    "litdata: TokensLoader, own format": PackingPeer("litdata", _litdata_packs),
    "grain: concatenate and split": PackingPeer("grain", _grain_chunks, ("input_ids_segment_ids", 0)),
    "grain: best fit over 64 open packs": PackingPeer("grain", _grain_best_fit, ("input_ids_segment_ids", 0)),
    "lancedb: pack_sequences, own format": PackingPeer("lancedb", _lancedb_packs, ("input_ids", -1)),
    "energon: best fit over 1,000 documents, own format": PackingPeer(
        "megatron.energon", energon_peer.packs, ("input_ids", -1)
    ),
}
"""Name -> library that packs."""

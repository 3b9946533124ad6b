"""How Megatron-Energon mixes sources by weight and packs documents: for mixing_peers.py.

Files are written as shards of WebDataset's format, an array for each row, and prepared with its own tool.
"""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import tarfile
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

SHUFFLE_BUFFER_ROWS = 1_000
PACKING_BUFFER_DOCUMENTS = 1_000


def _load(module: str) -> Any:  # noqa: ANN401 - the types of optional libraries are unknown
    return importlib.import_module(module)


def _arrays_of(path: Path) -> Iterator[Any]:
    """Yield a row of a file as one array: the list that is its only column, or all its numbers."""
    for batch in pq.ParquetFile(path).iter_batches():
        if batch.num_columns == 1 and hasattr(batch.schema.field(0).type, "value_type"):
            column: Any = batch.column(0)
            for values in column:
                yield values.values.to_numpy()
        else:
            yield from np.stack([np.asarray(column) for column in batch.columns], axis=1)


def _write(paths: Sequence[Path], folder: Path) -> Path:
    """Write each file as a shard, unless they exist, and return their folder."""
    if (folder / ".nv-meta").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with tarfile.open(folder / f"{path.stem}.tar", "w") as tar:
            for number, array in enumerate(_arrays_of(path)):
                data = io.BytesIO()
                np.save(data, array)
                info = tarfile.TarInfo(f"{path.stem}-{number:09}.npy")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", "--non-interactive"]
    options = ["--split-ratio", "1,0,0", "--sample-type", "TextSample", "--field-map", '{"text": "npy"}', str(folder)]
    subprocess.run([*command, *options], input="y\n" * 10, text=True, check=True, capture_output=True)
    return folder


def _batches_of(path: Path, batch_rows: int | None, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - its options
    energon = _load("megatron.energon")
    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = energon.get_train_dataset(str(path), worker_config=config, batch_size=batch_rows, **options)
    for batch in energon.get_loader(dataset):
        yield batch.text


def mixture(paths: Sequence[Path], weights: Sequence[float], batch_rows: int | None, folder: Path) -> Iterable[Any]:
    """Draw the source of each row; rows are arrays, and those of `source` have a name."""
    sources = [
        {"weight": weight, "path": str(_write([path], folder / f"energon-{path.stem}"))}
        for path, weight in zip(paths, weights, strict=True)
    ]
    head = {"__module__": "megatron.energon", "__class__": "MetadatasetV2"}
    # YAML that is JSON.
    described = folder / "energon.yaml"
    described.write_text(json.dumps({**head, "splits": {"train": {"blend": sources}}}), encoding="utf-8")
    rows = _batches_of(
        described, batch_rows, shuffle_buffer_size=SHUFFLE_BUFFER_ROWS, max_samples_per_sequence=SHUFFLE_BUFFER_ROWS
    )
    return rows if batch_rows is not None else ({"source": row[0]} for row in rows)


def packs(paths: Sequence[Path], length: int, num_packs: int, folder: Path) -> Iterable[Any]:
    """Put the documents of a buffer into the fullest pack that has room, the longest first; longer ones are cut."""
    energon = _load("megatron.energon")

    class Packer(energon.DefaultTaskEncoder):  # type: ignore[misc, name-defined]
        @energon.stateless  # type: ignore[untyped-decorator]
        def preencode_sample(self, sample: Any) -> Iterator[Any]:  # noqa: ANN401 - its class
            tokens = sample.text
            for start in range(0, len(tokens), length):
                yield energon.TextSample.derive_from(sample, text=tokens[start : start + length])

        def select_samples_to_pack(self, samples: list[Any]) -> list[list[Any]]:
            found: list[list[Any]] = []
            rooms: list[tuple[int, int]] = []  # of each pack with room, in order, and its number
            for sample in sorted(samples, key=lambda sample: -len(sample.text)):
                index = bisect_left(rooms, (len(sample.text), -1))
                room, number = rooms.pop(index) if index < len(rooms) else (length, len(found))
                if number == len(found):
                    found.append([])
                found[number].append(sample)
                if room > len(sample.text):
                    insort(rooms, (room - len(sample.text), number))
            return found

        @energon.stateless  # type: ignore[untyped-decorator]
        def pack_selected_samples(self, samples: list[Any]) -> Any:  # noqa: ANN401 - its class
            packed = np.full(length, -1, np.int64)
            tokens = np.concatenate([sample.text for sample in samples])
            packed[: len(tokens)] = tokens
            return energon.TextSample.derive_from(samples[0], text=packed)

    folder = _write(paths, folder / "energon-packs")
    found = _batches_of(
        folder,
        num_packs,
        task_encoder=Packer(),
        packing_buffer_size=PACKING_BUFFER_DOCUMENTS,
        shuffle_buffer_size=None,
        max_samples_per_sequence=PACKING_BUFFER_DOCUMENTS,
        repeat=False,
    )
    return ({"input_ids": np.stack(batch)} for batch in found)

"""How others mix sources by weight and pack documents: for bench_mixture.py and bench_packing.py."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SHUFFLE_BUFFER_ROWS = 1_000
GROUP_DOCUMENTS = 1_000
"""Documents that a batched map gets at a time, by default."""


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _stream(paths: Sequence[Path]) -> Any:  # noqa: ANN401 - of an untyped package
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    files = [str(path) for path in paths]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def hf_mixture(paths: Sequence[Path], weights: Sequence[float], batch_rows: int | None) -> Iterable[Any]:
    """Return an endless mixture of HF datasets, in batches of arrays; None: row by row. It draws each source."""
    datasets = importlib.import_module("datasets")
    sources = [_stream([path]).shuffle(seed=1, buffer_size=SHUFFLE_BUFFER_ROWS) for path in paths]
    shares = [weight / sum(weights) for weight in weights]
    mixed = datasets.interleave_datasets(sources, shares, seed=1, stopping_strategy="all_exhausted")
    found: Iterable[Any] = mixed if batch_rows is None else mixed.with_format("numpy").batch(batch_rows)
    return found


def hf_packs(paths: Sequence[Path], length: int, num_packs: int) -> Iterable[Any]:
    """Return batches of packs of HF datasets, as its users write them: a batched map concatenates and cuts.

    What doesn't fill a pack at the end of each group of documents is left out.
    """
    numpy = importlib.import_module("numpy")

    def pack(group: dict[str, Any]) -> dict[str, Any]:
        tokens = numpy.concatenate(group["input_ids"])
        whole = len(tokens) // length * length
        return {"input_ids": tokens[:whole].reshape(-1, length)}

    rows = _stream(paths).with_format("numpy")
    packs = rows.map(pack, batched=True, batch_size=GROUP_DOCUMENTS)
    found: Iterable[Any] = packs.with_format("torch").batch(num_packs)
    return found

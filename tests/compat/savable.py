"""Loaders for the tests of SavableLoader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Way = Literal["batches", "collated", "rows", "rows in turns", "a DataLoader", "a StatefulDataLoader", "its rows"]
"""How a SavableLoader is created: what it wraps, and what builds the batches."""

WAYS: tuple[Way, ...] = get_args(Way)


def make_dataset(path: Path, **arguments: Any) -> StatefulShardedDataset:
    """Return a shuffled dataset of small shards and windows; `without` is an argument of the method."""
    gaps = arguments.pop("without", ())
    dataset = StatefulShardedDataset(
        path, **{"shard_rows": 4, "window_bytes": 200, "seed": 5, "shuffle": True, **arguments}
    )
    return dataset.without(gaps) if gaps else dataset


def make_savable(
    path: Path, way: Way = "batches", *, dataset: dict[str, Any] | None = None, **options: Any
) -> SavableLoader:
    """Return a loader whose batches have three rows, or that yields rows."""
    arguments = dataset or {}
    if way in {"batches", "a StatefulDataLoader"}:
        arguments = {"batch_size": 3, **arguments}
    elif way == "rows in turns":
        arguments = {"turn_rows": 4, **arguments}
    source = make_dataset(path, **arguments)
    match way:
        case "batches" | "rows" | "rows in turns":
            return SavableLoader(source, **options)
        case "collated":
            return SavableLoader(source, batch_size=3, **options)
        case "a DataLoader":
            return SavableLoader(DataLoader(source, batch_size=3, **options))
        case _:
            batch_size = 3 if way == "its rows" else None
            return SavableLoader(StatefulDataLoader(source, batch_size=batch_size, **options))


def row_ids(items: Iterable[dict[str, Any]]) -> list[list[int]]:
    """Return the row ids of each batch, or of each row."""
    return [[item["id"]] if isinstance(item["id"], int) else item["id"].tolist() for item in items]

"""Items of loaders as values that can be compared: exactly, with their types and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch


def comparable(item: Any) -> Any:  # noqa: ANN401 - an item may be anything
    """Return an item as a value that is equal to that of another item only if the items are equal, NaN included."""
    if isinstance(item, torch.Tensor):
        return (str(item.dtype), tuple(item.shape), repr(item.tolist()))
    if isinstance(item, np.ndarray):
        return (str(item.dtype), item.shape, repr(item.tolist()))
    if isinstance(item, (pa.Table, pa.RecordBatch)):
        return (str(item.schema), repr(item.to_pylist()))
    if isinstance(item, Mapping):
        return {key: comparable(value) for key, value in item.items()}
    if isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        return [comparable(value) for value in item]
    return (type(item).__name__, repr(item))


def rows_of(item: Any) -> list[Any]:  # noqa: ANN401 - an item may be anything
    """Return the rows of a batch, or the item itself if it is no batch.

    Args:
        item: A dict of columns (tensors, arrays or lists), a table of pyarrow, or a row.
    """
    if isinstance(item, (pa.Table, pa.RecordBatch)):
        return item.to_pylist()
    columns = {name: _as_list(column) for name, column in item.items()} if isinstance(item, Mapping) else {}
    if columns and all(column is not None for column in columns.values()):
        lists: Any = columns.values()
        return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
    return [item]


def _as_list(column: Any) -> list[Any] | None:  # noqa: ANN401 - a column may be of any output
    """Return the values of a column of a batch; None: it is a single value."""
    if isinstance(column, (torch.Tensor, np.ndarray)):
        return column.tolist() if column.ndim else None
    return list(column) if isinstance(column, list) else None


def first_difference(expected: Sequence[Any], found: Sequence[Any]) -> str:
    """Return how two sequences of comparable items differ, for a message."""
    for index, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return f"item {index:,} from there on is {other!r:.300} instead of {one!r:.300}"
    return f"{len(found):,} items follow instead of {len(expected):,}"

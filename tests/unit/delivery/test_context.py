"""Contexts of rows and batches: taken off the hidden columns of any output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from laneway.core.order import row_seeds
from laneway.delivery.context import BatchContext, Contexts
from laneway.reading.origin import FILE_INDEX, FILE_ROW

FILES, ROWS = [1, 0, 1], [5, 5, 7]
BATCHES: dict[str, Any] = {
    "python": {"x": ["a", "b", "c"], FILE_INDEX: FILES, FILE_ROW: ROWS},
    "numpy": {"x": np.arange(3), FILE_INDEX: np.array(FILES), FILE_ROW: np.array(ROWS)},
    "torch": {"x": torch.arange(3), FILE_INDEX: torch.tensor(FILES), FILE_ROW: torch.tensor(ROWS)},
    "arrow": pa.record_batch({"x": [1, 2, 3], FILE_INDEX: FILES, FILE_ROW: ROWS}),
}


def contexts() -> Contexts:
    return Contexts(["a", "b"], seed=3, epoch=2)


@pytest.mark.parametrize("output", BATCHES)
def test_a_batch_loses_its_hidden_columns_to_its_context(output: str) -> None:
    batch, context = contexts().of_batch(BATCHES[output])
    names = batch.schema.names if output == "arrow" else [*batch]
    assert names == ["x"]
    assert (context.epoch, context.paths, context.rows.tolist()) == (2, ["b", "a", "b"], ROWS)
    of_b = row_seeds(np.array([5, 7]), seed=3, epoch=2, path="b").tolist()
    of_a = row_seeds(np.array([5]), seed=3, epoch=2, path="a").tolist()
    assert context.seeds.tolist() == [of_b[0], *of_a, of_b[1]]


@pytest.mark.parametrize("output", BATCHES)
def test_the_context_of_a_row_is_that_of_its_batch(output: str) -> None:
    batch = BATCHES[output]
    _, of_batch = contexts().of_batch(batch)
    for index in range(3):
        row = batch.slice(index, 1) if output == "arrow" else {name: column[index] for name, column in batch.items()}
        rest, context = contexts().of_row(row)
        assert (rest.schema.names if output == "arrow" else [*rest]) == ["x"]
        assert (context.epoch, context.path, context.row) == (2, of_batch.paths[index], ROWS[index])
        assert context.seed == of_batch.seeds[index]
        assert context.rng.random() == of_batch.rngs[index].random()
        assert context.rng is context.rng


def test_an_empty_batch_has_an_empty_context() -> None:
    _, context = contexts().of_batch({FILE_INDEX: np.empty(0, np.int64), FILE_ROW: np.empty(0, np.int64)})
    assert isinstance(context, BatchContext)
    assert (context.paths, context.rows.tolist(), context.seeds.tolist(), context.rngs) == ([], [], [], [])

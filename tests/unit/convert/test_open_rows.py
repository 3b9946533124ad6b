"""Rows in memory: slices are views, a copied row is not, and a bad value makes only its own column Arrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from laneway.convert.batches import BatchConverter
from laneway.convert.nested import copy_array
from laneway.convert.open_rows import OpenRows
from tests.columns import COLUMNS


def opened(batch: pa.RecordBatch) -> OpenRows:
    return OpenRows.from_batch(batch, BatchConverter(batch.schema, "numpy").vectorized)


def test_numbers_are_converted_once_and_all_else_stays_arrow() -> None:
    batch = pa.record_batch({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "text": ["x", "y", "z"]})
    rows = opened(batch)
    assert rows.num_rows == 3
    assert {name: values.tolist() for name, values in rows.numbers.items()} == {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5]}
    assert rows.rest is batch
    assert opened(batch.select(["b", "a"])).rest is None


def test_a_column_with_a_value_that_cannot_be_converted_stays_arrow() -> None:
    rows = opened(pa.record_batch({"a": [1, None, 3], "b": [4, 5, 6]}))
    assert rows.numbers.keys() == {"b"}
    assert rows.rest is not None
    assert rows.rest.column("a").to_pylist() == [1, None, 3]


def test_rows_without_columns_are_still_counted() -> None:
    rows = opened(pa.record_batch({"a": [1, 2, 3]}).select([]))
    assert rows.num_rows == 3
    assert rows.slice(1, 3).num_rows == 2
    assert rows.copy_row(1).num_rows == 1


def test_slices_are_views_and_copied_rows_are_not() -> None:
    in_memory = pa.record_batch({"a": [1, 2, 3, 4], "text": ["w", "x", "y", "z"]})
    rows = opened(in_memory)
    part, row = rows.slice(1, 4).slice(1, 2), rows.copy_row(2)
    converter = BatchConverter(in_memory.schema, "numpy")
    for found in (part, row):
        assert found.num_rows == 1
        batch: Any = converter.to_batch(found)
        assert (batch["a"].tolist(), batch["text"].tolist()) == ([3], ["y"])
    batch = converter.to_batch(part)
    assert np.shares_memory(batch["a"], rows.numbers["a"])
    rows.numbers["a"][:] = 0
    assert (batch["a"].tolist(), row.numbers["a"].tolist()) == ([0], [3])
    assert row.rest is not None
    assert row.rest.nbytes < 100


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_a_copy_has_the_values_of_its_slice(column: pa.Array[Any]) -> None:
    found = copy_array(column.slice(2, 2))
    found.validate(full=True)
    assert found.to_pylist() == column.to_pylist()[2:4]
    assert found.type == column.type

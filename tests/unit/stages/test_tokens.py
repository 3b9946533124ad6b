"""Tokens: documents from Arrow columns, and from what users' functions return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from laneway.errors import ColumnConversionError
from laneway.stages.tokens import TokenLists, check_token_type, compact, from_arrow, from_rows

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6]]
of_type: Any = pa.array


def lists(tokens: TokenLists) -> list[list[int]]:
    return [tokens.values[a:b].tolist() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]


@pytest.mark.parametrize("data_type", [pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64())])
def test_lists_of_ints_are_not_copied(data_type: pa.DataType) -> None:
    array = of_type([[9], *DOCUMENTS, [8]], data_type).slice(1, 4)
    tokens = from_arrow("ids", array)
    assert lists(tokens) == DOCUMENTS
    assert tokens.stream.tolist() == [1, 2, 3, 4, 5, 6]
    assert tokens.lengths.tolist() == [3, 0, 1, 2]
    assert np.shares_memory(tokens.values, array.values.to_numpy())


def test_lists_of_one_size_are_documents() -> None:
    array = of_type([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2)).slice(1)
    assert lists(from_arrow("ids", array)) == [[3, 4], [5, 6]]


@pytest.mark.parametrize("data_type", [pa.int32(), pa.string(), pa.list_(pa.float32()), pa.list_(pa.list_(pa.int8()))])
def test_a_column_of_anything_else_is_refused(data_type: pa.DataType) -> None:
    with pytest.raises(ColumnConversionError, match=r"column 'ids' can't be packed: it is .*must be a list of ints"):
        check_token_type("ids", data_type)
    with pytest.raises(ColumnConversionError, match="column 'ids' can't be packed"):
        from_arrow("ids", of_type([None], data_type))


def test_a_null_is_named() -> None:
    with pytest.raises(ColumnConversionError, match="document 1 is null"):
        from_arrow("ids", of_type([[1], None], pa.list_(pa.int32())))
    with pytest.raises(ColumnConversionError, match="token 1 of document 2 is null"):
        from_arrow("ids", of_type([[None], [1], [], [2, None]], pa.list_(pa.int32())).slice(1))


@pytest.mark.parametrize(
    "rows",
    [
        DOCUMENTS,
        [compact(row) for row in DOCUMENTS],
        [np.array(row, np.int16) for row in DOCUMENTS],
        [torch.tensor(row, dtype=torch.int64) for row in DOCUMENTS],
    ],
)
def test_documents_of_users_are_lists_arrays_or_tensors(rows: list[Any]) -> None:
    tokens = from_rows("ids", rows)
    assert lists(tokens) == DOCUMENTS
    assert tokens.values.dtype.kind == "i"
    assert from_rows("ids", [[], []]).lengths.tolist() == [0, 0]


def test_lists_of_ints_are_compacted_to_arrays_of_the_same_ints() -> None:
    limits = [2**63 - 1, -(2**63), 0]
    assert compact(limits).dtype == np.int64
    assert compact(limits).tolist() == limits


@pytest.mark.parametrize("row", [[], [True, 1], [1, 0.5], [1, 2**63], [1, "2"], [1, None], [1, [2]], (1, 2), "text"])
def test_what_is_no_list_of_ints_is_left_to_the_checks(row: Any) -> None:
    assert compact(row) is row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "document 1 is str"),
        (3, "document 1 is int64 of 0 dimensions"),
        ([[1], [2]], "document 1 is int64 of 2 dimensions"),
        ([0.5], "document 1 is float64 of 1 dimensions"),
        ({"input_ids": [1]}, "document 1 is dict"),
    ],
)
def test_a_document_of_anything_else_is_named(row: Any, message: str) -> None:
    with pytest.raises(ColumnConversionError, match=message):
        from_rows("ids", [[1], row])

"""Rows of zeros, of every type."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from laneway.convert.zero_rows import zero_row


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.int8(), 0),
        (pa.float16(), 0.0),
        (pa.bool_(), False),
        (pa.string(), ""),
        (pa.string_view(), ""),
        (pa.large_binary(), b""),
        (pa.binary(3), b"\0\0\0"),
        (pa.decimal128(9, 2), Decimal("0.00")),
        (pa.list_(pa.string()), []),
        (pa.list_(pa.int32(), 2), [0, 0]),
        (pa.struct([("a", pa.int8()), ("b", pa.string())]), {"a": 0, "b": ""}),
        (pa.map_(pa.string(), pa.int8()), []),
        (pa.dictionary(pa.int8(), pa.string()), ""),
        (pa.null(), None),
        (pa.run_end_encoded(pa.int32(), pa.int8()), None),
    ],
)
def test_a_row_of_zeros(type_: Any, value: Any) -> None:
    row = zero_row(pa.schema([("x", type_)]))
    assert row.schema.field("x").type == type_
    assert row["x"].to_pylist() == [value]


@pytest.mark.parametrize("type_", [pa.timestamp("us"), pa.date32(), pa.date64(), pa.duration("s"), pa.time64("ns")])
def test_times_are_zero(type_: Any) -> None:
    number = pa.int32() if type_ == pa.date32() else pa.int64()
    assert zero_row(pa.schema([("x", type_)]))["x"].cast(number).to_pylist() == [0]

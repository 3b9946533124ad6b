"""Columns cast to other types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from laneway.convert.casting import cast_column, cast_problem, common_type

REQUIRED = pa.field("item", pa.int64(), nullable=False)
FIELD = pa.field("a", pa.int64(), nullable=False)
WORDS = pa.dictionary(pa.int8(), pa.string())
RUNS = pa.run_end_encoded(pa.int32(), pa.int64())
compute: Any = pc
map_of: Any = pa.map_
UNION: Any = pa.dense_union([pa.field("a", pa.int64())])


def _column(values: list[Any], type_: Any) -> Any:
    """Return a column of chunks, one of which is a slice."""
    array = pa.array([*values, *values], type_) if type_ is not RUNS else pa.array(values * 2).cast(pa.int64())
    if type_ is RUNS:
        array = compute.run_end_encode(array)
    return pa.chunked_array([array.slice(0, len(values)), array.slice(len(values))])


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([1, None], pa.int32(), pa.int64()),
        ([None, None], pa.null(), pa.string()),
        ([None, None], pa.null(), RUNS),
        ([None, None], pa.null(), UNION),
        (["a", None], pa.string(), pa.large_string()),
        (["a", None], pa.large_string(), WORDS),
        (["a", None], WORDS, pa.string()),
        (["a", None], WORDS, pa.string_view()),
        (["a", None], WORDS, pa.dictionary(pa.int32(), pa.large_string())),
        ([1, None], pa.int64(), pa.dictionary(pa.int8(), pa.int32())),
        ([1, 1, None], RUNS, pa.int8()),
        ([1, 1, None], pa.int8(), RUNS),
        ([[1], None, []], pa.list_(REQUIRED), pa.list_(pa.int64())),
        ([[1], None, []], pa.list_(pa.int64()), pa.large_list(pa.int8())),
        ([[1, 2]], pa.list_(pa.int64()), pa.list_(pa.int32(), 2)),
        ([{"a": 1}], pa.struct([FIELD]), pa.struct([("a", pa.int64())])),
        ([{"a": 1}], pa.struct([("a", pa.int64())]), pa.struct([FIELD])),
        ([[("k", 1)]], map_of(pa.string(), REQUIRED), map_of(pa.string(), pa.int64())),
    ],
    ids=str,
)
def test_values_stay_the_same(values: list[Any], source: Any, target: Any) -> None:
    column = cast_column(_column(values, source), target)
    assert column.type == target
    column.validate(full=True)
    assert column.to_pylist() == [*values, *values]
    assert cast_problem(source, target) is None


@pytest.mark.parametrize(
    ("values", "source", "target", "reason"),
    [
        ([300], pa.int64(), pa.int8(), "300 not in range"),
        ([0.5], pa.float64(), pa.int64(), "truncated"),
        ([1], pa.timestamp("us"), pa.timestamp("ms"), "would lose data"),
        (["x"], pa.string(), pa.int64(), "Failed to parse"),
        ([b"\xff"], pa.binary(), pa.string(), "UTF8"),
        ([[1]], pa.list_(pa.int64()), pa.list_(pa.int64(), 2), "expected size"),
        ([{"a": None}], pa.struct([("a", pa.int64())]), pa.struct([FIELD]), "has nulls"),
        (list(range(200)), pa.int64(), pa.dictionary(pa.int8(), pa.int64()), "more values than"),
    ],
    ids=str,
)
def test_a_value_that_would_change_is_refused(values: list[Any], source: Any, target: Any, reason: str) -> None:
    assert cast_problem(source, target) is None
    with pytest.raises(pa.ArrowInvalid, match=reason):
        cast_column(_column(values, source), target)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (pa.string(), pa.list_(pa.int8()), "Unsupported cast"),
        (pa.int64(), pa.uuid(), "Unsupported cast"),
        (pa.int64(), pa.decimal128(5, 1), "at least 20"),
        (pa.binary(3), pa.binary(4), "widths must match"),
        (pa.list_(pa.int8(), 3), pa.list_(pa.int8(), 2), "Size of FixedSizeList"),
    ],
    ids=str,
)
def test_types_between_which_nothing_can_be_cast_are_told_without_values(source: Any, target: Any, reason: str) -> None:
    assert reason in (cast_problem(source, target) or "")


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.int64(), pa.int64(), pa.int64()),
        (pa.int64(), pa.int32(), None),
        (pa.list_(REQUIRED), pa.list_(REQUIRED), pa.list_(REQUIRED)),
        (pa.list_(REQUIRED), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.list_(pa.list_(REQUIRED), 2), pa.list_(pa.list_(pa.int64()), 2), pa.list_(pa.list_(pa.int64()), 2)),
        (pa.struct([FIELD]), pa.struct([("a", pa.int64())]), pa.struct([("a", pa.int64())])),
        (pa.struct([FIELD]), pa.struct([("b", pa.int64())]), None),
        (map_of(pa.string(), REQUIRED), map_of(pa.string(), pa.int64()), map_of(pa.string(), pa.int64())),
        (pa.list_(REQUIRED), pa.large_list(pa.int64()), None),
        (pa.string(), pa.large_string(), None),
    ],
    ids=str,
)
def test_nullability_inside_of_types_is_no_difference(first: Any, second: Any, common: Any) -> None:
    assert common_type(first, second) == common
    assert common_type(second, first) == common

"""Statistics of columns equal those of numpy, over all rows of a dataset and no others."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway import SchemaMismatchError, StatefulShardedDataset
from laneway.reading.column_statistics import ColumnStatistics, Moments
from tests.corpora import KINDS, SUFFIX_OF, Kind, write_blocks

if TYPE_CHECKING:
    from pathlib import Path


def statistics_of(tmp_path: Path, values: Any, kind: Kind = "parquet", **options: Any) -> ColumnStatistics:
    table = pa.table({"x": values})
    half = table.num_rows // 2
    write_blocks(tmp_path / f"a{SUFFIX_OF[kind]}", kind, [table.slice(0, half), table.slice(half)], table.schema)
    write_blocks(tmp_path / f"b{SUFFIX_OF[kind]}", kind, [table], table.schema)
    return StatefulShardedDataset(tmp_path).statistics(**options)["x"]


BOOLS = (False, True)
DAY = dt.date(2024, 2, 29)


# The stubs of pyarrow accept fewer types here.
array: Any = pa.array
run_end_encoded: Any = pa.RunEndEncodedArray.from_arrays

ONE_SECOND = dt.timedelta(seconds=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", None], pa.string_view()), ColumnStatistics(2, 2, 0, "a", "a", None, None, 1)),
        (pa.array([b"a"], pa.binary_view()), ColumnStatistics(2, 0, 0, b"a", b"a", None, None, 1)),
        (pa.array([1], pa.duration("s")), ColumnStatistics(2, 0, 0, ONE_SECOND, ONE_SECOND, None, None, 1)),
        *(
            (
                pa.array([Decimal("1.25"), None, Decimal("0.75")], type_),
                ColumnStatistics(4, 2, 0, Decimal("0.75"), Decimal("1.25"), 1.0, 0.25, 2),
            )
            for type_ in (pa.decimal32(5, 2), pa.decimal64(12, 2))
        ),
        (array([1.0, math.nan], pa.float16()), ColumnStatistics(2, 0, 2, 1.0, 1.0, 1.0, 0.0, 1)),
        (pa.array([2**64 - 1], pa.uint64()), ColumnStatistics(2, 0, 0, 2**64 - 1, 2**64 - 1, 2.0**64, 0.0, 1)),
        (pa.array([b"a" * 16], pa.uuid()), ColumnStatistics(2, 0, 0, b"a" * 16, b"a" * 16, None, None, 1)),
        (array([(1, 2, 3)], pa.month_day_nano_interval()), ColumnStatistics(2, 0, 0, None, None, None, None, None)),
        (array([{"a": 1}, None]), ColumnStatistics(2, 2, 0, None, None, None, None, None)),
        (
            run_end_encoded([3, 4], [0, 4]),
            ColumnStatistics(8, 0, 0, 0, 4, 1.0, math.sqrt(3), 2),
        ),
    ],
)
def test_values_that_pyarrow_cannot_compare_itself(tmp_path: Path, values: Any, expected: ColumnStatistics) -> None:
    assert statistics_of(tmp_path, values, "arrow-file") == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, 5, None, 5], pa.int8()), ColumnStatistics(6, 2, 0, 1, 5, 11 / 3, math.sqrt(32 / 9), 2)),
        (pa.array([0.5, math.nan, None, 1.5]), ColumnStatistics(4, 2, 2, 0.5, 1.5, 1.0, 0.5, 2)),
        (pa.array([True, False, None]), ColumnStatistics(4, 2, 0, *BOOLS, 0.5, 0.5, 2)),
        (pa.array(["b", "a", None]), ColumnStatistics(4, 2, 0, "a", "b", None, None, 2)),
        (pa.array(["b", "a", None]).dictionary_encode(), ColumnStatistics(4, 2, 0, "a", "b", None, None, 2)),
        (pa.array([DAY, None]), ColumnStatistics(2, 2, 0, DAY, DAY, None, None, 1)),
        (
            pa.array([Decimal("1.00"), Decimal("3.00")], pa.decimal128(9, 2)),
            ColumnStatistics(4, 0, 0, Decimal("1.00"), Decimal("3.00"), 2.0, 1.0, 2),
        ),
        (pa.array([[1], None, []], pa.list_(pa.int8())), ColumnStatistics(4, 2, 0, None, None, None, None, None)),
        (pa.array([None, None], pa.int8()), ColumnStatistics(0, 4, 0, None, None, None, None, 0)),
        (pa.nulls(2), ColumnStatistics(0, 4, 0, None, None, None, None, None)),
    ],
)
def test_statistics_of_every_kind_of_values(
    tmp_path: Path, kind: Kind, values: Any, expected: ColumnStatistics
) -> None:
    assert statistics_of(tmp_path, values, kind) == expected


def test_distinct_values_are_counted_up_to_a_bound(tmp_path: Path) -> None:
    assert statistics_of(tmp_path, range(10), max_distinct=10).distinct == 10
    assert statistics_of(tmp_path, range(10), max_distinct=9).distinct is None


@given(st.lists(st.lists(st.floats(-1e9, 1e9), max_size=5), max_size=6))
def test_moments_don_t_depend_on_how_values_are_divided(parts: list[list[float]]) -> None:
    total = Moments()
    for part in parts:
        total = total.plus(Moments.of(pa.array(part, pa.float64())))
    values = np.array([value for part in parts for value in part])
    assert total.num_values == len(values)
    if len(values):
        assert math.isclose(total.mean, values.mean(), rel_tol=1e-9, abs_tol=1e-6)
        assert math.isclose(total.squares / len(values), values.var(), rel_tol=1e-6, abs_tol=1e-3)


def test_only_the_rows_of_the_dataset_count(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(100), "y": [1.0] * 100}), tmp_path / "a.parquet", row_group_size=7)
    dataset = StatefulShardedDataset(tmp_path, columns=["y"], rank=1, world_size=2)
    some = dataset.filter((pc.field("x") >= 20) & (pc.field("x") < 55)).skip(5)
    assert some.statistics(["x"])["x"] == ColumnStatistics(30, 0, 0, 25, 54, 39.5, float(np.arange(25, 55).std()), 30)
    assert [*some.statistics()] == ["y"]
    assert some.take(0).statistics(["x"])["x"] == ColumnStatistics(0, 0, 0, None, None, None, None, 0)


def test_a_given_schema_and_columns_of_directory_names(tmp_path: Path) -> None:
    for lang, values in (("de", [1, 2]), ("en", [3])):
        (tmp_path / f"lang={lang}").mkdir()
        pq.write_table(pa.table({"x": values}), tmp_path / f"lang={lang}" / "a.parquet")
    dataset = StatefulShardedDataset(tmp_path, schema=pa.schema([pa.field("x", pa.float32())]), provenance=True)
    found = dataset.statistics(["lang", "x"])
    assert (found["lang"].min, found["lang"].max, found["lang"].distinct) == ("de", "en", 2)
    assert found["x"].max == 3.0
    assert isinstance(found["x"].max, float)
    assert [*dataset.statistics()] == ["x"]


def test_wrong_arguments(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    dataset = StatefulShardedDataset(tmp_path)
    with pytest.raises(SchemaMismatchError, match="there is no column 'z'"):
        dataset.statistics(["z"])
    with pytest.raises(ValueError, match="max_distinct must be an int of at least 0"):
        dataset.statistics(max_distinct=-1)

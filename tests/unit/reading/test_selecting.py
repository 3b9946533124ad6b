"""Planning a selection: what decides about blocks, and types of columns that differ between files."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from laneway import Manifest, SchemaMismatchError, StatefulShardedDataset
from laneway.reading import selected
from laneway.reading.expressions import filter_of
from laneway.reading.hashing import bits_of_values
from laneway.reading.selecting import Planner
from laneway.reading.steps import Slice, parts_of
from tests.corpora import schema_of, write_blocks, write_corpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write(directory: Path, *files: list[pa.Table]) -> None:
    """Write Parquet files, each table as a row group."""
    directory.mkdir(exist_ok=True)
    for index, tables in enumerate(files):
        write_blocks(directory / f"{index}.parquet", "parquet", tables, tables[0].schema)


def ids(dataset: StatefulShardedDataset) -> list[int]:
    return [row["id"] for row in dataset]


def decided(dataset: StatefulShardedDataset) -> tuple[int, ...]:
    """Return by what the blocks of the last step were decided: keys, statistics, rows."""
    selection = dataset.selection
    assert selection is not None
    return selection.steps[-1][2:]


# -- Statistics -------------------------------------------------------------------------------------------------------


def test_statistics_decide_all_or_none_but_not_where_there_are_nulls(tmp_path: Path) -> None:
    tables = [pa.table({"id": [1, 2]}), pa.table({"id": [5, 6]}), pa.table({"id": pa.array([7, None])})]
    write(tmp_path / "d", tables)
    dataset = StatefulShardedDataset(tmp_path / "d")
    found = dataset.filter(pc.field("id") > 4)
    assert ids(found) == [5, 6, 7]
    assert decided(found) == (0, 2, 1)
    assert ids(dataset.filter(pc.field("id").is_null())) == [None]


@pytest.mark.parametrize(
    ("condition", "expected", "num_by_statistics"),
    [
        # Only a condition without negation is false for NaN where statistics say so.
        (pc.field("x") > 9, [], 2),
        (pc.field("x") < 9, [0, 2, 3], 0),
        (pc.field("x") != 1, [1, 2, 3], 0),
        (pc.field("x").isin([math.nan, 2.0]), [1, 2], 0),
        (~(pc.field("x") < 9), [1], 0),
        (pc.field("x").is_null(nan_is_null=True), [1], 0),
    ],
)
def test_statistics_leave_nan_out_and_do_not_decide_about_it(
    tmp_path: Path, condition: Any, expected: list[int], num_by_statistics: int
) -> None:
    write(tmp_path / "d", [pa.table({"id": [0, 1], "x": [1.0, math.nan]}), pa.table({"id": [2, 3], "x": [2.0, 3.0]})])
    found = StatefulShardedDataset(tmp_path / "d").filter(condition)
    assert ids(found) == expected
    assert decided(found)[1] == num_by_statistics


def test_a_null_in_an_expression_does_not_make_its_negation_all(tmp_path: Path) -> None:
    write(tmp_path / "d", [pa.table({"id": [1, 2]})])
    unknown: Any = pa.scalar(None, pa.bool_())
    for condition in (pc.scalar(unknown) | (pc.field("id") > 0), ~(pc.scalar(unknown) & (pc.field("id") > 0))):
        table = pa.table({"id": [1, 2]})
        assert (
            ids(StatefulShardedDataset(tmp_path / "d", filter=condition)) == table.filter(condition)["id"].to_pylist()
        )


# -- Columns ----------------------------------------------------------------------------------------------------------


def test_types_that_differ_are_joined_or_given_and_missing_columns_are_null(tmp_path: Path) -> None:
    first = pa.table({"id": pa.array([0, 300], pa.int32()), "x": ["1", "2"]})
    second = pa.table({"id": pa.array([2, 3], pa.int32()), "x": pa.array([1, 2], pa.int64()), "y": [7, None]})
    write(tmp_path / "d", [first], [second])
    with pytest.raises(SchemaMismatchError, match="'x' is string in"):
        StatefulShardedDataset(tmp_path / "d", columns=["id"], filter=pc.field("x") == "1")
    files = StatefulShardedDataset(tmp_path / "d", columns=["id"])
    # Not "columns= without it", which changes nothing.
    for refused, instead in (
        (lambda: files.filter(pc.field("y") > 0), "a filter without it"),
        (lambda: files.filter([("y", ">", 0)]), "a filter without it"),
        (lambda: files.manifest.select(pc.field("y") > 0), "a filter without it"),
        (lambda: files.filter(lambda batch: batch["y"], columns=["y"]), "another column"),
        (lambda: files.split({"a": 0.5, "b": 0.5}, by="y"), "another column"),
    ):
        message = rf"'y' is int64 in .* and missing in .*: pass schema= with the type .*, or {instead}$"
        with pytest.raises(SchemaMismatchError, match=message):
            refused()
    schema = schema_of(id=pa.int64(), x=pa.string(), y=pa.int8())
    dataset = StatefulShardedDataset(tmp_path / "d", schema=schema)
    assert ids(dataset.filter(pc.field("x") == "1")) == [0, 2]
    assert ids(dataset.filter(pc.field("y").is_null())) == [0, 300, 3]
    assert ids(dataset.filter(pc.field("id") > 2)) == [300, 3]
    text = StatefulShardedDataset(tmp_path / "d", schema=schema, columns=["id"]).filter(pc.field("y") > 0)
    assert ids(text) == [2]


def test_without_a_filter_nothing_of_selections_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", [pa.table({"id": [0, 1]}), pa.table({"id": [2]})])

    def fail(*_: Any, **__: Any) -> Any:
        message = "a selection is looked at"
        raise RuntimeError(message)

    for owner, name in ((selected.SelectedReader, "__init__"), (selected, "select"), (Planner, "extend")):
        monkeypatch.setattr(owner, name, fail)
    assert ids(StatefulShardedDataset(tmp_path / "d", batch_size=None)) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="a selection is looked at"):
        StatefulShardedDataset(tmp_path / "d", filter=pc.field("id") > 0)


def test_a_column_is_named_as_it_is_though_its_name_has_a_dot(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "a.b": [3, 4], "a": [{"b": 5}, {"b": 6}]})
    write(tmp_path / "d", [table])
    dataset = StatefulShardedDataset(tmp_path / "d")
    assert ids(dataset.filter(pc.field("a.b") == 4)) == [2]
    assert ids(dataset.filter(pc.field("a", "b") == 5)) == [1]


# -- Texts ------------------------------------------------------------------------------------------------------------


def test_texts_of_filters_differ_wherever_they_select_other_rows(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    manifest = Manifest.scan(tmp_path)
    numbers = list(range(1_000))
    others = [*numbers[:500], 5_000, *numbers[501:]]
    conditions = [
        pc.field("id").isin(numbers),
        pc.field("id").isin(others),
        pc.field("id") > 1,
        pc.field("id") > 2,
        pc.field("x") == pa.scalar(0.1, pa.float32()),
        pc.field("x") == pa.scalar(0.1, pa.float64()),
        pc.field("text") == "a",
        pc.field("text") == "a\0",
    ]
    texts = [filter_of(condition, manifest, None).text for condition in conditions]
    assert len({*texts}) == len(conditions)
    assert all(len(text) < 400 for text in texts)
    same = filter_of([("id", ">", 1)], manifest, None)
    assert same.text == texts[2]
    assert texts[2] == "filter (id > 1) [5fa61bba1bb2]"


# -- Parts ------------------------------------------------------------------------------------------------------------


def test_the_split_of_a_seed_never_changes(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path)
    found = {by: ids(dataset.split({"a": 0.2, "b": 0.8}, seed=7, by=by).a) for by in ("row", "file", "id", "text", "x")}
    assert found == {
        "row": [0, 3, 22, 26, 30, 33, 47],
        "file": list(range(14)),
        "id": [2, 23, 27, 28, 31, 32, 35, 36, 41, 44, 45],
        "text": [1, 11, 17, 23, 28, 38, 46],
        "x": [6, 7, 9, 13, 17, 25, 30, 31, 39, 40, 41, 43],
    }


def test_equal_values_of_other_types_have_the_same_hash() -> None:
    kinds: list[tuple[Any, list[Any]]] = [
        ([1, 2, None], [pa.int8(), pa.int64(), pa.uint32()]),
        (["a", "", None], [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]),
        ([0.5, -0.0, None], [pa.float32(), pa.float64()]),
        ([Decimal("1.25"), Decimal(0), None], [pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2)]),
    ]
    for values, types in kinds:
        found = [bits_of_values(pa.array(values, each), seed=3).tolist() for each in types]
        assert found == [found[0]] * len(types)
        assert len({*found[0]}) == len(values)
    assert bits_of_values(pa.array([0.0]), seed=3) == bits_of_values(pa.array([-0.0]), seed=3)


def test_shares_are_met_on_average(tmp_path: Path) -> None:
    write(tmp_path / "d", [pa.table({"id": range(100_000)})])
    for by in ("row", "id"):
        parts = StatefulShardedDataset(tmp_path / "d").split({"a": 0.7, "b": 0.2, "c": 0.1}, by=by)
        for part, share in zip(parts, (70_000, 20_000, 10_000), strict=True):
            assert abs(part.selection.num_rows - share) < 600, "four standard deviations"


# -- Slices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 5), (3, 9), (4, 100), (9, 3), (0.5, None), (0.25, 0.75)])
def test_a_slice_counts_what_a_list_does(start: Any, stop: Any) -> None:
    counts = np.array([3, 0, 2, 4, 0, 1])
    rows = [block for block, count in enumerate(counts.tolist()) for _ in range(count)]
    first, last = (None if b is None else round(b * 10) if isinstance(b, float) else b for b in (start, stop))
    step = Slice.of(counts, start, stop)
    assert step.counts(counts).tolist() == np.bincount(rows[first:last], minlength=6).tolist()


# -- Planning ---------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_split_are_counted_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path)
    manifest = Manifest.scan(tmp_path)
    planner = Planner(manifest, manifest.storage())
    columns = filter_of(pc.field("x") > 0, manifest, None).schema
    reads = []
    original: Callable[..., Any] = planner._count

    def counted(selection: Any, steps: Any, schema: Any) -> Any:
        reads.append(len(steps))
        return original(selection, steps, schema)

    monkeypatch.setattr(planner, "_count", counted)
    found = planner.extend(None, parts_of([0.5, 0.25, 0.25], seed=0, by="x"), columns)
    assert reads == [3]
    assert np.sum([each.rows.block_rows for each in found], axis=0).tolist() == manifest.files.block_rows.tolist()

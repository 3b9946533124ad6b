"""Columns of categories come as ids, which are the same in every run over the same files."""

from __future__ import annotations

import datetime as dt
import pickle
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from laneway import (
    CheckpointMismatchError,
    ColumnConversionError,
    ManifestCacheWarning,
    SavableLoader,
    SchemaMismatchError,
    StatefulShardedDataset,
)
from laneway.reading import categories as module
from tests.compat.loaders import FORKSERVER
from tests.corpora import KINDS, SUFFIX_OF, Kind, settle, write_blocks

if TYPE_CHECKING:
    from pathlib import Path

BRANDS = ["b", None, "a", "c", "b", "a", "a", None, "d", "b"]
IDS = [1, None, 0, 2, 1, 0, 0, None, 3, 1]


def write(path: Path, kind: Kind = "parquet", values: Any = BRANDS) -> Path:
    path.mkdir(exist_ok=True)
    for index, start in enumerate((0, 6)):
        table = pa.table({"id": range(10), "brand": values}).slice(start, 6)
        write_blocks(path / f"p{index}{SUFFIX_OF[kind]}", kind, [table.slice(0, 2), table.slice(2)], table.schema)
    return path


def brands(dataset: Any) -> list[int | None]:
    return [row["brand"] for row in dataset]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_values_become_ids_in_sorted_order(tmp_path: Path, kind: Kind, type_: Any) -> None:
    values = pa.array(BRANDS).dictionary_encode() if pa.types.is_dictionary(type_) else pa.array(BRANDS, type_)
    if kind == "parquet" and pa.types.is_string_view(type_):
        pytest.skip("a Parquet file has no string views")
    dataset = StatefulShardedDataset(write(tmp_path, kind, values), categories={"brand": None})
    assert dataset.categories == {"brand": ["a", "b", "c", "d"]}
    assert dataset.schema.field("brand").type == pa.int64()
    assert brands(dataset) == IDS


def test_nan_becomes_null_and_zero_is_one_value(tmp_path: Path) -> None:
    values = [0.0, None, -0.0, float("nan"), 1.5, 0.0, 0.0, 1.5, float("inf"), 0.0]
    dataset = StatefulShardedDataset(write(tmp_path, values=values), categories={"brand": None})
    assert dataset.categories == {"brand": [0.0, 1.5, float("inf")]}
    assert [*dict.fromkeys(brands(dataset))] == [0, None, 1, 2]
    assert brands(dataset)[:5] == [0, None, 0, None, 1]
    listed = StatefulShardedDataset(tmp_path, categories={"brand": [float("inf"), 1.5, -0.0]})
    assert brands(listed)[:5] == [2, None, 2, None, 1]
    assert StatefulShardedDataset(tmp_path).statistics(["brand"])["brand"].distinct == 3
    with pytest.raises(ValueError, match="more than once"):
        StatefulShardedDataset(tmp_path, categories={"brand": [0.0, -0.0]})


def test_categories_that_are_no_dict_of_lists_are_refused(tmp_path: Path) -> None:
    wrong: Any
    for wrong in (["brand"], "brand", {"brand": "abc"}):
        with pytest.raises(TypeError, match="categories"):
            StatefulShardedDataset(write(tmp_path), categories=wrong)


def test_listed_values_keep_their_order(tmp_path: Path) -> None:
    vocabulary = ["z", "d", "c", "b", "a"]
    dataset = StatefulShardedDataset(write(tmp_path), categories={"brand": vocabulary}, fill_null={"brand": -1})
    assert brands(dataset) == [-1 if value is None else vocabulary.index(value) for value in BRANDS]


@pytest.mark.parametrize("output", ["torch", "numpy", "arrow"])
def test_ids_in_every_output_and_in_batches(tmp_path: Path, output: Any) -> None:
    options: dict[str, Any] = {} if output == "arrow" else {"fill_null": {"brand": 9}}
    dataset = StatefulShardedDataset(
        write(tmp_path), categories={"brand": None}, shuffle=True, seed=3, batch_size=5, output=output, **options
    )
    found: dict[int, Any] = {}
    for batch in dataset:
        ids, values = (batch[name] for name in ("id", "brand"))
        found |= dict(zip(*([*map(_plain, each)] for each in (ids, values)), strict=True))
    missing = None if output == "arrow" else 9
    assert [found[i] for i in range(10)] == [missing if each is None else each for each in IDS]


def _plain(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else value.item()


@pytest.mark.parametrize(
    "values",
    [
        [3, None, 1, 3, 7, 1, 1, None, 9, 1],
        [dt.date(2024, 1, 1 + i % 3) for i in range(10)],
        [bytes([i % 4]) for i in range(10)],
        [bool(i % 2) for i in range(10)],
        pa.array([Decimal(i % 3) / 4 for i in range(10)], pa.decimal32(5, 2)),
        pa.array([Decimal(i % 4) / 4 for i in range(10)], pa.decimal64(12, 2)),
    ],
)
def test_values_of_other_types(tmp_path: Path, values: Any) -> None:
    dataset = StatefulShardedDataset(write(tmp_path, values=values), categories={"brand": None})
    values = pa.array(values).to_pylist()
    vocabulary = sorted({value for value in values if value is not None})
    assert dataset.categories == {"brand": vocabulary}
    assert brands(dataset) == [None if value is None else vocabulary.index(value) for value in values]


def test_columns_of_directory_names_and_fields_of_structs(tmp_path: Path) -> None:
    for lang in ("en", "de"):
        (tmp_path / f"lang={lang}").mkdir()
        pq.write_table(pa.table({"x": [{"y": lang * 2}]}), tmp_path / f"lang={lang}" / "a.parquet")
    dataset = StatefulShardedDataset(tmp_path, columns=["lang", "x.y"], categories={"lang": None, "x.y": None})
    assert list(dataset) == [{"lang": 0, "x.y": 0}, {"lang": 1, "x.y": 1}]


def test_filters_and_splits_see_the_values_and_keep_the_ids(tmp_path: Path) -> None:
    dataset = StatefulShardedDataset(write(tmp_path), categories={"brand": None}, provenance=True)
    chosen = dataset.filter(pc.field("brand").isin(["c", "d"]))
    assert brands(chosen) == [2, 3]
    assert chosen.categories == dataset.categories
    train, test = dataset.split({"train": 0.5, "test": 0.5}, by="brand")
    assert not set(brands(train)) & set(brands(test))
    assert sorted(str(each) for each in brands(train) + brands(test)) == sorted(map(str, IDS))
    assert dataset.statistics(["brand"])["brand"].max == "d"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("context", ["fork", FORKSERVER])
def test_in_workers(tmp_path: Path, num_workers: int, context: Any) -> None:
    dataset = StatefulShardedDataset(write(tmp_path), categories={"brand": None}, fill_null=-1, batch_size=5)
    options = {"multiprocessing_context": context} if num_workers else {}
    loader = SavableLoader(pickle.loads(pickle.dumps(dataset)), num_workers=num_workers, **options)
    assert sorted(torch.cat([batch["brand"] for batch in loader]).tolist()) == sorted(
        -1 if each is None else each for each in IDS
    )


def test_a_value_that_is_not_listed_is_an_error_that_names_its_row(tmp_path: Path) -> None:
    dataset = StatefulShardedDataset(write(tmp_path), categories={"brand": ["a", "b", "c"]})
    message = "row 2 of p1.parquet has 'brand' = 'd', which is not among the 3 values in categories="
    with pytest.raises(ColumnConversionError, match=message):
        list(dataset)
    rest = dataset.filter(pc.field("id") > 6)
    with pytest.raises(ColumnConversionError, match=message):
        list(rest)


def test_a_state_of_other_ids_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    state = StatefulShardedDataset(tmp_path, categories={"brand": None}).state_dict()
    StatefulShardedDataset(tmp_path, categories={"brand": ["a", "b", "c", "d"]}).load_state_dict(state)
    for others in ({"brand": ["b", "a", "c", "d"]}, None):
        other = StatefulShardedDataset(tmp_path, categories=others)
        with pytest.raises(CheckpointMismatchError, match="categories: saved 'brand: 4 values"):
            other.load_state_dict(state)


def test_a_vocabulary_is_cached_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = write(tmp_path / "corpus"), tmp_path / "cache"
    settle(source)
    expected = brands(StatefulShardedDataset(source, categories={"brand": None}, cache_dir=cache))
    collected: list[Any] = []
    monkeypatch.setattr(module, "distinct_values", lambda *arguments: collected.append(arguments))
    assert brands(StatefulShardedDataset(source, categories={"brand": None}, cache_dir=cache)) == expected
    assert not collected
    monkeypatch.undo()
    (entry,) = cache.glob("_vocabulary-*")
    entry.write_bytes(entry.read_bytes()[:-20])
    with pytest.warns(ManifestCacheWarning, match="a cached vocabulary is unusable"):
        assert brands(StatefulShardedDataset(source, categories={"brand": None}, cache_dir=cache)) == expected
    pq.write_table(pa.table({"id": [1], "brand": ["aa"]}), source / "p2.parquet")
    again = StatefulShardedDataset(source, categories={"brand": None}, cache_dir=cache)
    assert again.categories["brand"] == ["a", "aa", "b", "c", "d"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"brnd": None}, SchemaMismatchError, "categories= has 'brnd', but the columns are id, brand"),
        ({"brand": ["a", "a"]}, ValueError, r"has 1 value more than once: list each value once"),
        ({"brand": ["a", None]}, ValueError, "has a null: list each value once; a null in the files stays null"),
        ({"brand": [1, 2]}, ValueError, "must be values of type string, as the column has"),
    ],
)
def test_wrong_categories(tmp_path: Path, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StatefulShardedDataset(write(tmp_path), categories=given)


def test_a_column_of_lists_has_no_categories(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaMismatchError, match=r"'x' is of type list<.*>, which can't be one of categories"):
        StatefulShardedDataset(tmp_path, categories={"x": None})

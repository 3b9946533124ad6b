"""Filters on columns of any type select the rows that pyarrow does, and such a dataset resumes exactly."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset
from tests.compat.loaders import flat, ids, resumed_after_each_batch, rows_while_ranks_change, run_with_states

if TYPE_CHECKING:
    from pathlib import Path

NUM_ROWS = 60
NAN = float("nan")


def _with_nulls(values: list[Any], every: int) -> list[Any]:
    return [None if index % every == 3 else value for index, value in enumerate(values)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return hive-partitioned files of columns with nulls."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    day = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    numbers = list(range(NUM_ROWS))
    table = pa.table(
        {
            "id": numbers,
            "number": pa.array(_with_nulls(numbers, 7), pa.int32()),
            "share": pa.array([NAN if number % 9 == 4 else number / 10 for number in numbers], pa.float32()),
            "word": pa.array(_with_nulls([f"w{number % 5}" for number in numbers], 8)).dictionary_encode(),
            "price": pa.array(_with_nulls([decimal.Decimal(number) / 4 for number in numbers], 6), pa.decimal128(9, 2)),
            "time": pa.array([day + dt.timedelta(hours=number) for number in numbers], pa.timestamp("us", "UTC")),
            "date": pa.array([(day + dt.timedelta(days=number)).date() for number in numbers]),
            "flag": pa.array(_with_nulls([number % 3 == 0 for number in numbers], 5)),
            "inner": [None if number % 11 == 2 else {"a": number % 13, "b": {"c": str(number)}} for number in numbers],
            "void": pa.nulls(NUM_ROWS, pa.int64()),
        }
    )
    for index, country in enumerate(("AT", "DE", "DE", "FR")):
        path = folder / f"country={country}" / f"year={2020 + index}"
        path.mkdir(parents=True)
        pq.write_table(table.slice(index * 15, 15), path / "a.parquet", row_group_size=4)
    return folder


CONDITIONS: dict[str, pc.Expression] = {
    "null is not selected": pc.field("number") > 20,
    "nor by its negation": ~(pc.field("number") > 20),
    "null": pc.field("number").is_null(),
    "three-valued or": (pc.field("number") > 50) | (pc.field("price") < decimal.Decimal("3.5")),
    "NaN is not greater": pc.field("share") > 4,
    "NaN differs from all": pc.field("share") != 0.1,
    "NaN": pc.field("share").is_nan(),
    "NaN as null": pc.field("share").is_null(nan_is_null=True),
    "dictionary": pc.field("word").isin(["w1", "w4"]),
    "decimal": pc.field("price") >= decimal.Decimal("7.25"),
    "timestamp": pc.field("time") < dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC),
    "date": pc.field("date") == dt.date(2024, 1, 20),
    "bool": pc.field("flag"),
    "nested": (pc.field("inner", "a") < 4) & (pc.field("inner", "b", "c") != "1"),
    "a whole file": pc.field("country") == "AT",
    "keys and columns": (pc.field("country") == "DE") & (pc.field("year") > 2021) & (pc.field("number") < 40),
    "a null column": pc.field("void") == 3,
    "all nulls": pc.field("void").is_null(),
}


def make(corpus: Path, name: str, **options: Any) -> StatefulShardedDataset:
    arguments: dict[str, Any] = {"shard_rows": 5, "window_bytes": 500, "batch_size": 3, "columns": ["id"], "seed": 5}
    return StatefulShardedDataset(corpus, shuffle=True, filter=CONDITIONS[name], **(arguments | options))


def expected_of(corpus: Path, name: str) -> list[int]:
    """Return the ids that pyarrow selects, in memory: its scans trust statistics, which leave out NaN."""
    table = pads.dataset(str(corpus), partitioning="hive").to_table()
    found: list[Any] = table.filter(CONDITIONS[name])["id"].to_pylist()
    return sorted(found)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_filter_selects_what_pyarrow_does_and_resumes_at_every_batch(corpus: Path, name: str) -> None:
    expected = expected_of(corpus, name)
    loader = SavableLoader(make(corpus, name))
    uninterrupted = resumed_after_each_batch(lambda: SavableLoader(make(corpus, name)))
    assert sorted(flat(uninterrupted)) == expected
    assert len(loader) == len(uninterrupted) == -(-len(expected) // 3)


@pytest.mark.parametrize("name", CONDITIONS)
def test_ranks_that_change_deliver_each_selected_row_once(corpus: Path, name: str) -> None:
    rows = rows_while_ranks_change(
        lambda rank, size: SavableLoader(make(corpus, name, rank=rank, world_size=size, remainder="keep"))
    )
    assert rows == expected_of(corpus, name)


@pytest.mark.parametrize("name", ["three-valued or", "NaN is not greater", "nested", "keys and columns"])
def test_a_stateful_dataloader_with_workers_resumes(corpus: Path, name: str) -> None:
    def create() -> Any:
        return StatefulDataLoader(make(corpus, name), batch_size=None, num_workers=2)

    uninterrupted, states = run_with_states(create())
    assert sorted(flat(uninterrupted)) == expected_of(corpus, name)
    done = len(uninterrupted) // 2
    resumed = create()
    resumed.load_state_dict(states[done])
    assert uninterrupted[:done] + ids(resumed) == uninterrupted

"""Datasets of some rows of their files: resumed at every batch and on any topology, in step, and with clear errors."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    DataFileError,
    Manifest,
    ManifestCacheWarning,
    NullInColumnError,
    SavableLoader,
    SchemaMismatchError,
    StatefulShardedDataset,
)
from laneway.formats import parquet
from laneway.reading import selected
from tests.compat.loaders import FORKSERVER, flat, ids, rows_while_ranks_change, run_with_states
from tests.corpora import KINDS, UNEQUAL_FILES, Kind, rows, settle, write_blocks, write_corpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Change = Any
NUM_ROWS = 48


def odd(batch: pa.RecordBatch) -> Any:
    """Select odd rows."""
    return np.asarray(batch["id"]) % 2 == 1


def _filter(condition: pc.Expression) -> Callable[[StatefulShardedDataset], StatefulShardedDataset]:
    return lambda dataset: dataset.filter(condition)


SELECTIONS: dict[str, tuple[Callable[[StatefulShardedDataset], StatefulShardedDataset], list[int]]] = {
    "all": (_filter(pc.field("id") >= 0), list(range(NUM_ROWS))),
    "none": (_filter(pc.field("id") < 0), []),
    "one": (_filter(pc.field("id") == 21), [21]),
    "few": (_filter(pc.field("text").isin(["row 4 ", "row 30 éé"])), [4, 30]),
    "row groups": (_filter((pc.field("id") < 6) | (pc.field("id") >= 35)), [*range(6), *range(35, NUM_ROWS)]),
    "files": (_filter(pc.field("id").isin(range(14, 24))), list(range(14, 24))),
    "a function": (lambda dataset: dataset.filter(odd, columns=["id"]), list(range(1, NUM_ROWS, 2))),
    "steps": (
        lambda dataset: dataset.filter(pc.field("x") > 2).filter(odd, columns=["id"]).skip(3).take(0.5),
        list(range(11, 30, 2)),
    ),
}
"""Name -> what selects rows of the corpus, and their ids."""


def make(
    path: Path, name: str, *, num_workers: int = 0, rank: int = 0, world_size: int = 1, **options: Any
) -> SavableLoader:
    """Return a loader of batches of three rows of a selection."""
    arguments: dict[str, Any] = {"shard_rows": 4, "window_bytes": 200, "seed": 5, "batch_size": 3, "shuffle": True}
    dataset = StatefulShardedDataset(path, rank=rank, world_size=world_size, **(arguments | options))
    return SavableLoader(SELECTIONS[name][0](dataset), num_workers=num_workers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_resumed_exactly_at_every_batch(tmp_path: Path, kind: Kind, name: str) -> None:
    write_corpus(tmp_path, kind)
    for shuffle in (False, True):
        loader = make(tmp_path, name, shuffle=shuffle)
        uninterrupted, states = run_with_states(loader)
        expected = SELECTIONS[name][1]
        assert sorted(flat(uninterrupted)) == expected
        assert shuffle or flat(uninterrupted) == expected
        assert len(loader) == len(uninterrupted)
        assert [len(batch) for batch in uninterrupted[:-1]] == [3] * len(uninterrupted[:-1])
        for done, state in enumerate(states):
            resumed = make(tmp_path, name, shuffle=shuffle)
            resumed.load_state_dict(state)
            assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_are_the_same_where_columns_of_the_filter_are_read_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, shuffle: bool
) -> None:
    write_corpus(tmp_path)
    select, expected = SELECTIONS[name]
    options: dict[str, Any] = {"batch_size": 5, "provenance": True, "shuffle": shuffle}
    datasets = [
        select(StatefulShardedDataset(tmp_path, columns=columns, **options))
        for columns in (None, ["text", "id"], ["x"], ["id"])
    ]

    def received() -> list[list[str]]:
        for dataset in datasets:
            dataset.set_epoch(0)
        return [[*map(repr, dataset)] for dataset in datasets]

    together = received()
    monkeypatch.setattr(selected, "_APART_BYTES", 0)
    monkeypatch.setattr(selected, "_APART_SHARE", 1.0)
    monkeypatch.setattr(parquet, "_PIECE_BYTES", 100)
    assert received() == together
    datasets[0].set_epoch(0)
    assert sorted(flat(ids(datasets[0]))) == expected


@pytest.mark.parametrize("apart_bytes", [0, selected._APART_BYTES])
def test_rows_with_views_are_selected_though_arrow_cannot_filter_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart_bytes: int
) -> None:
    views: Any = pa.array([None if i % 5 == 2 else f"row {i}" for i in range(20)], pa.string_view())
    lists = pa.ListArray.from_arrays(pa.array(range(21), pa.int32()), views)
    table = pa.table({"id": range(20), "text": views, "texts": lists, "code": views.cast(pa.binary_view())})
    pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=7)
    monkeypatch.setattr(selected, "_APART_BYTES", apart_bytes)
    dataset = StatefulShardedDataset(tmp_path, output="arrow", batch_size=4, filter=pc.field("id").isin([3, 10, 17]))
    found = pa.Table.from_batches(list(dataset))
    assert found.schema.equals(dataset.schema)
    assert found.to_pylist() == [row for row in table.to_pylist() if row["id"] in {3, 10, 17}]


@pytest.mark.parametrize("context", ["fork", FORKSERVER])
def test_a_stateful_dataloader_with_two_workers_resumes_a_selection(tmp_path: Path, context: Any) -> None:
    write_corpus(tmp_path)

    def loader() -> Any:
        dataset = StatefulShardedDataset(tmp_path, batch_size=3, shuffle=True, shard_rows=4, window_bytes=200)
        selected = dataset.filter(odd, columns=["id"]).filter(pc.field("x") < 20)
        return StatefulDataLoader(selected, batch_size=None, num_workers=2, multiprocessing_context=context)

    uninterrupted, states = run_with_states(loader())
    assert sorted(flat(uninterrupted)) == list(range(1, 40, 2))
    for done in range(len(uninterrupted)) if context == "fork" else [3]:
        resumed = loader()
        resumed.load_state_dict(states[done])
        assert uninterrupted[:done] + ids(resumed) == uninterrupted


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_delivered_once_while_ranks_and_workers_change(tmp_path: Path, name: str) -> None:
    write_corpus(tmp_path)
    received = rows_while_ranks_change(
        lambda rank, size: make(tmp_path, name, rank=rank, world_size=size, remainder="keep")
    )
    assert received == SELECTIONS[name][1]


def test_ranks_deliver_equally_many_batches_of_a_selection(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    for name in SELECTIONS:
        found = [ids(make(tmp_path, name, rank=rank, world_size=4)) for rank in range(4)]
        assert len({tuple(map(len, each)) for each in found}) == 1
        assert {row for each in found for row in flat(each)} == {*SELECTIONS[name][1]}


# -- Mismatches -------------------------------------------------------------------------------------------------------


def test_a_state_of_another_selection_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    plain = StatefulShardedDataset(tmp_path, batch_size=3)
    cheap, dear = plain.filter(pc.field("x") < 4), plain.filter(pc.field("x") >= 4)
    next(iter(cheap))
    state = cheap.state_dict()
    for other in (dear, plain, cheap.take(5)):
        with pytest.raises(CheckpointMismatchError) as refused:
            other.load_state_dict(state)
        lines = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
        assert len(lines) == 1
        assert lines[0].startswith("  selection: saved 'filter (x < 4)")
    assert "this run has 'filter (x >= 4)" in str(_refusal(dear, state))
    assert "selection" not in plain.state_dict()
    again = StatefulShardedDataset(tmp_path, batch_size=3, filter=[("x", "<", 4.0)])
    assert again.definition.identity.settings.selection is not None
    cheap.load_state_dict(state)


def _refusal(dataset: StatefulShardedDataset, state: Any) -> CheckpointMismatchError:
    with pytest.raises(CheckpointMismatchError) as refused:
        dataset.load_state_dict(state)
    return refused.value


def test_a_function_that_selects_other_rows_is_noticed_though_it_has_the_same_name(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    least = 10

    def function(batch: pa.RecordBatch) -> Any:
        return np.asarray(batch["id"]) >= least

    plain = StatefulShardedDataset(tmp_path, batch_size=3)
    selected = plain.filter(function, columns=["id"])
    next(iter(selected))
    state = selected.state_dict()
    least = 11
    error = _refusal(plain.filter(function, columns=["id"]), state)
    assert "rows: the same steps select other rows of the same files" in str(error)
    assert "version=" in str(error)
    # Nor does the reader return other rows than those that were counted.
    with pytest.raises(
        DataFileError, match=r"selected 3 rows of block 2 of .*part-000\.parquet when it was planned, and"
    ):
        list(selected)


def test_a_complete_epoch_of_a_selection_goes_on_with_files_that_were_added(tmp_path: Path) -> None:
    write_corpus(tmp_path)

    def dataset() -> StatefulShardedDataset:
        return StatefulShardedDataset(tmp_path, batch_size=3, filter=pc.field("x") < 100)

    first = SavableLoader(dataset())
    list(first)
    write_blocks(tmp_path / "part-9.parquet", "parquet", [rows(100, 104)], rows(0, 0).schema)
    resumed = SavableLoader(dataset())
    resumed.load_state_dict(first.state_dict())
    assert sorted(flat(ids(resumed))) == [*range(NUM_ROWS), *range(100, 104)]
    assert resumed.epoch == 1


# -- Errors -----------------------------------------------------------------------------------------------------------


def test_a_file_that_was_rewritten_after_planning_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=3, filter=pc.field("x") >= 1)
    write_blocks(tmp_path / "part-000.parquet", "parquet", [rows(1, 6), rows(6, 7), rows(7, 14)], rows(0, 0).schema)
    with pytest.raises(DataFileError, match=r"part-000\.parquet changed since it was planned"):
        list(dataset)
    with pytest.raises(DataFileError, match=r"part-000\.parquet changed since it was planned"):
        dataset.filter(pc.field("x") >= 2)


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (
            pc.field("y") > 3,
            SchemaMismatchError,
            r"filter \(y > 3\) can't be computed: there is no column 'y': the columns are id, ",
        ),
        (pc.field("x") == "a", SchemaMismatchError, r"filter \(x == \"a\"\) .*no kernel matching .*\(float, string\)"),
        (pc.field("x") + 1, SchemaMismatchError, "its values are of type float, not bool"),
        (pc.field(0) > 1, SchemaMismatchError, "numbers a column: name it"),
        (pc.scalar(True), SchemaMismatchError, "names no column"),  # noqa: FBT003
        ([("x", ">")], TypeError, "filter must be a pyarrow expression, such as"),
        ([("id", "<", 2**70)], TypeError, r"filter must be a pyarrow expression, .*\(.*int too large"),
        (5, TypeError, "filter must be a pyarrow expression, such as .* not 5$"),
        ("x > 3", TypeError, "filter must be a pyarrow expression, such as .* not 'x > 3'$"),
        (pc.field("txt") == "a", SchemaMismatchError, "there is no column 'txt': did you mean 'text'"),
        (pc.field("x", "a") == "a", SchemaMismatchError, "there is no column 'x.a'"),
        (odd, TypeError, r"pass a function to the method, \.filter\(fn, columns="),
    ],
)
def test_a_filter_that_is_none_is_refused(tmp_path: Path, condition: Any, error: type[Exception], message: str) -> None:
    write_corpus(tmp_path)
    with pytest.raises(error, match=message):
        StatefulShardedDataset(tmp_path, filter=condition)


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">=", "=", "!="])
def test_no_number_is_less_or_greater_than_nan_whatever_statistics_say(tmp_path: Path, operator: str) -> None:
    write_corpus(tmp_path)
    nan = float("nan")
    dataset = StatefulShardedDataset(tmp_path, filter=[("id", operator, nan)])
    assert len([*dataset]) == len(dataset) == (NUM_ROWS if operator == "!=" else 0)
    opposite = StatefulShardedDataset(tmp_path, filter=~(pc.field("id") < nan))
    assert len([*opposite]) == len(opposite) == NUM_ROWS


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (odd, {}, ValueError, "a filter that is a function needs columns="),
        (odd, {"columns": ["y"]}, SchemaMismatchError, "there is no column 'y'"),
        (odd, {"columns": ["id"], "version": 3}, TypeError, "version must be a string, not 3"),
        (lambda batch: batch["id"], {"columns": ["id"]}, TypeError, "returned values of type int64, not one bool"),
        (lambda _: True, {"columns": ["id"]}, TypeError, "returned bool, not one bool for each row"),
        (lambda _: [True], {"columns": ["id"]}, ValueError, r"returned 1 bool for 5 rows of part-000\.parquet"),
        (pc.field("x") > 1, {"columns": ["x"]}, ValueError, "columns= and version= are for filters that are functions"),
    ],
)
def test_a_function_that_is_no_filter_is_refused(
    tmp_path: Path, function: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_corpus(tmp_path)
    with pytest.raises(error, match=message):
        StatefulShardedDataset(tmp_path).filter(function, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda dataset: dataset.split({"a": 0.5, "b": 0.4}),
            r"with the sum 1, not \{'a': 0\.5, 'b': 0\.4\}, whose sum is 0\.9",
        ),
        (lambda dataset: dataset.split({"a": 2, "b": -1}), "shares must be numbers in"),
        (lambda dataset: dataset.split({}), "whose sum is 0"),
        (
            lambda dataset: dataset.split({"a b": 1}),
            "must have a name that can be an attribute, such as 'train', not 'a b'",
        ),
        (lambda dataset: dataset.split({"a": 1}, seed=-1), "seed must be"),
        (lambda dataset: dataset.take(-1), "rows must be a number of rows >= 0"),
        (lambda dataset: dataset.take(None), "rows must be"),
        (lambda dataset: dataset.skip(1.5), r"rows must be .* not 1\.5"),
        (lambda dataset: dataset.slice("a"), "start must be"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    write_corpus(tmp_path)
    with pytest.raises(ValueError, match=message):
        change(StatefulShardedDataset(tmp_path))


def test_a_field_of_a_struct_is_not_named_by_its_path_in_an_expression(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "inner": [{"a": {"b": 1}}, {"a": {"b": 2}}]})
    write_blocks(tmp_path / "a.parquet", "parquet", [table], table.schema)
    dataset = StatefulShardedDataset(tmp_path, columns=["id"])
    for condition in (pc.field("inner.a.b") > 1, [("inner.a.b", ">", 1)]):
        with pytest.raises(
            SchemaMismatchError, match=r"needs pc\.field\('inner', 'a', 'b'\) for the field of a struct"
        ):
            dataset.filter(condition)
    assert [row["id"] for row in dataset.filter(pc.field("inner", "a", "b") > 1)] == [2]
    with pytest.raises(SchemaMismatchError, match=r"there is no column 'inner\.a\.c': did you mean 'inner\.a"):
        dataset.filter(pc.field("inner", "a", "c") > 1)


def test_a_split_is_pickled_with_its_names(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    parts = StatefulShardedDataset(tmp_path, batch_size=3).split({"train": 0.8, "val": 0.2})
    copied = pickle.loads(pickle.dumps(parts))
    assert copied._fields == ("train", "val")
    assert [flat(ids(part)) for part in copied] == [flat(ids(parts.train)), flat(ids(parts.val))]
    wrong: Any = [0.8, 0.2]
    with pytest.raises(TypeError, match=r"shares must be a dict, name of a part -> its share .* not \[0\.8, 0\.2\]"):
        parts.train.split(wrong)


def test_a_split_by_what_has_no_hash_is_refused(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "words": [["a"], ["b"]]})
    write_blocks(tmp_path / "a.parquet", "parquet", [table], table.schema)
    dataset = StatefulShardedDataset(tmp_path)
    with pytest.raises(SchemaMismatchError, match=r"can't be split by column 'words', which is of type list<"):
        dataset.split({"a": 1}, by="words")
    with pytest.raises(SchemaMismatchError, match="there is no column 'user'"):
        dataset.split({"a": 1}, by="user")


def test_an_error_names_the_row_of_the_file(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([0, 1, 2, None]), "keep": [False, True, False, True]})
    write_blocks(tmp_path / "a.parquet", "parquet", [table], table.schema)
    dataset = StatefulShardedDataset(tmp_path, batch_size=1, columns=["id"], filter=pc.field("keep"))
    batches = iter(dataset)
    assert next(batches)["id"].tolist() == [1]
    with pytest.raises(NullInColumnError, match=r"row 3 of a\.parquet"):
        next(batches)
    found = StatefulShardedDataset(tmp_path, fill_null={"id": -1}, provenance=True, filter=pc.field("keep"))
    assert [(row["id"], row["_row"]) for row in found] == [(1, 1), (-1, 3)]


# -- What is planned --------------------------------------------------------------------------------------------------


def test_the_selection_tells_what_decided_it(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    num_blocks = sum(1 for blocks in UNEQUAL_FILES for length in blocks if length)
    dataset = StatefulShardedDataset(tmp_path)
    assert dataset.selection is None
    found = dataset.filter(pc.field("id") < 10).take(8).selection
    assert found is not None
    by_id, first = found.steps
    # The third block has the rows 6 to 12.
    assert by_id[1:] == (10, 0, num_blocks - 1, 1)
    assert first[1:] == (8, 0, 0, 0)
    assert (found.num_rows, found.num_rows_in_files) == (8, NUM_ROWS)
    assert (found.num_whole_blocks, found.num_partial_blocks, found.num_empty_blocks) == (2, 1, num_blocks - 3)
    assert "8 of 48 rows" in repr(found)
    assert "rows 0 to 8: 8 rows" in repr(found)
    assert "filter (id < 10)" in repr(dataset.filter(pc.field("id") < 10))


def test_keys_of_directories_decide_without_opening_a_file(tmp_path: Path) -> None:
    names = ("country=DE/a", "country=FR/b")
    write_corpus(tmp_path, files=((3, 2), (4, 1)), names=names)
    plain = StatefulShardedDataset(tmp_path, batch_size=10, columns=["id"])
    (tmp_path / "country=FR" / "b.parquet").write_bytes(b"")
    german = plain.filter(pc.field("country") == "DE")
    assert flat(ids(german)) == list(range(5))
    assert german.selection is not None
    assert german.selection.steps[0][1:] == (5, 4, 0, 0)
    both = plain.filter((pc.field("country") == "DE") & (pc.field("id") != 1))
    assert flat(ids(both)) == [0, 2, 3, 4]
    assert both.selection is not None
    assert both.selection.steps[0][1:] == (4, 2, 1, 1)


def test_counts_are_cached_and_a_damaged_entry_is_replaced(tmp_path: Path) -> None:
    write_corpus(tmp_path / "d")
    settle(tmp_path / "d")
    expected = list(range(20, NUM_ROWS))
    calls: list[int] = []

    def function(batch: pa.RecordBatch) -> Any:
        calls.append(len(batch))
        return np.asarray(batch["id"]) >= 20

    def num_calls_of(version: str | None) -> int:
        """Return how often the function is called to plan."""
        calls.clear()
        dataset = StatefulShardedDataset(tmp_path / "d", batch_size=3, cache_dir=tmp_path / "cache")
        selected = dataset.filter(function, columns=["id"], version=version)
        num_calls = len(calls)
        assert flat(ids(selected)) == expected
        return num_calls

    num_blocks = sum(1 for blocks in UNEQUAL_FILES for length in blocks if length)
    assert [num_calls_of(version) for version in ("1", "1", "2", None, None)] == [
        *(num_blocks, 0, num_blocks, num_blocks, num_blocks),
    ]
    first, second = (tmp_path / "cache").glob("_selection-*")
    whole = [first.read_bytes(), second.read_bytes()]
    for damage in (b"", whole[0][:50], whole[1]):
        first.write_bytes(damage)
        with pytest.warns(ManifestCacheWarning, match="a cached selection is unusable"):
            assert num_calls_of("1") + num_calls_of("2") == num_blocks
        assert first.read_bytes() == whole[0]


def test_what_was_counted_and_collected_of_a_file_is_not_taken_for_that_of_another_with_the_same_footer(
    tmp_path: Path,
) -> None:
    source, cache = tmp_path / "d", tmp_path / "cache"
    source.mkdir()

    def selected(values: list[int], seconds: int) -> tuple[list[int], list[int], list[int]]:
        """Write values to a file, and return the rows that have the first one, all values, and them as lengths."""
        # The footer has no statistics, and is further than 64 KiB from the values.
        data = {"value": values + [0] * 12_000, "id": range(12_000 + len(values))}
        plain: dict[str, Any] = {"use_dictionary": False, "compression": "none", "write_statistics": False}
        pq.write_table(pa.table(data), source / "a.parquet", **plain)
        settle(source, seconds)
        options: dict[str, Any] = {"categories": {"value": None}, "cache_dir": cache, "batch_size": 1000}
        dataset = StatefulShardedDataset(source, filter=pc.field("value") == 5, **options)
        lengths = StatefulShardedDataset(source, cache_dir=cache).count_lengths("value").definition.lengths
        assert lengths is not None
        return flat(ids(dataset)), dataset.categories["value"], lengths.rows[: len(values)].tolist()

    assert selected([5, 5, 5, 8, 8], 1) == ([0, 1, 2], [0, 5, 8], [5, 5, 5, 8, 8])
    fingerprint = Manifest.scan(source).fingerprint
    assert selected([5, 8, 5, 5, 9], 2) == ([0, 2, 3], [0, 5, 8, 9], [5, 8, 5, 5, 9])
    assert selected([5, 9, 5, 9, 9], 3) == ([0, 2], [0, 5, 9], [5, 9, 5, 9, 9])
    assert Manifest.scan(source).fingerprint == fingerprint


def test_a_split_of_a_part_with_the_same_seed_is_another_split(tmp_path: Path) -> None:
    write_blocks(tmp_path / "a.parquet", "parquet", [rows(0, 400)], rows(0, 0).schema)
    half = {"a": 0.5, "b": 0.5}
    for by in ("row", "id"):
        parts = [
            dataset
            for part in StatefulShardedDataset(tmp_path).split(half, by=by)
            for dataset in part.split(half, by=by)
        ]
        assert all(60 <= len(part) <= 140 for part in parts)
        assert sorted(row["id"] for part in parts for row in part) == list(range(400))
    # By something else, or with another seed, no hash is that of before.
    texts = [
        part.selection.steps[-1].text for part in (StatefulShardedDataset(tmp_path).split(half).a.split(half, seed=1))
    ]
    assert all("after" not in text for text in texts)


def test_numbers_of_numpy_are_numbers_of_rows_and_shares(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset: Any = StatefulShardedDataset(tmp_path)
    parts = [dataset.take(np.int64(5)), dataset.skip(np.uint8(43)), dataset.slice(np.float32(0.25), np.float64(0.5))]
    assert [len(part) for part in parts] == [5, 5, 12]
    assert parts[0].selection.steps[0].text == "rows 0 to 5"


def test_what_a_function_returns_may_be_any_array_of_bools(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path)
    answers: list[Callable[[Any], Any]] = [
        lambda batch: torch.from_numpy(odd(batch)),
        lambda batch: odd(batch).tolist(),
        lambda batch: tuple(odd(batch)),
        lambda batch: pa.array(odd(batch)),
        lambda batch: pa.chunked_array([odd(batch)]),
    ]
    for answer in answers:
        assert len(dataset.filter(answer, columns=["id"])) == NUM_ROWS // 2


def _mean(column: Any) -> Any:
    return pc.mean(column)


@pytest.mark.parametrize("expression", [pc.cumulative_sum(pc.field("id")) > 5, pc.field("id") > _mean(pc.field("id"))])
def test_an_expression_over_several_rows_is_refused(tmp_path: Path, expression: pc.Expression) -> None:
    write_corpus(tmp_path)
    with pytest.raises(SchemaMismatchError, match="can't be computed row by row"):
        StatefulShardedDataset(tmp_path, filter=expression)


def test_an_error_of_a_function_names_the_file(tmp_path: Path) -> None:
    write_corpus(tmp_path)

    def fail(batch: pa.RecordBatch) -> Any:
        return batch["color"]

    with pytest.raises(KeyError) as raised:
        StatefulShardedDataset(tmp_path).filter(fail, columns=["id"])
    (note,) = raised.value.__notes__
    assert "fail of id was called for" in note
    assert "rows of part-00" in note


def test_a_manifest_that_has_counted_a_filter_spares_datasets_from_it(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    condition = pc.field("text") > "row 3"
    first, second = [("text", ">", "row 3")], [("id", "<", 9)]
    manifest = Manifest.scan(tmp_path).select(first).select(second)
    for counted, expected in ((condition, 0), (second, 0), ([("id", "<", 9), ("text", ">", "row 3")], 1)):
        dataset = StatefulShardedDataset(manifest, batch_size=3, filter=counted)
        assert dataset.selection is not None
        assert (dataset.selection.steps[0].blocks_by_rows > 0) == expected
    assert flat(ids(StatefulShardedDataset(manifest, batch_size=3))) == list(range(NUM_ROWS))
    with pytest.raises(SchemaMismatchError, match="color"):
        manifest.select(pc.field("color") == "red")
    with pytest.raises(TypeError, match="expression"):
        manifest.select(odd)  # type: ignore[arg-type]


def test_a_dataset_of_the_manifest_of_another_counts_nothing_again(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    condition = pc.field("text") > "row 3"
    parts = StatefulShardedDataset(tmp_path, batch_size=3, filter=condition).split({"a": 0.5, "b": 0.5})
    manifest = pickle.loads(pickle.dumps(parts.b.manifest))
    again = StatefulShardedDataset(manifest, batch_size=3, filter=condition).split({"a": 0.5, "b": 0.5})
    assert again.b.selection.steps[0].blocks_by_rows == 0
    assert again.b.selection.steps[1].blocks_by_rows == 0
    assert again.a.selection.steps[1].blocks_by_rows > 0, "only the other part was counted"
    assert ids(again.b) == ids(parts.b)
    again.b.load_state_dict(parts.b.state_dict())

"""Rows that know where they come from, and seeds that depend on nothing else: provenance columns and contexts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import BatchContext, RowContext, SavableLoader, SchemaMismatchError, StatefulShardedDataset

if TYPE_CHECKING:
    from pathlib import Path

ROWS = (30, 0, 17)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write rows whose text says where they are."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number, rows in enumerate(ROWS):
        texts = [f"part-{number}.parquet:{row}" for row in range(rows)]
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), directory / f"part-{number}.parquet", 7)
    return directory


def all_texts() -> list[str]:
    return sorted(f"part-{number}.parquet:{row}" for number, rows in enumerate(ROWS) for row in range(rows))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("output", ["python", "numpy", "torch", "arrow"])
def test_provenance_says_where_each_row_of_a_batch_is(corpus: Path, output: Any, *, shuffle: bool) -> None:
    dataset = StatefulShardedDataset(corpus, shuffle=shuffle, batch_size=8, output=output, provenance=True)
    assert dataset.schema.names == ["text", "_path", "_row", "_epoch"]
    dataset.set_epoch(3)
    found: list[str] = []
    for batch in dataset:
        columns = batch.to_pydict() if output == "arrow" else {name: [*column] for name, column in batch.items()}
        assert [f"{path}:{int(row)}" for path, row in zip(columns["_path"], columns["_row"], strict=True)] == [
            *columns["text"]
        ]
        assert {int(epoch) for epoch in columns["_epoch"]} == {3}
        found += columns["text"]
    assert sorted(found) == all_texts()


def test_provenance_of_rows_in_file_order(corpus: Path) -> None:
    rows = list(StatefulShardedDataset(corpus, provenance=True))
    assert [row["_row"] for row in rows] == [*range(30), *range(17)]
    assert rows[31] == {"text": "part-2.parquet:1", "_path": "part-2.parquet", "_row": 1, "_epoch": 0}


def test_a_column_of_that_name_is_refused_unless_it_is_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"_row": [7, 8], "x": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaMismatchError, match="adds a column '_row', but the files have one"):
        StatefulShardedDataset(tmp_path, provenance=True)
    assert [row["_row"] for row in StatefulShardedDataset(tmp_path, columns=["x"], provenance=True)] == [0, 1]
    assert [row["_row"] for row in StatefulShardedDataset(tmp_path)] == [7, 8]


def seeds_of_batch(batch: Any, context: BatchContext) -> dict[str, tuple[int, float]]:
    """Return the seed and a random number of each row by its text, after checking the rest of the context."""
    texts = batch["text"] if isinstance(batch, dict) else batch.column("text").to_pylist()
    assert [*batch] == ["text"] if isinstance(batch, dict) else batch.schema.names == ["text"]
    assert [f"{path}:{row}" for path, row in zip(context.paths, context.rows.tolist(), strict=True)] == [*texts]
    numbers = [float(rng.random()) for rng in context.rngs]
    return dict(zip(texts, zip(context.seeds.tolist(), numbers, strict=True), strict=True))


def seeds_of_row(row: Any, context: RowContext) -> dict[str, tuple[int, float]]:
    """Return the same for a row."""
    text = row["text"] if isinstance(row, dict) else row.column("text")[0].as_py()
    assert f"{context.path}:{context.row}" == text
    return {text: (context.seed, float(context.rng.random()))}


def collated(rows: list[dict[str, tuple[int, float]]]) -> dict[str, tuple[int, float]]:
    """Merge the rows of a batch."""
    # A DataLoader makes lists of tuples.
    return {text: (seed, number) for row in rows for text, (seed, number) in row.items()}


def merged(items: Any) -> dict[str, tuple[int, float]]:
    """Merge items."""
    return collated([*items])


def test_the_seed_of_a_row_depends_on_nothing_but_seed_epoch_file_and_row(corpus: Path) -> None:
    def dataset(**options: Any) -> StatefulShardedDataset:
        function = seeds_of_row if options.get("batch_size") is None else seeds_of_batch
        return StatefulShardedDataset(corpus, **{"shuffle": True, "seed": 5, **options}).map(
            function, with_context=True
        )

    expected = merged(dataset(batch_size=4))
    assert sorted(expected) == all_texts()
    assert len({seed for seed, _ in expected.values()}) == len(expected)
    for output in ("python", "numpy", "arrow"):
        assert merged(dataset(batch_size=5, output=output)) == expected
        assert merged(dataset(output=output)) == expected
    ranks = [dataset(batch_size=3, rank=rank, world_size=2, remainder="keep") for rank in range(2)]
    assert {**merged(ranks[0]), **merged(ranks[1])} == expected
    assert merged(SavableLoader(dataset(batch_size=3), num_workers=2)) == expected
    by_row = SavableLoader(dataset(), batch_size=6, collate_fn=collated, num_workers=2)
    assert merged(by_row) == expected
    assert merged(StatefulDataLoader(dataset(batch_size=3), batch_size=None, num_workers=2)) == expected
    assert merged(StatefulDataLoader(dataset(), batch_size=7, collate_fn=collated)) == expected
    assert merged(dataset(batch_size=4, shuffle=False)) == expected

    other_seed, other_epoch = dataset(batch_size=4, seed=6), dataset(batch_size=4)
    other_epoch.set_epoch(1)
    for other in (merged(other_seed), merged(other_epoch)):
        assert {*other} == {*expected}
        assert all(other[text] != expected[text] for text in expected)


def test_a_resumed_run_augments_as_the_uninterrupted_one(corpus: Path) -> None:
    def dataset() -> StatefulShardedDataset:
        return StatefulShardedDataset(corpus, shuffle=True, batch_size=4).map(seeds_of_batch, with_context=True)

    expected = list(dataset())
    for num_batches in range(len(expected)):
        stopped, resumed = dataset(), dataset()
        received = [*islice(stopped, num_batches)]
        state = stopped.state_dict()
        resumed.load_state_dict(state)
        assert received + list(resumed) == expected


def test_functions_follow_each_other_and_only_those_that_want_it_get_the_context(corpus: Path) -> None:
    def first(batch: dict[str, Any]) -> dict[str, Any]:
        assert [*batch] == ["text"]
        return {"text": [text.upper() for text in batch["text"]]}

    def second(batch: dict[str, Any], context: BatchContext) -> list[str]:
        generators = [torch.Generator().manual_seed(seed) for seed in context.seeds.tolist()]
        assert len({float(torch.rand(1, generator=generator)) for generator in generators}) == len(generators)
        return [f"{text}/{context.epoch}" for text in batch["text"]]

    dataset = StatefulShardedDataset(corpus, batch_size=10, transform=first).map(second, with_context=True).map(len)
    assert list(dataset) == [10, 10, 10, 10, 7]


@pytest.mark.parametrize("output", ["torch", "python"])
def test_the_hidden_columns_are_never_seen(corpus: Path, output: Any) -> None:
    def look(row: dict[str, Any], context: RowContext) -> list[str]:
        assert context.epoch == 0
        return [*row]

    dataset = StatefulShardedDataset(corpus, output=output, provenance=True).map(look, with_context=True)
    assert {tuple(names) for names in dataset} == {("text", "_path", "_row", "_epoch")}
    assert dataset.schema.names == ["text", "_path", "_row", "_epoch"]


def test_an_error_of_a_function_with_context_names_the_row(corpus: Path) -> None:
    def fail(row: dict[str, Any], context: RowContext) -> dict[str, Any]:
        if context.row == 12:
            message = "on purpose"
            raise ValueError(message)
        return row

    rows = iter(StatefulShardedDataset(corpus).map(fail, with_context=True))
    received = [next(rows)["text"] for _ in range(12)]
    for _ in range(2):
        with pytest.raises(ValueError, match="on purpose") as caught:
            next(rows)
        assert "row 12 of part-0.parquet" in caught.value.__notes__[0]
    assert received[-1] == "part-0.parquet:11"


@pytest.mark.parametrize("arguments", [{"provenance": 1}, {"provenance": None}])
def test_bad_arguments_are_refused(corpus: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="provenance"):
        StatefulShardedDataset(corpus, **arguments)
    with pytest.raises(TypeError, match="fn"):
        StatefulShardedDataset(corpus).map(None)  # type: ignore[arg-type]

"""Plans of real files: selected rows, mixtures, costs; and reading single rows."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import CheckpointMismatchError, Mixture, SavableLoader, StatefulShardedDataset
from laneway.plans.cut_rows import SourceRowPlace
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.resumable import ResumableDataset

SMALL: dict[str, Any] = {"shuffle": True, "seed": 3, "shard_rows": 4, "window_bytes": 200}


def places(dataset: ResumableDataset, num_steps: int | None = None) -> list[list[tuple[str, int]]]:
    """Return path and row number of the rows of each batch that a dataset delivers."""
    found = []
    for batch in SavableLoader(dataset):
        found.append([*zip(batch["_path"], batch["_row"].tolist(), strict=True)])
        if len(found) == num_steps:
            break
    return found


def test_row_numbers_of_selected_rows_are_those_of_the_files(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=3, provenance=True, **SMALL).filter([("x", ">", 4.0)]).skip(2)
    plan = dataset.plan()
    expected = places(dataset)
    assert [plan.rows_of(step)[0] for step in range(len(expected))] == expected
    for step, batch in enumerate(expected):
        for index, row in enumerate(batch):
            assert plan.where(*row) == [(step, 0, 0, index)]
    with pytest.raises(ValueError, match=r"row 3 of part-000.parquet is not selected"):
        plan.where("part-000.parquet", 3)


def test_rows_of_a_mixture_are_named_by_source_and_epoch(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a")
    write_corpus(tmp_path / "b", files=((4,), (3, 2)))
    sources = {name: StatefulShardedDataset(tmp_path / name, provenance=True, **SMALL) for name in ("a", "b")}
    mixture = Mixture(sources, {"a": 3, "b": 1}).batch(4)
    plan = mixture.plan(0, 1)
    assert (plan.num_steps, plan.num_rows, plan.batches_per_rank) == (None, None, None)
    expected = places(mixture, 20)
    found = [plan.rows_of(step)[0] for step in range(20)]
    assert [[row[:2] for row in batch] for batch in found] == expected
    assert {(row.source, row.epoch) for batch in found for row in batch if isinstance(row, SourceRowPlace)} == {
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("b", 2),
    }
    for step, batch in enumerate(found):
        for index, (path, row, source, epoch) in enumerate(batch):  # type: ignore[misc]  # rows of sources
            assert plan.where(path, row, source=source, epoch=epoch) == [(step, 0, 0, index)]
    with pytest.raises(ValueError, match="source must be one of 'a', 'b', not None"):
        plan.where("part-000.parquet", 0)


def test_a_row_of_a_file_that_was_added_later_is_found_in_the_cuts_that_have_it(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((5, 4),))
    before = StatefulShardedDataset(tmp_path, provenance=True, **SMALL)
    loader = SavableLoader(Mixture({"a": before}, {"a": 1}).batch(3))
    next(iter(loader))
    write_corpus(tmp_path, files=((5, 4), (6,)))
    grown = before.extend(StatefulShardedDataset(tmp_path, provenance=True, **SMALL))
    mixture = Mixture({"a": grown}, {"a": 1}).batch(3)
    plan = mixture.plan(state=loader.state_dict())
    (found,) = plan.where("part-001.parquet", 2, source="a", epoch=1)
    assert plan.rows_of(found.step)[0][found.batch_index][:2] == ("part-001.parquet", 2)
    with pytest.raises(ValueError, match=r"there is no file 'part-002.parquet' among the 2"):
        plan.where("part-002.parquet", 2, source="a", epoch=1)


def test_costs_are_those_of_the_row_groups_that_are_read(tmp_path: Path) -> None:
    table = pa.table({"x": range(10_000)})
    pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=1_000)
    size = (tmp_path / "part-0.parquet").stat().st_size
    whole = StatefulShardedDataset(tmp_path, batch_size=10).plan(0, 1)
    assert whole.bytes_per_rank == pytest.approx((size,), abs=10)
    halves = StatefulShardedDataset(tmp_path, batch_size=10).plan(0, 2)
    assert halves.bytes_per_rank == pytest.approx((size / 2, size / 2), rel=0.1)
    assert halves.num_windows == 2
    # All lanes cut through one window of one row group, which each of them reads.
    shared = StatefulShardedDataset(tmp_path, batch_size=10, shuffle=True, shard_bytes="1MiB").plan(0, 2)
    assert shared.bytes_per_rank is not None
    assert sum(shared.bytes_per_rank) >= size - 10
    assert (whole.worker_memory_bytes or 0) >= 8 << 20


def test_rows_are_read_as_the_dataset_delivers_them(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    threads = threading.active_count()
    rows = StatefulShardedDataset(tmp_path, **SMALL).map(
        lambda row, context: (row["id"], context.epoch), with_context=True
    )
    assert rows.read("part-003.parquet", [5, 0, 1], epoch=7) == [(19, 7), (14, 7), (15, 7)]
    batches = StatefulShardedDataset(tmp_path, batch_size=2, transform=lambda batch: batch["id"] * 2)
    assert batches.read("part-000.parquet", [12, 3]).tolist() == [24, 6]
    assert batches.filter([("id", ">", 40)]).read("part-000.parquet", [0]).tolist() == [0]
    with pytest.raises(ValueError, match=r"there is no row 13 of part-000.parquet: it has 13 rows"):
        batches.read("part-000.parquet", [13])
    with pytest.raises(ValueError, match="there is no file 'part-9' among the 7"):
        batches.read("part-9", [0])
    with pytest.raises(TypeError, match="rows must be a sequence of ints"):
        batches.read("part-000.parquet", [1.5])  # type: ignore[list-item]  # that is what is tried
    assert threading.active_count() <= threads + 4


def test_what_can_not_be_planned_says_why(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=3, **SMALL)
    plan = dataset.plan(0, 2)
    with pytest.raises(ValueError, match="there is no step 8: epoch 0 has 8 steps"):
        plan.rows_of(8)
    with pytest.raises(ValueError, match="source= and epoch= are for mixtures"):
        plan.where("part-000.parquet", 0, source="a")
    rows = StatefulShardedDataset(tmp_path)
    with pytest.raises(ValueError, match="depends on the data"):
        rows.flat_map(lambda row: [row]).plan()
    ranks = [SavableLoader(dataset.shard(2, rank)) for rank in range(2)]
    for loader in ranks:
        next(iter(loader))
    state = json.loads(json.dumps(ranks[1].save_state_rank()))
    with pytest.raises(CheckpointMismatchError, match="the state of rank 1 of 2 only"):
        dataset.plan(state=state)
    with pytest.raises(ValueError, match="epoch is 3, but the state is of epoch 0"):
        dataset.plan(3, state=ranks[0].state_dict())
    merged = dataset.plan(state=[each.save_state_rank() for each in ranks])
    assert (merged.next_step, merged.world_size) == (1, 2)

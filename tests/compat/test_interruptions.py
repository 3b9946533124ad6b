"""A break, an error in user code, a killed worker: undelivered rows are never marked as done."""

from __future__ import annotations

import os
import signal
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from laneway import DataFileError, SavableLoader, StatefulShardedDataset
from tests.compat.loaders import flat, ids, loader_raises, make_loader, saved
from tests.corpora import rows as corpus_rows
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAILING_ROW = 23


class TransformError(Exception):
    """The error of the failing transform."""


def fail_at_one_row(item: dict[str, Any]) -> dict[str, Any]:
    found = item["id"]
    if FAILING_ROW in (found.tolist() if not isinstance(found, int) else [found]):
        message = f"row {FAILING_ROW} can't be transformed"
        raise TransformError(message)
    return item


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_break_marks_no_undelivered_row_as_done(tmp_path: Path, num_workers: int) -> None:
    write_corpus(tmp_path)
    loader = make_loader(tmp_path, dataset={"shuffle": True}, num_workers=num_workers)
    uninterrupted = ids(loader)
    for stop in (1, 5, len(uninterrupted)):
        loader = make_loader(tmp_path, dataset={"shuffle": True}, num_workers=num_workers)
        received: list[list[int]] = []
        for batch in loader:
            received.append(batch["id"].tolist())
            if len(received) == stop:
                break
        resumed = make_loader(tmp_path, dataset={"shuffle": True}, num_workers=num_workers)
        resumed.load_state_dict(saved(loader.state_dict()))
        assert received + ids(resumed) == uninterrupted


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_transform_that_fails_marks_no_undelivered_row_as_done(tmp_path: Path, num_workers: int) -> None:
    num_rows = write_corpus(tmp_path)
    options: dict[str, Any] = {"num_workers": num_workers}
    failing = make_loader(tmp_path, dataset={"shuffle": True, "transform": fail_at_one_row}, **options)
    received: list[list[int]] = []
    with loader_raises(TransformError, f"row {FAILING_ROW} can't be transformed"):
        received.extend(batch["id"].tolist() for batch in failing)
    assert len(flat(received)) < num_rows
    fixed = make_loader(tmp_path, dataset={"shuffle": True}, **options)
    fixed.load_state_dict(saved(failing.state_dict()))
    assert received + ids(fixed) == ids(make_loader(tmp_path, dataset={"shuffle": True}, **options))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_transform_that_raises_stop_iteration_does_not_end_the_epoch(
    tmp_path: Path, batch_size: int | None, num_workers: int
) -> None:
    write_corpus(tmp_path)

    def stop(_: object) -> object:
        return next(iter(()))

    dataset = StatefulShardedDataset(tmp_path, batch_size=batch_size, transform=stop)
    with loader_raises(RuntimeError, "the transform or collate_fn raised StopIteration"):
        list(DataLoader(dataset, batch_size=None, num_workers=num_workers))


def drop(_: object) -> None:
    """Return None, as if that dropped the row."""


def expand(item: object) -> Iterator[object]:
    yield item


@pytest.mark.parametrize(("transform", "what"), [(drop, "None"), (expand, "a generator")])
@pytest.mark.parametrize("loader_batch_size", [None, 5])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_transform_that_returns_no_row_or_batch_is_an_error_that_names_the_ways(
    tmp_path: Path, batch_size: int | None, loader_batch_size: int | None, transform: Any, what: str
) -> None:
    if batch_size and loader_batch_size:
        pytest.skip("both build batches")
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=batch_size, transform=transform)
    with pytest.raises(TypeError, match=f"transform returned {what}, but it must return the row or batch"):
        next(iter(SavableLoader(dataset, batch_size=loader_batch_size)))


def test_a_collate_fn_may_drop_rows_that_transform_made_none(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, transform=lambda row: row["id"] if row["id"] % 2 else None)
    loader = SavableLoader(dataset, batch_size=6, collate_fn=lambda rows: [row for row in rows if row is not None])
    assert next(iter(loader)) == [1, 3, 5]


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_transform_that_fails_after_a_change_in_place_is_retried_on_the_original_rows(
    tmp_path: Path, batch_size: int | None, output: Any
) -> None:
    write_corpus(tmp_path, files=((100,),))
    failures = iter([True, False] * 100)

    def add_and_fail_every_other_time(item: dict[str, Any]) -> dict[str, Any]:
        item["id"] += 1000
        if next(failures):
            message = "not this time"
            raise TransformError(message)
        return item

    dataset = StatefulShardedDataset(
        tmp_path, batch_size=batch_size, columns=["id"], transform=add_and_fail_every_other_time, output=output
    )
    stream = iter(dataset)
    found: list[int] = []
    while len(found) < 100:
        with pytest.raises(TransformError):
            next(stream)
        found += np.atleast_1d(next(stream)["id"]).tolist()
    assert found == list(range(1000, 1100))


def test_a_row_that_pads_a_lane_does_not_show_changes_in_place_of_its_first_delivery(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((9,),))
    dataset = StatefulShardedDataset(tmp_path, batch_size=4, rank=0, world_size=2)
    found = []
    for batch in dataset:
        found.append(batch["id"].tolist())
        batch["id"] += 1000
    assert found == [[0, 1, 2, 3], [3]]


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_dataset_retries_a_failed_item(tmp_path: Path, batch_size: int | None) -> None:
    write_corpus(tmp_path)
    is_fixed = False

    def fail_until_fixed(item: dict[str, Any]) -> dict[str, Any]:
        item["touched"] = "touched" in item
        return item if is_fixed else fail_at_one_row(item)

    arguments: dict[str, Any] = {"shuffle": True, "batch_size": batch_size, "shard_rows": 4}
    dataset = StatefulShardedDataset(tmp_path, transform=fail_until_fixed, **arguments)
    stream = iter(dataset)
    received: list[dict[str, Any]] = []
    with pytest.raises(TransformError):
        received.extend(stream)
    state = dataset.state_dict()
    with pytest.raises(TransformError):
        next(stream)
    assert dataset.state_dict() == state
    is_fixed = True
    received.extend(stream)
    assert not any(item.pop("touched") for item in received), "a row whose transform failed half-way is read again"
    assert str(received) == str(list(StatefulShardedDataset(tmp_path, **arguments)))


def kill_worker_and_continue(batches: Any, received: list[list[int]]) -> None:
    worker = batches._workers[1]
    os.kill(worker.pid, signal.SIGKILL)
    # torch reports the death only if the worker is already dead; an item of a dying worker is a connection error.
    worker.join()
    received.extend(batch["id"].tolist() for batch in batches)


@pytest.mark.parametrize("in_rows", [False, True])
def test_a_killed_worker_marks_no_undelivered_row_as_done(tmp_path: Path, in_rows: bool) -> None:
    write_corpus(tmp_path)
    uninterrupted = ids(make_loader(tmp_path, rows=in_rows, num_workers=2))
    loader = make_loader(tmp_path, rows=in_rows, num_workers=2)
    batches = iter(loader)
    received = [next(batches)["id"].tolist() for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        kill_worker_and_continue(batches, received)
    resumed = make_loader(tmp_path, rows=in_rows, num_workers=2)
    resumed.load_state_dict(saved(loader.state_dict()))
    assert received + ids(resumed) == uninterrupted


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumes_exactly_after_the_error_of_a_missing_file(tmp_path: Path, num_workers: int) -> None:
    write_corpus(tmp_path)
    uninterrupted = ids(make_loader(tmp_path, num_workers=num_workers))
    loader = make_loader(tmp_path, num_workers=num_workers)
    moved = (tmp_path / "part-005.parquet").rename(tmp_path / "elsewhere")
    received: list[list[int]] = []
    with loader_raises(DataFileError, r"part-005\.parquet"):
        received.extend(batch["id"].tolist() for batch in loader)
    moved.rename(tmp_path / "part-005.parquet")
    resumed = make_loader(tmp_path, num_workers=num_workers)
    resumed.load_state_dict(saved(loader.state_dict()))
    assert received + ids(resumed) == uninterrupted


def test_a_file_that_grew_after_planning_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4)
    pq.write_table(corpus_rows(0, 60), tmp_path / "part-000.parquet")
    with pytest.raises(DataFileError, match=r"part-000\.parquet changed since it was planned"):
        next(iter(dataset))


def test_batches_taken_through_islice_are_counted_exactly(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4)
    first = ids(islice(dataset, 2))
    resumed = StatefulShardedDataset(tmp_path, batch_size=4)
    resumed.load_state_dict(dataset.state_dict())
    assert first + ids(resumed) == ids(StatefulShardedDataset(tmp_path, batch_size=4))

"""A break, an error in a user's code, a killed worker: what was not delivered is never marked done."""

from __future__ import annotations

import os
import signal
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from laneway import DataFileError, StatefulShardedDataset
from tests.compat.loaders import flat, ids, loader_raises, make_loader, saved
from tests.corpora import rows as corpus_rows
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

FAILING_ROW = 23


class TransformError(Exception):
    """What the failing transform raises."""


def fail_at_one_row(item: dict[str, Any]) -> dict[str, Any]:
    found = item["id"]
    if FAILING_ROW in (found.tolist() if not isinstance(found, int) else [found]):
        message = f"row {FAILING_ROW} can't be transformed"
        raise TransformError(message)
    return item


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_break_marks_nothing_done_that_was_not_delivered(tmp_path: Path, num_workers: int) -> None:
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
def test_a_transform_that_fails_marks_nothing_done(tmp_path: Path, num_workers: int) -> None:
    num_rows = write_corpus(tmp_path)
    options: dict[str, Any] = {"num_workers": num_workers}
    failing = make_loader(tmp_path, dataset={"shuffle": True, "transform": fail_at_one_row}, **options)
    received: list[list[int]] = []
    with loader_raises(TransformError, f"row {FAILING_ROW} can't be transformed"):
        received.extend(batch["id"].tolist() for batch in failing)
    assert len(flat(received)) < num_rows
    mended = make_loader(tmp_path, dataset={"shuffle": True}, **options)
    mended.load_state_dict(saved(failing.state_dict()))
    assert received + ids(mended) == ids(make_loader(tmp_path, dataset={"shuffle": True}, **options))


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


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_transform_that_changes_in_place_and_fails_begins_anew(
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


def test_a_row_that_pads_a_lane_is_as_in_the_file_whatever_was_done_to_it_before(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((9,),))
    dataset = StatefulShardedDataset(tmp_path, batch_size=4, rank=0, world_size=2)
    found = []
    for batch in dataset:
        found.append(batch["id"].tolist())
        batch["id"] += 1000
    assert found == [[0, 1, 2, 3], [3]]


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_dataset_tries_again_what_failed(tmp_path: Path, batch_size: int | None) -> None:
    write_corpus(tmp_path)
    mended = False

    def fail_until_mended(item: dict[str, Any]) -> dict[str, Any]:
        item["touched"] = "touched" in item
        return item if mended else fail_at_one_row(item)

    arguments: dict[str, Any] = {"shuffle": True, "batch_size": batch_size, "shard_rows": 4}
    dataset = StatefulShardedDataset(tmp_path, transform=fail_until_mended, **arguments)
    stream = iter(dataset)
    received: list[dict[str, Any]] = []
    with pytest.raises(TransformError):
        received.extend(stream)
    state = dataset.state_dict()
    with pytest.raises(TransformError):
        next(stream)
    assert dataset.state_dict() == state
    mended = True
    received.extend(stream)
    assert not any(item.pop("touched") for item in received), "a row that failed half-way is made anew"
    assert str(received) == str(list(StatefulShardedDataset(tmp_path, **arguments)))


def kill_worker_and_go_on(batches: Any, received: list[list[int]]) -> None:
    worker = batches._workers[1]
    os.kill(worker.pid, signal.SIGKILL)
    # Only once it is dead does torch say so of every failure: what a dying worker has sent fails as a lost connection.
    worker.join()
    received.extend(batch["id"].tolist() for batch in batches)


@pytest.mark.parametrize("in_rows", [False, True])
def test_a_killed_worker_marks_nothing_done(tmp_path: Path, in_rows: bool) -> None:
    write_corpus(tmp_path)
    uninterrupted = ids(make_loader(tmp_path, rows=in_rows, num_workers=2))
    loader = make_loader(tmp_path, rows=in_rows, num_workers=2)
    batches = iter(loader)
    received = [next(batches)["id"].tolist() for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        kill_worker_and_go_on(batches, received)
    resumed = make_loader(tmp_path, rows=in_rows, num_workers=2)
    resumed.load_state_dict(saved(loader.state_dict()))
    assert received + ids(resumed) == uninterrupted


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_disappears_is_an_error_after_which_a_retry_goes_on(tmp_path: Path, num_workers: int) -> None:
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


def test_a_file_that_grew_since_it_was_planned_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4)
    pq.write_table(corpus_rows(0, 60), tmp_path / "part-000.parquet")
    with pytest.raises(DataFileError, match=r"part-000\.parquet changed since it was planned"):
        next(iter(dataset))


def test_closing_over_a_generator_of_the_loader_counts_the_same(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=4)
    first = ids(islice(dataset, 2))
    resumed = StatefulShardedDataset(tmp_path, batch_size=4)
    resumed.load_state_dict(dataset.state_dict())
    assert first + ids(resumed) == ids(StatefulShardedDataset(tmp_path, batch_size=4))

"""The batches of a rank, tagged by its workers and counted in the main process."""

from __future__ import annotations

import gc
import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from laneway import StatefulShardedDataset
from laneway.core.progress import CutProgress, LanePosition, Progress
from laneway.core.turns import WorkerPlace
from laneway.delivery.dataloader import BatchSource, DataLoaderPass
from laneway.errors import LanewayError
from tests.compat.loaders import loader_raises
from tests.corpora import write_corpus
from tests.unit.delivery.taking import take, take_all

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 rows."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def source_of(corpus: Path, *, options: dict[str, Any] | None = None, **arguments: Any) -> BatchSource:
    dataset = StatefulShardedDataset(
        corpus, **{"batch_size": 5, "output": "python", "transform": ids_with_reader, **arguments}
    )
    return BatchSource(dataset.definition, {"num_workers": 0, **(options or {})})


def ids_with_reader(item: Any) -> tuple[Any, int]:
    """Return the row ids of a batch or row, and the process that read it."""
    return item["id"], os.getpid()


def begin(source: BatchSource, progress: Progress) -> DataLoaderPass:
    return DataLoaderPass(source, source.resolve(progress))


def rest(running: DataLoaderPass) -> list[Any]:
    """Return the row ids of the items that a pass still delivers."""
    return [item[0] for item in take_all(running)]


def positions(running: DataLoaderPass) -> list[int]:
    cut = running.progress().cut
    assert cut is not None
    return cut.rows().tolist()  # type: ignore[no-any-return]  # numpy's stubs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_progress_counts_delivered_batches_even_if_workers_have_read_ahead(corpus: Path, num_workers: int) -> None:
    source = source_of(corpus, lanes=2, options={"num_workers": num_workers})
    running = begin(source, Progress(3))
    assert (running.epoch, positions(running)) == (3, [0, 0])
    found = []
    for expected in ([5, 0], [5, 5], [10, 5]):
        found.append(take(running)[0])
        assert positions(running) == expected
        assert not running.is_complete
    assert found == [[0, 1, 2, 3, 4], [20, 21, 22, 23, 24], [5, 6, 7, 8, 9]]
    found += rest(running)
    assert running.is_complete
    assert sorted(row for batch in found for row in batch) == list(range(48))
    assert list(take_all(running)) == []


def test_batches_keep_the_order_of_turns_if_workers_have_empty_ones(corpus: Path) -> None:
    # Order version 1: lanes 0 and 5 have four rows, the others five: in the second round of turns of four, these two
    # are empty.
    orders = [
        rest(begin(source_of(corpus, batch_size=4, lanes=10, options=options), Progress(0, order_version=1)))
        for options in ({}, {"num_workers": 2})
    ]
    assert orders[0] == orders[1]
    assert [len(batch) for batch in orders[0]] == [4] * 10 + [1] * 8


def test_rows_are_sent_by_turns_and_counted_one_by_one(corpus: Path) -> None:
    source = source_of(corpus, batch_size=None, turn_rows=4, lanes=2, options={"num_workers": 2})
    assert source.yields_rows
    assert source.definition.options.turn_rows == 4
    running = begin(source, Progress(0))
    assert [take(running)[0] for _ in range(5)] == [0, 1, 2, 3, 24]
    assert positions(running) == [4, 1]
    assert [row[0] for row in running.delivery.rows[running.delivery.taken :]] == [25, 26, 27]
    running.delivery.taken += 1
    assert positions(running) == [4, 2]
    while positions(running) != [24, 23]:
        take(running)
    assert not running.is_complete
    assert take(running)[0] == 47
    assert running.is_complete
    assert list(take_all(running)) == []


def test_rows_are_sent_in_turns_of_256_by_default(corpus: Path) -> None:
    source = source_of(corpus, batch_size=None)
    assert source.definition.options.turn_rows == 256
    assert not source_of(corpus).yields_rows


def is_inherited_garbage_looked_for(item: Any) -> list[bool]:
    """Return for each row whether a full collection would go through the objects that the process began with."""
    return [gc.get_freeze_count() == 0] * len(item["id"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_full_collection_in_a_worker_does_not_write_to_what_it_shares_with_the_main_process(
    corpus: Path, num_workers: int
) -> None:
    source = source_of(corpus, transform=is_inherited_garbage_looked_for, options={"num_workers": num_workers})
    assert take(begin(source, Progress(0))) == [num_workers == 0] * 5


def test_a_complete_epoch_starts_no_worker(corpus: Path) -> None:
    def fail(_: int) -> None:
        raise AssertionError

    options = {"num_workers": 1, "worker_init_fn": fail}
    done = Progress(0, cut=CutProgress(1, 5, 10, {0: LanePosition(48)}))
    running = begin(source_of(corpus, options=options), done)
    assert running.is_complete
    for _ in range(2):
        assert take(running) is None
    assert running.progress() == done


def test_fresh_epochs_reach_persistent_workers_and_a_resume_starts_new_ones(corpus: Path) -> None:
    options = {"num_workers": 1, "persistent_workers": True}
    source, plain = source_of(corpus, shuffle=True, options=options), source_of(corpus, shuffle=True)
    readers, orders = [], []
    middle = Progress(2, cut=CutProgress(1, 5, 4, {0: LanePosition(20)}))
    for progress in (Progress(0), Progress(1), middle, Progress(3)):
        running = begin(source, progress)
        batch, reader = take(running)
        readers.append(reader)
        orders.append([batch, *rest(running)])
        assert orders[-1] == rest(begin(plain, progress))
    assert readers[0] == readers[1]
    assert readers[1] != readers[2]
    assert os.getpid() not in readers, "workers read"
    assert orders[0] != orders[1]
    assert len(orders[2]) == 6


def test_without_workers_the_main_process_reads_and_leaves_the_random_state_of_torch_alone(corpus: Path) -> None:
    before = torch.get_rng_state()
    assert take(begin(source_of(corpus), Progress(0)))[1] == os.getpid()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batch_of_an_error_is_retried(corpus: Path, tmp_path: Path, num_workers: int) -> None:
    failed = tmp_path / "failed"

    def fail_once(batch: Any) -> Any:
        if 20 in batch["id"] and not failed.exists():
            failed.touch()
            message = "the first time"
            raise ValueError(message)
        return ids_with_reader(batch)

    options = {"num_workers": num_workers}
    running = begin(source_of(corpus, transform=fail_once, lanes=2, options=options), Progress(0))
    take(running)
    with loader_raises(ValueError, "the first time"):
        take(running)
    assert positions(running) == [5, 0]
    assert take(running)[0] == [20, 21, 22, 23, 24]
    assert len(rest(running)) == 8


def test_workers_that_end_before_the_epoch_is_complete_are_an_error(corpus: Path) -> None:
    running = begin(source_of(corpus), Progress(0))
    take(running)
    running._batches = iter(())
    with pytest.raises(LanewayError, match="the workers ended before all rows of the epoch were delivered"):
        take(running)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [5, None])
def test_an_item_that_was_not_delivered_is_read_again(corpus: Path, num_workers: int, batch_size: int | None) -> None:
    source = source_of(corpus, batch_size=batch_size, turn_rows=5, options={"num_workers": num_workers})
    running = begin(source, Progress(0))
    first = take(running)[0]
    before = running.progress()
    found = running.take()
    assert found is not None
    lost = found.item[0]
    assert running.progress() == before
    assert running.num_delivered == 1
    assert take(running)[0] == lost
    assert [first, lost, *rest(running)] == rest(begin(source, Progress(0)))


def test_a_released_pass_has_its_progress_and_no_workers(corpus: Path) -> None:
    others = {*multiprocessing.active_children()}
    running = begin(source_of(corpus, options={"num_workers": 2}), Progress(0))
    take(running)
    assert len({*multiprocessing.active_children()} - others) == 2
    assert running.is_reading
    running.release()
    assert not running.is_reading
    assert {*multiprocessing.active_children()} <= others
    assert sum(positions(running)) == 5


def test_a_pass_that_is_released_late_leaves_the_workers_of_the_next_one_alone(corpus: Path) -> None:
    source = source_of(corpus, options={"num_workers": 1})
    old = begin(source, Progress(0))
    take(old)
    new = begin(source, Progress(1))
    first = take(new)
    old.release()
    assert [first[0], *rest(new)] == rest(begin(source_of(corpus), Progress(1)))


def test_a_source_knows_its_place_and_whether_batches_come_in_order(corpus: Path) -> None:
    places = [source_of(corpus, rank=1, world_size=2, options={"num_workers": n}).place for n in (0, 1, 3)]
    assert places == [WorkerPlace(1, 2, 0, 1), WorkerPlace(1, 2, 0, 1), WorkerPlace(1, 2, 0, 3)]
    assert source_of(corpus, options={"num_workers": 2}).in_order
    assert source_of(corpus, options={"num_workers": 1, "in_order": False}).in_order
    assert not source_of(corpus, options={"num_workers": 2, "in_order": False}).in_order

"""Running the passes of a rank, without workers; tests/compat has those with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laneway import StatefulShardedDataset
from laneway.core.progress import CutProgress, JobTurn, LanePosition, Progress
from laneway.core.schema import parse_state
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.delivery.dataloader import BatchSource
from laneway.delivery.reports import Reports
from laneway.delivery.runner import LoaderIterator, PassRunner
from laneway.delivery.schedule import EpochSchedule
from laneway.errors import CheckpointMismatchError, LanewayError
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 rows."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def runner_of(corpus: Path, *, shows_bar: bool = False, **arguments: Any) -> PassRunner:
    dataset = StatefulShardedDataset(corpus, **{"batch_size": 10, "output": "python", **arguments})
    return PassRunner(
        BatchSource(dataset.definition, {"num_workers": 0}), EpochSchedule(), Reports(), shows_bar=shows_bar
    )


def restore(runner: PassRunner, progress: Progress, *, complete: bool = False) -> None:
    """Load a state as a loader does."""
    identity = runner.source.definition.identity
    state = write_state(identity, progress, WorkerPlace(), complete=complete)
    runner.schedule.restore(parse_state(state), progress)


def at(rows: int, epoch: int = 0) -> Progress:
    """Return the progress of a single lane in turns of ten rows."""
    return Progress(epoch, cut=CutProgress(1, 10, -(-rows // 10), {0: LanePosition(rows)}))


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"] for batch in batches]


def test_each_iterator_delivers_the_next_epoch_and_counts_its_items(corpus: Path) -> None:
    runner = runner_of(corpus)
    assert runner.num_items == 5
    for epoch in (0, 1):
        counts = []
        for _ in LoaderIterator(runner):
            counts.append(runner.num_received())
            assert runner.last is not None
            assert runner.last.epoch == epoch
        assert counts == [1, 2, 3, 4, 5]


def test_a_pass_begins_with_its_first_item(corpus: Path) -> None:
    runner = runner_of(corpus)
    batches = LoaderIterator(runner)
    assert iter(batches) is batches
    assert runner.last is None
    restore(runner, at(30, epoch=6))
    assert ids([next(batches)]) == [[*range(30, 40)]]
    assert runner.last is not None
    assert runner.last.epoch == 6


def test_an_iterator_is_over_when_another_pass_has_begun_or_a_state_was_loaded(corpus: Path) -> None:
    runner = runner_of(corpus)
    first, second = LoaderIterator(runner), LoaderIterator(runner)
    next(first)
    next(second)
    with pytest.raises(LanewayError, match="another pass over its SavableLoader has begun, or a state was restored"):
        next(first)
    next(second)
    restore(runner, at(10))
    with pytest.raises(LanewayError, match="this iterator has ended"):
        next(second)
    assert ids(LoaderIterator(runner))[0] == [*range(10, 20)]


def test_an_exhausted_iterator_stays_exhausted(corpus: Path) -> None:
    runner = runner_of(corpus)
    batches = LoaderIterator(runner)
    assert len([*batches]) == 5
    next(LoaderIterator(runner))
    assert next(batches, None) is None


def test_set_epoch_affects_the_next_pass_and_not_the_running_one(corpus: Path) -> None:
    runner = runner_of(corpus)
    batches = LoaderIterator(runner)
    next(batches)
    assert runner.described is runner.last
    runner.schedule.set_epoch(4)
    assert runner.described is None
    assert runner.num_received() == 0, "of epoch 4"
    next(batches)
    assert runner.described is runner.last
    assert runner.num_received() == 2, "of epoch 0"
    assert len([*batches]) == 3
    assert runner.described is None
    next(LoaderIterator(runner))
    assert runner.last is not None
    assert runner.last.epoch == 4


def test_a_pass_that_delivered_nothing_does_not_count(corpus: Path) -> None:
    fails = [True, False, True]

    def fail(batch: Any) -> Any:
        if fails.pop(0):
            raise KeyError
        return batch

    runner = runner_of(corpus, transform=fail)
    with pytest.raises(KeyError):
        next(LoaderIterator(runner))
    next(LoaderIterator(runner))
    assert runner.last is not None
    assert runner.last.epoch == 0
    with pytest.raises(KeyError):
        next(LoaderIterator(runner))
    assert runner.last.epoch == 1


def test_a_pass_whose_begin_was_interrupted_begins_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(corpus)
    batches = LoaderIterator(runner)
    open_bar = runner.open_bar
    interrupts = [KeyboardInterrupt, None]

    def interrupted(running: Any) -> Any:
        if interrupt := interrupts.pop(0):
            raise interrupt
        return open_bar(running)

    monkeypatch.setattr(runner, "open_bar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert ids(batches)[0] == [*range(10)]
    assert runner.last is not None
    assert runner.last.epoch == 0


def test_workers_started_early_read_the_next_pass_unless_it_changes(corpus: Path) -> None:
    runner = runner_of(corpus)
    runner.start_workers()
    runner.start_workers()
    batches = LoaderIterator(runner)
    assert next(batches)["id"] == [*range(10)]
    with pytest.raises(LanewayError, match="the workers still read the running pass"):
        runner.start_workers()
    del batches
    runner.start_workers()
    runner.schedule.set_epoch(5)
    assert len([*LoaderIterator(runner)]) == 5
    assert runner.last is not None
    assert runner.last.epoch == 5


def test_items_delivered_before_a_resume_count_as_received(corpus: Path) -> None:
    runner = runner_of(corpus)
    restore(runner, at(30))
    assert runner.num_received() == 3
    batches = LoaderIterator(runner)
    next(batches)
    assert runner.num_received() == 4
    assert runner.num_received() == 4
    assert len([*batches]) == 1


def test_rows_are_counted_one_by_one_even_if_many_are_at_hand(corpus: Path) -> None:
    runner = runner_of(corpus, batch_size=None)
    assert runner.num_items == 48
    rows = LoaderIterator(runner)
    assert [next(rows)["id"] for _ in range(3)] == [0, 1, 2]
    assert runner.num_received() == 3
    assert runner.last is not None
    assert runner.last.progress().cut.rows().tolist() == [3]  # type: ignore[union-attr]  # a pass has a cut
    runner.schedule.set_epoch(2)
    assert next(rows)["id"] == 3
    restore(runner, Progress(2))
    with pytest.raises(LanewayError, match="this iterator has ended"):
        next(rows)
    assert len([*LoaderIterator(runner)]) == 48


def test_a_complete_state_delivers_nothing_once(corpus: Path) -> None:
    runner = runner_of(corpus)
    restore(runner, at(48, epoch=2), complete=True)
    assert runner.num_received() == 5
    with pytest.warns(UserWarning, match="the loaded state is of the last batch of epoch 2, so this pass delivers"):
        assert ids(LoaderIterator(runner)) == []
    assert len(ids(LoaderIterator(runner))) == 5
    assert runner.last is not None
    assert runner.last.epoch == 3


def test_a_transform_that_fails_leaves_the_pass_where_it_was(corpus: Path) -> None:
    fails = [False, True, True, False, False, False, False]

    def fail_twice(batch: Any) -> Any:
        if fails.pop(0):
            raise KeyError
        return batch

    runner = runner_of(corpus, transform=fail_twice)
    batches = LoaderIterator(runner)
    next(batches)
    for _ in range(2):
        with pytest.raises(KeyError):
            next(batches)
        assert runner.num_received() == 1
    assert ids(batches) == [[*range(10, 20)], [*range(20, 30)], [*range(30, 40)], [*range(40, 48)]]


def test_a_loader_refuses_the_state_of_a_worker(corpus: Path) -> None:
    runner = runner_of(corpus)
    progress = replace(Progress(0), cut=CutProgress(2, 10, 0, {1: LanePosition()}), place=WorkerPlace(0, 1, 1, 2))
    with pytest.raises(CheckpointMismatchError, match="the state of DataLoader worker 1 of 2 only"):
        runner.resolve(progress)


def test_lanes_that_can_not_be_shared_give_a_warning_when_a_pass_begins(corpus: Path) -> None:
    runner = runner_of(corpus, lanes=3, rank=0, world_size=2)
    with pytest.warns(UserWarning, match=r"3 lanes can't be shared by 2 ranks"):
        next(LoaderIterator(runner))


def test_a_rank_infers_the_progress_of_the_job(corpus: Path) -> None:
    runner = runner_of(corpus, rank=1, world_size=2)
    next(LoaderIterator(runner))
    assert runner.last is not None
    assert runner.last.job_turn() == JobTurn(2, 0, is_complete=False)


def test_the_progress_bar_starts_where_the_epoch_is_resumed(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []
    runner = runner_of(corpus, shows_bar=True)
    restore(runner, at(30, epoch=2))
    open_bar = runner.open_bar

    def watch(running: Any) -> Any:
        bars.append(open_bar(running))
        return bars[-1]

    monkeypatch.setattr(runner, "open_bar", watch)
    batches = LoaderIterator(runner)
    next(batches)
    (bar,) = bars
    assert (bar.total, bar.initial, bar.n, bar.desc, bar.unit) == (5, 3, 3, "epoch 2", "batch")
    next(batches)
    assert bar.n == 4, "an item counts when the next one is requested, as tqdm does"
    assert len([*batches]) == 0
    assert bar.n == 5


def test_only_rank_0_shows_a_progress_bar(corpus: Path) -> None:
    for rank, disabled in ((0, False), (1, True)):
        runner = runner_of(corpus, shows_bar=True, rank=rank, world_size=2)
        bar = runner.open_bar(runner.next_pass())
        assert bar.disable is disabled
        bar.close()

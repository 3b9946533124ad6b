"""The schedule of epochs, in a main process; its copies in DataLoader workers are tested in tests/compat."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

from laneway.core.plan import Identity
from laneway.core.progress import CutProgress, LanePosition, Progress
from laneway.core.schema import SavedState, parse_state
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.delivery.clock import MAX_EPOCHS
from laneway.delivery.schedule import EpochSchedule
from laneway.delivery.workers import worker_place
from laneway.errors import StateFormatError
from tests.laws.simulation import PLAIN, file_table

if TYPE_CHECKING:
    from collections.abc import Iterator

IDENTITY = Identity(file_table([[6], [7]]), PLAIN)


@dataclass
class Reading:
    """A pass over an epoch that never ends."""

    epoch: int
    is_complete: bool = False

    def progress(self) -> Progress:
        return Progress(self.epoch)

    def __next__(self) -> int:
        return 0


def begin(schedule: EpochSchedule) -> Reading:
    progress, generation = schedule.next_start()
    reading = Reading(progress.epoch)
    schedule.begin(reading, WorkerPlace(), generation)
    return reading


def saved(epoch: int, *, complete: bool = False) -> tuple[SavedState, Progress]:
    rows = {0: LanePosition(6), 1: LanePosition(7 if complete else 6)}
    progress = Progress(epoch, cut=CutProgress(2, 2, 6, rows))
    return parse_state(write_state(IDENTITY, progress, WorkerPlace(), complete=complete)), progress


# -- One pass after another -------------------------------------------------------------------------------------------


def test_each_pass_is_the_next_epoch_and_is_current_until_another_begins() -> None:
    schedule = EpochSchedule()
    assert (schedule.epoch, schedule.current, schedule.place) == (0, None, None)
    for epoch in (0, 1, 2):
        reading = begin(schedule)
        assert reading.epoch == schedule.epoch == epoch
        assert schedule.current is reading
        assert schedule.place == WorkerPlace()
        assert schedule.next_progress == Progress(epoch + 1)


def test_passes_continue_from_the_chosen_epoch() -> None:
    schedule = EpochSchedule()
    first = begin(schedule)
    schedule.set_epoch(np.int64(7))  # type: ignore[arg-type]  # users pass what numpy gives them
    assert schedule.epoch == 7
    assert schedule.current is first
    assert [begin(schedule).epoch for _ in range(2)] == [7, 8]


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCHS, True, 1.0, "1", None])
def test_an_invalid_epoch_is_refused_and_changes_nothing(epoch: Any) -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(MAX_EPOCHS - 1)
    version = schedule.version
    with pytest.raises(ValueError, match=r"epoch must be an int in \[0, "):
        schedule.set_epoch(epoch)
    assert (schedule.version, schedule.epoch) == (version, MAX_EPOCHS - 1)


def test_a_pass_in_a_loader_sets_the_epoch_and_the_number_of_workers() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    schedule.begin_in_loader(4, 3)
    assert (schedule.epoch, schedule.num_active_workers) == (4, 3)
    assert (schedule.current, schedule.place) == (None, None)
    assert schedule.next_progress == Progress(5)
    assert begin(schedule).epoch == 5
    assert schedule.num_active_workers == 0


# -- Loaded states ----------------------------------------------------------------------------------------------------


def test_a_loaded_state_is_used_by_one_pass() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    state, progress = saved(3)
    schedule.restore(state, progress)
    assert (schedule.next_progress, schedule.epoch) == (progress, 3)
    assert schedule.pending is not None
    assert schedule.current is None
    assert begin(schedule).epoch == 3
    assert schedule.pending is None
    assert schedule.next_progress == Progress(4)


def test_a_loaded_state_is_used_by_one_pass_in_a_loader() -> None:
    schedule = EpochSchedule()
    schedule.restore(*saved(3))
    schedule.begin_in_loader(3, 1)
    assert (schedule.pending, schedule.num_active_workers) == (None, 1)
    assert schedule.next_progress == Progress(4)
    schedule.restore(*saved(3))
    assert schedule.num_active_workers == 0


class BeginningInWorker(IterableDataset[int]):
    """Begins a pass in each DataLoader worker, and yields its epoch."""

    def __init__(self, schedule: EpochSchedule) -> None:
        self.schedule = schedule

    def __iter__(self) -> Iterator[int]:
        progress, generation = self.schedule.next_start()
        place = worker_place(WorkerPlace())
        assert place is not None
        self.schedule.begin(Reading(progress.epoch), place, generation)
        yield progress.epoch


def test_the_workers_of_a_users_loader_use_up_a_state_and_then_take_the_next_epochs() -> None:
    schedule = EpochSchedule()
    schedule.restore(*saved(3))
    loader = DataLoader(
        BeginningInWorker(schedule),
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for epoch in (3, 4, 5):
        assert [int(found) for found in loader] == [epoch, epoch]
        assert (schedule.epoch, schedule.pending, schedule.num_active_workers) == (epoch, None, 2)
        assert schedule.next_progress == Progress(epoch + 1)


def test_set_epoch_keeps_the_progress_of_a_loaded_state_of_that_epoch_and_drops_any_other() -> None:
    schedule = EpochSchedule()
    state, progress = saved(3)
    schedule.restore(state, progress)
    for _ in range(2):
        schedule.set_epoch(3)
        assert schedule.next_progress == progress
    schedule.set_epoch(4)
    assert schedule.pending is None
    schedule.set_epoch(3)
    assert schedule.next_progress == Progress(3)


def test_a_later_state_replaces_one_that_no_pass_has_used() -> None:
    schedule = EpochSchedule()
    schedule.restore(*saved(3))
    state, progress = saved(9)
    schedule.restore(state, progress)
    assert schedule.next_progress == progress


@pytest.mark.parametrize("chosen", [2, 4])
def test_a_state_of_another_epoch_than_the_chosen_one_is_loaded_with_a_warning(chosen: int) -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(chosen)
    with pytest.warns(UserWarning, match=rf"set_epoch\({chosen}\) was called, but the loaded state is of epoch 3"):
        schedule.restore(*saved(3))
    assert schedule.next_progress.epoch == 3


@pytest.mark.parametrize(("chosen", "complete"), [(3, False), (3, True), (4, True)])
def test_no_warning_if_the_chosen_epoch_is_that_of_the_state_or_the_one_after_a_complete_state(
    chosen: int, complete: bool
) -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(chosen)
    schedule.restore(*saved(3, complete=complete))
    assert schedule.next_progress.epoch == 3


def test_no_warning_for_a_chosen_epoch_that_has_already_begun() -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(8)
    begin(schedule)
    schedule.restore(*saved(3))
    assert schedule.next_progress.epoch == 3


def test_a_state_of_an_epoch_that_is_too_large_is_refused_and_changes_nothing() -> None:
    schedule = EpochSchedule()
    before, progress = saved(3)
    schedule.restore(before, progress)
    version = schedule.version
    with pytest.raises(StateFormatError, match=f"epoch is {MAX_EPOCHS}"):
        schedule.restore(*saved(MAX_EPOCHS))
    assert (schedule.version, schedule.next_progress) == (version, progress)


def test_changing_a_state_after_it_was_loaded_does_not_affect_the_schedule() -> None:
    schedule = EpochSchedule()
    state, progress = saved(3)
    schedule.restore(state, progress)
    state.original["earlier_cuts"].append([])
    assert schedule.pending is not None
    assert schedule.pending.saved.original["earlier_cuts"] == []


# -- Copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_has_the_same_next_pass_and_is_independent() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    other = schedule.copy()
    assert other.next_progress == Progress(1)
    other.set_epoch(5)
    assert schedule.next_progress == Progress(1)
    state, progress = saved(3)
    schedule.restore(state, progress)
    other = schedule.copy()
    assert begin(schedule).epoch == 3
    assert other.next_progress == progress
    assert begin(other).epoch == 3
    assert other.pending is None


def test_a_pickled_schedule_has_the_same_next_pass_but_not_the_running_one() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    other: EpochSchedule = pickle.loads(pickle.dumps(schedule))
    assert other.current is None
    assert other.next_progress == Progress(1)
    state, progress = saved(3)
    schedule.restore(state, progress)
    assert pickle.loads(pickle.dumps(schedule)).next_progress == progress


def test_the_version_changes_with_each_pass_state_and_chosen_epoch() -> None:
    schedule = EpochSchedule()
    versions = [schedule.version]
    for change in (
        lambda: begin(schedule),
        lambda: schedule.set_epoch(2),
        lambda: schedule.restore(*saved(2)),
        lambda: schedule.begin_in_loader(2, 1),
    ):
        change()
        versions.append(schedule.version)
    assert len({*versions}) == 5
    assert (schedule.next_progress, schedule.pending, schedule.epoch) == (Progress(3), None, 2)
    assert schedule.version == versions[-1]

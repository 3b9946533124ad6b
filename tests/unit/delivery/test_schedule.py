"""The schedule of epochs, in a main process; its copies in DataLoader workers are tested in tests/compat."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from laneway.core.plan import Identity
from laneway.core.progress import CutProgress, LanePosition, Progress
from laneway.core.schema import SavedState, parse_state
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.delivery.clock import MAX_EPOCHS
from laneway.delivery.schedule import EpochSchedule
from laneway.errors import StateFormatError
from tests.laws.simulation import PLAIN, file_table

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


def test_each_pass_is_the_next_epoch_and_stays_current_until_another_begins() -> None:
    schedule = EpochSchedule()
    assert (schedule.epoch, schedule.current, schedule.place) == (0, None, None)
    for epoch in (0, 1, 2):
        reading = begin(schedule)
        assert reading.epoch == schedule.epoch == epoch
        assert schedule.current is reading
        assert schedule.place == WorkerPlace()
        assert schedule.next_progress == Progress(epoch + 1)


def test_a_chosen_epoch_is_the_next_and_those_after_it_follow() -> None:
    schedule = EpochSchedule()
    first = begin(schedule)
    schedule.set_epoch(np.int64(7))  # type: ignore[arg-type]  # users pass what numpy gives them
    assert schedule.epoch == 7
    assert schedule.current is first
    assert [begin(schedule).epoch for _ in range(2)] == [7, 8]


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCHS, True, 1.0, "1", None])
def test_an_epoch_that_is_not_valid_is_refused_and_changes_nothing(epoch: Any) -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(MAX_EPOCHS - 1)
    version = schedule.version
    with pytest.raises(ValueError, match=r"epoch must be an int in \[0, "):
        schedule.set_epoch(epoch)
    assert (schedule.version, schedule.epoch) == (version, MAX_EPOCHS - 1)


def test_a_pass_in_a_loader_is_known_by_its_epoch_and_its_workers() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    schedule.begin_in_loader(4, 3)
    assert (schedule.epoch, schedule.num_active_workers, schedule.current) == (4, 3, None)
    assert schedule.next_progress == Progress(5)
    assert begin(schedule).epoch == 5
    assert schedule.num_active_workers == 0


# -- Loaded states ----------------------------------------------------------------------------------------------------


def test_a_loaded_state_is_used_by_one_pass() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    schedule.begin_in_loader(0, 2)
    state, progress = saved(3)
    schedule.restore(state, progress)
    assert (schedule.next_progress, schedule.epoch, schedule.num_active_workers) == (progress, 3, 0)
    assert schedule.pending is not None
    assert schedule.current is None
    assert begin(schedule).epoch == 3
    assert schedule.pending is None
    assert schedule.next_progress == Progress(4)


def test_a_state_is_used_up_by_a_pass_in_a_loader_too() -> None:
    schedule = EpochSchedule()
    schedule.restore(*saved(3))
    schedule.begin_in_loader(3, 1)
    assert schedule.pending is None
    assert schedule.next_progress == Progress(4)


def test_choosing_the_epoch_of_a_loaded_state_keeps_its_progress_and_another_drops_it() -> None:
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


def test_a_state_of_another_epoch_than_the_one_chosen_is_loaded_with_a_warning() -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(2)
    with pytest.warns(UserWarning, match=r"set_epoch\(2\) was called, but the loaded state is of epoch 3"):
        schedule.restore(*saved(3))
    assert schedule.next_progress.epoch == 3


@pytest.mark.parametrize(("chosen", "complete"), [(3, False), (3, True), (4, True)])
def test_a_loop_that_chose_the_epoch_of_a_state_or_the_one_after_its_end_is_not_warned(
    chosen: int, complete: bool
) -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(chosen)
    schedule.restore(*saved(3, complete=complete))
    assert schedule.next_progress.epoch == 3


def test_a_loop_is_not_warned_of_an_epoch_that_it_has_begun() -> None:
    schedule = EpochSchedule()
    schedule.set_epoch(8)
    begin(schedule)
    schedule.restore(*saved(3))
    assert schedule.next_progress.epoch == 3


def test_a_state_of_an_epoch_beyond_all_is_damaged_and_changes_nothing() -> None:
    schedule = EpochSchedule()
    before, progress = saved(3)
    schedule.restore(before, progress)
    version = schedule.version
    with pytest.raises(StateFormatError, match=f"epoch is {MAX_EPOCHS}"):
        schedule.restore(*saved(MAX_EPOCHS))
    assert (schedule.version, schedule.next_progress) == (version, progress)


def test_what_a_user_does_to_a_state_afterwards_does_not_reach_the_schedule() -> None:
    schedule = EpochSchedule()
    state, progress = saved(3)
    schedule.restore(state, progress)
    state.original["positions"].clear()
    assert schedule.pending is not None
    assert schedule.pending.saved.original["positions"] == [6, 6]


# -- Copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_has_the_same_next_pass_and_then_goes_its_own_way() -> None:
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


def test_a_pickled_schedule_has_the_same_next_pass_without_the_running_one() -> None:
    schedule = EpochSchedule()
    begin(schedule)
    other: EpochSchedule = pickle.loads(pickle.dumps(schedule))
    assert other.current is None
    assert other.next_progress == Progress(1)
    state, progress = saved(3)
    schedule.restore(state, progress)
    assert pickle.loads(pickle.dumps(schedule)).next_progress == progress


def test_the_version_changes_with_whatever_is_asked_of_the_schedule() -> None:
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

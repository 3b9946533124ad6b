"""The epoch clock: which epoch a pass delivers, whoever reads it."""

from __future__ import annotations

import copy
import pickle

import torch.multiprocessing

from laneway.epoch import EpochClock
from laneway.turns import Place


def worker(index: int, num_workers: int = 2) -> Place:
    return Place(0, 1, index, num_workers)


def test_an_epoch_is_finished_when_all_workers_finished_it() -> None:
    clock = EpochClock()
    for index in range(2):
        clock.begin(worker(index), 0)
    clock.finish(worker(0), 0)
    assert clock.next_epoch == 0
    clock.finish(worker(1), 0)
    assert clock.next_epoch == 1


def test_a_late_worker_reads_the_epoch_of_a_fast_one() -> None:
    clock = EpochClock()
    for index in range(2):
        clock.finish(worker(index), 0)
    clock.begin(worker(0), clock.next_epoch)
    clock.finish(worker(0), 1)
    assert clock.next_epoch == 1, "worker 1 begins the epoch that worker 0 has already finished"


def test_passes_by_other_numbers_of_workers_count_too() -> None:
    clock = EpochClock()
    for epoch, num_workers in enumerate([2, 1, 3, 1, 2]):
        assert clock.next_epoch == epoch
        for index in range(num_workers):
            clock.begin(worker(index, num_workers), epoch)
            clock.finish(worker(index, num_workers), epoch)
    assert clock.next_epoch == 5


def test_setting_the_clock_voids_what_workers_finished_before() -> None:
    clock = EpochClock()
    clock.finish(worker(0, 1), 4)
    assert clock.next_epoch == 5
    clock.set(1, asked=True)
    assert clock.next_epoch == 1
    assert clock.num_finished == 0


def test_an_epoch_that_was_asked_for_is_remembered_until_it_begins() -> None:
    clock = EpochClock()
    assert clock.asked_epoch is None
    clock.set(3, asked=True)
    assert clock.asked_epoch == 3
    clock.begin(worker(0), 3)
    assert clock.asked_epoch is None
    clock.set(2, asked=False)
    assert clock.asked_epoch is None


def test_a_worker_that_is_given_a_state_takes_its_mark_back() -> None:
    clock = EpochClock()
    for index in range(2):
        clock.finish(worker(index), 5)
    for index in range(2):
        clock.restart(worker(index), 2)
    assert clock.num_finished == 2


def _finish(clock: EpochClock, index: int) -> None:
    clock.begin(worker(index), 0)
    clock.finish(worker(index), 0)


def test_spawned_workers_share_the_clock() -> None:
    clock = EpochClock()
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_finish, args=(clock, index)) for index in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert clock.next_epoch == 1


def test_copies_tell_the_same_time_and_then_go_their_own_way() -> None:
    clock = EpochClock()
    clock.set(6, asked=True)
    copies: list[EpochClock] = [pickle.loads(pickle.dumps(clock)), copy.deepcopy(clock)]
    clock.set(7, asked=True)
    for other in copies:
        assert other.next_epoch == 6
        assert other._cells.is_shared()  # type: ignore[no-untyped-call]


def test_the_largest_epoch_and_most_workers_fit_a_cell() -> None:
    clock = EpochClock()
    clock.set(2**32 - 2, asked=True)
    for index in range(1024):
        clock.finish(worker(index, 1024), 2**32 - 2)
    assert clock.next_epoch == 2**32 - 1

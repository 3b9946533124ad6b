"""The epoch clock: the epoch of each pass of a user's own DataLoader, in the main process and in workers."""

from __future__ import annotations

import copy
import os
import pickle
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from laneway.core.turns import WorkerPlace
from laneway.delivery.clock import MAX_EPOCHS, EpochClock, loader_number
from laneway.delivery.workers import MAX_WORKERS, worker_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def begin(clock: EpochClock, worker: int, loader: int) -> int:
    generation, epoch = clock.next(loader)
    clock.begin(worker, generation, loader, epoch)
    return epoch


def test_every_pass_is_the_next_epoch() -> None:
    clock = EpochClock()
    assert [begin(clock, 0, loader) for loader in (3, 8, 9)] == [0, 1, 2]
    assert clock.next()[1] == 3


def test_all_workers_of_a_pass_read_the_same_epoch_even_if_one_starts_late() -> None:
    clock = EpochClock()
    assert [begin(clock, worker, 1) for worker in (0, 1, 2)] == [0, 0, 0]
    assert [begin(clock, worker, 4) for worker in (2, 0)] == [1, 1]
    assert begin(clock, 1, 4) == 1


def test_a_late_worker_ignores_an_epoch_that_was_set_after_its_siblings_began() -> None:
    clock = EpochClock()
    clock.set(5, is_chosen=True)
    assert begin(clock, 0, 1) == 5
    clock.set(9, is_chosen=True)
    assert begin(clock, 1, 1) == 5
    assert begin(clock, 0, 3) == 9


def test_a_sibling_that_begins_at_the_same_moment_is_not_taken_for_an_older_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = EpochClock()
    begin(clock, 0, 1)
    reads = []
    read_marks = clock._marks

    def read_and_let_a_sibling_begin(*cell: int) -> Any:
        reads.append(read_marks(*cell))
        clock.begin(1, clock.generation, 2, 1)
        return reads[-1]

    monkeypatch.setattr(clock, "_marks", read_and_let_a_sibling_begin)
    assert clock.next(2)[1] == 1


def test_a_late_worker_begins_the_first_pass_while_its_sibling_is_in_the_second() -> None:
    clock = EpochClock()
    generation, epoch = clock.next(4)
    clock.begin(0, generation, 4, epoch)
    clock.begin(0, generation, 4, epoch + 1, is_first=False)
    assert clock.next(4)[1] == epoch
    assert clock.next(9)[1] == epoch + 2


def test_a_worker_of_an_earlier_pass_ignores_a_later_one() -> None:
    clock = EpochClock()
    begin(clock, 0, 4)
    begin(clock, 0, 6)
    assert clock.next(4)[1] == 0


def test_a_pass_from_before_the_clock_was_set_does_not_count() -> None:
    clock = EpochClock()
    generation, epoch = clock.next(1)
    clock.set(7, is_chosen=True)
    clock.begin(0, generation, 1, epoch)
    assert clock.next(2)[1] == 7


def test_a_chosen_epoch_is_remembered_until_it_begins() -> None:
    clock = EpochClock()
    assert clock.chosen_epoch() is None
    clock.set(3, is_chosen=True)
    assert clock.chosen_epoch() == 3
    begin(clock, 0, 6)
    assert clock.chosen_epoch(6) == 3, "other workers of this pass have yet to begin it"
    assert clock.chosen_epoch() is None
    clock.set(2, is_chosen=False)
    assert clock.chosen_epoch() is None


def test_a_generation_is_fresh_until_another_pass_begins_or_the_clock_is_set() -> None:
    clock = EpochClock()
    generation = clock.generation
    assert clock.is_untouched(generation)
    begin(clock, 1, 6)
    assert clock.is_untouched(generation, 6)
    assert not clock.is_untouched(generation)
    clock.set(0, is_chosen=False)
    assert not clock.is_untouched(generation, 6)


class Beginning(IterableDataset[int]):
    """Begins a pass in each worker."""

    def __init__(self, clock: EpochClock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[int]:
        place = worker_place(WorkerPlace())
        yield begin(self.clock, place.worker if place else 0, loader_number() or 0)


def test_workers_share_the_clock_of_their_loader() -> None:
    clock = EpochClock()
    for method, epoch in (("spawn", 0), ("fork", 1)):
        loader = DataLoader(Beginning(clock), batch_size=None, num_workers=2, multiprocessing_context=method)
        assert [int(found) for found in loader] == [epoch, epoch]
        assert clock.next()[1] == epoch + 1


def test_copies_start_at_the_same_epoch_and_are_independent() -> None:
    clock = EpochClock()
    clock.set(6, is_chosen=True)
    copies: list[EpochClock] = [pickle.loads(pickle.dumps(clock)), copy.deepcopy(clock)]
    clock.set(7, is_chosen=True)
    for other in copies:
        assert other.next()[1] == 6
        assert other._cells.is_shared()  # type: ignore[no-untyped-call]


def test_a_forked_process_that_is_not_a_worker_has_its_own_clock() -> None:
    clock = EpochClock()
    begin(clock, 0, 4)
    child = os.fork()
    if child == 0:
        found = [clock.next()[1], begin(clock, 0, 4)]
        clock.set(5, is_chosen=True)
        os._exit(0 if [*found, clock.next()[1]] == [1, 1, 5] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert clock.next()[1] == 1


def test_a_cell_holds_the_largest_epoch_the_last_worker_and_many_generations() -> None:
    clock = EpochClock()
    clock.set(MAX_EPOCHS - 1, is_chosen=True)
    assert begin(clock, MAX_WORKERS - 1, 2**22 - 1) == MAX_EPOCHS - 1
    assert clock.next()[1] == MAX_EPOCHS
    for times in range(2**15 + 3):
        clock.set(times, is_chosen=False)
    assert clock.next(5) == (clock.generation, 2**15 + 2)
    assert 0 < clock.generation < 2**15

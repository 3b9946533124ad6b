"""Assignments: which cut an epoch is resumed in, who reads which lanes, and what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.assignment import Assignment, _without_cut, assign_whole_job, is_fresh, resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.division import Sharing
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, EarlierCut, LanePosition, Progress, current_cut, fresh_cut
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError
from tests.laws.simulation import PLAIN, deliver, file_table, identities, open_epoch

BY_WORLD = replace(PLAIN, remainder=None)
"""The remainder is kept on one rank, and padded on several."""


def identity_of(num_rows: int, settings: Settings = PLAIN) -> Identity:
    return Identity(file_table([[num_rows]]), settings)


def progress_of(rows: dict[int, int], num_lanes: int, turn_rows: int, next_turn: int) -> Progress:
    positions = {lane: LanePosition(count) for lane, count in rows.items()}
    return Progress(0, cut=CutProgress(num_lanes, turn_rows, next_turn, positions))


def step(num_lanes: int, turn_rows: int, next_turn: int) -> Progress:
    """Return a job that has taken whole turns, all in order."""
    taken = {lane: (next_turn - lane + num_lanes - 1) // num_lanes * turn_rows for lane in range(num_lanes)}
    return progress_of(taken, num_lanes, turn_rows, next_turn)


def of_rank(rows: dict[int, int], num_lanes: int, turn_rows: int, place: WorkerPlace) -> Progress:
    return replace(progress_of(rows, num_lanes, turn_rows, 0), place=place)


# -- Which cut --------------------------------------------------------------------------------------------------------


def test_an_epoch_that_starts_is_cut_into_a_lane_for_each_worker() -> None:
    options, place = LaneOptions(None, None, 4), WorkerPlace(1, 2, 2, 3)
    found = resolve_cut(identity_of(30), Progress(5), place, options)
    assert found.cut == fresh_cut(6, 4)
    assert (found.progress.epoch, found.progress.earlier, found.place) == (5, (), place)
    assert found.own_lanes == [5]
    assert is_fresh(identity_of(30), found, options)


def test_an_epoch_in_progress_is_not_fresh() -> None:
    options = LaneOptions(12, 1, 1)
    for progress in (step(12, 1, 12), step(6, 1, 0)):
        found = resolve_cut(identity_of(48), progress, WorkerPlace(), options)
        assert not is_fresh(identity_of(48), found, options)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (3, 2), (6, 1), (2, 6), (12, 1)])
def test_workers_that_can_share_the_lanes_resume_in_the_same_cut(world_size: int, num_workers: int) -> None:
    progress = step(12, 1, 24)
    seen: list[int] = []
    for rank in range(world_size):
        for worker in range(num_workers):
            place = WorkerPlace(rank, world_size, worker, num_workers)
            found = resolve_cut(identity_of(48), progress, place, LaneOptions(None, None, 1))
            assert (found.cut, found.progress.earlier) == (progress.cut, ())
            seen += found.own_lanes
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(
    ("progress", "place", "batch_size"),
    [
        (step(4, 2, 12), WorkerPlace(0, 3), 2),
        (step(4, 2, 4), WorkerPlace(0, 1), 3),
        (step(4, 2, 4), WorkerPlace(0, 1), 16),
        (step(4, 2, 2), WorkerPlace(0, 4), 2),
        (step(4, 2, 6), WorkerPlace(0, 2), 4),
        (progress_of({0: 2, 1: 2, 2: 2, 3: 3}, 4, 2, 4), WorkerPlace(0, 2), 2),
        (progress_of({0: 2, 1: 2, 2: 2, 3: 0}, 4, 2, 4), WorkerPlace(0, 1), 2),
    ],
    ids=["ranks", "batch size", "turns of a batch", "within a round", "within a batch", "ahead", "not in step"],
)
def test_workers_that_can_not_share_the_lanes_cut_the_rest_again(
    progress: Progress, place: WorkerPlace, batch_size: int
) -> None:
    found = resolve_cut(identity_of(48), progress, place, LaneOptions(None, None, batch_size))
    before = assign_whole_job(identity_of(48), progress).cut
    assert [cut.rows().tolist() for cut in found.progress.earlier] == [before.rows().tolist()]
    assert found.cut == fresh_cut(place.world_size, batch_size)
    assert identity_of(48).plan(found.progress).lanes.num_rows == 48 - before.rows().sum()


def test_the_remainder_follows_from_the_ranks_that_resume() -> None:
    progress, options = step(2, 2, 2), LaneOptions(2, 2, 2)
    alone = resolve_cut(identity_of(9, BY_WORLD), progress, WorkerPlace(), options)
    assert (alone.progress.sharing, alone.ends.tolist()) == (Sharing(1, 1, "keep"), [5, 4])
    both = resolve_cut(identity_of(9, BY_WORLD), progress, WorkerPlace(0, 2), options)
    assert (both.progress.sharing, both.ends.tolist()) == (Sharing(2, 1, "pad"), [5, 5])
    assert both.progress.earlier == ()


def test_lanes_that_padding_puts_out_of_step_are_cut_again() -> None:
    # Order version 1: lanes of four, four, four and five rows; a rank skipped the turns of lanes 0 and 1.
    progress = replace(progress_of({0: 4, 1: 4, 2: 4, 3: 4}, 4, 4, 6), order_version=1)
    options = LaneOptions(None, 4, 4)
    assert resolve_cut(identity_of(17, BY_WORLD), progress, WorkerPlace(), options).progress.earlier == ()
    assert len(resolve_cut(identity_of(17, BY_WORLD), progress, WorkerPlace(0, 2), options).progress.earlier) == 1


def test_progress_keeps_every_earlier_cut_of_its_epoch() -> None:
    progress = Progress(0)
    for world_size in (3, 2, 5):
        cursor = open_epoch(identity_of(48), progress, WorkerPlace(0, world_size), LaneOptions(None, None, 4))
        batch = cursor.next_batch()
        assert batch is not None
        deliver(cursor, batch)
        progress = replace(cursor.progress(), place=None)
    assert [cut.rows().tolist() for cut in progress.earlier] == [[4, 0, 0], [4, 0]]
    assert [cut.sharing for cut in progress.earlier] == [Sharing(3), Sharing(2)]


def test_a_cut_from_which_nothing_was_delivered_leaves_no_trace() -> None:
    place, options = WorkerPlace(1, 3), LaneOptions(None, None, 4)
    found = resolve_cut(identity_of(48), step(4, 2, 0), place, options)
    assert found.progress == resolve_cut(identity_of(48), Progress(0), place, options).progress
    assert is_fresh(identity_of(48), found, options)
    before = resolve_cut(identity_of(48), replace(step(4, 2, 0), order_version=1), place, options)
    assert len(before.progress.earlier) == 1, "a state of order version 1 is finished as it was frozen"


def test_the_last_short_batch_is_cut_again_for_other_ranks_once_some_of_it_was_delivered() -> None:
    # Two lanes of four rows in turns of four, and five more rows: two for rank 0 and three for rank 1.
    identity = identity_of(13, replace(PLAIN, remainder="keep"))
    begun = replace(progress_of({0: 4, 1: 4}, 2, 4, 2), sharing=Sharing(2, 1, "keep"))
    options = LaneOptions(None, None, 4)
    alone = resolve_cut(identity, begun, WorkerPlace(), options)
    assert (alone.progress.earlier, alone.ends.tolist()) == ((), [8, 5])
    taken = replace(begun, cut=replace(current_cut(begun), positions={0: LanePosition(6), 1: LanePosition(4)}))
    again = resolve_cut(identity, taken, WorkerPlace(), options)
    assert [cut.rows().tolist() for cut in again.progress.earlier] == [[6, 4]]
    assert again.ends.tolist() == [3]
    same = resolve_cut(identity, taken, WorkerPlace(1, 2), LaneOptions(None, None, None))
    assert len(same.progress.earlier) == 1, "ranks are not in step"


def test_an_epoch_that_was_cut_too_often_is_refused() -> None:
    cuts = (EarlierCut(2**20, next_turn=1),) * 16
    progress = replace(step(4, 2, 4), earlier=cuts)
    with pytest.raises(CheckpointMismatchError, match=r"cut 17 times, into 16,777,220 lanes in all"):
        _without_cut(progress)


def test_an_epoch_that_is_complete_is_not_cut_again() -> None:
    progress = progress_of({0: 5, 1: 4}, 2, 2, 6)
    found = resolve_cut(identity_of(9), progress, WorkerPlace(3, 5, 1, 2), LaneOptions(None, None, 3))
    assert found.is_complete
    assert (found.progress, found.place) == (progress, WorkerPlace())
    assert found.num_items_left(3) == 0


def test_an_epoch_with_only_padding_left_is_complete_once_it_is_cut_again() -> None:
    progress = replace(progress_of({0: 4, 1: 5}, 2, 5, 2), sharing=Sharing(2, 1, "pad"))
    identity, options = identity_of(9, BY_WORLD), LaneOptions(None, None, 5)
    assert not assign_whole_job(identity, progress).is_complete
    found = resolve_cut(identity, progress, WorkerPlace(2, 3), options)
    assert (found.is_complete, found.place) == (True, WorkerPlace())
    assert [cut.rows().tolist() for cut in found.progress.earlier] == [[4, 5]]


# -- Progress of some lanes -------------------------------------------------------------------------------------------

RANK = WorkerPlace(0, 2)
OF_RANK = of_rank({0: 2, 2: 2, 4: 0, 6: 0}, 8, 2, RANK)


def test_a_rank_resumes_from_its_own_progress_with_workers_that_share_its_lanes() -> None:
    options = LaneOptions(None, None, 2)
    assert resolve_cut(identity_of(48), OF_RANK, RANK, options).own_lanes == [0, 2, 4, 6]
    workers = [replace(RANK, worker=worker, num_workers=2) for worker in (0, 1)]
    found = [resolve_cut(identity_of(48), OF_RANK, worker, options) for worker in workers]
    assert [each.own_lanes for each in found] == [[0, 4], [2, 6]]
    assert all(each.cut == OF_RANK.cut and not each.progress.earlier for each in found)


def test_a_worker_resumes_from_its_own_progress() -> None:
    place = WorkerPlace(0, 1, 1, 2)
    progress = of_rank({1: 2}, 2, 2, place)
    found = resolve_cut(identity_of(48), progress, place, LaneOptions(None, None, 2))
    assert (found.own_lanes, found.place, found.progress) == ([1], place, progress)


def test_progress_that_lacks_lanes_of_the_reader_is_refused() -> None:
    # Batches of two turns: these workers share eight lanes too, but rank 0 reads lanes 0, 1, 4 and 5 then.
    with pytest.raises(CheckpointMismatchError, match="lanes: this state holds 4 of 8, in turns of 2 rows"):
        resolve_cut(identity_of(48), OF_RANK, RANK, LaneOptions(None, None, 4))


@pytest.mark.parametrize(
    ("progress", "place", "batch_size", "problem"),
    [
        (OF_RANK, WorkerPlace(1, 2), 2, "rank: saved 0, this is 1"),
        (OF_RANK, WorkerPlace(0, 4), 2, "world_size: saved 2, this is 4"),
        (OF_RANK, replace(RANK, num_workers=3), 2, r"3 worker\(s\) with batches of this size can't share them"),
        (OF_RANK, RANK, 3, r"1 worker\(s\) with batches of this size can't share them"),
        (of_rank({1: 0}, 2, 2, WorkerPlace(0, 1, 1, 2)), WorkerPlace(0, 1, 0, 2), 2, "worker: saved 1, this is 0"),
        (of_rank({1: 0}, 2, 2, WorkerPlace(0, 1, 1, 2)), WorkerPlace(), 2, "num_workers: saved 2, this is 1"),
    ],
)
def test_progress_of_some_lanes_is_refused_by_any_other_reader(
    progress: Progress, place: WorkerPlace, batch_size: int, problem: str
) -> None:
    with pytest.raises(CheckpointMismatchError, match=problem):
        resolve_cut(identity_of(48), progress, place, LaneOptions(None, None, batch_size))


def test_progress_of_a_rank_at_its_end_still_belongs_to_that_rank_only() -> None:
    done = of_rank({0: 6, 2: 6, 4: 6, 6: 6}, 8, 2, RANK)
    assert resolve_cut(identity_of(48), done, RANK, LaneOptions(None, None, 2)).is_complete
    with pytest.raises(CheckpointMismatchError, match="rank: saved 0, this is 1"):
        resolve_cut(identity_of(48), done, WorkerPlace(1, 2), LaneOptions(None, None, 2))


# -- Where lanes are --------------------------------------------------------------------------------------------------


def test_rows_before_a_turn_are_limited_by_the_ends_of_lanes() -> None:
    found = assign_whole_job(identity_of(9), step(2, 2, 0))
    assert [found.rows_at(turn).tolist() for turn in (0, 1, 3, 5, 6)] == [[0, 0], [2, 0], [4, 2], [5, 4], [5, 4]]


def test_ranks_that_deliver_rows_are_in_lockstep_when_all_are_equally_far_into_their_turns() -> None:
    def is_in_lockstep(num_ranks: int, *rows: int) -> bool:
        found = assign_whole_job(identity_of(48), progress_of(dict(enumerate(rows)), 4, 4, 4))
        return found.is_in_lockstep(num_ranks_mid_turn=num_ranks)

    assert is_in_lockstep(0, 4, 4, 4, 4)
    assert is_in_lockstep(2, 7, 7, 4, 4)
    assert not is_in_lockstep(0, 7, 7, 4, 4), "batches are never taken in part"
    assert not is_in_lockstep(1, 7, 7, 4, 4)
    assert not is_in_lockstep(2, 7, 6, 4, 4)
    assert not is_in_lockstep(2, 4, 4, 7, 7)
    assert not is_in_lockstep(2, 8, 8, 4, 4), "a whole turn is no part of one"


# -- What is left -----------------------------------------------------------------------------------------------------


def test_a_partly_delivered_turn_counts_as_one_more_batch() -> None:
    found = resolve_cut(identity_of(10), progress_of({0: 3}, 1, 4, 0), WorkerPlace(), LaneOptions(None, 4, 4))
    assert found.num_items_left(4) == 3, "rows [3, 4), [4, 8) and [8, 10)"
    assert found.num_items_left(None) == 7


def test_a_batch_of_several_turns_counts_while_any_of_its_lanes_has_rows_left() -> None:
    identity, options = identity_of(9), LaneOptions(2, 2, 4)
    found = resolve_cut(identity, Progress(0), WorkerPlace(), options)
    assert found.ends.tolist() == [5, 4]
    assert found.num_items_left(4) == 3
    later = resolve_cut(identity, progress_of({0: 4, 1: 4}, 2, 2, 4), WorkerPlace(), options)
    assert later.num_items_left(4) == 1


def test_the_items_left_of_a_rank_are_those_of_all_its_workers() -> None:
    place = WorkerPlace(1, 2, 0, 3)
    found = resolve_cut(identity_of(48), Progress(0), place, LaneOptions(None, None, 4))
    assert found.own_lanes == [1]
    assert found.of_rank().own_lanes == [1, 3, 5]
    assert found.num_items_left(4) == 6
    assert found.num_items_left(None) == 24


def num_batches(found: Assignment) -> int:
    cursor, count = Cursor(found.of_rank()), 0
    while batch := cursor.next_batch():
        deliver(cursor, batch)
        count += 1
    return count


@given(identities(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30))
def test_the_number_of_items_left_after_any_row_is_the_number_that_is_then_delivered(
    identity: Identity, lanes: int, turn_rows: int, turns: int, num_rows: int
) -> None:
    lanes *= turns
    cursor = open_epoch(identity, Progress(0), WorkerPlace(), LaneOptions(lanes, turn_rows, None))
    for _ in range(num_rows):
        rows = cursor.next_rows(1)
        if rows is None:
            break
        cursor.deliver_rows(rows.turn, rows.ranges[0])
    batch_size = turn_rows * turns
    options = LaneOptions(lanes, turn_rows, batch_size)
    found = resolve_cut(identity, cursor.progress(), WorkerPlace(), options)
    assert found.num_items_left(batch_size) == num_batches(found)

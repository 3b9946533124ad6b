"""Lane options: how many lanes and turns a user's arguments mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.assignment import resolve_cut
from laneway.core.lanes import MAX_LANES
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress, fresh_cut
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PLAIN, identities


def test_a_turn_is_a_batch_or_a_row_unless_it_is_chosen() -> None:
    assert LaneOptions(None, None, 6).default_turn_rows == 6
    assert LaneOptions(None, None, None).default_turn_rows == 1
    assert LaneOptions(None, 3, 6).default_turn_rows == 3
    assert LaneOptions(None, 3, None).default_turn_rows == 3


def test_a_batch_size_that_is_not_a_multiple_of_the_turn_has_no_number_of_turns() -> None:
    options = LaneOptions(None, None, 6)
    assert [options.turns_per_batch(turn_rows) for turn_rows in (6, 3, 4, 12)] == [1, 2, None, None]
    assert LaneOptions(None, None, None).turns_per_batch(5) == 1


@pytest.mark.parametrize(
    ("options", "place", "num_lanes"),
    [
        (LaneOptions(None, None, 4), WorkerPlace(0, 2, 0, 3), 6),
        (LaneOptions(None, 2, 4), WorkerPlace(0, 2, 0, 3), 12),
        (LaneOptions(24, 2, 4), WorkerPlace(0, 2, 0, 3), 24),
        (LaneOptions(18, 2, 4), WorkerPlace(0, 2, 0, 3), 12),
        (LaneOptions(5, None, None), WorkerPlace(), 5),
    ],
)
def test_the_requested_number_of_lanes_is_used_if_the_workers_can_share_it(
    options: LaneOptions, place: WorkerPlace, num_lanes: int
) -> None:
    assert options.num_lanes(place) == num_lanes
    assert options.fresh_cut(place) == fresh_cut(num_lanes, options.default_turn_rows)


def test_a_number_of_lanes_that_the_workers_can_not_share_gives_a_warning() -> None:
    place = WorkerPlace(0, 2, 0, 3)
    assert LaneOptions(None, None, 4).warnings_for(100, place, PLAIN) == []
    assert LaneOptions(12, None, 4).warnings_for(100, place, PLAIN) == []
    (warning,) = LaneOptions(8, None, 4).warnings_for(100, place, PLAIN)
    assert warning is not None
    assert "8 lanes can't be shared by 2 ranks with 3 workers" in warning
    assert "a multiple of 6" in warning


def test_only_single_rows_or_a_single_rank_are_resumed_within_a_turn() -> None:
    ranks = WorkerPlace(1, 4)
    assert LaneOptions(None, 4, None).num_ranks_mid_turn(ranks) == 4
    assert LaneOptions(None, 4, 4).num_ranks_mid_turn(ranks) == 0
    assert LaneOptions(None, 4, 4).num_ranks_mid_turn(WorkerPlace()) == 1


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world_size", "changes", "warning"),
    [
        (10, 4, 64, {}, "10 rows, fewer than a batch of 4 for each of 64 ranks, so no batch is whole"),
        (1, 4, 2, {}, "1 row, fewer than a batch of 4 for each of 2 ranks, so no batch is whole"),
        (
            *(255, 4, 64, {"drop_last": True}),
            "255 rows, fewer than a batch of 4 for each of 64 ranks, so drop_last drops all of them",
        ),
        (3, 4, 1, {"drop_last": True}, "3 rows, fewer than a batch of 4, so drop_last drops all of them"),
        (
            *(2, 4, 3, {"remainder": "drop"}),
            '2 rows, fewer than a batch of 4 for each of 3 ranks, so remainder="drop" leaves out all of them',
        ),
        (
            *(2, None, 3, {"remainder": "drop"}),
            '2 rows, fewer than a row for each of 3 ranks, so remainder="drop" leaves out all of them',
        ),
    ],
)
def test_one_worker_warns_of_too_few_rows(
    num_rows: int, batch_size: int | None, world_size: int, changes: dict[str, Any], warning: str
) -> None:
    options, settings = LaneOptions(None, None, batch_size), replace(PLAIN, **changes)
    ways_out = ["fewer ranks"] * (world_size > 1) + ["a smaller batch_size"] * (batch_size is not None)
    message = f"the dataset has {warning}: use {', or '.join(ways_out)}"
    assert options.warnings_for(num_rows, WorkerPlace(0, world_size, 0, 2), settings) == [message]
    assert options.warnings_for(num_rows, WorkerPlace(world_size - 1, world_size, 1, 2), settings) == []
    if changes:
        assert options.num_items(num_rows, WorkerPlace(0, world_size), settings) == 0


def test_enough_rows_give_no_warning() -> None:
    options, drop = LaneOptions(None, None, 4), replace(PLAIN, drop_last=True)
    assert options.warnings_for(256, WorkerPlace(0, 64), drop) == []
    assert options.warnings_for(4, WorkerPlace(), drop) == []
    # A single rank, single rows, or no rows at all.
    assert options.warnings_for(3, WorkerPlace(), PLAIN) == []
    assert LaneOptions(None, None, None).warnings_for(10, WorkerPlace(0, 64), PLAIN) == []
    assert options.warnings_for(0, WorkerPlace(0, 64), drop) == []


def test_more_lanes_than_a_state_can_hold_are_refused_before_anything_is_read() -> None:
    assert LaneOptions(None, 1, 2**10).num_lanes(WorkerPlace(0, 2**6, 0, 2**4)) == MAX_LANES
    with pytest.raises(ValueError, match=r"64 ranks with 17 workers need .* 1,114,112 in all, but 1,048,576"):
        LaneOptions(None, 1, 2**10).fresh_cut(WorkerPlace(0, 2**6, 0, 17))


@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_ranks_share_the_rows_whatever_the_number_of_workers(num_workers: int) -> None:
    places = [WorkerPlace(rank, 2, 0, num_workers) for rank in (0, 1)]
    options, keep = LaneOptions(None, None, 4), PLAIN
    # Two batches for each rank, and a row.
    assert [options.num_items(17, place, keep) for place in places] == [2, 3]
    assert [options.num_items(17, place, replace(keep, remainder="pad")) for place in places] == [3, 3]
    assert [options.num_items(17, place, replace(keep, remainder="drop")) for place in places] == [2, 2]
    assert [options.num_items(18, place, keep) for place in places] == [3, 3]
    assert [options.num_items(23, place, replace(keep, drop_last=True)) for place in places] == [2, 2]
    rows = LaneOptions(4, None, None)
    assert [rows.num_items(19, place, keep) for place in places] == [9, 10]


@given(
    identities(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([(None, None, 3), (12, 2, 4), (None, 2, 6), (7, None, 2), (None, None, None), (12, 3, None)]),
    st.booleans(),
    st.data(),
)
def test_the_length_of_an_epoch_is_the_number_of_items_left_at_its_start(
    identity: Identity,
    world_size: int,
    num_workers: int,
    chosen: tuple[int | None, int | None, int | None],
    drop_last: bool,
    data: st.DataObject,
) -> None:
    options = LaneOptions(*chosen)
    settings = replace(identity.settings, drop_last=drop_last and options.batch_size is not None)
    place = WorkerPlace(data.draw(st.integers(0, world_size - 1)), world_size, 0, num_workers)
    found = resolve_cut(Identity(identity.files, settings), Progress(0), place, options)
    assert options.num_items(identity.files.num_rows, place, settings) == found.num_items_left(options.batch_size)

"""Merging the states of ranks, by example; the laws are in tests/laws."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from laneway.core.division import Sharing
from laneway.core.merge import merge_ranks, merge_states
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, EarlierCut, JobTurn, LanePosition, Progress
from laneway.core.schema import Role, names_of, parse_state, positions_of, sealed
from laneway.core.state import write_job_state, write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError
from tests.laws.simulation import PLAIN, file_table, load

IDENTITY = Identity(file_table([[6], [7]]), PLAIN)
OTHER: dict[str, Any] = {
    "seed": 8,
    "shuffle": True,
    "shard_bytes": 1,
    "shard_rows": None,
    "window_bytes": 101,
    "remainder": None,
    "drop_last": True,
    "selection": "filter (x > 3)",
    "categories": "x: 3 values 0123456789abcdef",
    "without": "rows 4 to 6 of epoch 3",
    "stages": "flat_map",
    "table": "version 3 of a table",
    "order_version": 1,
    "fingerprint": "0",
    "world_size": 3,
    "epoch": 4,
    "lanes": 4,
    "turn_rows": 3,
    "lane_world_size": 1,
    "lane_batch_turns": 2,
    "lane_remainder": "pad",
    "earlier_cuts": [[1, 1, 1, 1, 1, 0, None, None]],
    "mixture": [[], "", [], []],
}
"""Another value of each field that all states of a job share."""


def rank_state(
    rank: int, position: LanePosition, *, next_turn: int = 2, complete: bool = False, **changes: Any
) -> dict[str, Any]:
    """Return the state of a rank that has one of two lanes."""
    place = WorkerPlace(rank, 2)
    progress = Progress(3, Sharing(2), CutProgress(2, 2, next_turn, {rank: position}), (), place)
    return write_state(IDENTITY, replace(progress, **changes), place, complete=complete)


def job_of(*positions: LanePosition, **changes: Any) -> list[dict[str, Any]]:
    return [rank_state(rank, position, **changes) for rank, position in enumerate(positions)]


def test_the_table_of_other_values_covers_every_shared_field() -> None:
    assert {field.name for field in fields(Settings)} <= OTHER.keys()
    assert {*names_of(Role.IDENTITY, Role.JOB)} == OTHER.keys()


@pytest.mark.parametrize("name", OTHER)
def test_states_that_differ_in_any_shared_field_are_refused_and_the_field_is_named(name: str) -> None:
    states = job_of(LanePosition(2, 1), LanePosition(2, 1))
    assert states[1].get(name) != OTHER[name]
    with_shares = {"lanes": 4} if name == "lane_batch_turns" else {}
    states = [sealed({**state, **with_shares}) for state in states]
    states[1] = sealed({**states[1], name: OTHER[name]})
    with pytest.raises(CheckpointMismatchError) as refused:
        merge_states(states)
    assert f"  {name}: rank 0 has " in str(refused.value)
    with pytest.raises(CheckpointMismatchError, match=f"{name}: rank 0 has"):
        merge_ranks([*map(parse_state, states)], same_step=False)


def test_merged_positions_are_in_lane_order_with_their_offsets() -> None:
    states = job_of(LanePosition(2, 3), LanePosition(2))
    for given in (states, states[::-1]):
        merged = merge_states(given)
        assert (merged["scope"], merged["rank"], merged["lane_indices"]) == ("global", 0, None)
        assert (merged["positions"], merged["offsets"], merged["next_turn"]) == ([2, 2], [3, 0], 2)
    assert load(sealed({**merged, "offsets": None}), IDENTITY, WorkerPlace(4, 5)) == Progress(
        3, Sharing(2), CutProgress(2, 2, 2, {0: LanePosition(2), 1: LanePosition(2)})
    )


def test_states_of_which_nothing_was_delivered_merge_into_an_epoch_without_a_cut() -> None:
    merged = merge_states(job_of(LanePosition(), LanePosition(), next_turn=0))
    assert load(merged, IDENTITY, WorkerPlace(4, 5)) == Progress(3)


@pytest.mark.parametrize(
    "states",
    [
        job_of(LanePosition(0, 1), LanePosition(), next_turn=0),
        job_of(LanePosition(), LanePosition(), next_turn=0, earlier=(EarlierCut(1, positions=(LanePosition(4),)),)),
        job_of(LanePosition(), LanePosition(), next_turn=0, complete=True),
    ],
    ids=["part of a row", "rows of an earlier cut", "an epoch without rows"],
)
def test_the_cut_is_kept_if_anything_was_delivered(states: list[dict[str, Any]]) -> None:
    merged = merge_states(states)
    assert (merged["lanes"], merged["next_turn"]) == (2, 0)
    assert merged["positions"] == (None if states[0]["positions"] is None else [0, 0])
    assert merged["earlier_cuts"] == states[0]["earlier_cuts"]


def test_a_job_is_complete_when_all_its_ranks_are() -> None:
    ended = rank_state(0, LanePosition(6), next_turn=6, complete=True)
    still = rank_state(1, LanePosition(6), next_turn=6)
    merged = merge_states([ended, still])
    assert (merged["complete"], merged["positions"], merged["next_turn"]) == (False, None, 6)
    done = rank_state(1, LanePosition(7), next_turn=8, complete=True)
    merged = merge_states([ended, done])
    assert (merged["complete"], merged["next_turn"]) == (True, 8)
    assert load(merged, IDENTITY).cut is not None


def test_merged_positions_are_listed_only_if_they_are_not_in_step() -> None:
    merged = merge_states(job_of(LanePosition(3), LanePosition(3)))
    assert (merged["positions"], merged["next_turn"], merged["part_rows"]) == (None, 2, 1)
    assert positions_of(parse_state(rank_state(1, LanePosition(3)))) == {1: LanePosition(3)}
    cut = load(merged, IDENTITY).cut
    assert cut is not None
    assert cut.rows().tolist() == [3, 3]


def test_ranks_at_different_steps_are_merged_only_if_requested() -> None:
    states = [rank_state(0, LanePosition(2), next_turn=2), rank_state(1, LanePosition(6), next_turn=6)]
    with pytest.raises(CheckpointMismatchError, match="step: rank 0 has delivered 2 rows, rank 1 has delivered 6"):
        merge_states(states)
    merged = merge_ranks([*map(parse_state, states)], same_step=False)
    assert (merged["positions"], merged["next_turn"]) == ([2, 6], 6)


def test_ranks_that_have_taken_different_numbers_of_turns_are_at_different_steps() -> None:
    # One row apart, as lanes may be at the end of an epoch, but in the middle of it.
    states = [rank_state(0, LanePosition(2), next_turn=2), rank_state(1, LanePosition(3), next_turn=4)]
    with pytest.raises(CheckpointMismatchError, match="step: rank 0 is at turn 2, rank 1 at 4"):
        merge_states(states)


def test_equal_states_of_a_whole_job_merge_and_different_ones_are_refused() -> None:
    progress = Progress(3, Sharing(2), CutProgress(2, 2, 2, {0: LanePosition(2)}))
    states = [
        write_job_state(IDENTITY, progress, WorkerPlace(0, 2), JobTurn(turn, part, is_complete=False))
        for turn, part in ((2, 0), (4, 0), (2, 1))
    ]
    assert merge_states([states[0], states[0]]) == states[0]
    for other in states[1:]:
        with pytest.raises(CheckpointMismatchError, match="each of these is the state of the whole job, and they diff"):
            merge_states([states[0], other])


@pytest.mark.parametrize("states", [5, "states", {}, None])
def test_what_is_no_list_of_states_is_a_type_error(states: Any) -> None:
    with pytest.raises(TypeError, match="states must be a list of the states of all ranks, not"):
        merge_states(states)


def test_messages_stay_short_however_many_ranks_lanes_and_cuts_there_are() -> None:
    states = job_of(LanePosition(2, 1), LanePosition(2, 1))
    cut = [500, 1, 1, 1, 0, 0, [1] * 500, None]
    huge = [
        [states[0], sealed({**states[1], "earlier_cuts": [cut]})],
        [sealed({**state, "world_size": 2**40}) for state in states],
        [sealed({**state, "lanes": 2**20}) for state in states],
        [states[0], *(sealed({**states[1], "seed": seed}) for seed in range(1000))],
    ]
    for given in huge:
        with pytest.raises(CheckpointMismatchError) as refused:
            merge_states(given)
        lines = str(refused.value).splitlines()
        assert max(map(len, lines)) < 120
        assert len(lines) < 15

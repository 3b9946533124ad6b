"""The states of ranks in different epochs: each rank takes its own; damage and other jobs are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from laneway import compare_states, describe_state
from laneway.core.apart import merge_gathered, state_of_rank
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress
from laneway.core.schema import parse_state, sealed, wrap_state
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.laws.simulation import PLAIN, Job, file_table

if TYPE_CHECKING:
    from collections.abc import Callable

State = dict[str, Any]


def rank_state(rank: int, epoch: int, *, world_size: int = 3, order_version: int = 2, rows: int = 10) -> State:
    identity = Identity(file_table([[7], [5, 8], [rows]]), PLAIN)
    progress = Progress(epoch, order_version=order_version)
    job = Job(identity, world_size, 1, LaneOptions(None, None, 2), progress)
    job.run(2)
    cursor = job.cursors[rank, 0]
    state = write_state(identity, cursor.progress(), WorkerPlace(rank, world_size), complete=cursor.is_at_end)
    return sealed({**state, "files": ""})


def apart() -> State:
    return merge_gathered([rank_state(0, 4), rank_state(1, 3), rank_state(2, 4)])


def test_each_rank_takes_its_own_state_and_the_file_table() -> None:
    whole = sealed({**apart(), "files": "table"})
    for found in (whole, wrap_state(whole), json.loads(json.dumps(whole))):
        for rank, epoch in enumerate([4, 3, 4]):
            own = state_of_rank(found, WorkerPlace(rank, 3))
            assert own == sealed({**rank_state(rank, epoch), "files": "table"})
            assert parse_state(own).place == WorkerPlace(rank, 3)
    assert whole["epoch"] == 3


def test_ranks_that_are_ahead_are_named_when_it_is_described() -> None:
    summary = describe_state(wrap_state(apart()))
    assert (summary.epoch, summary.ranks, summary.ahead) == (3, (1,), ((0, 4), (2, 4)))
    assert "ahead of them, in epoch 4: ranks 0, 2" in repr(summary)
    assert compare_states(wrap_state(apart()), rank_state(1, 3)).progress == (("ahead", ((0, 4), (2, 4)), ()),)


def test_it_has_the_keys_of_a_state() -> None:
    assert list(apart()) == list(rank_state(0, 0))


def test_ranks_in_one_epoch_make_an_ordinary_state() -> None:
    merged = merge_gathered([rank_state(rank, 4) for rank in range(3)])
    assert parse_state(merged).is_global
    assert state_of_rank(merged, WorkerPlace(0, 5)) == merged


def test_epochs_may_have_begun_in_different_orders() -> None:
    states = [rank_state(0, 4), rank_state(1, 3, order_version=1), rank_state(2, 4)]
    assert state_of_rank(merge_gathered(states), WorkerPlace(1, 3)) == states[1]


def test_another_number_of_ranks_is_refused() -> None:
    with pytest.raises(CheckpointMismatchError, match=r"rank 1 in epoch 3, rank 0 in epoch 4.*on 3 ranks only.* 2:"):
        state_of_rank(apart(), WorkerPlace(0, 2))


@pytest.mark.parametrize(
    ("states", "problem"),
    [
        (lambda: [rank_state(0, 4), rank_state(1, 3)], "rank 2 is missing"),
        (lambda: [rank_state(0, 4), rank_state(0, 3), rank_state(2, 3)], "rank 0 occurs more than once"),
        (lambda: [rank_state(0, 4), rank_state(1, 3, rows=11), rank_state(2, 3)], "fingerprint: rank 0 has "),
        (lambda: [rank_state(0, 4, world_size=2), rank_state(1, 3)], "world_size: rank 0 has 2, rank 1 has 3"),
    ],
)
def test_states_of_different_jobs_are_not_merged(states: Callable[[], list[State]], problem: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=problem):
        merge_gathered(states())


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda state: {**state, "epoch": 2}, "its digest is not that of its fields"),
        (lambda state: {**state, "digest": "0" * 16}, "its digest is not that of its fields"),
        (lambda state: sealed({**state, "positions": [0, 1, 2]}), "its digest is not that of its fields"),
        (lambda state: sealed({**state, "positions": None}), "its digest is not that of its fields"),
        (lambda state: sealed({**state, "positions": ["{"]}), "its digest is not that of its fields"),
        (lambda state: sealed({**state, "positions": ["[" * 10**6]}), "its digest is not that of its fields"),
        (lambda state: {**state, "seed": {1}}, "its digest is not that of its fields"),
        (lambda state: sealed({**state, "positions": []}), "it holds no rank"),
        (lambda state: sealed({**state, "positions": state["positions"][:2]}), "rank 2 is missing"),
        (lambda state: sealed({**state, "positions": state["positions"][::-1]}), "not in their order"),
        (lambda state: sealed({**state, "positions": ["{}"] * 3}), "an empty dict is not a state"),
        (lambda state: without(state, "offsets"), "offsets missing"),
        (lambda state: {**state, "version": 99}, "version is 99, and this release reads versions up to"),
        (lambda state: {**state, "version": "3"}, "version is '3', and"),
    ],
)
def test_damaged_states_are_refused(damage: Callable[[State], State], problem: str) -> None:
    with pytest.raises(StateFormatError, match=problem):
        state_of_rank(damage(apart()), WorkerPlace(0, 3))

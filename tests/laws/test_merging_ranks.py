"""Law: the merged states of all ranks are the state of the whole job, from which any number of ranks can resume."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.merge import merge_states
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress, current_cut
from laneway.core.schema import sealed
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.laws.simulation import PLAIN, Job, file_table, identities, load

if TYPE_CHECKING:
    from collections.abc import Callable


def rank_states(job: Job) -> list[dict[str, Any]]:
    """Return the state of each rank of a job with one worker per rank."""
    return [
        write_state(
            job.identity,
            job.cursors[rank, 0].progress(),
            WorkerPlace(rank, job.world_size),
            complete=job.cursors[rank, 0].is_at_end,
        )
        for rank in range(job.world_size)
    ]


def ranks_after(steps: int, world_size: int = 3, batch_size: int = 2) -> list[dict[str, Any]]:
    job = Job(
        Identity(file_table([[7], [5, 8], [10]]), PLAIN),
        world_size,
        1,
        LaneOptions(None, None, batch_size),
        Progress(0),
    )
    job.run(steps)
    return rank_states(job)


@given(identities(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.integers(1, 3), st.randoms())
def test_merged_states_are_the_progress_of_the_whole_job(
    identity: Identity, world_size: int, batch_size: int, steps: int, lanes: int, random: Any
) -> None:
    job = Job(identity, world_size, 1, LaneOptions(lanes * world_size, None, batch_size), Progress(0))
    job.run(steps)
    states = rank_states(job)
    random.shuffle(states)
    merged = merge_states(states)
    found, whole = load(merged, identity), job.whole_progress()
    assert merged["complete"] == all(state["complete"] for state in states)
    if found.cut is None:
        # Nothing was delivered, so the run that resumes can choose the cut.
        assert not current_cut(whole).rows().any()
        return
    assert current_cut(found).positions == current_cut(whole).positions
    if identity.settings.remainder != "keep" and not merged["complete"]:
        # With "keep", lanes may differ by a turn, and cursors skip empty turns.
        assert found == whole


@given(
    identities(remainder="keep"),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=6),
)
def test_every_row_is_delivered_once_over_chains_of_merged_states(
    identity: Identity, chain: list[tuple[int, int, int]]
) -> None:
    progress, rows = Progress(0), Counter[int]()
    for world_size, batch_size, steps in [*chain, (2, 3, 10**6)]:
        job = Job(identity, world_size, 1, LaneOptions(None, None, batch_size), progress)
        rows.update(row for step in job.run(steps) for row in step)
        merged = merge_states(rank_states(job))
        progress = load(merged, identity)
    assert rows == Counter(range(identity.files.num_rows))
    assert merged["complete"]


@given(identities(remainder="pad"), st.integers(2, 4), st.integers(1, 3), st.integers(0, 20), st.integers(0, 20))
def test_ranks_at_different_steps_are_refused_even_if_some_are_at_their_end(
    identity: Identity, world_size: int, batch_size: int, steps: int, others: int
) -> None:
    jobs = [
        Job(identity, world_size, 1, LaneOptions(None, None, batch_size), Progress(0)),
        Job(identity, world_size, 1, LaneOptions(None, None, batch_size), Progress(0)),
    ]
    for job, number in zip(jobs, (steps, others), strict=True):
        job.run(number)
    states = [rank_states(jobs[0])[0], *rank_states(jobs[1])[1:]]
    of_job = [current_cut(job.cursors[0, 0].progress()).positions for job in jobs]
    if of_job[0] == of_job[1]:
        assert merge_states(states)["complete"] == states[0]["complete"]
        return
    with pytest.raises(CheckpointMismatchError, match="step: rank 0 has delivered"):
        merge_states(states)


def test_states_of_an_epoch_that_has_not_begun_merge_into_the_same_state() -> None:
    state = write_state(Identity(file_table([[3]]), PLAIN), Progress(4), WorkerPlace(1, 2), complete=False)
    assert merge_states([state, state]) == state


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda s: s[:2], "rank 2 is missing"),
        (lambda s: [s[0], s[1], s[1], s[2]], "rank 1 occurs more than once"),
        (lambda s: [s[0], s[1], sealed({**s[2], "epoch": 1})], "epoch: rank 0 has 0, rank 2 has 1"),
        (lambda s: [s[0], s[1], sealed({**s[2], "seed": 1})], "seed: rank 0 has 7, rank 2 has 1"),
        (lambda s: [s[0], s[1], sealed({**s[2], "fingerprint": "0"})], "fingerprint: rank 0 has"),
        (lambda s: [s[0], ranks_after(3)[1], s[2]], "step: rank 0 has delivered 4 rows, rank 1 has delivered 6"),
        (lambda s: [s[0], ranks_after(2, world_size=2)[1], s[2]], "world_size: rank 0 has 3, rank 1 has 2"),
        (lambda _: [], "nothing to merge"),
        (lambda s: [*s[:2], merge_states(s)], "some of these are the state of a rank, others that of the whole job"),
        (
            lambda s: [sealed({**state, "scope": "worker", "num_workers": 2, "lanes": 6}) for state in s],
            "states of DataLoader workers, not of ranks",
        ),
        (
            lambda s: [s[0], sealed({**s[1], "lane_indices": [0], "positions": [4]}), s[2]],
            "lane 0 of 3 is in more than one of them\n  lanes: lane 1 of 3 is in none of them",
        ),
        (
            lambda s: [merge_states(s), sealed({**merge_states(s), "positions": [0, 0, 0]})],
            "each of these is the state of the whole job, and they differ",
        ),
    ],
)
def test_states_that_do_not_belong_together_are_refused_with_the_cause(
    spoil: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], problem: str
) -> None:
    with pytest.raises(CheckpointMismatchError, match=problem):
        merge_states(spoil(ranks_after(2)))


def test_a_value_that_is_not_a_state_is_refused() -> None:
    with pytest.raises(StateFormatError, match="an empty dict is not a state"):
        merge_states([*ranks_after(2)[:2], {}])

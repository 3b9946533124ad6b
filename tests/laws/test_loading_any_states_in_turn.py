"""Law: a dataset that loads any two states in turn behaves like a new one that loads only the second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from laneway.core.assignment import assign_whole_job
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import Job, deliver, identities, load, open_epoch, rows_of

if TYPE_CHECKING:
    from typing import Any

    from laneway.core.cursor import Cursor

World = tuple[int, int]
"""Ranks, and rows of a batch."""

worlds = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)


def saved_after(identity: Identity, epoch: int, chain: list[World], steps: list[int]) -> dict[str, Any]:
    """Return the state of an epoch that one world after another resumed; its cuts depend only on the worlds."""
    progress, complete = Progress(epoch), False
    for (world_size, batch_size), count in zip(chain, steps, strict=True):
        # A separate identity, so that no plan is shared with the datasets that load the state.
        own = Identity(identity.files, identity.settings)
        job = Job(own, world_size, 1, LaneOptions(None, None, batch_size), progress)
        job.run(count)
        progress = job.whole_progress()
        complete = all(cursor.is_at_end for cursor in job.cursors.values())
    state: dict[str, Any] = json.loads(json.dumps(write_state(identity, progress, WorkerPlace(), complete=complete)))
    return state


def deliver_all(cursor: Cursor) -> list[list[int]]:
    """Return the remaining batches of a worker."""
    batches = []
    while batch := cursor.next_batch():
        batches.append([row for lanes in batch.ranges for row in rows_of(cursor.plan, *lanes)])
        deliver(cursor, batch)
    return batches


@given(
    identities(),
    worlds,
    worlds,
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 3), min_size=3, max_size=3)), min_size=2, max_size=2),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_a_state_resumes_the_same_whichever_state_was_loaded_before(
    identity: Identity,
    chain: list[World],
    other_chain: list[World],
    same_chain: bool,
    runs: list[tuple[int, list[int]]],
    world_size: int,
    batch_size: int,
) -> None:
    chains = [chain if same_chain else other_chain, chain]
    before, state = (
        saved_after(identity, epoch, run, steps[: len(run)]) for run, (epoch, steps) in zip(chains, runs, strict=True)
    )
    used, fresh = (Identity(identity.files, identity.settings) for _ in range(2))
    options, place = LaneOptions(None, None, batch_size), WorkerPlace(0, world_size)
    deliver_all(open_epoch(used, load(before, used), place, options))
    resumed, expected = (load(state, each) for each in (used, fresh))
    assert resumed == expected
    if expected.cut is not None:
        plans = [assign_whole_job(each, expected).plan for each in (used, fresh)]
        assert plans[0].lanes.rows.tolist() == plans[1].lanes.rows.tolist()
        rows = expected.cut.rows()
        completed = [plan.completed_shards(rows).tolist() for plan in plans]
        assert completed[0] == completed[1]
    cursors = [open_epoch(each, expected, place, options) for each in (used, fresh)]
    assert cursors[0].progress() == cursors[1].progress()
    assert deliver_all(cursors[0]) == deliver_all(cursors[1])

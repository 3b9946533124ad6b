"""Law: a dataset that loads any two states in turn behaves like a new one that loads only the second."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import Job, PlannedCursor, deliver, identities, load, open_epoch, rows_of

if TYPE_CHECKING:
    from typing import Any


World = tuple[int, int]
"""Ranks, and rows of a batch."""

worlds = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3, unique_by=itemgetter(0))
steps = st.lists(st.integers(0, 3), min_size=3, max_size=3)


def saved_after(identity: Identity, epoch: int, chain: list[World], steps: list[int]) -> dict[str, Any]:
    """Return the state of an epoch that one world after another resumed; its cuts depend only on the worlds."""
    progress, complete = Progress(epoch), False
    for (world_size, batch_size), count in zip(chain, steps, strict=False):
        # A separate identity, so that no plan is shared with the datasets that load the state.
        own = Identity(identity.files, identity.settings)
        job = Job(own, world_size, 1, LaneOptions(None, None, batch_size), progress)
        job.run(count)
        progress = job.whole_progress()
        complete = job.is_at_end
    state: dict[str, Any] = json.loads(json.dumps(write_state(identity, progress, WorkerPlace(), complete=complete)))
    return state


def deliver_all(cursor: PlannedCursor) -> list[list[int]]:
    """Return the remaining batches of a worker."""
    batches = []
    while batch := cursor.next_batch():
        batches.append([row for lanes in batch.ranges for row in rows_of(cursor.plan, *lanes)])
        deliver(cursor, batch)
    return batches


@given(
    identities(),
    st.tuples(worlds, steps),
    st.tuples(st.integers(0, 1), worlds, steps),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
)
@settings(max_examples=300)
def test_a_state_resumes_the_same_whichever_state_was_loaded_before(
    identity: Identity,
    chain: tuple[list[World], list[int]],
    other: tuple[int, list[World], list[int]],
    has_same_cuts: bool,
    is_read: bool,
    world: World,
) -> None:
    state = saved_after(identity, 0, *chain)
    # With the same worlds, both states have the same numbers of lanes, and differ only in positions.
    epoch, other_worlds, other_steps = (0, chain[0], other[2]) if has_same_cuts else other
    before = saved_after(identity, epoch, other_worlds, other_steps)
    used, fresh = (Identity(identity.files, identity.settings) for _ in range(2))
    place, options = WorkerPlace(0, world[0]), LaneOptions(None, None, world[1])
    progress_before = load(before, used)
    if is_read:
        deliver_all(open_epoch(used, progress_before, place, options))
    resumed, expected = (load(state, each) for each in (used, fresh))
    assert resumed == expected
    if expected.cut is not None:
        plans = [each.plan(expected) for each in (used, fresh)]
        assert plans[0].lanes.rows.tolist() == plans[1].lanes.rows.tolist()
        rows = expected.cut.rows()
        completed = [plan.completed_shards(rows).tolist() for plan in plans]
        assert completed[0] == completed[1]
    cursors = [open_epoch(each, expected, place, options) for each in (used, fresh)]
    assert cursors[0].progress() == cursors[1].progress()
    assert deliver_all(cursors[0]) == deliver_all(cursors[1])

"""Law: a worker that resumes from its progress delivers exactly the rows that it had not delivered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from laneway.core.cursor import LaneRange
from laneway.core.options import LaneOptions
from laneway.core.progress import Progress
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PlannedCursor, deliver, identities, load, open_epoch, rows_of

if TYPE_CHECKING:
    from laneway.core.plan import Identity


def batches(cursor: PlannedCursor) -> list[list[int]]:
    found = []
    while batch := cursor.next_batch():
        found.append([row for lanes in batch.ranges for row in rows_of(cursor.plan, *lanes)])
        deliver(cursor, batch)
    return found


@given(identities(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.data())
def test_a_worker_resumes_at_any_batch(
    identity: Identity, world_size: int, num_workers: int, turn_rows: int, turns: int, data: st.DataObject
) -> None:
    place = WorkerPlace(
        data.draw(st.integers(0, world_size - 1)), world_size, data.draw(st.integers(0, num_workers - 1)), num_workers
    )
    lanes = place.stride(turns) * data.draw(st.integers(1, 3))
    options = LaneOptions(lanes, turn_rows, turn_rows * turns)
    uninterrupted = batches(open_epoch(identity, Progress(0), place, options))
    cursor = open_epoch(identity, Progress(0), place, options)
    for done in range(len(uninterrupted) + 1):
        state = write_state(identity, cursor.progress(), place, complete=cursor.is_at_end)
        progress = load(json.loads(json.dumps(state)), identity, place)
        assert progress == cursor.progress()
        assert batches(open_epoch(identity, progress, place, options)) == uninterrupted[done:]
        if batch := cursor.next_batch():
            deliver(cursor, batch)


def rows(cursor: PlannedCursor, max_rows: int) -> tuple[list[int], list[Progress]]:
    """Return the undelivered rows of a cursor, taken up to `max_rows` at a time, and its progress after each row."""
    found: list[int] = []
    progress_after: list[Progress] = []
    while found_rows := cursor.next_rows(max_rows):
        (lane, start, stop), turn = found_rows.ranges[0], found_rows.turn
        for end, row in enumerate(rows_of(cursor.plan, lane, start, stop), start=start + 1):
            found.append(row)
            cursor.deliver_rows(turn, LaneRange(lane, start, end))
            progress_after.append(cursor.progress())
    return found, progress_after


@given(identities(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 9))
def test_rows_come_in_the_same_order_however_many_are_taken_at_a_time(
    identity: Identity, lanes: int, turn_rows: int, max_rows: int
) -> None:
    options = LaneOptions(lanes, turn_rows, None)
    one_by_one, _ = rows(open_epoch(identity, Progress(0), WorkerPlace(), options), 1)
    found, progress_after = rows(open_epoch(identity, Progress(0), WorkerPlace(), options), max_rows)
    assert found == one_by_one
    for done, progress in enumerate(progress_after, start=1):
        following, _ = rows(open_epoch(identity, progress, WorkerPlace(), options), max_rows)
        assert following == one_by_one[done:]

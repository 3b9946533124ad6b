"""Cursors, by example; the laws are in tests/laws."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from laneway.core.assignment import assign_whole_job
from laneway.core.cursor import BatchRanges, Cursor, LaneRange
from laneway.core.division import Sharing
from laneway.core.options import LaneOptions
from laneway.core.order import ORDER_VERSION
from laneway.core.plan import Identity
from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PLAIN, deliver, file_table, open_epoch


def cursor_of(
    num_rows: int,
    lanes: int,
    turn_rows: int,
    batch_size: int | None,
    place: WorkerPlace | None = None,
    order_version: int = ORDER_VERSION,
    **settings: Any,
) -> Cursor:
    identity = Identity(file_table([[num_rows]]), replace(PLAIN, **settings))
    progress = Progress(0, order_version=order_version)
    return open_epoch(identity, progress, place or WorkerPlace(), LaneOptions(lanes, turn_rows, batch_size))


def resumed_at(rows: int, *, num_rows: int, turn_rows: int) -> Cursor:
    """Return the cursor of a worker that resumes within the first turn of its only lane."""
    progress = Progress(0, cut=CutProgress(1, turn_rows, 0, {0: LanePosition(rows)}))
    return Cursor(assign_whole_job(Identity(file_table([[num_rows]]), PLAIN), progress))


def take_batch(cursor: Cursor) -> BatchRanges | None:
    batch = cursor.next_batch()
    if batch:
        deliver(cursor, batch)
    return batch


def test_a_batch_takes_a_turn_from_each_of_the_next_lanes() -> None:
    cursor = cursor_of(12, lanes=4, turn_rows=1, batch_size=2)
    assert take_batch(cursor) == BatchRanges(0, [LaneRange(0, 0, 1), LaneRange(1, 0, 1)])
    assert take_batch(cursor) == BatchRanges(2, [LaneRange(2, 0, 1), LaneRange(3, 0, 1)])
    assert take_batch(cursor) == BatchRanges(4, [LaneRange(0, 1, 2), LaneRange(1, 1, 2)])


def test_a_worker_takes_every_batch_of_its_own_lanes_and_no_other() -> None:
    cursor = cursor_of(16, lanes=8, turn_rows=1, batch_size=1, place=WorkerPlace(1, 2, 1, 2))
    ranges = []
    while batch := take_batch(cursor):
        ranges += batch.ranges
    assert ranges == [LaneRange(3, 0, 1), LaneRange(7, 0, 1), LaneRange(3, 1, 2), LaneRange(7, 1, 2)]
    assert cursor.is_at_end


def test_after_a_resume_within_a_turn_the_next_batch_is_the_rest_of_that_turn() -> None:
    cursor = resumed_at(3, num_rows=10, turn_rows=4)
    assert take_batch(cursor) == BatchRanges(0, [LaneRange(0, 3, 4)])
    assert take_batch(cursor) == BatchRanges(1, [LaneRange(0, 4, 8)])
    assert take_batch(cursor) == BatchRanges(2, [LaneRange(0, 8, 10)])
    assert take_batch(cursor) is None


def test_turns_of_lanes_that_have_ended_are_skipped_one_at_a_time_or_together() -> None:
    cursor = cursor_of(5, lanes=4, turn_rows=1, batch_size=1, order_version=1)
    for _ in range(4):
        assert not cursor.skip_empty_batch()
        take_batch(cursor)
    last = BatchRanges(7, [LaneRange(3, 1, 2)])
    assert cursor.next_batch() == last
    assert cursor.next_turn == 4
    assert [cursor.skip_empty_batch() for _ in range(4)] == [True, True, True, False]
    assert cursor.next_turn == 7
    assert take_batch(cursor) == last
    assert not cursor.skip_empty_batch(), "after the end there is nothing to skip"


def test_a_batch_that_was_partly_delivered_is_only_its_rest_when_requested_again() -> None:
    by_rows, by_batch = (cursor_of(8, lanes=2, turn_rows=4, batch_size=4) for _ in range(2))
    for cursor in (by_rows, by_batch):
        assert cursor.batch_at(0).ranges == [LaneRange(0, 0, 4)]
    by_rows.deliver_rows(0, LaneRange(0, 0, 2))
    by_batch.deliver_batch(0, [(0, LanePosition(2))])
    for cursor in (by_rows, by_batch):
        assert cursor.batch_at(0).ranges == [LaneRange(0, 2, 4)]


def test_next_rows_span_turns_with_a_single_lane_and_end_with_the_turn_otherwise() -> None:
    assert cursor_of(10, lanes=1, turn_rows=4, batch_size=None).next_rows(100) == (0, [LaneRange(0, 0, 10)])
    assert cursor_of(10, lanes=1, turn_rows=4, batch_size=None).next_rows(6) == (0, [LaneRange(0, 0, 6)])
    assert cursor_of(20, lanes=2, turn_rows=4, batch_size=None).next_rows(100) == (0, [LaneRange(0, 0, 4)])


def test_delivering_rows_advances_the_turn_at_the_end_of_a_turn_or_lane() -> None:
    cursor = cursor_of(10, lanes=1, turn_rows=4, batch_size=None)
    turns = []
    for start, stop in pairwise((0, 3, 4, 9, 10)):
        cursor.deliver_rows(cursor.next_turn, LaneRange(0, start, stop))
        turns.append(cursor.next_turn)
    assert turns == [0, 1, 2, 3], "the last turn holds two rows, and ends with the lane"
    assert cursor.next_rows(1) is None


def test_a_batch_that_arrives_out_of_order_does_not_move_the_turn_back() -> None:
    cursor = cursor_of(8, lanes=2, turn_rows=2, batch_size=2)
    cursor.deliver_batch(1, [(1, LanePosition(2))])
    cursor.deliver_batch(0, [(0, LanePosition(2))])
    assert cursor.next_turn == 2
    assert current_cut(cursor.progress()).rows().tolist() == [2, 2]


def test_a_padded_lane_ends_one_row_later() -> None:
    cursor = cursor_of(7, lanes=2, turn_rows=4, batch_size=4, remainder="pad", place=WorkerPlace(0, 2))
    assert cursor.end_of(0) == 4
    assert take_batch(cursor) == BatchRanges(0, [LaneRange(0, 0, 4)])


def test_a_worker_reports_its_own_lanes_and_a_sole_worker_the_whole_job() -> None:
    place = WorkerPlace(1, 2, 1, 2)
    cursor = cursor_of(16, lanes=8, turn_rows=1, batch_size=1, place=place)
    take_batch(cursor)
    assert cursor.progress() == Progress(
        0, Sharing(2), CutProgress(8, 1, 4, {3: LanePosition(1), 7: LanePosition(0)}), (), place
    )
    alone = cursor_of(16, lanes=8, turn_rows=1, batch_size=1)
    assert alone.progress().place is None
    assert len(current_cut(alone.progress()).positions) == 8


def test_earlier_progress_values_do_not_change_when_the_cursor_moves() -> None:
    identity = Identity(file_table([[8]]), PLAIN)
    start = Progress(0, cut=CutProgress(1, 2, 0, {0: LanePosition()}))
    cursor = Cursor(assign_whole_job(identity, start))
    before = cursor.progress()
    take_batch(cursor)
    assert before == start == Progress(0, cut=CutProgress(1, 2, 0, {0: LanePosition()}))
    assert cursor.progress() != start


def test_the_offset_of_a_batch_is_kept_until_the_lane_advances() -> None:
    cursor = cursor_of(8, lanes=1, turn_rows=4, batch_size=4)
    cursor.deliver_batch(0, [(0, LanePosition(3, 5))])
    assert current_cut(cursor.progress()).positions == {0: LanePosition(3, 5)}
    batch = cursor.batch_at(0)
    assert batch.new_positions() == [(0, LanePosition(4, 0))]
    deliver(cursor, batch)
    assert current_cut(cursor.progress()).positions == {0: LanePosition(4, 0)}


def test_counting_again_changes_nothing() -> None:
    cursor = cursor_of(12, lanes=2, turn_rows=3, batch_size=3)
    for _ in range(2):
        cursor.deliver_batch(0, [(0, LanePosition(3))])
        assert (cursor.next_turn, cursor.progress().cut.rows().tolist()) == (1, [3, 0])  # type: ignore[union-attr]
    for _ in range(2):
        cursor.deliver_rows(1, LaneRange(1, 0, 4))
        assert (cursor.next_turn, cursor.progress().cut.rows().tolist()) == (2, [3, 4])  # type: ignore[union-attr]
    for _ in range(2):
        cursor.deliver_rows(2, LaneRange(0, 3, 6))
    assert not cursor.is_at_end
    cursor.deliver_rows(3, LaneRange(1, 4, 6))
    assert cursor.is_at_end


def test_rows_left_are_counted_anew_after_an_interruption() -> None:
    class Interrupting(list[Any]):
        def __iter__(self) -> Any:
            yield from list.__iter__(self)
            raise KeyboardInterrupt

    cursor = cursor_of(8, lanes=2, turn_rows=4, batch_size=8)
    positions = [(0, LanePosition(4)), (1, LanePosition(4))]
    with pytest.raises(KeyboardInterrupt):
        cursor.deliver_batch(0, Interrupting(positions))
    cursor.deliver_batch(0, positions)
    assert cursor.is_at_end

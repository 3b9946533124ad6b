"""Windows, lanes and segments, by example; the laws are in tests/laws."""

from __future__ import annotations

import numpy as np
import pytest

from laneway.core.lanes import Lanes, Segment, cut_again, cut_epoch, rows_to_deliver
from laneway.core.shards import ShardTable


def shard_table(lengths: list[int]) -> ShardTable:
    count = len(lengths)
    rows = np.array(lengths, np.int64)
    return ShardTable(("f",) * count, np.arange(count), np.zeros(count, np.int64), rows, rows * 10)


def lanes_of(lengths: list[int], num_lanes: int) -> Lanes:
    return cut_epoch(shard_table(lengths), num_lanes=num_lanes, window_bytes=1, shuffle=False, seed=0, epoch=0)[1]


def all_segments(lanes: Lanes) -> list[list[Segment]]:
    return [list(lanes.segments(lane)) for lane in range(lanes.num_lanes)]


def test_lanes_are_cut_through_shards_where_needed() -> None:
    windows, lanes = cut_epoch(shard_table([4, 3, 3]), num_lanes=3, window_bytes=1, shuffle=False, seed=0, epoch=0)
    assert lanes.rows.tolist() == [3, 3, 4]
    assert windows.shard.tolist() == [0, 0, 1, 1, 2]
    assert windows.start.tolist() == [0, 3, 0, 2, 0]
    assert windows.stop.tolist() == [3, 4, 2, 3, 3]
    assert windows.lane.tolist() == [0, 1, 1, 2, 2]
    assert [windows.index_in_lane(window) for window in range(5)] == [0, 0, 1, 0, 1]


def test_shuffled_shards_are_grouped_into_windows() -> None:
    windows, lanes = cut_epoch(shard_table([5] * 8), num_lanes=2, window_bytes=100, shuffle=True, seed=3, epoch=0)
    assert windows.rows.tolist() == [10, 10, 10, 10]
    assert sorted(windows.shard.tolist()) == list(range(8))
    assert all_segments(lanes) == [[Segment(0, 0, 10), Segment(1, 0, 10)], [Segment(2, 0, 10), Segment(3, 0, 10)]]


def test_rows_of_a_lane_are_found_across_segments() -> None:
    lanes = lanes_of([2, 2, 2, 2], 2)
    assert list(lanes.segments(1, 1, 3)) == [Segment(2, 1, 2), Segment(3, 0, 1)]
    assert list(lanes.segments(0, 2, 2)) == []


def test_a_lane_is_padded_with_its_own_last_row_and_an_empty_one_borrows() -> None:
    lanes = lanes_of([1, 1], 4)
    assert lanes.rows.tolist() == [0, 1, 0, 1]
    assert list(lanes.segments(0, 0, 1)) == [Segment(0, 0, 1)]
    assert list(lanes.segments(1, 0, 2)) == [Segment(0, 0, 1), Segment(0, 0, 1)]
    assert list(lanes.segments(2, 0, 1)) == [Segment(0, 0, 1)]
    assert list(lanes.segments(3, 1, 2)) == [Segment(1, 0, 1)]


def test_what_was_delivered_and_what_is_left_make_the_whole() -> None:
    lanes = lanes_of([5, 5], 2)
    positions = np.array([2, 6])
    assert all_segments(lanes.delivered(positions)) == [[Segment(0, 0, 2)], [Segment(1, 0, 5)]]
    assert all_segments(lanes.undelivered(positions)) == [[Segment(0, 2, 5)], []]


def test_the_rest_is_cut_again_in_lane_order() -> None:
    again = cut_again(lanes_of([6, 6], 2), np.array([1, 4]), 3)
    assert all_segments(again) == [[Segment(0, 1, 3)], [Segment(0, 3, 5)], [Segment(0, 5, 6), Segment(1, 4, 6)]]


def test_cutting_nothing_again_leaves_empty_lanes() -> None:
    again = cut_again(lanes_of([3], 1), np.array([3]), 2)
    assert again.rows.tolist() == [0, 0]
    assert again.num_rows == 0


@pytest.mark.parametrize(
    ("remainder", "drop_last", "expected"),
    [
        ("keep", False, [6, 7, 7]),
        ("pad", False, [7, 7, 7]),
        ("drop", False, [6, 6, 6]),
        ("keep", True, [4, 4, 4]),
        ("pad", True, [4, 4, 4]),
        ("drop", True, [4, 4, 4]),
    ],
)
def test_the_remainder_is_kept_padded_or_dropped(remainder: str, drop_last: bool, expected: list[int]) -> None:
    rows = rows_to_deliver(np.array([6, 7, 7]), remainder=remainder, turn_rows=4, drop_last=drop_last)  # type: ignore[arg-type]
    assert rows.tolist() == expected

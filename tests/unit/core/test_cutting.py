"""Windows, lanes and segments, by example; the laws are in tests/laws."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from laneway.core.cutting import cut_again, cut_epoch
from laneway.core.division import Sharing, divide
from laneway.core.lanes import Lanes, Segment, Windows, cut_items
from laneway.core.shards import ShardTable


def shard_table(lengths: list[int]) -> ShardTable:
    count = len(lengths)
    rows = np.array(lengths, np.int64)
    return ShardTable(("f",) * count, np.arange(count), np.zeros(count, np.int64), rows, rows * 10, np.arange(count))


def cut(
    lengths: list[int],
    num_lanes: int,
    *,
    version: int = 1,
    turn_rows: int = 1,
    sharing: Sharing | None = None,
    window_bytes: int = 1,
    shuffle: bool = False,
) -> tuple[Windows, Lanes]:
    division = divide(version, sum(lengths), num_lanes, turn_rows, sharing or Sharing())
    return cut_epoch(shard_table(lengths), division, window_bytes=window_bytes, shuffle=shuffle, seed=3, epoch=0)


def lanes_of(lengths: list[int], num_lanes: int) -> Lanes:
    return cut(lengths, num_lanes)[1]


def all_segments(lanes: Lanes) -> list[list[Segment]]:
    return [list(lanes.segments(lane)) for lane in range(lanes.num_lanes)]


def test_lanes_are_cut_through_shards_where_needed() -> None:
    windows, lanes = cut([4, 3, 3], 3)
    assert lanes.rows.tolist() == [3, 3, 4]
    assert windows.shard.tolist() == [0, 0, 1, 1, 2]
    assert windows.start.tolist() == [0, 3, 0, 2, 0]
    assert windows.stop.tolist() == [3, 4, 2, 3, 3]
    assert windows.lane.tolist() == [0, 1, 1, 2, 2]
    assert [windows.index_in_lane(window) for window in range(5)] == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("version", [1, 2])
def test_shuffled_shards_are_grouped_into_windows(version: int) -> None:
    windows, lanes = cut([5] * 8, 2, version=version, window_bytes=100, shuffle=True)
    assert windows.rows.tolist() == [10, 10, 10, 10]
    assert sorted(windows.shard.tolist()) == list(range(8))
    assert all_segments(lanes) == [[Segment(0, 0, 10), Segment(1, 0, 10)], [Segment(2, 0, 10), Segment(3, 0, 10)]]


def test_lanes_share_the_windows_of_the_rows_that_make_no_whole_turns_of_all_lanes() -> None:
    # 2 * 3 * 2 rows in lanes, then eight rows: a turn of each of lanes 0 and 1, then one of lane 2, and so on.
    windows, lanes = cut([4] * 4, 3, version=2, turn_rows=2, window_bytes=1000, shuffle=True)
    assert windows.lane.tolist() == [0, 1, 2, 3]
    assert windows.rows.tolist() == [4, 4, 4, 4]
    assert all_segments(lanes) == [
        [Segment(0, 0, 4), Segment(3, 0, 2)],
        [Segment(1, 0, 4), Segment(3, 2, 4)],
        [Segment(2, 0, 4)],
    ]
    few, shared = cut([2, 3], 4, version=2, turn_rows=4, window_bytes=1000, shuffle=True)
    assert (few.lane.tolist(), few.rows.tolist()) == ([4], [5])
    assert all_segments(shared) == [[Segment(0, 0, 4)], [Segment(0, 4, 5)], [], []]


def test_windows_that_lanes_share_are_smaller_unless_they_are_the_whole_epoch() -> None:
    # Two lanes of four turns of ten rows, and nineteen rows more. A row has ten bytes.
    windows, _ = cut([1] * 99, 2, version=2, turn_rows=10, window_bytes=400, shuffle=True)
    assert windows.lane.tolist() == [0, 1, 2, 2, 2, 2]
    assert windows.rows.tolist() == [40, 40, 5, 4, 5, 5]
    whole, _ = cut([1] * 99, 2, version=2, turn_rows=50, window_bytes=400, shuffle=True)
    assert (whole.lane.tolist(), whole.rows.tolist()) == ([2, 2, 2], [33, 33, 33])


def test_rows_in_file_order_stay_in_file_order_where_lanes_share_windows() -> None:
    windows, lanes = cut([3, 4], 2, version=2, turn_rows=3, sharing=Sharing(2))
    assert windows.lane.tolist() == [0, 1, 2]
    rows = [
        [(int(windows.shard[s.window]), int(windows.start[s.window]) + s.start, s.stop - s.start) for s in segments]
        for segments in all_segments(lanes)
    ]
    assert rows == [[(0, 0, 3)], [(1, 0, 3), (1, 3, 1)]]


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
    # Not copied: there may be millions of segments.
    assert lanes.delivered(lanes.rows) is lanes


def test_intervals_are_cut_out_of_a_line_row_by_row() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.choice([0, 1, 4], 8)
        line = [(item, row) for item, length in enumerate(lengths) for row in range(length)]
        low, high = random.integers(0, len(line) + 1, (2, 5))
        pieces = cut_items(lengths, np.cumsum(lengths), low, high)
        columns = (each.tolist() for each in pieces[:3])
        rows = [[(item, row) for row in range(start, stop)] for item, start, stop in zip(*columns, strict=True)]
        assert all(rows)
        starts = pieces.interval_starts.tolist()
        found = [[each for piece in rows[first:end] for each in piece] for first, end in pairwise(starts)]
        assert found == [line[start:stop] for start, stop in zip(low, high, strict=True)]


def test_the_rest_is_cut_again_in_lane_order() -> None:
    rest = lanes_of([6, 6], 2).undelivered(np.array([1, 4]))
    again = cut_again(rest, divide(1, 7, 3, 1, Sharing()))
    assert all_segments(again) == [[Segment(0, 1, 3)], [Segment(0, 3, 5)], [Segment(0, 5, 6), Segment(1, 4, 6)]]
    by_turns = cut_again(rest, divide(2, 7, 2, 3, Sharing()))
    assert all_segments(by_turns) == [[Segment(0, 1, 4), Segment(1, 5, 6)], [Segment(0, 4, 6), Segment(1, 4, 5)]]


@pytest.mark.parametrize("version", [1, 2])
def test_cutting_nothing_again_leaves_empty_lanes(version: int) -> None:
    again = cut_again(lanes_of([3], 1).undelivered(np.array([3])), divide(version, 0, 2, 1, Sharing()))
    assert again.rows.tolist() == [0, 0]
    assert again.num_rows == 0

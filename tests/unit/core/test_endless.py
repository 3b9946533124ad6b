"""The lanes of a source that runs on without end."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.division import divide
from laneway.core.endless import SourceLanes
from laneway.core.epoch_lanes import EpochRange, EqualEpochs, LaneShares, VaryingEpochs
from laneway.core.lanes import Remainder
from laneway.core.progress import Rest


def equal(
    num_lanes: int, remainder: Remainder, rests: tuple[Rest, ...], next_epoch: int, epoch_rows: int
) -> SourceLanes:
    """Return the lanes of a source whose epochs have as many rows each."""
    shares = LaneShares(num_lanes, remainder)
    return SourceLanes(shares, rests, next_epoch, EqualEpochs(shares, next_epoch, epoch_rows))


@st.composite
def source_lanes(draw: st.DrawFn) -> SourceLanes:
    next_epoch = draw(st.integers(0, 9))
    begun = sorted(draw(st.sets(st.integers(0, 8), max_size=3)))
    rests = tuple(Rest(epoch, draw(st.integers(1, 20))) for epoch in begun if epoch < next_epoch)
    num_lanes, remainder = draw(st.integers(1, 7)), draw(st.sampled_from(get_args(Remainder)))
    if draw(st.booleans()):
        return equal(num_lanes, remainder, rests, next_epoch, draw(st.integers(1, 20)))
    shares, sizes = LaneShares(num_lanes, remainder), draw(st.lists(st.integers(1, 20), min_size=2, max_size=5))
    return SourceLanes(
        shares, rests, next_epoch, VaryingEpochs(shares, next_epoch, lambda epoch: sizes[epoch % len(sizes)])
    )


endless = source_lanes().filter(lambda lanes: not lanes.has_end)


def delivered_rows(lanes: SourceLanes, epoch: int, epoch_lane: int) -> int:
    """Return the rows that a lane of an epoch delivers, as the division of the epoch's plan says."""
    division = divide(2, lanes.began(epoch).num_rows, lanes.num_lanes, 1, lanes.sharing)
    return int(division.ends(lanes.sharing.remainder, drop_last=False)[epoch_lane])


def rows_of(lanes: SourceLanes, lane: int, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Return (epoch, lane of the epoch, row in it) for rows of a lane."""
    return [(epoch, at, row) for epoch, at, low, high in lanes.ranges(lane, start, stop) for row in range(low, high)]


def test_a_lane_delivers_rests_first_and_then_one_epoch_after_another() -> None:
    lanes = equal(2, "keep", (Rest(3, 5), Rest(4, 1)), 5, 7)
    # Of five rows, lane 0 of an epoch has two; of one row it has none; of seven it has three.
    assert [*lanes.ranges(0, 1, 10)] == [EpochRange(3, 1, 1, 3), EpochRange(5, 1, 0, 4), EpochRange(6, 0, 0, 3)]
    assert [*lanes.ranges(1, 0, 6)] == [EpochRange(3, 0, 0, 2), EpochRange(4, 1, 0, 1), EpochRange(5, 0, 0, 3)]
    assert not [*lanes.ranges(1, 3, 3)]


@pytest.mark.parametrize(("remainder", "epoch_rows"), [("keep", 0), ("pad", 0), ("drop", 2)])
def test_a_source_without_rows_to_deliver_has_an_end(remainder: Remainder, epoch_rows: int) -> None:
    lanes = equal(3, remainder, (Rest(0, 3),), 1, epoch_rows)
    assert lanes.has_end
    assert [*lanes.ranges(0, 0, 1)] == [EpochRange(0, 0, 0, 1)]
    with pytest.raises(ValueError, match=f"a source with {epoch_rows} rows in 3 lanes has none to deliver"):
        [*lanes.ranges(0, 0, 2)]


def test_a_source_with_fewer_rows_than_lanes_has_rows_for_all_of_them() -> None:
    lanes = equal(5, "keep", (), 0, 1)
    assert [[each.epoch for each in lanes.ranges(lane, 0, 3)] for lane in range(5)] == [
        [4, 9, 14],
        [3, 8, 13],
        [2, 7, 12],
        [1, 6, 11],
        [0, 5, 10],
    ]


@given(endless, st.integers(1, 200))
def test_each_epoch_ends_where_its_division_says(lanes: SourceLanes, stop: int) -> None:
    for lane in range(lanes.num_lanes):
        *whole, last = lanes.ranges(lane, 0, stop)
        assert sum(each.stop - each.start for each in [*whole, last]) == stop
        for epoch, epoch_lane, low, high in whole:
            assert (low, high) == (0, delivered_rows(lanes, epoch, epoch_lane))
        assert 0 == last.start < last.stop <= delivered_rows(lanes, last.epoch, last.lane)


@given(endless, st.integers(0, 200), st.integers(0, 200))
def test_rows_can_be_asked_for_in_parts(lanes: SourceLanes, start: int, num_rows: int) -> None:
    for lane in range(lanes.num_lanes):
        parts = rows_of(lanes, lane, 0, start) + rows_of(lanes, lane, start, start + num_rows)
        assert parts == rows_of(lanes, lane, 0, start + num_rows)


@given(endless, st.integers(0, 150) | st.just(1500), st.data())
def test_what_has_begun_is_what_was_delivered(lanes: SourceLanes, least: int, data: st.DataObject) -> None:
    rows = [least + data.draw(st.integers(0, 4)) for _ in range(lanes.num_lanes)]
    begun, next_epoch = lanes.begun(np.array(rows))
    expected = Counter(row[:2] for lane, stop in enumerate(rows) for row in rows_of(lanes, lane, 0, stop))
    for each in begun:
        ends = [delivered_rows(lanes, each.rest.epoch, lane) for lane in range(lanes.num_lanes)]
        assert each.delivered.tolist() == [expected.pop((each.rest.epoch, lane), 0) for lane in range(len(ends))]
        assert each.is_complete == (each.delivered.tolist() == ends)
        if lanes.sharing.remainder == "keep":
            assert each.rows_left == sum(ends) - sum(each.delivered)
    # The epochs that were left out are complete.
    for (epoch, epoch_lane), num_rows in expected.items():
        assert num_rows == delivered_rows(lanes, epoch, epoch_lane)
        assert lanes.next_epoch <= epoch < next_epoch
    last = max((each.rest.epoch for each in begun), default=-1)
    assert next_epoch >= max(last + 1, lanes.next_epoch)
    assert [*lanes.rests] == [each.rest for each in begun[: len(lanes.rests)]]


@pytest.mark.parametrize("sizes", [(7,), (7, 1, 12)])
def test_rows_before_an_epoch_are_those_of_the_epochs_before(sizes: tuple[int, ...]) -> None:
    shares = LaneShares(3, "keep")
    epochs = VaryingEpochs(shares, 2, lambda epoch: sizes[epoch % len(sizes)])
    lanes = SourceLanes(shares, (Rest(1, 4),), 2, epochs)
    for epoch in range(2, 12):
        stops = lanes.rows_before(epoch)
        assert int(stops.sum()) == 4 + sum(sizes[each % len(sizes)] for each in range(2, epoch))
        assert lanes.begun(stops)[1] == epoch
        if len(sizes) == 1:
            assert stops.tolist() == equal(3, "keep", (Rest(1, 4),), 2, 7).rows_before(epoch).tolist()


def test_epochs_that_never_have_enough_rows_for_all_lanes_are_an_error() -> None:
    shares = LaneShares(9, "drop")
    epochs = VaryingEpochs(shares, 0, lambda epoch: 9 if epoch == 0 else 8)
    assert [*epochs.ranges(4, 0, 1)] == [EpochRange(0, 4, 0, 1)]
    with pytest.raises(ValueError, match="a source has no rows to deliver in 9 lanes"):
        [*epochs.ranges(4, 0, 2)]

"""Divisions: which rows belong to which lane, and how many each lane delivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.division import EvenDivision, Sharing, TurnDivision, divide
from laneway.core.lanes import Remainder

if TYPE_CHECKING:
    from laneway.core.division import Division


def rows_of_lanes(division: Division) -> list[int]:
    rows: list[int] = np.bincount(division.lane, np.diff(division.bounds), division.num_lanes).astype(int).tolist()
    return rows


def test_the_order_version_selects_the_division() -> None:
    assert isinstance(divide(1, 9, 2, 1, Sharing()), EvenDivision)
    assert isinstance(divide(2, 9, 2, 1, Sharing()), TurnDivision)


def test_even_lanes_differ_by_one_row_at_most() -> None:
    division = divide(1, 20, 3, 4, Sharing())
    assert division.bounds.tolist() == [0, 6, 13, 20]
    assert division.owner.tolist() == division.lane.tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_rows", [0, 7, 10**15 + 3])
def test_bounds_are_exact_for_any_number_of_rows(num_rows: int) -> None:
    bounds = divide(1, num_rows, 1000, 1, Sharing()).bounds
    assert bounds.tolist() == [lane * num_rows // 1000 for lane in range(1001)]


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
def test_in_order_version_1_lanes_are_padded_and_dropped(
    remainder: Remainder, drop_last: bool, expected: list[int]
) -> None:
    assert divide(1, 20, 3, 4, Sharing()).ends(remainder, drop_last=drop_last).tolist() == expected


def test_what_makes_no_whole_turns_of_all_lanes_is_laid_out_turn_by_turn() -> None:
    # Four lanes of six rows, in turns of three; then a global batch: turns of lanes 0 and 1; then three rows for two
    # ranks.
    division = divide(2, 24 + 6 + 3, 4, 3, Sharing(2))
    assert division.bounds.tolist() == [0, 6, 12, 18, 24, 27, 30, 31, 33]
    assert division.lane.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert division.owner.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert division.settled_rows.tolist() == [9, 9, 6, 6]


@pytest.mark.parametrize(
    ("remainder", "drop_last", "expected"),
    [
        ("keep", False, [9, 9, 7, 8]),
        ("pad", False, [9, 9, 8, 8]),
        ("drop", False, [9, 9, 7, 7]),
        ("keep", True, [9, 9, 6, 6]),
        ("pad", True, [9, 9, 6, 6]),
        ("drop", True, [9, 9, 6, 6]),
    ],
)
def test_in_order_version_2_ranks_are_padded_and_dropped(
    remainder: Remainder, drop_last: bool, expected: list[int]
) -> None:
    assert divide(2, 33, 4, 3, Sharing(2)).ends(remainder, drop_last=drop_last).tolist() == expected


def test_the_share_of_a_rank_fills_its_turns_in_order() -> None:
    # A global batch of two ranks with two turns of three rows each; nine rows: four and five.
    division = divide(2, 9, 4, 3, Sharing(2, 2))
    assert rows_of_lanes(division) == [3, 1, 3, 2]
    assert division.ends("pad", drop_last=False).tolist() == [3, 2, 3, 2]


@given(
    st.integers(0, 500),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from(get_args(Remainder)),
    st.booleans(),
)
def test_the_items_of_a_rank_are_those_of_its_lanes(
    num_rows: int, world_size: int, turns: int, groups: int, turn_rows: int, remainder: Remainder, drop_last: bool
) -> None:
    division = TurnDivision(num_rows, groups * world_size * turns, turn_rows, world_size, turns)
    assert division.bounds[-1] == num_rows
    ends = division.ends(remainder, drop_last=drop_last)
    padding = np.maximum(ends - rows_of_lanes(division), 0)
    assert padding.max() <= 1
    for rank in range(world_size):
        own = ends.reshape(groups, world_size, turns)[:, rank]
        batches = -(-own // turn_rows)
        expected = (int(batches.max(axis=1).sum()), int(own.sum()))
        assert division.num_items(rank, remainder, drop_last=drop_last) == expected
        assert padding.reshape(groups, world_size, turns)[:, rank].sum() <= 1
    settled = division.settled_rows
    others = TurnDivision(num_rows, division.num_lanes, turn_rows, 1, 1)
    assert np.all(settled <= others.settled_rows), "smaller global batches settle more"

"""Mixing: the sources of the rows of a lane, from weights."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from laneway.core.mixing import MAX_DENOMINATOR, MAX_SOURCES, Mixing, exact_weights, mixing_of


def test_the_pattern_of_a_lane_is_pinned() -> None:
    mixing = Mixing([0.7, 0.3])
    assert mixing.lane(0).sources(0, 20).tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    assert Mixing([5, 0, 1, 2]).lane(1).sources(3, 19).tolist() == [3, 0, 0, 3, 0, 0, 2, 0, 3, 0, 0, 3, 0, 0, 2, 0]
    assert mixing.counts(np.array([10**6] * 4)).tolist() == [[700_000] * 4, [300_000] * 4]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.3], [Fraction(7, 10), Fraction(3, 10)]),
        ([1e-6, 2], [Fraction(1, 10**6), Fraction(2)]),
        ([0, 0.1 + 0.2], [Fraction(0), Fraction("0.30000000000000004")]),
        ([np.float64(0.1), np.int64(3)], [Fraction(1, 10), Fraction(3)]),
    ],
)
def test_a_float_counts_as_the_decimal_number_that_it_is_printed_as(
    weights: list[float], expected: list[Fraction]
) -> None:
    assert exact_weights(weights) == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "at least one source must have a weight above 0"),
        ([0, 0.0], "at least one source must have a weight above 0"),
        ([1, -0.5], "must be a number >= 0, not -0.5"),
        ([1, float("nan")], "must be a number >= 0, not nan"),
        ([float("inf"), 1], "must be a number >= 0, not inf"),
        ([1, 1e-10], "a weight of 1e-10 is too small beside a total of 1.0"),
        ([1] * (MAX_SOURCES + 1), "can have 1,048,576 sources, not 1,048,577"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(weights)


def test_a_mixing_is_built_once_for_weights_of_the_same_values_and_types() -> None:
    assert mixing_of(0.7, 2) is mixing_of(0.7, 2)
    assert mixing_of(0.7, 2) is not mixing_of(0.7, 2.0)


def test_a_single_source_has_all_rows() -> None:
    mixing = Mixing([0, 3, 0])
    assert mixing.counts(np.array([5, 2**63 - 1])).tolist() == [[0, 0], [5, 2**63 - 1], [0, 0]]
    [rows] = mixing.lane(1).split(7, 10)
    assert (rows.source, rows.start, rows.places.tolist()) == (1, 7, [0, 1, 2])
    assert mixing.lane(0).source_of(2**62) == 1
    assert [mixing.lane(0).count(source, 9) for source in range(3)] == [0, 9, 0]


def test_no_rows_have_no_sources() -> None:
    lane = Mixing([1, 2]).lane(0)
    assert lane.split(5, 5) == []
    assert lane.sources(5, 5).tolist() == []


def test_counts_are_exact_up_to_the_largest_number_of_rows() -> None:
    rows, whole = 2**63 - 1, MAX_DENOMINATOR
    mixing = Mixing([MAX_DENOMINATOR - 1, 1])
    of_rare = mixing.counts(np.array([rows, rows - 1]))[1].tolist()
    assert all(abs(count - rows // whole) <= 1 for count in of_rare)
    assert [mixing.lane(lane).count(1, rows - lane) for lane in range(2)] == of_rare
    last = mixing.lane(0).sources(rows - 2000, rows)
    assert np.bincount(last, minlength=2)[0] == mixing.lane(0).count(0, rows) - mixing.lane(0).count(0, rows - 2000)


def test_lanes_take_their_rare_rows_at_different_times() -> None:
    num_lanes, batch_rows, weight = 256, 8, 0.03
    mixing = Mixing([1 - weight, weight])
    ends = [mixing.counts(np.full(num_lanes, rows))[1].sum() for rows in range(0, 4000, batch_rows)]
    share = np.diff(ends) / (num_lanes * batch_rows)
    assert np.all(abs(share - weight) < 0.6 * weight)
    # If they all began alike, most batches would have none.
    alike = np.diff([mixing.lane(0).count(1, rows) for rows in range(0, 4000, batch_rows)]) / batch_rows
    assert np.mean(alike == 0) > 0.5

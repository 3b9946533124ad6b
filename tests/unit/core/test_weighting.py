"""Weightings: which weights hold from which row on, and when a mixture ends."""

from __future__ import annotations

from fractions import Fraction

import pytest

from laneway.core.weighting import Phase, Weighting, shares_of

A, B = {"web": 3, "code": 1}, {"web": 0, "code": 1}
ROWS = {"web": 30, "code": 20}


def test_weights_hold_until_the_next_ones() -> None:
    weighting = Weighting((Phase(0, A), Phase(8, B)))
    assert [weighting.weights_at(rows) for rows in (0, 7, 8, 99)] == [A, A, B, B]
    assert [weighting.change_after(rows) for rows in (0, 7, 8)] == [8, 8, None]
    assert weighting.largest_shares == {"web": Fraction(3, 4), "code": 1}


def test_shares_are_those_of_weights_of_any_size() -> None:
    assert shares_of(A) == {"web": 0.75, "code": 0.25}
    assert shares_of({"web": 1.5e308, "code": 0.5e308}) == {"web": 0.75, "code": 0.25}


def test_weights_do_not_change_after_the_end() -> None:
    assert Weighting((Phase(0, A), Phase(8, B)), 8).change_after(0) is None
    assert Weighting((Phase(0, A), Phase(8, B)), 9).change_after(0) == 8


@pytest.mark.parametrize(
    ("phases", "stop", "num_rows"),
    [
        ((Phase(0, A),), None, None),
        ((Phase(0, A),), 7, 7),
        ((Phase(0, A),), "first_exhausted", 40),
        ((Phase(0, A),), "all_exhausted", 80),
        # After 20 rows, 5 of code: the other 15 follow at once.
        ((Phase(0, A), Phase(20, B)), "first_exhausted", 35),
        ((Phase(0, A), Phase(41, B)), "all_exhausted", 51),
        ((Phase(0, B),), "all_exhausted", 20),
    ],
)
def test_the_rows_of_a_mixture_follow_from_weights_and_sources(
    phases: tuple[Phase, ...], stop: object, num_rows: int | None
) -> None:
    assert Weighting(phases, stop).rows_in_all(ROWS) == num_rows  # type: ignore[arg-type]


def test_epochs_count_as_often() -> None:
    assert Weighting((Phase(0, {"web": 1}),), "all_exhausted", 3).rows_in_all({"web": 7}) == 21


def test_a_source_whose_weight_becomes_zero_is_never_exhausted() -> None:
    with pytest.raises(ValueError, match="the weight of source 'web' becomes 0"):
        Weighting((Phase(0, A), Phase(8, B)), "all_exhausted").rows_in_all(ROWS)

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.intervals import Intervals

pairs = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6)


def of(edges: list[tuple[int, int]]) -> tuple[Intervals, set[int]]:
    columns = np.array(edges, np.int64).reshape(-1, 2)
    return Intervals.of(columns[:, 0], columns[:, 1]), {number for edge in edges for number in range(*edge)}


@pytest.mark.parametrize("combine", [operator.or_, operator.and_, operator.sub])
@given(a=pairs, b=pairs)
def test_intervals_are_sets(combine: object, a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    assert callable(combine)
    (mine, expected_mine), (its, expected_its) = of(a), of(b)
    found, expected = combine(mine, its), combine(expected_mine, expected_its)
    listed = zip(found.starts.tolist(), found.stops.tolist(), strict=True)
    assert [number for edge in listed for number in range(*edge)] == sorted(expected)
    assert len(found) == len(expected)
    assert np.all(found.starts[1:] > found.stops[:-1])

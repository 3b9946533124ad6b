"""Law: at every row of every lane of a mixture, each source is within two rows of its weight."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.mixing import MAX_DENOMINATOR, Mixing, exact_weights

weights_of_any_size = st.one_of(
    st.just(0), st.integers(1, 1000), st.sampled_from([1e-5, 0.013, 1.006, 0.3, 0.7]), st.floats(1e-3, 1e3)
)
many_weights = st.builds(
    lambda seed, count, sigma: np.random.default_rng(seed).lognormal(0, sigma, size=(count,)).tolist(),
    st.integers(0, 2**32),
    st.integers(1, 200),
    st.floats(0.1, 2.5),
)
# Each number as large as all before it: the deepest tree.
fibonacci = st.integers(2, 30).map(lambda n: [round(((1 + 5**0.5) / 2) ** i) for i in range(n)])
mixtures = st.one_of(
    st.sampled_from([[1, 1e-6], [1, 1.006], [0.7, 0.3], [1]]),
    st.lists(weights_of_any_size, min_size=1, max_size=9).filter(any),
    many_weights,
    fibonacci,
)
lanes = st.integers(0, 2**20 - 1)
starts = st.one_of(st.just(0), st.integers(0, 2**28))


def _too_far(weights: list[float], counts: np.ndarray, rows: np.ndarray) -> list[object]:
    """Return the (source, rows, count) that are more than two rows off, in exact arithmetic."""
    exact = exact_weights(weights)
    total = sum(exact)
    # A first look in floating point, which is exact enough to leave out what is clearly right.
    share = np.array([float(weight / total) for weight in exact])
    near = np.argwhere(abs(counts - rows * share[:, None]) > 1.9)
    return [
        (source, int(rows[at]), int(counts[source, at]))
        for source, at in near.tolist()
        if abs(int(counts[source, at]) - Fraction(int(rows[at])) * exact[source] / total) > 2
    ]


@given(mixtures, lanes, starts)
@settings(max_examples=100)
def test_every_source_is_within_two_rows_of_its_weight(weights: list[float], lane: int, start: int) -> None:
    mixing, num_rows = Mixing(weights).lane(lane), 3000
    sources = mixing.sources(start, start + num_rows)
    taken = np.zeros((len(weights), num_rows + 1), np.int64)
    taken[sources, np.arange(1, num_rows + 1)] = 1
    before = np.array([mixing.count(source, start) for source in range(len(weights))])
    counts = before[:, None] + np.cumsum(taken, axis=1)
    assert not _too_far(weights, counts, start + np.arange(num_rows + 1))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(any), lanes, st.integers(0, 2**63 - 1))
def test_weights_that_are_whole_numbers_are_kept_for_any_number_of_rows(
    weights: list[int], lane: int, rows: int
) -> None:
    mixing, total = Mixing(weights).lane(lane), sum(weights)
    assert total <= MAX_DENOMINATOR
    counts = [mixing.count(source, rows) for source in range(len(weights))]
    assert sum(counts) == rows
    assert all(abs(count * total - rows * weight) <= 2 * total for count, weight in zip(counts, weights, strict=True))


@given(mixtures, st.integers(1, 5), starts, st.integers(1, 300))
def test_all_ways_to_ask_agree(weights: list[float], num_lanes: int, start: int, num_rows: int) -> None:
    mixing = Mixing(weights)
    counts = mixing.counts(np.array([start + 7 * lane for lane in range(num_lanes)]))
    for lane in range(num_lanes):
        of_lane, first = mixing.lane(lane), start + 7 * lane
        assert counts[:, lane].tolist() == [of_lane.count(source, first) for source in range(len(weights))]
        sources = of_lane.sources(first, first + num_rows)
        assert sources.tolist() == [of_lane.source_of(row) for row in range(first, first + num_rows)]
        for source, source_start, places in of_lane.split(first, first + num_rows):
            assert places.tolist() == np.flatnonzero(sources == source).tolist()
            assert source_start == counts[source, lane]
            of_source = range(source_start, source_start + len(places))
            assert [of_lane.row_of(source, row) for row in of_source] == (first + places).tolist()

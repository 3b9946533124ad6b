"""Merging ranges that are close together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laneway.storage.ranges import coalesce


def test_ranges_are_merged_over_small_gaps_up_to_the_longest_span() -> None:
    assert coalesce([(50, 60), (0, 10), (12, 20)], max_gap_bytes=2, max_span_bytes=100) == [(0, 20), (50, 60)]
    assert coalesce([(0, 10), (12, 20)], max_gap_bytes=1, max_span_bytes=100) == [(0, 10), (12, 20)]
    assert coalesce([(0, 10), (10, 20), (20, 30)], max_gap_bytes=0, max_span_bytes=20) == [(0, 20), (20, 30)]
    assert coalesce([], max_gap_bytes=0, max_span_bytes=1) == []


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 20)).map(lambda each: (each[0], sum(each)))),
    st.integers(0, 9),
    st.integers(1, 200),
)
def test_merged_ranges_are_sorted_and_contain_every_range(
    ranges: list[tuple[int, int]], max_gap_bytes: int, max_span_bytes: int
) -> None:
    merged = coalesce(ranges, max_gap_bytes, max_span_bytes)
    assert merged == sorted(merged)
    assert all(any(first <= start and stop <= last for first, last in merged) for start, stop in ranges)

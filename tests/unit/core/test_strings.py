"""A column of strings: a sequence like a tuple of them, in two arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.strings import Strings

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=5)


@given(TEXTS)
def test_a_column_is_a_sequence_of_what_it_was_made_of(texts: list[str]) -> None:
    column = Strings.of(texts)
    assert list(column) == texts
    assert [column[index] for index in range(-len(texts), len(texts))] == texts * 2
    assert column == texts
    assert column == tuple(texts)
    assert column == Strings.of(texts)
    assert pickle.loads(pickle.dumps(column)) == texts
    assert column[1:-1] == tuple(texts[1:-1])
    assert bytes(column.joined()) == "\0".join(texts).encode()
    with pytest.raises(IndexError):
        column[len(texts)]


@given(TEXTS, TEXTS)
def test_two_columns_are_equal_if_their_strings_are(first: list[str], second: list[str]) -> None:
    assert (Strings.of(first) == Strings.of(second)) == (first == second)
    assert (Strings.of(first) == second) == (first == second)


@given(TEXTS, st.integers(0, 5), st.integers(0, 5))
def test_a_part_is_a_column_that_shares_the_data(texts: list[str], start: int, stop: int) -> None:
    start, stop = sorted((min(start, len(texts)), min(stop, len(texts))))
    column = Strings.of(texts)
    part = column.part(start, stop)
    assert part == texts[start:stop]
    assert len(part) == 0 or np.shares_memory(part.data, column.data)


def test_a_column_is_no_string_and_differs_from_one() -> None:
    assert Strings.of(["a"]) != "a"
    assert Strings.of(["a", "b"]) != "ab"


def test_the_repr_shows_a_few_strings() -> None:
    assert repr(Strings.of(["a", "b"])) == "<Strings: 'a', 'b'>"
    assert repr(Strings.of("abcdef")) == "<Strings: 'a', 'b', 'c', and 3 more>"

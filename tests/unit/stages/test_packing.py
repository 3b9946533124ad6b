"""Packing: which tokens are in which pack, and the arrays of a pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from laneway.stages.packing import Packs, best_fit, chunk, chunk_places, chunk_tokens
from laneway.stages.tokens import TokenLists

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.stages.packing import Overflow


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def documents(*values: int) -> TokenLists:
    """Return documents of these lengths: the tokens of document 3 are 300, 301, 302, ..."""
    tokens = [100 * index + np.arange(count) for index, count in enumerate(values)]
    return TokenLists(np.concatenate([[7], *tokens, [8]]).astype(np.int32), 1 + np.cumsum([0, *values]))


def pieces(packs: Packs) -> list[list[tuple[int, int, int]]]:
    """Return (document, start, tokens) of the pieces of each pack."""
    rows = [*zip(packs.document.tolist(), packs.start.tolist(), packs.tokens.tolist(), strict=True)]
    return [rows[start:stop] for start, stop in zip(packs.first_pieces[:-1], packs.first_pieces[1:], strict=True)]


def test_each_document_goes_into_the_fullest_pack_that_has_room() -> None:
    packs = best_fit(lengths(3, 7, 5, 3, 2), 10)
    # 7 opens a pack, and so does 5; the first 3 fills that of 7; the second 3 and the 2 fill that of 5.
    assert pieces(packs) == [[(0, 0, 3), (1, 0, 7)], [(2, 0, 5), (3, 0, 3), (4, 0, 2)]]
    assert packs.num_padding == 0


def test_packs_are_in_the_order_of_their_longest_documents() -> None:
    assert [pack[0][0] for pack in pieces(best_fit(lengths(6, 9, 7, 8), 10))] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [
        ("split", [[(0, 0, 4)], [(0, 4, 4)], [(0, 8, 1), (1, 0, 3)], [(2, 0, 4)]]),
        ("truncate", [[(0, 0, 4)], [(1, 0, 3)], [(2, 0, 4)]]),
        ("drop", [[(1, 0, 3)], [(2, 0, 4)]]),
    ],
)
def test_a_document_that_is_longer_than_a_pack(overflow: Overflow, expected: list[object]) -> None:
    assert pieces(best_fit(lengths(9, 3, 4, 0), 4, overflow=overflow)) == expected


def test_a_document_that_is_longer_than_a_pack_may_be_an_error() -> None:
    with pytest.raises(ValueError, match="document 1 has 5,000 tokens, but a pack has 2,048: use longer packs"):
        best_fit(lengths(2048, 5000), 2048, overflow="error")
    assert len(best_fit(lengths(2048), 2048, separator=True, overflow="error")) == 1


@pytest.mark.parametrize("strategy", [best_fit, chunk])
@pytest.mark.parametrize("values", [(), (0,), (0, 0, 0)])
def test_no_tokens_are_no_packs(strategy: Callable[..., Packs], values: tuple[int, ...]) -> None:
    packs = strategy(lengths(*values), 4, separator=True)
    assert len(packs) == packs.num_padding == 0
    assert packs.input_ids(documents(*values), 0, 0).shape == packs.document_ids(0, 0).shape == (0, 4)
    assert chunk_tokens(documents(*values), 4, separator=1).shape == (0, 4)


def test_the_arrays_of_packs() -> None:
    packs = best_fit(lengths(5, 2, 6, 9), 8, separator=True)
    tokens = documents(5, 2, 6, 9)
    ids = packs.input_ids(tokens, 0, len(packs), separator=-1, pad_value=-2)
    assert ids.dtype == np.int64
    assert ids.tolist() == [
        [0, 1, 2, 3, 4, -1, 308, -1],
        [100, 101, -1, -2, -2, -2, -2, -2],
        [200, 201, 202, 203, 204, 205, -1, -2],
        [300, 301, 302, 303, 304, 305, 306, 307],
    ]
    document_ids, position_ids = packs.document_ids(0, 3), packs.position_ids(0, 3)
    assert document_ids.dtype == position_ids.dtype == np.int64
    assert document_ids.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]
    assert position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 0]]


def test_a_part_of_the_packs_is_the_same_as_in_all_of_them() -> None:
    values = (5, 2, 6, 9, 3, 3, 1)
    packs, tokens = best_fit(lengths(*values), 8, separator=True), documents(*values)
    for first, stop in [(0, 1), (1, 3), (2, 2), (0, len(packs))]:
        whole = packs.input_ids(tokens, 0, len(packs), separator=9)[first:stop]
        assert packs.input_ids(tokens, first, stop, separator=9).tolist() == whole.tolist()
        assert packs.document_ids(first, stop).tolist() == packs.document_ids(0, len(packs))[first:stop].tolist()
        assert packs.position_ids(first, stop).tolist() == packs.position_ids(0, len(packs))[first:stop].tolist()


def places(*arguments: Any, **options: Any) -> list[tuple[int, int]]:
    found = chunk_places(*arguments, **options)
    return [*zip(found.document.tolist(), found.offset.tolist(), strict=True)]


def test_chunks_are_cut_wherever_a_pack_is_full() -> None:
    packs = chunk(lengths(5, 0, 2, 9), 4)
    assert pieces(packs) == [[(0, 0, 4)], [(0, 4, 1), (2, 0, 2), (3, 0, 1)], [(3, 1, 4)], [(3, 5, 4)]]
    assert places(lengths(5, 0, 2, 9), 4) == [(0, 0), (0, 4), (3, 1), (3, 5), (4, 0)]
    assert chunk_tokens(documents(5, 0, 2, 9), 4).tolist() == [
        [0, 1, 2, 3],
        [4, 200, 201, 300],
        [301, 302, 303, 304],
        [305, 306, 307, 308],
    ]


def test_chunks_without_a_separator_are_not_copied() -> None:
    tokens = documents(5, 2, 9)
    assert np.shares_memory(chunk_tokens(tokens, 4, skip=3), tokens.values)


def test_a_separator_may_begin_a_chunk() -> None:
    packs = chunk(lengths(4, 3), 4, separator=True)
    assert pieces(packs) == [[(0, 0, 4)], [(0, 4, 0), (1, 0, 3)]]
    assert packs.separator.tolist() == [False, True, False]
    assert packs.input_ids(documents(4, 3), 0, 2, separator=-1).tolist() == [[0, 1, 2, 3], [-1, 100, 101, 102]]
    assert places(lengths(4, 3), 4, separator=True) == [(0, 0), (0, 4), (1, 3)]
    assert places(lengths(), 4, skip=2) == [(0, 2)]


def test_a_separator_may_be_larger_than_the_type_of_the_tokens_can_hold() -> None:
    packs, tokens = best_fit(lengths(2), 4, separator=True), TokenLists(np.zeros(2, np.uint16), lengths(0, 2))
    assert packs.input_ids(tokens, 0, 1, separator=70_000).tolist() == [[0, 0, 70_000, 0]]

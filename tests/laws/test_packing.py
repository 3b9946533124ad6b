"""Law: every token is in exactly one pack, and no document is cut that fits into one."""

from __future__ import annotations

from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from laneway.stages.packing import Overflow, Packs, best_fit, chunk, chunk_places, chunk_tokens
from laneway.stages.tokens import TokenLists

SEPARATOR, PADDING = -1, -2
many_lengths = st.lists(st.integers(0, 40) | st.integers(0, 6), max_size=60)
pack_lengths = st.integers(1, 24)


def documents(lengths: list[int]) -> TokenLists:
    """Return documents whose tokens are all different."""
    return TokenLists(np.arange(sum(lengths)), np.cumsum([0, *lengths]))


def arrays(packs: Packs, tokens: TokenLists) -> np.ndarray:
    return packs.input_ids(tokens, 0, len(packs), separator=SEPARATOR, pad_value=PADDING)


@given(
    many_lengths, pack_lengths, st.booleans(), st.sampled_from([each for each in get_args(Overflow) if each != "error"])
)
def test_best_fit_packs_every_token_once_and_cuts_no_document_that_fits(
    lengths: list[int], length: int, separator: bool, overflow: Overflow
) -> None:
    tokens = documents(lengths)
    packs = best_fit(np.array(lengths, np.int64), length, separator=separator, overflow=overflow)
    ids, document_ids, position_ids = (
        arrays(packs, tokens),
        packs.document_ids(0, len(packs)),
        packs.position_ids(0, len(packs)),
    )
    expected: list[int] = []
    for start, count in zip(tokens.starts.tolist(), lengths, strict=False):
        kept = {"split": count, "truncate": min(count, length), "drop": count if count <= length else 0}[overflow]
        expected += range(start, start + kept)
    assert sorted(ids[ids >= 0].tolist()) == expected
    assert np.array_equal(ids == PADDING, document_ids == 0)
    # A document that fits is in one pack, whole and in order, and a separator follows unless it fills the pack.
    for start, count in zip(tokens.starts.tolist(), lengths, strict=False):
        if 0 < count <= length:
            pack, place = np.argwhere(ids == start)[0]
            assert ids[pack, place : place + count].tolist() == [*range(start, start + count)]
            width = count + (separator and count < length)
            assert len({*document_ids[pack, place : place + width].tolist()}) == 1
            assert position_ids[pack, place : place + width].tolist() == [*range(width)]
            if width > count:
                assert ids[pack, place + count] == SEPARATOR
    assert (ids == SEPARATOR).any() <= separator
    # Any two packs that could be one would be one.
    used = np.sort((ids != PADDING).sum(axis=1))
    assert len(used) < 2 or used[0] + used[1] > length


@given(many_lengths, pack_lengths, st.booleans(), st.data())
def test_chunks_hold_every_token_in_order_and_can_begin_anywhere(
    lengths: list[int], length: int, separator: bool, data: st.DataObject
) -> None:
    of_documents, tokens = np.array(lengths, np.int64), documents(lengths)
    line = [
        token
        for row in zip(tokens.starts, lengths, strict=False)
        for token in _with_separator(*row, separator=separator)
    ]
    skip = data.draw(st.integers(0, min(len(line), 50)))
    packs = chunk(of_documents, length, separator=separator, skip=skip)
    ids = arrays(packs, tokens)
    stop = skip + len(packs) * length
    assert ids.ravel().tolist() == line[skip:stop]
    assert len(line) - stop < length
    assert packs.num_padding == 0
    assert np.array_equal(ids, chunk_tokens(tokens, length, separator=SEPARATOR if separator else None, skip=skip))
    # From any place, the chunks that follow are the same.
    places = chunk_places(of_documents, length, separator=separator, skip=skip)
    assert len(places.document) == len(places.offset) == len(packs) + 1
    at = data.draw(st.integers(0, len(packs)))
    document, offset = int(places.document[at]), int(places.offset[at])
    rest = TokenLists(tokens.values, tokens.starts[document:])
    again = chunk(rest.lengths, length, separator=separator, skip=offset)
    assert np.array_equal(arrays(again, rest), ids[at:])


def _with_separator(start: int, count: int, *, separator: bool) -> list[int]:
    return [*range(start, start + count), *([SEPARATOR] if separator and count else [])]


@given(many_lengths, pack_lengths, st.booleans())
def test_packs_are_a_pure_function_of_the_lengths(lengths: list[int], length: int, separator: bool) -> None:
    for strategy in (best_fit, chunk):
        one, other = (strategy(np.array(lengths, np.int64), length, separator=separator) for _ in range(2))
        assert np.array_equal(one.document, other.document)
        assert np.array_equal(one.start, other.start)
        assert np.array_equal(one.first_pieces, other.first_pieces)

"""What is found in the bytes of a text, as numpy and Python find it."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.formats import text_search
from laneway.formats.text_search import positions_of


@pytest.fixture(autouse=True, scope="module")
def _slices_are_short() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_search, "_SLICE_BYTES", 16)
        yield


def is_utf8(data: bytes | bytearray) -> bool:
    return text_search.is_utf8(np.frombuffer(data, np.uint8))


def can_be_decoded(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.sampled_from(b'a",\n'), max_size=90).map(bytes))
def test_places_of_values_are_those_that_numpy_finds(data: bytes) -> None:
    codes = np.frombuffer(data, np.uint8)
    assert positions_of(codes, 10).tolist() == np.flatnonzero(codes == 10).tolist()
    assert positions_of(codes, 10, 34).tolist() == np.flatnonzero((codes == 10) | (codes == 34)).tolist()


def test_every_sequence_of_two_bytes_is_judged_as_by_python_and_longer_ones_by_their_classes() -> None:
    edges = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    others = itertools.product(range(0xE0, 0x100), edges, edges)
    for each in itertools.chain(itertools.product(range(256), repeat=2), others):
        for before, after in ((b"", b""), (b"fourteen bytes", b"\x80")):
            data = before + bytes(each) + after
            assert is_utf8(data) == can_be_decoded(data), data


@pytest.mark.parametrize("seed", range(4))
def test_characters_of_any_width_and_single_wrong_bytes_are_judged_as_by_python(seed: int) -> None:
    draw = random.Random(seed)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0x10000, 0x110000)]
    for _ in range(1000):
        data = bytearray("".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(30))).encode())
        assert is_utf8(data)
        if data:
            data[draw.randrange(len(data))] = draw.randrange(256)
        assert is_utf8(data) == can_be_decoded(bytes(data))

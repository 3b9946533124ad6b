"""Offsets: what was delivered of a row or group, with check bits of what it consists of."""

from __future__ import annotations

import numpy as np
import pytest

from laneway.core.consistency import MAX_COUNT
from laneway.errors import NotReproducibleError
from laneway.stages.offsets import (
    MAX_DELIVERED,
    check_offset,
    decode_offset,
    digest_of,
    encode_offset,
    resume_group,
)


def test_an_offset_holds_what_was_delivered_and_is_a_number_that_states_can_hold() -> None:
    for delivered in (1, 7, MAX_DELIVERED):
        offset = encode_offset(delivered, 2**64 - 1)
        assert decode_offset(offset).delivered == delivered
        assert 0 < offset < MAX_COUNT
    with pytest.raises(ValueError, match="more than 1,073,741,823 items or tokens"):
        encode_offset(MAX_DELIVERED + 1, 0)


def test_the_digest_of_lengths_is_pinned() -> None:
    assert digest_of(np.array([3, 0, 2], np.int64)) == 3_120_194_677


def test_another_number_or_other_lengths_are_noticed() -> None:
    offset = encode_offset(3, 5)
    assert check_offset(offset, 4, 5, of="items of a row") == 3
    assert check_offset(0, 4, 9, of="items of a row") == 0
    for num_made, check in ((4, 6), (3, 5), (0, 5)):
        with pytest.raises(NotReproducibleError, match=rf"3 items of a row were delivered before.*{num_made} in all"):
            check_offset(offset, num_made, check, of="items of a row")


def test_the_offset_in_a_carried_group_counts_from_where_its_cut_ended() -> None:
    carried = encode_offset(3, 5)
    first, offset_after = resume_group(0, carried, 8, 5, of="items")
    assert first == 3
    assert [offset_after(delivered) for delivered in (4, 5)] == [1, 2]
    again, _ = resume_group(offset_after(5), carried, 8, 5, of="items")
    assert again == 5
    # Cut again, the sum is an offset with the check bits of before.
    assert check_offset(carried + offset_after(5), 8, 5, of="items") == 5
    with pytest.raises(NotReproducibleError):
        resume_group(offset_after(5), carried, 8, 6, of="items")

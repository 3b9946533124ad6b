"""Offsets: how much of a row or group of rows has been delivered, with check bits of what it consists of.

A state holds no items. They are made again of the same rows, and if these make other items now, the offset would be
that of others. So its upper bits tell what the row or group was made of; with nothing delivered, they are 0.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from laneway.errors import NotReproducibleError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

_DELIVERED_BITS: Final = 30
_CHECK_BITS: Final = 17
MAX_DELIVERED: Final = (1 << _DELIVERED_BITS) - 1
"""Maximum number of items, or tokens, of a row or group."""
_CHECK_MASK: Final = (1 << _CHECK_BITS) - 1


class Offset(NamedTuple):
    """What an offset consists of."""

    delivered: int
    """Items, or tokens, that have been delivered."""
    check: int
    """Check bits of what the row or group was made of."""


def encode_offset(delivered: int, check: int) -> int:
    """Return the offset of a row or group of which something has been delivered.

    Args:
        delivered: Items, or tokens, that have been delivered, >= 1.
        check: What the row or group consists of: a number, of which the lower bits are kept.

    Raises:
        ValueError: The row or group has more items, or tokens, than can be counted.
    """
    if delivered > MAX_DELIVERED:
        message = f"a row or group has more than {MAX_DELIVERED:,} items or tokens, so its progress can't be counted"
        raise ValueError(message)
    return delivered + ((check & _CHECK_MASK) << _DELIVERED_BITS)


def decode_offset(offset: int) -> Offset:
    """Return what an offset consists of."""
    return Offset(offset & MAX_DELIVERED, offset >> _DELIVERED_BITS)


def digest_of(lengths: NDArray[np.int64]) -> int:
    """Return a number that tells the lengths of documents from others."""
    return zlib.crc32(lengths.astype("<i8").tobytes())


def check_offset(offset: int, num_made: int, check: int, *, of: str) -> int:
    """Return how much of a row or group has been delivered, after checking that it makes the same now.

    Args:
        offset: The offset.
        num_made: Items, or tokens, that it makes now.
        check: What it consists of now; see `encode_offset`.
        of: What they are, and of which rows, for the error.

    Raises:
        NotReproducibleError: It makes something else now.
    """
    delivered, before = decode_offset(offset)
    if not offset or (delivered < num_made and before == check & _CHECK_MASK):
        return delivered
    message = (
        f"{delivered:,} {of} were delivered before, but now these rows make other ones, {num_made:,} in all: the "
        "functions before must return the same for the same row in every run; draw random numbers from the context "
        "that map(fn, with_context=True) passes"
    )
    raise NotReproducibleError(message)


def resume_group(offset: int, carried: int, num_items: int, check: int, *, of: str) -> tuple[int, Callable[[int], int]]:
    """Return the first item of a row or group to deliver, and what gives the offset after a number of its items.

    Args:
        offset: The offset of the lane in it.
        carried: The offset in it at which an earlier cut ended; then `offset` counts from there; else 0.
        num_items: Items that it makes now.
        check: What it consists of now; see `encode_offset`.
        of: What the items are, and of which rows, for an error.

    Raises:
        NotReproducibleError: It makes something else now.
    """
    if not carried:
        return check_offset(offset, num_items, check, of=of), lambda delivered: encode_offset(delivered, check)
    before = check_offset(carried, num_items, check, of=of)
    # The sum of both offsets keeps the check bits of the first.
    return before + decode_offset(offset).delivered, lambda delivered: encode_offset(delivered - before, 0)

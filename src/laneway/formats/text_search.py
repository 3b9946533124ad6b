"""What is searched for in the bytes of text, which numpy does for many of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[np.uint8]

_SLICE_BYTES: Final = 256 << 10
_LEAST_SECOND: Final = np.full(256, 0x80, np.uint8)
"""Lead byte -> the least byte that may follow it."""
_LEAST_SECOND[[0xE0, 0xF0]] = 0xA0, 0x90
_GREATEST_SECOND: Final = np.full(256, 0xBF, np.uint8)
_GREATEST_SECOND[[0xED, 0xF4]] = 0x9F, 0x8F
_GREATEST_SECOND[0xF5:] = 0


def positions_of(codes: Codes, *values: int) -> NDArray[np.int64]:
    """Return where bytes of a text have one of these values.

    In less time than `np.flatnonzero` takes if that is at few places: the text is looked at in slices that stay in the
    cache of a processor, and for most of it, eight bytes at a time.
    """
    found = []
    for start in range(0, len(codes), _SLICE_BYTES):
        part = codes[start : start + _SLICE_BYTES]
        mask = part == values[0]
        for value in values[1:]:
            mask |= part == value
        found.append(_true_places(mask) + start)
    return found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.int64), *found])


def _true_places(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    whole = len(mask) // 8 * 8
    words = mask[:whole].view(np.uint64)
    index = np.flatnonzero(words.astype(bool))
    inside = np.flatnonzero(words[index].view(bool))
    found = (index[inside >> 3] << 3) + (inside & 7)
    rest = np.flatnonzero(mask[whole:])
    return np.concatenate([found, rest + whole]) if len(rest) else found


def is_utf8(codes: Codes) -> bool:
    """Return whether a text is UTF-8, in half the time that pyarrow takes if it isn't ASCII."""
    start, length = 0, len(codes)
    while start < length:
        stop = min(start + _SLICE_BYTES, length)
        # Slices of whole characters, of which at most three bytes continue the last one.
        while stop < length and stop > start + _SLICE_BYTES - 4 and codes[stop] & 0xC0 == 0x80:  # noqa: PLR2004
            stop -= 1
        if not _is_utf8(codes[start:stop]):
            return False
        start = stop
    return True


def _is_utf8(codes: Codes) -> bool:
    """Return whether bytes are whole characters of UTF-8 (RFC 3629, section 4)."""
    length, greatest = len(codes), int(codes.max())
    if greatest < 0x80:  # noqa: PLR2004 - ASCII
        return True
    # Which bytes must continue a character: one after any lead byte, two after E0 and above, three after F0 and above.
    continues = np.empty(length + 3, bool)
    continues[0] = False
    continues[length + 1 :] = False
    np.greater_equal(codes, 0xC0, out=continues[1 : length + 1])
    # Arrays are used again: new memory costs as much as what is computed.
    leads, mask = np.empty(length, bool), np.empty(length, bool)
    for width, lead in enumerate((0xE0, 0xF0), start=2):
        if greatest >= lead:
            np.greater_equal(codes, lead, out=leads)
            continues[width : width + length] |= leads
    # As signed numbers, bytes that continue a character, 80 to BF, are the least.
    np.less(codes.view(np.int8), -64, out=mask)
    if continues[length:].any() or np.not_equal(mask, continues[:length], out=mask).any():
        return False
    # C0 and C1: ASCII in two bytes.
    if np.equal(codes & 0xFE, 0xC0, out=mask).any():
        return False
    if greatest < 0xE0:  # noqa: PLR2004 - as above
        return True
    # What follows these must be neither of a shorter form, nor a surrogate, nor beyond the last character.
    np.equal(codes, 0xE0, out=mask)
    mask |= np.equal(codes, 0xED, out=continues[:length])
    if greatest >= 0xF0:  # noqa: PLR2004 - as above
        mask |= leads
    at = _true_places(mask)
    lead_bytes, second = codes[at], codes[at + 1]
    return bool(((second >= _LEAST_SECOND[lead_bytes]) & (second <= _GREATEST_SECOND[lead_bytes])).all())

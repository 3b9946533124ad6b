"""Digests of states: a state holds a digest of its own fields, so that any damage is noticed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def _encode(values: Sequence[object]) -> bytes:
    return _ENCODER.encode(values).encode("ascii")


class Seal:
    """The digest of a state, computed in two steps: the fields of its identity, which stay the same, and the others."""

    def __init__(self, identity: Sequence[object]) -> None:
        """Compute the digest of the fields of the identity, in their declared order."""
        self._state = hashlib.blake2b(_encode(identity), digest_size=8)

    def digest(self, others: Sequence[object]) -> str:
        """Return the digest of a state with this identity: 16 hexadecimal digits.

        Args:
            others: Its other fields, in their declared order.
        """
        state = self._state.copy()
        state.update(_encode(others))
        return state.hexdigest()

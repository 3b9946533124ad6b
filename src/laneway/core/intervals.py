"""Sets of integers as intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@final
@dataclass(frozen=True, eq=False)
class Intervals:
    """A set of integers >= 0."""

    starts: NDArray[np.int64]
    """First integer of each interval, ascending, shape (n,)."""
    stops: NDArray[np.int64]
    """One past the last integer of each interval: less than the next start, shape (n,)."""

    @classmethod
    def of(cls, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Intervals:
        """Return the set of all integers of some intervals, in any order; they may be empty, or overlap."""
        kept = starts < stops
        order = np.argsort(starts[kept], kind="stable")
        starts, stops = starts[kept][order], np.maximum.accumulate(stops[kept][order])
        is_first = np.ones(len(starts), bool)
        is_first[1:] = starts[1:] > stops[:-1]
        is_last = np.append(is_first[1:], np.ones(min(1, len(starts)), bool))
        return cls(starts[is_first], stops[is_last])

    @classmethod
    def empty(cls) -> Intervals:
        """Return the empty set."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Return how many integers there are."""
        return int((self.stops - self.starts).sum())

    def __or__(self, other: Intervals) -> Intervals:
        """Return the integers that are in one of two sets."""
        return self._combined(other, np.logical_or)

    def __and__(self, other: Intervals) -> Intervals:
        """Return the integers that are in both sets."""
        return self._combined(other, np.logical_and)

    def __sub__(self, other: Intervals) -> Intervals:
        """Return the integers that are not in the other set."""
        return self._combined(other, lambda mine, its: mine & ~its)

    def _combined(
        self, other: Intervals, keep: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]]
    ) -> Intervals:
        edges = np.unique(np.concatenate([self.starts, self.stops, other.starts, other.stops]))
        kept = keep(self._holds(edges), other._holds(edges))
        changes = np.flatnonzero(np.diff(kept, prepend=False, append=False))
        return Intervals(edges[changes[::2]], edges[changes[1::2]])

    def _holds(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each integer whether it is in the set."""
        begun = np.searchsorted(self.starts, numbers, side="right")
        return begun > np.searchsorted(self.stops, numbers, side="right")

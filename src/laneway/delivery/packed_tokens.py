"""Counts the tokens of packs by the source that they come from, as a worker takes the packs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from laneway.core.mixtures import MixturePlan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from laneway.core.progress import Progress, Tokens
    from laneway.stages.runs import RowTokens

_BLOCK_ROWS: Final = 8192
"""Rows of a lane whose sources are looked up together."""


class TokenCounter:
    """Counts the tokens of packs of a mixture, whose lanes count rows."""

    def __init__(self, progress: Progress) -> None:
        """Count in the current cut of a mixture."""
        self._plan = MixturePlan({}, progress)
        self._names = [source.name for source in progress.starts[-1].sources]
        self._blocks: dict[int, tuple[int, NDArray[np.int64]]] = {}
        """Lane -> the first row of a block of it, and the source of each row, by its index in the names."""

    def count(self, lane: int, packs: Iterable[RowTokens]) -> Tokens:
        """Return the tokens of packs of a lane, for each of their sources."""
        found = np.zeros(len(self._names), np.int64)
        for rows, tokens in packs:
            if len(rows):
                found += np.bincount(self._sources(lane, rows), tokens, len(found)).astype(np.int64)
        return {self._names[index]: int(found[index]) for index in np.flatnonzero(found).tolist()}

    def _sources(self, lane: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the source of each of some rows of a lane."""
        low, high = int(rows.min()), int(rows.max())
        first, sources = self._blocks.get(lane, (0, rows[:0]))
        if not first <= low <= high < first + len(sources):
            first, sources = self._blocks[lane] = low, self._look_up(lane, low, max(high + 1, low + _BLOCK_ROWS))
        return sources[rows - first]

    def _look_up(self, lane: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the source of each of rows [start, stop) of a lane."""
        plan, found = self._plan, []
        while start < stop:
            cut, cut_lane, first, end = plan.part(lane, start, stop)
            sources = plan.mixings[cut].lane(cut_lane).sources(first, first + end - start)
            if cut != plan.current:
                indices = [
                    self._names.index(source.name) if source.name in self._names else -1
                    for source in plan.progress.starts[cut].sources
                ]
                sources = np.array(indices, np.int64)[sources]
            found.append(sources)
            start = end
        return np.concatenate(found)

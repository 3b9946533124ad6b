"""Runs: consecutive items that a stage has made of rows of a lane, each with the position after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.core.progress import LanePosition


@dataclass(frozen=True, eq=False)
class PackColumns:
    """Packs as columns, which are sliced without a copy."""

    columns: Mapping[str, NDArray[np.int64]]
    """Name -> array of shape (num_packs, length); at least one."""

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, packs: slice) -> PackColumns:
        """Return some of the packs."""
        return PackColumns({name: column[packs] for name, column in self.columns.items()})

    def __iter__(self) -> Iterator[dict[str, NDArray[np.int64]]]:
        """Iterate over the packs: name -> array of shape (length,)."""
        return ({name: column[index] for name, column in self.columns.items()} for index in range(len(self)))


Items = list[Any] | PackColumns
"""Consecutive items of a lane."""


class Run(NamedTuple):
    """Consecutive items of a lane."""

    items: Items
    """The items, perhaps none."""
    positions: Sequence[LanePosition]
    """The position of the lane after each item."""
    end: LanePosition
    """The position of the lane after the run: rows of which nothing is made are passed over."""


class Flow:
    """The items of a lane from a position on."""

    def __init__(self, runs: Iterator[Run], position: LanePosition) -> None:
        """Begin.

        Args:
            runs: All items of the lane from `position` on.
            position: Where the lane is.
        """
        self._runs = runs
        self._run = Run([], (), position)
        self._index = 0
        self.position = position
        """The position after the last item that was taken."""

    def take(self, num_items: int) -> list[Items]:
        """Return the next items, fewer only at the end of the lane."""
        found: list[Items] = []
        while num_items:
            if self._index == len(self._run.items):
                self.position = self._run.end
                run = next(self._runs, None)
                if run is None:
                    break
                self._run, self._index = run, 0
                continue
            part = self._run.items[self._index : self._index + num_items]
            self._index += len(part)
            num_items -= len(part)
            found.append(part)
            self.position = self._run.positions[self._index - 1]
        if self._index == len(self._run.items):
            self.position = self._run.end
        return found


def joined(parts: Sequence[PackColumns]) -> dict[str, NDArray[np.int64]]:
    """Return the packs of several parts, at least one, as one: name -> array of shape (num_packs, length)."""
    if len(parts) == 1:
        return {**parts[0].columns}
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}

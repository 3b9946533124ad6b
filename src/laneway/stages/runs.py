"""Runs: consecutive items that a stage has made of rows of a lane, each with the position after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from laneway.errors import LanewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.core.progress import LanePosition


@dataclass(frozen=True, eq=False)
class PackColumns:
    """Packs as columns, which are sliced without a copy."""

    columns: Mapping[str, NDArray[np.int64]]
    """Name -> array of shape (num_packs, length)."""
    num_packs: int
    """Number of packs."""

    def __len__(self) -> int:
        """Return the number of packs."""
        return self.num_packs

    def __getitem__(self, packs: slice) -> PackColumns:
        """Return some of the packs."""
        start, stop, _ = packs.indices(self.num_packs)
        return PackColumns({name: column[start:stop] for name, column in self.columns.items()}, stop - start)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.int64]]]:
        """Iterate over the packs: name -> array of shape (length,)."""
        return ({name: column[index] for name, column in self.columns.items()} for index in range(self.num_packs))


Items = list[Any] | PackColumns
"""Consecutive items of a lane."""


class RowTokens(NamedTuple):
    """Tokens of packs, by the rows that they come from; separators and padding come from none."""

    rows: NDArray[np.int64]
    """Rows of a lane, some of them perhaps several times."""
    tokens: NDArray[np.int64]
    """Number of tokens of each, of the same shape."""


class Run(NamedTuple):
    """Consecutive items of a lane."""

    items: Items
    """The items, perhaps none."""
    position_after: Callable[[int], LanePosition]
    """The position of the lane after item `index`."""
    end: LanePosition
    """The position of the lane after the run: rows of which nothing is made are passed over."""
    row_tokens: Callable[[int, int], RowTokens] | None = None
    """The tokens of items [start, stop), if they are packs."""


class Flow:
    """The items of a lane from a position on."""

    def __init__(
        self,
        runs: Iterator[Run],
        position: LanePosition,
        max_empty_rows: int | None = None,
        *,
        counts_tokens: bool = False,
    ) -> None:
        """Begin.

        Args:
            runs: All items of the lane from `position` on.
            position: Where the lane is.
            max_empty_rows: How many rows in a row may make no items; None: any number, as the lane has an end.
            counts_tokens: Whether the tokens of what is taken are wanted.
        """
        self._counts_tokens = counts_tokens
        self._runs = runs
        self._max_empty_rows = max_empty_rows
        self._last_row = position.rows
        """The row of the last item."""
        self._run = no_items(position)
        self._index = 0
        self.position = position
        """The position after the last item that was taken."""
        self.row_tokens: list[RowTokens] = []
        """The tokens of the packs that were taken last, if they are counted."""

    def take(self, num_items: int) -> list[Items]:
        """Return the next items, fewer only at the end of the lane."""
        found: list[Items] = []
        self.row_tokens = []
        while num_items:
            if self._index == len(self._run.items):
                self.position = self._run.end
                run = next(self._runs, None)
                if run is None:
                    break
                self._run, self._index = run, 0
                self._check_has_items(run)
                continue
            part = self._run.items[self._index : self._index + num_items]
            if self._counts_tokens and self._run.row_tokens is not None:
                self.row_tokens.append(self._run.row_tokens(self._index, self._index + len(part)))
            self._index += len(part)
            num_items -= len(part)
            found.append(part)
        run, index = self._run, self._index
        if index == len(run.items):
            self.position = run.end
        elif index:
            self.position = run.position_after(index - 1)
        return found

    def _check_has_items(self, run: Run) -> None:
        """Check that a lane without an end makes items now and then.

        Raises:
            LanewayError: It doesn't.
        """
        if len(run.items):
            self._last_row = run.end.rows
        elif self._max_empty_rows is not None and run.end.rows - self._last_row > self._max_empty_rows:
            message = (
                f"the last {run.end.rows - self._last_row:,} rows of a lane without an end have made no item, more "
                "than there are: does flat_map() drop every row, or pack() find no document that fits?"
            )
            raise LanewayError(message)


def no_items(end: LanePosition) -> Run:
    """Return a run without items: nothing is made of rows that it passes over."""
    return Run([], _nowhere, end)


def _nowhere(index: int) -> LanePosition:
    message = f"a run without items has no item {index}"
    raise IndexError(message)


def joined(parts: Sequence[PackColumns]) -> dict[str, NDArray[np.int64]]:
    """Return the packs of several parts, at least one, as one: name -> array of shape (num_packs, length)."""
    if len(parts) == 1:
        return {**parts[0].columns}
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}

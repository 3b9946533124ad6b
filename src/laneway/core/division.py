"""Divisions: which rows of a line belong to which lane, and how many rows each lane delivers. Arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.lanes import Remainder


class Sharing(NamedTuple):
    """How the ranks share a cut: what its last batches depend on, besides its lanes and turns."""

    world_size: int = 1
    """Number of ranks."""
    turns_per_batch: int = 1
    """Turns of the batch of one rank."""
    remainder: Remainder = "keep"
    """How to handle the one row by which ranks (or lanes, in order version 1) differ."""

    @property
    def job_turns(self) -> int:
        """Turns that all ranks take for one batch each: those of a global batch."""
        return self.world_size * self.turns_per_batch


class Division(Protocol):
    """A line of rows, divided into consecutive intervals, each of which belongs to a lane.

    A lane consists of its intervals, in the order of the line.
    """

    @property
    def num_rows(self) -> int:
        """Rows of the line."""

    @property
    def num_lanes(self) -> int:
        """Number of lanes."""

    @property
    def turn_rows(self) -> int:
        """Rows of a turn."""

    @property
    def has_turns(self) -> bool:
        """Whether the line is divided so that its turns have an order of their own."""

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Where intervals begin and end, non-decreasing, shape (num_intervals + 1,)."""

    @property
    def lane(self) -> NDArray[np.int64]:
        """Lane of each interval, shape (num_intervals,)."""

    @property
    def owner(self) -> NDArray[np.int64]:
        """Who has the windows of each interval: its lane, or `num_lanes` if lanes share them; non-decreasing."""

    @property
    def settled_rows(self) -> NDArray[np.int64]:
        """Rows at the start of each lane that are the same however ranks share the cut, shape (num_lanes,)."""

    def ends(self, remainder: Remainder, *, drop_last: bool) -> NDArray[np.int64]:
        """Return the rows that each lane delivers, with its padding and without what is dropped, shape (num_lanes,)."""


def divide(version: int, num_rows: int, num_lanes: int, turn_rows: int, sharing: Sharing) -> Division:
    """Divide a line of rows among lanes.

    Args:
        version: Order version.
        num_rows: Rows of the line, >= 0.
        num_lanes: Number of lanes, >= 1; in order version 2 a multiple of `sharing.job_turns`.
        turn_rows: Rows of a turn, >= 1.
        sharing: How ranks share the lanes.
    """
    if version == 1:
        return EvenDivision(num_rows, num_lanes, turn_rows)
    return TurnDivision(num_rows, num_lanes, turn_rows, sharing.world_size, sharing.turns_per_batch)


def _parts(whole: int, num_parts: int) -> NDArray[np.int64]:
    """Return the bounds `i * whole // num_parts` of equal parts, shape (num_parts + 1,), without overflow."""
    quotient, rest = divmod(whole, num_parts)
    index = np.arange(num_parts + 1, dtype=np.int64)
    return index * quotient + index * rest // num_parts


@dataclass(frozen=True, eq=False)
class EvenDivision:
    """Order version 1: lanes are equal parts of the line, which differ by at most one row."""

    num_rows: int
    """Rows of the line."""
    num_lanes: int
    """Number of lanes."""
    turn_rows: int
    """Rows of a turn."""
    has_turns: bool = field(default=False, init=False)
    """See Division."""

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """See Division."""
        return _parts(self.num_rows, self.num_lanes)

    @cached_property
    def lane(self) -> NDArray[np.int64]:
        """See Division."""
        return np.arange(self.num_lanes, dtype=np.int64)

    @property
    def owner(self) -> NDArray[np.int64]:
        """See Division."""
        return self.lane

    @property
    def settled_rows(self) -> NDArray[np.int64]:
        """All rows of each lane, and the one that may pad it."""
        return np.diff(self.bounds) + 1

    def ends(self, remainder: Remainder, *, drop_last: bool) -> NDArray[np.int64]:
        """See Division. With `drop_last`, the last turn of each lane is dropped if it is incomplete."""
        rows = np.diff(self.bounds)
        if remainder == "pad":
            rows = np.full_like(rows, rows.max())
        elif remainder == "drop" or drop_last:
            rows = np.full_like(rows, rows.min())
        return rows // self.turn_rows * self.turn_rows if drop_last else rows


@dataclass(frozen=True, eq=False)
class TurnDivision:
    """Order version 2: only the last global batch may be short, whatever the number of lanes and workers.

    As many rows as make whole turns of all lanes are divided into equal lanes. The rest, less than a turn of each
    lane, is laid out turn by turn: its first turn goes to lane 0, its second to lane 1, and so on. What doesn't make a
    whole global batch is spread evenly over the ranks.
    """

    num_rows: int
    """Rows of the line."""
    num_lanes: int
    """Number of lanes, a multiple of the turns of a global batch."""
    turn_rows: int
    """Rows of a turn."""
    world_size: int
    """Number of ranks."""
    turns_per_batch: int
    """Turns of the batch of one rank."""
    has_turns: bool = field(default=True, init=False)
    """See Division."""

    @property
    def lane_rows(self) -> int:
        """Rows at the start of each lane that no other lane's turn interrupts in the line."""
        return self.num_rows // (self.num_lanes * self.turn_rows) * self.turn_rows

    @property
    def num_whole(self) -> int:
        """Number of lanes that have one whole turn more: lanes 0, 1, 2, ..."""
        job_turns = self.world_size * self.turns_per_batch
        return (self.num_rows - self.num_lanes * self.lane_rows) // (job_turns * self.turn_rows) * job_turns

    @property
    def num_short(self) -> int:
        """Rows of the last global batch if it is incomplete, else 0."""
        return self.num_rows % (self.world_size * self.turns_per_batch * self.turn_rows)

    def _in_turns(self, of_ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of each turn of the last global batch, given those of each rank."""
        before = np.arange(self.turns_per_batch, dtype=np.int64) * self.turn_rows
        rows: NDArray[np.int64] = np.clip(of_ranks[:, None] - before, 0, self.turn_rows)
        return rows.ravel()

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """See Division."""
        widths = [np.full(self.num_lanes, self.lane_rows, np.int64), np.full(self.num_whole, self.turn_rows, np.int64)]
        if self.num_short:
            widths.append(self._in_turns(np.diff(_parts(self.num_short, self.world_size))))
        return np.concatenate([[0], np.cumsum(np.concatenate(widths))]).astype(np.int64)

    @cached_property
    def lane(self) -> NDArray[np.int64]:
        """See Division."""
        index = np.arange(len(self.bounds) - 1, dtype=np.int64)
        return np.where(index < self.num_lanes, index, index - self.num_lanes)

    @property
    def owner(self) -> NDArray[np.int64]:
        """See Division."""
        return np.minimum(np.arange(len(self.bounds) - 1, dtype=np.int64), self.num_lanes)

    @cached_property
    def settled_rows(self) -> NDArray[np.int64]:
        """See Division: all but the rows of the last, incomplete global batch."""
        rows = np.full(self.num_lanes, self.lane_rows, np.int64)
        rows[: self.num_whole] += self.turn_rows
        return rows

    def ends(self, remainder: Remainder, *, drop_last: bool) -> NDArray[np.int64]:
        """See Division. With `drop_last`, the last global batch is dropped if it is incomplete."""
        rows = self.settled_rows.copy()
        if self.num_short and not drop_last:
            shares = np.diff(_parts(self.num_short, self.world_size))
            if remainder != "keep":
                shares[:] = shares.max() if remainder == "pad" else shares.min()
            turns = self._in_turns(shares)
            rows[self.num_whole : self.num_whole + len(turns)] += turns
        return rows

    def num_items(self, rank: int, remainder: Remainder, *, drop_last: bool) -> tuple[int, int]:
        """Return the numbers of batches and of rows that a rank delivers: they depend on no lane and no worker.

        Args:
            rank: The rank.
            remainder: How to handle the one row by which ranks differ.
            drop_last: Whether to drop the last global batch if it is incomplete.
        """
        rank_rows = self.turns_per_batch * self.turn_rows
        num_whole = self.num_rows // (self.world_size * rank_rows)
        short, world_size = 0 if drop_last else self.num_short, self.world_size
        share = (rank + 1) * short // world_size - rank * short // world_size
        if remainder != "keep":
            share = short // world_size + (remainder == "pad" and short % world_size > 0)
        return num_whole + (share > 0), num_whole * rank_rows + share

"""Stretches: which rows of lanes each rank takes at which step, while a job stays in one cut. Arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.cursor import LaneRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.division import Sharing


class Taken(NamedTuple):
    """When a row of a lane is taken, and by whom."""

    step: int
    """The step, counted from the first one of the stretch."""
    rank: int
    """The rank."""
    worker: int
    """The worker of the rank."""
    batch_index: int
    """Index of the row in the batch of the rank."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive steps of a job in one cut: at each, every rank that has rows left takes its next batch."""

    turn_rows: int
    """Rows of a turn."""
    sharing: Sharing
    """How ranks share the lanes."""
    starts: NDArray[np.int64]
    """Rows that were taken from each lane before, shape (num_lanes,)."""
    ends: NDArray[np.int64]
    """Rows that have been taken from each lane at the end, shape (num_lanes,)."""
    first_turn: int = 0
    """The job's next turn at the start."""
    num_workers: int = 1
    """Workers of each rank."""

    @property
    def num_lanes(self) -> int:
        """Number of lanes."""
        return len(self.starts)

    @property
    def _num_groups(self) -> int:
        """Number of batches that a rank takes before it comes back to a lane."""
        return self.num_lanes // self.sharing.job_turns

    @cached_property
    def _rounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each group and rank: the first round in which its batch has rows, and one past the last one."""
        shape = (self._num_groups, self.sharing.world_size, self.sharing.turns_per_batch)
        has_rows = self.starts < self.ends
        stops = np.where(has_rows, -(-self.ends // self.turn_rows), 0).reshape(shape).max(axis=2)
        firsts = np.where(has_rows, self.starts // self.turn_rows, np.iinfo(np.int64).max).reshape(shape).min(axis=2)
        return np.minimum(firsts, stops), stops

    @cached_property
    def num_batches(self) -> NDArray[np.int64]:
        """Number of batches that each rank takes, shape (world_size,)."""
        firsts, stops = self._rounds
        found: NDArray[np.int64] = (stops - firsts).sum(axis=0)
        return found

    @property
    def num_steps(self) -> int:
        """Number of steps: batches of the rank that takes most."""
        return int(self.num_batches.max())

    def _batches_before(self, batch: int, rank: int) -> int:
        """Return how many batches with rows a rank takes before batch `batch` of the cut."""
        firsts, stops = (each[:, rank] for each in self._rounds)
        rounds, group = divmod(batch, self._num_groups)
        done = rounds + (np.arange(self._num_groups) < group)
        return int((np.clip(done, firsts, stops) - firsts).sum())

    def _batch_at(self, step: int, rank: int) -> int | None:
        """Return which batch of the cut a rank takes at a step; None: it has none left."""
        if not 0 <= step < self.num_batches[rank]:
            return None
        # Unless lanes differ by a turn, no batch before is empty.
        low = self.first_turn // self.sharing.job_turns + step
        if self._batches_before(low + 1, rank) == step + 1 and self._batches_before(low, rank) == step:
            return low
        low, high = 0, int(self._rounds[1][:, rank].max()) * self._num_groups
        while high - low > 1:
            middle = (low + high) // 2
            if self._batches_before(middle, rank) <= step:
                low = middle
            else:
                high = middle
        return low

    def ranges(self, step: int, rank: int) -> list[LaneRange]:
        """Return the rows of the batch of a rank at a step, in order; none if it has no batch left."""
        batch = self._batch_at(step, rank)
        if batch is None:
            return []
        rounds, group = divmod(batch, self._num_groups)
        found = [self._of_turn(lane, rounds) for lane in self._lanes_of(group, rank)]
        return [rows for rows in found if rows.start < rows.stop]

    def _lanes_of(self, group: int, rank: int) -> range:
        world_size, turns_per_batch, _ = self.sharing
        first = (group * world_size + rank) * turns_per_batch
        return range(first, first + turns_per_batch)

    def _of_turn(self, lane: int, rounds: int) -> LaneRange:
        """Return the rows of a turn of a lane that are taken."""
        start, end = rounds * self.turn_rows, (rounds + 1) * self.turn_rows
        return LaneRange(lane, max(start, int(self.starts[lane])), min(end, int(self.ends[lane])))

    def taken(self, lane: int, row: int) -> Taken | None:
        """Return when a row of a lane is taken; None: before or after the stretch."""
        if not self.starts[lane] <= row < self.ends[lane]:
            return None
        world_size, turns_per_batch, _ = self.sharing
        rank, rounds = lane // turns_per_batch % world_size, row // self.turn_rows
        group = lane // self.sharing.job_turns
        batch = rounds * self._num_groups + group
        index = 0
        for each in self._lanes_of(group, rank):
            taken = self._of_turn(each, rounds)
            if each == lane:
                index += row - taken.start
                break
            index += max(0, taken.stop - taken.start)
        worker = (batch - self.first_turn // self.sharing.job_turns) % self.num_workers
        return Taken(self._batches_before(batch, rank), rank, worker, index)

"""Turns: which worker reads which lane, and when.

The job takes turns `0, 1, 2, ...`; turn `j` comes from lane `j % num_lanes`. Rank `r` of `W` builds its batch `t` from
the `q` turns that start at `(t * W + r) * q`, and worker `k` of `K` builds the rank's batches
`k, k + K, k + 2 * K, ...`. If `q * W * K` divides the number of lanes, each lane is read by exactly one worker, and
the sequence of turns of the whole job depends neither on `W` nor on `K`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """The place of a worker among all workers of the job."""

    rank: int = 0
    """Data-parallel rank, in [0, world_size)."""
    world_size: int = 1
    """Number of data-parallel ranks."""
    worker: int = 0
    """DataLoader worker of this rank, in [0, num_workers)."""
    num_workers: int = 1
    """Workers per rank; a process that reads its own data counts as one."""

    def first_turn(self, job_turn: int, turns_per_batch: int) -> int:
        """Return the first turn of this worker's first batch, given the job's next turn."""
        return job_turn + (self.worker * self.world_size + self.rank) * turns_per_batch

    def stride(self, turns_per_batch: int) -> int:
        """Return the distance between the first turns of two consecutive batches of this worker."""
        return self.world_size * self.num_workers * turns_per_batch

    def own_lanes(self, job_turn: int, num_lanes: int, turns_per_batch: int) -> list[int]:
        """Return the lanes that this worker reads, in the order of their first turns.

        Args:
            job_turn: The job's next turn.
            num_lanes: Number of lanes, a multiple of `stride(turns_per_batch)`.
            turns_per_batch: Turns of one batch.
        """
        first = self.first_turn(job_turn, turns_per_batch)
        starts = range(first, first + num_lanes, self.stride(turns_per_batch))
        return [(start + i) % num_lanes for start in starts for i in range(turns_per_batch)]

    def of_rank(self) -> WorkerPlace:
        """Return the place of a process that reads for the whole rank."""
        return WorkerPlace(self.rank, self.world_size)


IntOrArray = TypeVar("IntOrArray", int, "NDArray[np.int64]")


def turns_taken(next_turn: int, lane: IntOrArray, num_lanes: int) -> IntOrArray:
    """Return the number of turns of a lane, or of each of several lanes, before the job's turn `next_turn`."""
    return (next_turn - lane + num_lanes - 1) // num_lanes


def has_one_owner_per_lane(num_lanes: int, place: WorkerPlace, turns_per_batch: int) -> bool:
    """Return whether the workers of the job can share `num_lanes` lanes so that one worker reads each lane."""
    return num_lanes % place.stride(turns_per_batch) == 0

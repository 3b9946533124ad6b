"""A whole job in one process: the cursors of all workers, advanced in lockstep over synthetic data files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from hypothesis import strategies as st

from laneway.core.assignment import resolve_cut
from laneway.core.cursor import BatchRanges, Cursor
from laneway.core.files import FileTable
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity, Plan, Settings
from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut
from laneway.core.schema import parse_state
from laneway.core.state import read_progress
from laneway.core.turns import WorkerPlace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from laneway.core.assignment import Assignment
    from laneway.core.cursor import LaneRange
    from laneway.core.lanes import Remainder

RowT = TypeVar("RowT")

PLAIN = Settings(
    seed=7, shuffle=False, shard_bytes=1 << 20, shard_rows=4, window_bytes=100, remainder="keep", drop_last=False
)


def file_table(blocks: list[list[int]], row_bytes: int = 10) -> FileTable:
    """Return a table with one file per item of `blocks`, which holds the row counts of its blocks."""
    return FileTable.build(
        paths=[f"part-{i:03d}.parquet" for i in range(len(blocks))],
        sizes=[sum(rows) * row_bytes + 100 for rows in blocks],
        digests=[f"{i:016x}" for i in range(len(blocks))],
        blocks=[(rows, [row_bytes * n for n in rows]) for rows in blocks],
        schema_digest="0" * 16,
    )


@st.composite
def identities(draw: st.DrawFn, *, remainder: Remainder | None = None) -> Identity:
    """Draw files of unequal size, some empty, and settings."""
    blocks = draw(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6))
    settings = replace(
        PLAIN,
        seed=draw(st.integers(0, 2**63 - 1)),
        shuffle=draw(st.booleans()),
        shard_rows=draw(st.integers(1, 12)),
        window_bytes=draw(st.integers(1, 300)),
        remainder=remainder or draw(st.sampled_from(["keep", "pad", "drop"])),
    )
    return Identity(file_table(blocks), settings)


def rows_of(plan: Plan, lane: int, start: int, stop: int) -> list[int]:
    """Return the row numbers, counted over all files, of rows [start, stop) of a lane; or its packs, by number."""
    if plan.line is not None:
        return [n for each in plan.lanes.segments(lane, start, stop) for n in range(each.start, each.stop)]
    files = plan.identity.files
    first_rows = files.block_row_starts[files.block_starts[:-1]]
    found: list[int] = []
    for segment in plan.lanes.segments(lane, start, stop):
        ranges = plan.window_files(segment.window)
        rows = np.concatenate([first_rows[f] + np.arange(lo, hi) for f, lo, hi in ranges])
        order = plan.window_order(segment.window)
        found += (rows if order is None else rows[order])[segment.start : segment.stop].tolist()
    return found


class PlannedCursor(Cursor):
    """A cursor with the plan of its epoch."""

    def __init__(self, identity: Identity, assignment: Assignment) -> None:
        """Start at the progress of `assignment`."""
        super().__init__(assignment)
        self.plan = identity.plan(assignment.progress)


def open_epoch(identity: Identity, progress: Progress, place: WorkerPlace, options: LaneOptions) -> PlannedCursor:
    """Return the cursor of the worker at `place`."""
    return PlannedCursor(identity, resolve_cut(identity, progress, place, options))


def deliver(cursor: Cursor, batch: BatchRanges) -> None:
    """Count a batch as delivered."""
    cursor.deliver_batch(batch.turn, batch.new_positions())


def load(state: object, identity: Identity, worker: WorkerPlace | None = None) -> Progress:
    """Return the progress of a state that a worker loads, or by default the main process of a single rank."""
    return read_progress(parse_state(state), identity, worker or WorkerPlace(), is_worker=worker is not None)


class Lockstep(ABC, Generic[RowT]):
    """All workers of a job, whose ranks take the same number of batches. A subclass says what they read."""

    world_size: int
    num_workers: int
    cursors: Mapping[tuple[int, int], Cursor]
    """(rank, worker) -> where it is."""
    turns_per_batch: int
    """Turns of the batch of a rank."""

    def begin(self) -> None:
        """Begin where the cursors are."""
        self.first_turn = current_cut(self.cursors[0, 0].progress()).next_turn
        self.batches_taken = 0
        self.turns_skipped = 0
        """Turns before the last batch that no rank had rows for, with which a loader takes the next batch instead."""

    @property
    def is_at_end(self) -> bool:
        """Whether all workers have delivered what is theirs."""
        return all(cursor.is_at_end for cursor in self.cursors.values())

    @abstractmethod
    def rows_in(self, wanted: LaneRange) -> list[RowT]:
        """Return the rows of a lane."""

    def step(self) -> list[list[RowT]]:
        """Take one batch on every rank, in lockstep, and return the rows of each."""
        worker = self.batches_taken % self.num_workers
        self.batches_taken += 1
        batches = []
        for rank in range(self.world_size):
            cursor = self.cursors[rank, worker]
            batch = cursor.next_batch()
            batches.append([row for lanes in batch.ranges for row in self.rows_in(lanes)] if batch else [])
            if batch:
                deliver(cursor, batch)
                first = batch.turn - rank * self.turns_per_batch
                self.turns_skipped = max(self.turns_skipped, first + self._turns(1) - self._next_turn_if_none_skipped())
        return batches

    def _turns(self, num_batches: int) -> int:
        return num_batches * self.world_size * self.turns_per_batch

    def _next_turn_if_none_skipped(self) -> int:
        return self.first_turn + self._turns(self.batches_taken)

    def take(self, steps: int | None = None) -> list[list[list[RowT]]]:
        """Take `steps` steps, or all that are left, and return the rows of each rank for each step."""
        taken: list[list[list[RowT]]] = []
        while not self.is_at_end and steps != len(taken):
            taken.append(self.step())
        return taken

    def whole_progress(self) -> Progress:
        """Return the progress of the whole job, gathered from every worker."""
        parts = [cursor.progress() for cursor in self.cursors.values()]
        positions: dict[int, LanePosition] = {}
        for part in parts:
            positions.update(current_cut(part).positions)
        cut = current_cut(parts[0])
        job_turn = self._next_turn_if_none_skipped() + self.turns_skipped
        return replace(parts[0], cut=CutProgress(cut.num_lanes, cut.turn_rows, job_turn, positions), place=None)


@dataclass
class Job(Lockstep[int]):
    """All workers of a job, reading one epoch together."""

    identity: Identity
    world_size: int
    num_workers: int
    options: LaneOptions
    progress: Progress

    def __post_init__(self) -> None:
        """Open the epoch at every worker."""
        self.cursors: dict[tuple[int, int], PlannedCursor] = {
            (rank, worker): open_epoch(
                self.identity, self.progress, WorkerPlace(rank, self.world_size, worker, self.num_workers), self.options
            )
            for rank in range(self.world_size)
            for worker in range(self.num_workers)
        }
        self.turns_per_batch = self.options.turns_per_batch(current_cut(self.cursors[0, 0].progress()).turn_rows) or 1
        self.begin()

    @property
    def plan(self) -> Plan:
        """The plan that all workers share."""
        return self.cursors[0, 0].plan

    def rows_in(self, wanted: LaneRange) -> list[int]:
        """Return the rows of a lane, by their numbers."""
        return rows_of(self.plan, *wanted)

    def run(self, steps: int | None = None) -> list[list[int]]:
        """Take `steps` steps, or all that are left, and return the rows of all ranks for each step."""
        return [[row for batch in batches for row in batch] for batches in self.take(steps)]


def jobs_of(
    identity: Identity, chain: Sequence[tuple[int, int, int, int]], progress: Progress, *, lanes: int | None = None
) -> Iterator[tuple[Job, int]]:
    """Yield a job and its number of steps for each (ranks, workers, batch size, steps) of a chain.

    Each one resumes where the one before has stopped.
    """
    for world_size, num_workers, batch_size, steps in chain:
        job = Job(identity, world_size, num_workers, LaneOptions(lanes, None, batch_size), progress)
        yield job, steps
        progress = job.whole_progress()

"""A whole job of a mixture in one process: the cursors of all workers, advanced in lockstep, cut after cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from laneway.core.cursor import Cursor
from laneway.core.mixture_assignment import following_cut, resolve_mixture
from laneway.core.mixtures import MixturePlan
from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import deliver, rows_of

if TYPE_CHECKING:
    from laneway.core.assignment import Assignment
    from laneway.core.cursor import LaneRange
    from laneway.core.mixture_assignment import Mixed


class SourceRow(NamedTuple):
    """A delivered row of a source."""

    source: str
    epoch: int
    row: int
    """Its number, counted over all files."""


@dataclass
class MixtureJob:
    """All workers of a job, reading one pass of a mixture together, whose batches are those of `mixed.options`."""

    mixed: Mixed
    world_size: int
    num_workers: int
    progress: Progress

    def __post_init__(self) -> None:
        """Open the mixture at every worker."""
        self._open(self.progress)

    def _open(self, progress: Progress) -> None:
        self.assignments: dict[tuple[int, int], Assignment] = {}
        for rank in range(self.world_size):
            for worker in range(self.num_workers):
                place = WorkerPlace(rank, self.world_size, worker, self.num_workers)
                self.assignments[rank, worker] = resolve_mixture(self.mixed, progress, place)
        self.cursors = {place: Cursor(each) for place, each in self.assignments.items()}
        self.plan = MixturePlan(self.mixed.sources, self.assignments[0, 0].progress)
        self.first_turn = self.assignments[0, 0].cut.next_turn
        self.batches_taken = 0
        self.turns_skipped = 0
        """Turns before the last batch that no rank had rows for, with which a loader takes the next batch instead."""

    @property
    def turns_per_batch(self) -> int:
        """Turns of the batch of a rank."""
        return self.assignments[0, 0].turns_per_batch

    @property
    def is_at_end(self) -> bool:
        """Whether the pass has been delivered."""
        return all(cursor.is_at_end and cursor.is_last for cursor in self.cursors.values())

    def step(self) -> list[list[SourceRow]]:
        """Take one batch on every rank, in lockstep, and return the rows of each."""
        if all(cursor.is_at_end for cursor in self.cursors.values()):
            self._open(following_cut(self.assignments[0, 0]))
        worker = self.batches_taken % self.num_workers
        self.batches_taken += 1
        batches = []
        for rank in range(self.world_size):
            batch = self.cursors[rank, worker].next_batch()
            batches.append([row for lanes in batch.ranges for row in self._rows_of(lanes)] if batch else [])
            if batch:
                deliver(self.cursors[rank, worker], batch)
                first = batch.turn - rank * self.turns_per_batch
                self.turns_skipped = max(self.turns_skipped, first + self._turns(1) - self._next_turn_if_none_skipped())
        return batches

    def _turns(self, num_batches: int) -> int:
        return num_batches * self.world_size * self.turns_per_batch

    def _next_turn_if_none_skipped(self) -> int:
        return self.first_turn + self._turns(self.batches_taken)

    def _rows_of(self, wanted: LaneRange) -> list[SourceRow]:
        """Return rows of a lane, in the order of the mixture."""
        lane, start, stop = wanted
        cut, found = self.plan.current, dict[int, SourceRow]()
        sources = self.plan.progress.starts[-1].sources
        for index, first, places in self.plan.mixings[-1].lane(lane).split(start, stop):
            name, rows = sources[index].name, list[SourceRow]()
            for epoch, epoch_lane, low, high in self.plan.lanes(cut, name).ranges(lane, first, first + len(places)):
                of_epoch = self.plan.plan(cut, name, epoch)
                rows += [SourceRow(name, epoch, row) for row in rows_of(of_epoch, epoch_lane, low, high)]
            found.update(zip(places.tolist(), rows, strict=True))
        return [found[place] for place in range(stop - start)]

    def take(self, steps: int | None = None) -> list[list[list[SourceRow]]]:
        """Take `steps` steps, or all that are left, and return the rows of each rank for each step."""
        taken: list[list[list[SourceRow]]] = []
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
        next_turn = self._next_turn_if_none_skipped() + self.turns_skipped
        return replace(parts[0], cut=CutProgress(cut.num_lanes, cut.turn_rows, next_turn, positions), place=None)

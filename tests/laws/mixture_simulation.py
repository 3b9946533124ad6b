"""A whole job of a mixture in one process: the cursors of all workers, advanced in lockstep, cut after cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from laneway.core.cursor import Cursor
from laneway.core.mixture_assignment import following_cut, resolve_mixture
from laneway.core.mixtures import MixturePlan
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import Lockstep, rows_of

if TYPE_CHECKING:
    from laneway.core.assignment import Assignment
    from laneway.core.cursor import LaneRange
    from laneway.core.mixture_assignment import Mixed
    from laneway.core.progress import Progress


class SourceRow(NamedTuple):
    """A delivered row of a source."""

    source: str
    epoch: int
    row: int
    """Its number, counted over all files."""


@dataclass
class MixtureJob(Lockstep[SourceRow]):
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
        self.turns_per_batch = self.assignments[0, 0].turns_per_batch
        self.begin()

    @property
    def is_at_end(self) -> bool:
        """Whether the pass has been delivered."""
        return super().is_at_end and all(cursor.is_last for cursor in self.cursors.values())

    def step(self) -> list[list[SourceRow]]:
        """Take one batch on every rank, in lockstep, and return the rows of each."""
        if super().is_at_end:
            self._open(following_cut(self.assignments[0, 0]))
        return super().step()

    def rows_in(self, wanted: LaneRange) -> list[SourceRow]:
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

"""Plans epochs of datasets and mixtures, from their start or from a state."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, final

import numpy as np

from laneway.core.mixture_assignment import settled
from laneway.core.mixtures import MixturePlan
from laneway.core.progress import Progress, ended_cut
from laneway.core.stretches import Stretch
from laneway.core.turns import WorkerPlace
from laneway.plans.costs import Costs
from laneway.plans.cut_rows import DatasetRows, MixtureRows
from laneway.plans.epoch_plan import EpochPlan, PlannedCut
from laneway.plans.row_numbers import RowNumbers, SourceNumbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.assignment import Assignment
    from laneway.core.progress import EarlierCut
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.delivery.definition import Definition
    from laneway.delivery.mixture_definition import MixtureDefinition
    from laneway.plans.cut_rows import CutRows


class Planner(Protocol):
    """Finds the rows of the cuts of an epoch."""

    @property
    def definition(self) -> Definition:
        """What is planned."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources of a mixture; none for a dataset."""

    def settled(self, progress: Progress) -> Progress:
        """Return the progress of the whole job without rows that lanes don't have."""

    def delivered(self, progress: Progress) -> list[CutRows]:
        """Return the rows of each cut of an epoch up to its progress: of the earlier ones, and of the current one."""

    def ahead(self, assignment: Assignment) -> tuple[CutRows, Costs | None]:
        """Return the rows of the current cut, and what reading them costs, as far as it is known."""

    def num_rows(self, epoch: int) -> int | None:
        """Return the rows or packs of an epoch; None: it has no end."""


@final
class DatasetPlanner:
    """Plans epochs of a dataset."""

    sources = ()

    def __init__(self, definition: DatasetDefinition) -> None:
        """Plan epochs of a dataset."""
        self.definition = definition
        self._numbers = RowNumbers(definition)

    def settled(self, progress: Progress) -> Progress:
        """See Planner."""
        return progress

    def delivered(self, progress: Progress) -> list[CutRows]:
        """See Planner."""
        plan = self.definition.identity.plan(progress)
        before = zip(plan.lanes_before, plan.rows_before, strict=True)
        all_lanes = [*before, (plan.lanes, ended_cut(progress).rows())]
        return [DatasetRows(replace(plan, lanes=lanes), rows, self._numbers) for lanes, rows in all_lanes]

    def ahead(self, assignment: Assignment) -> tuple[CutRows, Costs | None]:
        """See Planner."""
        plan = self.definition.identity.plan(assignment.progress)
        return DatasetRows(plan, assignment.ends, self._numbers), Costs(self.definition, plan)

    def num_rows(self, epoch: int) -> int | None:
        """See Planner."""
        return self.definition.identity.num_items(epoch)


@final
class MixturePlanner:
    """Plans passes of a mixture."""

    def __init__(self, definition: MixtureDefinition) -> None:
        """Plan passes of a mixture."""
        self.definition = definition
        self._numbers = {name: SourceNumbers(each) for name, each in definition.sources.items()}

    @property
    def sources(self) -> tuple[str, ...]:
        """See Planner."""
        return tuple(self.definition.sources)

    def settled(self, progress: Progress) -> Progress:
        """See Planner."""
        # Of a source that was removed, nobody knows where its rows end.
        is_known = all(each.name in self.definition.sources for start in progress.starts[-1:] for each in start.sources)
        return settled(self.definition.mixed, progress) if progress.cut is not None and is_known else progress

    def delivered(self, progress: Progress) -> list[CutRows]:
        """See Planner."""
        plan = MixturePlan(self.definition.mixed.sources, progress)
        return [MixtureRows(plan, cut, self._numbers) for cut in range(len(plan.cuts))]

    def ahead(self, assignment: Assignment) -> tuple[CutRows, Costs | None]:
        """See Planner."""
        plan = MixturePlan(self.definition.mixed.sources, assignment.progress)
        return MixtureRows(plan, plan.current, self._numbers), None

    def num_rows(self, epoch: int) -> int | None:  # noqa: ARG002 - it is the same for all
        """See Planner."""
        return self.definition.mixed.num_rows


def plan_epoch(planner: Planner, progress: Progress, world_size: int, num_workers: int) -> EpochPlan:
    """Return the plan of an epoch.

    Args:
        planner: Finds the rows.
        progress: Progress of the whole job, from which the epoch goes on.
        world_size: Number of ranks from there on.
        num_workers: Workers of each rank.

    Raises:
        CheckpointMismatchError: The epoch was cut too often to be cut again.
        ValueError: The workers need more lanes than a state can hold.
    """
    definition, progress = planner.definition, planner.settled(progress)
    assignment = definition.resolve(progress, WorkerPlace(0, world_size, 0, num_workers))
    cuts = [*_delivered(planner, progress)]
    next_step = cuts[-1].first_step + cuts[-1].stretch.num_steps if cuts else 0
    current = assignment.cut
    first_step = next_step
    is_same_cut = bool(cuts) and len(progress.earlier) == len(assignment.progress.earlier)
    is_mid_turn = bool(np.any((current.rows() % current.turn_rows > 0) & (current.rows() < assignment.ends)))
    if is_same_cut and is_mid_turn:
        # The rest of a turn belongs to the step that took the rest.
        first_step = next_step = next_step - 1
    following: Assignment | None = assignment
    while following is not None:
        rows, costs = planner.ahead(following)
        cut = following.cut
        stretch = Stretch(
            cut.turn_rows, following.progress.sharing, cut.rows(), following.ends, cut.next_turn, num_workers
        )
        cuts.append(PlannedCut(first_step, stretch, rows, costs, is_delivered=False))
        first_step += stretch.num_steps
        following = definition.following(following)
    return EpochPlan(
        epoch=progress.epoch,
        world_size=world_size,
        num_workers=num_workers,
        batch_size=definition.options.batch_size,
        next_step=next_step,
        num_rows=planner.num_rows(progress.epoch),
        _cuts=tuple(cuts),
        _sources=planner.sources,
        _item="row" if definition.stages is None else "pack",
    )


def _delivered(planner: Planner, progress: Progress) -> Iterator[PlannedCut]:
    """Yield the steps that were delivered, cut by cut."""
    if progress.cut is None:
        return
    first_step = _steps_forgotten(progress)
    ended: tuple[EarlierCut, ...] = (*progress.earlier, ended_cut(progress))
    for cut, rows in zip(ended, planner.delivered(progress), strict=True):
        taken = cut.rows()
        stretch = Stretch(cut.turn_rows, cut.sharing, np.zeros_like(taken), taken)
        yield PlannedCut(first_step, stretch, rows, None, is_delivered=True)
        first_step += stretch.num_steps


def _steps_forgotten(progress: Progress) -> int:
    """Return the steps before the first cut that the state of a mixture holds, as if it had taken batches as long."""
    if not progress.starts or not progress.starts[0].rows_before:
        return 0
    first = (*progress.earlier, ended_cut(progress))[0]
    return -(-progress.starts[0].rows_before // (first.sharing.job_turns * first.turn_rows))

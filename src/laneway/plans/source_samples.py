"""Samples of the plan of a mixture, few enough to be drawn: from which sources the rows of its steps come."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from laneway.plans.epoch_plan import cuts_of
from laneway.plans.samples import evenly

if TYPE_CHECKING:
    from laneway.plans.epoch_plan import EpochPlan, PlannedCut

_MAX_RANGES: Final = 8_000
"""Ranges of lanes that samples of steps consist of: each takes about 0.1 ms."""


class SampledSteps(NamedTuple):
    """Consecutive steps, of which some were counted."""

    first_step: int
    """The first step."""
    num_steps: int
    """Number of steps."""
    rows: tuple[int, ...]
    """Rows of each source in those that were counted."""


class SampledCut(NamedTuple):
    """Steps of one cut of a mixture, of those that were delivered before or of those that are ahead."""

    first_step: int
    """The first step."""
    num_lanes: int
    """Lanes of the cut."""
    world_size: int
    """Ranks that share them."""
    is_delivered: bool
    """Whether these steps were taken before."""


@dataclass(frozen=True, eq=False)
class SampledSources:
    """From which sources the rows of the steps of a mixture come."""

    names: tuple[str, ...]
    """The sources."""
    steps: tuple[SampledSteps, ...]
    """The steps, in parts of about the same length."""
    cuts: tuple[SampledCut, ...]
    """The cuts that have steps."""
    next_step: int
    """The next step."""
    num_steps: int
    """Steps that are sampled: all; or if the mixture has no end, as many as have been taken once more, and those up to
    the last cut of a schedule."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each source of the rows that were counted, in [0, 1]."""
        counts = [sum(column) for column in zip(*(each.rows for each in self.steps), strict=True)]
        total = sum(counts) or 1
        return tuple(count / total for count in counts or [0] * len(self.names))


def sample_sources(plan: EpochPlan, max_parts: int = 240) -> SampledSources:
    """Return from which sources the rows of the steps of a mixture come.

    Args:
        plan: The plan of a mixture.
        max_parts: Parts into which the steps are divided.
    """
    cuts = [cut for cut in cuts_of(plan) if cut.stretch.num_steps]
    next_step, num_steps = plan.next_step, plan.num_steps
    if num_steps is None:
        # The cuts that a schedule of weights plans are seen, too.
        until_last_cut = max((cut.first_step for cut in cuts), default=0) - next_step
        num_steps = next_step + max(next_step, until_last_cut + until_last_cut // 4, 100)
    first = min((cut.first_step for cut in cuts), default=0)
    ranges = max((cut.stretch.sharing.job_turns for cut in cuts), default=1)
    num_parts = max(1, min(max_parts, num_steps - first, _MAX_RANGES // ranges))
    of_part = max(1, _MAX_RANGES // (ranges * num_parts))
    bounds = [first + index * (num_steps - first) // num_parts for index in range(num_parts + 1)]
    names = _names_in(cuts)
    parts = []
    for start, stop in pairwise(bounds):
        counts = dict.fromkeys(names, 0)
        for step in evenly(stop - start, of_part):
            for name, rows in _rows_of_sources(cuts, start + step).items():
                counts[name] += rows
        parts.append(SampledSteps(start, stop - start, tuple(counts.values())))
    return SampledSources(
        names,
        tuple(parts),
        tuple(
            SampledCut(cut.first_step, cut.stretch.num_lanes, cut.stretch.sharing.world_size, cut.is_delivered)
            for cut in cuts
            if cut.first_step < num_steps
        ),
        next_step,
        num_steps,
    )


def _names_in(cuts: list[PlannedCut]) -> tuple[str, ...]:
    """Return the names of the sources of some cuts, those of the last one first."""
    return tuple(dict.fromkeys(name for cut in reversed(cuts) for name in cut.rows.sources))


def _rows_of_sources(cuts: list[PlannedCut], step: int) -> dict[str, int]:
    """Return name -> rows of a step, of all ranks."""
    found: dict[str, int] = {}
    for cut in cuts:
        own = step - cut.first_step
        if not 0 <= own < cut.stretch.num_steps:
            continue
        for rank in range(cut.stretch.sharing.world_size):
            for name, number in cut.rows.count_sources(cut.stretch.ranges(own, rank)).items():
                found[name] = found.get(name, 0) + number
        break
    return found

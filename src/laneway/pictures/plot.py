"""The picture of an epoch's plan: an SVG image of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from laneway.pictures.epochs import draw_lanes, draw_mixing, draw_rows
from laneway.pictures.ranks import draw_bytes, draw_start_up
from laneway.pictures.svg import STYLE, stacked
from laneway.plans.samples import sample_batches, start_up

if TYPE_CHECKING:
    from laneway.pictures.svg import Drawing
    from laneway.plans.epoch_plan import EpochPlan
    from laneway.plans.samples import SampledBatches

_MAX_STEPS: Final = 240
_MAX_RANKS: Final = 4


@dataclass(frozen=True)
class PlanPictures:
    """The pictures of an epoch of a dataset."""

    plan: EpochPlan
    """The plan of the epoch."""
    block_name: str = "row group"
    """What the format of the data calls the parts of a file that are read as a whole."""

    @cached_property
    def samples(self) -> SampledBatches:
        """Batches at even distances."""
        return sample_batches(self.plan, _MAX_STEPS, _MAX_RANKS)

    def of_epoch(self) -> list[Drawing]:
        """Return the pictures of the epoch: its lanes, its rows against time, and how they are mixed."""
        return [draw_lanes(self.plan), draw_rows(self.plan, self.samples), draw_mixing(self.samples)]

    def of_ranks(self) -> list[Drawing]:
        """Return the pictures of what each rank reads; none if nothing is left."""
        read, requests = self.plan.bytes_per_rank, start_up(self.plan)
        if read is None or not requests:
            return []
        return [draw_bytes(read), draw_start_up(requests, self.block_name)]

    def image(self) -> str:
        """Return all of them as an SVG image."""
        return stacked([*self.of_epoch(), *self.of_ranks()]).image(STYLE)

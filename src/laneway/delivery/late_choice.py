"""An epoch that is chosen for a pass which a DataLoader's workers have begun: too late, and worth a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from laneway.delivery.schedule import EpochSchedule

_MAX_AHEAD: Final = 2
"""Batches that a DataLoader by default has each worker read ahead: it may still read these after a `break`."""


class LateChoice:
    """Notices in a worker that an epoch was chosen since its pass began, and that the pass goes on nevertheless.

    `StatefulDataLoader.state_dict()` has its workers begin a pass, which the next `iter` delivers.
    """

    def __init__(self, schedule: EpochSchedule, generation: int) -> None:
        """Watch a schedule from the start of a pass.

        Args:
            schedule: The schedule.
            generation: Generation of its clock at the start.
        """
        self._schedule = schedule
        self._generation = generation
        self._num_reads = 0

    def warning(self, epoch: int) -> str | None:
        """Return a warning, if one is due before the next read of the pass.

        Args:
            epoch: The epoch that it delivers.
        """
        chosen = self._schedule.epoch_chosen_after(self._generation)
        if chosen is None or chosen == epoch:
            return None
        self._num_reads += 1
        if self._num_reads <= _MAX_AHEAD:
            return None
        return (
            f"set_epoch({chosen}) applies to the next pass, as the workers had begun this one, over epoch {epoch}; "
            "state_dict() of a StatefulDataLoader starts its workers, so call set_epoch() before it"
        )

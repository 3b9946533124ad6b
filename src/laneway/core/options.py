"""Lane options: the lanes, turns and batches that a user requests, which may change from run to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from laneway.core.division import TurnDivision
from laneway.core.lanes import MAX_LANES
from laneway.core.progress import CutProgress, fresh_cut
from laneway.core.turns import WorkerPlace, has_one_owner_per_lane
from laneway.wording import counted

if TYPE_CHECKING:
    from laneway.core.plan import Settings


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """The lanes, turns and batches that a user requests."""

    lanes: int | None
    """Number of lanes; None: for each worker, one per turn of a batch."""
    turn_rows: int | None
    """Rows of a turn; None: one batch, or one row if there are no batches."""
    batch_size: int | None
    """Rows of a batch; None: single rows."""

    @property
    def default_turn_rows(self) -> int:
        """Rows of a turn in a new cut."""
        return self.turn_rows or self.batch_size or 1

    def turns_per_batch(self, turn_rows: int) -> int | None:
        """Return the number of turns of a batch, or None if a batch is not a whole number of turns."""
        if self.batch_size is None:
            return 1
        turns, rest = divmod(self.batch_size, turn_rows)
        return None if rest else turns

    def num_lanes(self, place: WorkerPlace) -> int:
        """Return the number of lanes of a new cut: as requested if the workers can share them, else the default.

        Raises:
            ValueError: The workers need more lanes than a state can hold.
        """
        turns_per_batch = self.turns_per_batch(self.default_turn_rows) or 1
        if self.lanes is not None and has_one_owner_per_lane(self.lanes, place, turns_per_batch):
            return self.lanes
        num_lanes = place.stride(turns_per_batch)
        if num_lanes > MAX_LANES:
            message = (
                f"{_readers(place)} need a lane for each of the {counted(turns_per_batch, 'turn')} of a batch, "
                f"{num_lanes:,} in all, but {MAX_LANES:,} is the maximum: use "
                "a larger turn_rows or fewer workers"
            )
            raise ValueError(message)
        return num_lanes

    def fresh_cut(self, place: WorkerPlace) -> CutProgress:
        """Return the progress of a new cut for the workers of the job, from which nothing has been delivered.

        Args:
            place: Any of the workers.
        """
        return fresh_cut(self.num_lanes(place), self.default_turn_rows)

    def num_ranks_mid_turn(self, place: WorkerPlace) -> int:
        """Return the number of ranks that can resume within a turn and still deliver the same number of rows."""
        return place.world_size if self.batch_size is None or place.world_size == 1 else 0

    def num_items(self, num_rows: int, place: WorkerPlace, settings: Settings) -> int:
        """Return the number of batches, or rows if there are no batches, that a rank delivers in a whole epoch.

        Args:
            num_rows: Rows of the dataset.
            place: Any worker of the rank; the number of workers has no influence.
            settings: The settings of the dataset.
        """
        turn_rows = self.default_turn_rows
        turns_per_batch = self.turns_per_batch(turn_rows) or 1
        # The lanes don't matter either: any number that these ranks can share.
        num_lanes = place.world_size * turns_per_batch
        division = TurnDivision(num_rows, num_lanes, turn_rows, place.world_size, turns_per_batch)
        remainder = settings.remainder_for(place.world_size)
        num_batches, num_rows = division.num_items(place.rank, remainder, drop_last=settings.drop_last)
        return num_rows if self.batch_size is None else num_batches

    def warnings_for(self, num_rows: int, place: WorkerPlace, settings: Settings) -> list[str]:
        """Return warnings: the workers can't share the requested lanes, or there are too few rows for the ranks.

        Args:
            num_rows: Rows of the dataset.
            place: The worker that is about to read.
            settings: The settings of the dataset.
        """
        found = []
        num_lanes, ranks = self.num_lanes(place), place.world_size
        if self.lanes not in {None, num_lanes}:
            found.append(
                f"{self.lanes} lanes can't be shared by {_readers(place)}: epochs are "
                f"cut into {num_lanes} lanes instead, in another order; set lanes to a multiple of {num_lanes}"
            )
        # One worker warns for all.
        if num_rows and place.rank == place.worker == 0:
            found += self._warnings_of_few_rows(num_rows, ranks, settings)
        return found

    def _warnings_of_few_rows(self, num_rows: int, world_size: int, settings: Settings) -> list[str]:
        is_short = num_rows < world_size * (self.batch_size or 0)
        if is_short and settings.drop_last:
            effect = "drop_last drops all of them"
        elif settings.remainder == "drop" and num_rows < world_size:
            effect = 'remainder="drop" leaves out all of them'
        elif is_short and world_size > 1:
            # A single rank is free to have one short batch.
            effect = "no batch is whole"
        else:
            return []
        share = "a row" if self.batch_size is None else f"a batch of {self.batch_size:,}"
        ways_out = [] if self.batch_size is None else ["a smaller batch_size"]
        if world_size > 1:
            share = f"{share} for each of {world_size:,} ranks"
            ways_out.insert(0, "fewer ranks")
        return [
            f"the dataset has {counted(num_rows, 'row')}, fewer than {share}, so {effect}: use {', or '.join(ways_out)}"
        ]


def _readers(place: WorkerPlace) -> str:
    return f"{counted(place.world_size, 'rank')} with {counted(place.num_workers, 'worker')}"

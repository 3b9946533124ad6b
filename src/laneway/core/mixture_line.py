"""The lines of the epochs of a mixture's sources: which of their rows were delivered, whatever file they are in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.intervals import Intervals
from laneway.core.line import line_of_identity, places_of
from laneway.core.mixture_assignment import lane_ends, settled
from laneway.core.mixtures import MixturePlan, Source
from laneway.core.progress import current_cut, fresh_cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.mixture_assignment import Mixed
    from laneway.core.plan import Identity
    from laneway.core.progress import Group, LanePositions, Progress, SourceStart


class EpochLine(NamedTuple):
    """How far the line of an epoch of a source has been delivered: places of its rows."""

    num_rows: int
    """Rows of the epoch."""
    base: Intervals
    """Those that were delivered in earlier cuts of the mixture."""
    delivered: Intervals
    """Those that were delivered in all cuts."""
    ahead: Intervals
    """Those that are yet to be delivered in the current cut."""
    num_repeated: int
    """Rows that were delivered twice in the current cut, so that lanes deliver equally many."""


class _Line(Source):
    """A source, each epoch of which has its rows in one imaginary file."""

    def identity_of(self, files: str) -> Identity:
        """Return the imaginary file in the place of some files."""
        return line_of_identity(super().identity_of(files))


@dataclass(frozen=True, eq=False)
class MixtureLines:
    """How far the epochs of the sources of a mixture have been delivered, by the progress of the whole job.

    A group of rows of which a stage has delivered some items, but not all, counts as delivered: the mixture carries it
    through its cuts, apart from what is left of epochs.
    """

    mixed: Mixed
    """What is mixed. Each source of the progress is in it, with its files."""
    progress: Progress
    """The progress, which has been cut, and in which the positions of all lanes are known."""

    @property
    def _plan(self) -> MixturePlan:
        return self._planned[0]

    @cached_property
    def _planned(self) -> tuple[MixturePlan, LanePositions]:
        """The plan, and the positions of the lanes, none of which is behind its end."""
        progress = settled(self.mixed, self.progress)
        lines = {name: _Line(source.identity, source.former) for name, source in self.mixed.sources.items()}
        return MixturePlan(lines, progress), current_cut(progress).all_positions()

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Rows that each lane delivers in the current cut, shape (num_lanes,)."""
        return lane_ends(self.mixed, self.progress)[0]

    @property
    def positions(self) -> LanePositions:
        """The positions of the lanes of the current cut."""
        return self._planned[1]

    @cached_property
    def starts(self) -> dict[str, SourceStart]:
        """Name of a source -> how it began the current cut."""
        return {source.name: source for source in self.progress.starts[-1].sources}

    @cached_property
    def half_delivered(self) -> tuple[Group, ...]:
        """The groups of which a stage has delivered some items, but not all."""
        ends = self.ends if self.progress.starts[-1].group_rows > 1 else None
        return self._plan.half_delivered(ends)

    def settled(self) -> Progress:
        """Return the progress, in which no lane is behind its end."""
        return self._plan.progress

    def at_start(self) -> MixtureLines:
        """Return how far the epochs were when the current cut began."""
        cut = current_cut(self.progress)
        progress = replace(self.progress, cut=fresh_cut(cut.num_lanes, cut.turn_rows))
        return MixtureLines(self.mixed, progress)

    # -- Epochs -------------------------------------------------------------------------------------------------------

    def rests(self, name: str) -> dict[int, int]:
        """Return epoch -> number of rows, of the epochs of which the current cut was left something."""
        return {rest.epoch: rest.num_rows for rest in self.starts[name].rests}

    def next_epoch(self, name: str) -> int:
        """Return the first epoch of which nothing has been delivered, nor of any after it."""
        return self._plan.begun(self._plan.current, name)[1]

    def open_epochs(self, name: str) -> list[int]:
        """Return the epochs that have begun, and of which lanes have yet to deliver rows, oldest first."""
        return [each.rest.epoch for each in self._plan.unfinished(name)]

    def epoch_rows(self, name: str, epoch: int) -> int:
        """Return the rows of an epoch with the files that a source has in the current cut."""
        return self._plan.lanes(self._plan.current, name).epochs.rows_in(epoch)

    def epochs_vary(self, name: str) -> bool:
        """Return whether the epochs of a source have other numbers of rows each."""
        return self.mixed.sources[name].identity.epochs_vary

    def dropped(self, name: str, num_rows: int) -> int:
        """Return how many of the rows that are left of an epoch the lanes of the current cut leave out."""
        return max(0, num_rows - self._plan.lanes(self._plan.current, name).shares.delivered(num_rows))

    def epoch(self, name: str, epoch: int) -> EpochLine:
        """Return how far an epoch has been delivered that was left by earlier cuts, or has begun since."""
        plan, cut = self._plan, self._plan.current
        lanes, of_epoch = plan.lanes(cut, name), plan.plan(cut, name, epoch)
        before = lanes.rows_before(epoch)
        ends = lanes.rows_before(epoch + 1) - before
        # Lane `l` of the mixture reads lane `l + epoch` of the epoch.
        taken = np.roll(np.clip(plan.taken(name) - before, 0, ends), epoch)
        ends = np.minimum(np.roll(ends, epoch), of_epoch.lanes.rows)
        base = Intervals.empty()
        for lanes_before, rows in zip(of_epoch.lanes_before, of_epoch.rows_before, strict=True):
            base |= places_of(of_epoch, lanes_before.delivered(rows))
        return EpochLine(
            of_epoch.identity.selected.num_rows if of_epoch.line is None else of_epoch.line.places.num_packs,
            base,
            base | places_of(of_epoch, of_epoch.lanes.delivered(taken)),
            places_of(of_epoch, of_epoch.lanes.delivered(ends).undelivered(taken)),
            int(np.maximum(taken - of_epoch.lanes.rows, 0).sum()),
        )

    def identity_of(self, group: Group) -> tuple[int, int, int, int]:
        """Return what tells a group from others, also in states that number cuts otherwise."""
        starts, cuts = self.progress.starts, self._plan.cuts
        return starts[group.cut].rows_before, cuts[group.cut].num_lanes, group.lane, group.row

    def of_group(self, group: Group) -> dict[tuple[str, int], Intervals]:
        """Return (source, epoch) -> places of the rows of a group."""
        found: dict[tuple[str, int], Intervals] = {}
        for name, (epoch, lane, start, stop) in self._plan.ranges(group):
            of_epoch = self._plan.plan(group.cut, name, epoch)
            pieces = [*of_epoch.lanes.segments(lane, start, stop)]
            window = np.array([piece.window for piece in pieces], np.int64)
            first = of_epoch.windows.start[of_epoch.windows.piece_starts[window]]
            places = Intervals.of(
                first + np.array([piece.start for piece in pieces], np.int64),
                first + np.array([piece.stop for piece in pieces], np.int64),
            )
            found[name, epoch] = found.get((name, epoch), Intervals.empty()) | places
        return found

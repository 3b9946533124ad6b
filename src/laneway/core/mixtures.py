"""Mixtures: how far their sources have come in each cut, and the next cut of what is left of them.

A mixture is an epoch that never ends. Its lanes are cut, taken in turns, and counted as those of any epoch: its
`Progress` holds one cut after another. What a cut needs besides is how it began (`CutStart`): the weights, and what
each source had left. All else follows: the weights turn the rows of a lane into rows of each source (`Mixing`), these
into rows of its epochs (`SourceLanes`), and each epoch of a source is a plan of its own, cut again when the mixture is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.endless import EpochRange, Rest, SourceLanes
from laneway.core.mixing import Mixing
from laneway.core.order import ORDER_VERSION
from laneway.core.progress import CutProgress, Progress, current_cut, ended_cut, fresh_cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from laneway.core.division import Sharing
    from laneway.core.endless import Begun
    from laneway.core.lanes import Remainder
    from laneway.core.plan import Identity, Plan
    from laneway.core.progress import EarlierCut


class SourceStart(NamedTuple):
    """A source when a cut of a mixture begins."""

    name: str
    """Its name in the mixture."""
    weight: float
    """Its weight in this cut."""
    next_epoch: int = 0
    """Its first epoch that has not begun."""
    rests: tuple[Rest, ...] = ()
    """What is left of the epochs before, oldest first."""


class Group(NamedTuple):
    """Consecutive rows of a lane from which a stage builds items, of which some had been delivered when a cut ended."""

    cut: int
    """Index of the cut; -1: all its items have been delivered since."""
    lane: int
    """Lane of that cut."""
    row: int
    """First row of the group in that lane."""
    offset: int
    """Number of its items that had been delivered."""


@dataclass(frozen=True, slots=True)
class CutStart:
    """How a cut of a mixture begins."""

    sources: tuple[SourceStart, ...]
    """The sources, in the order that breaks ties between equal weights."""
    group_rows: int = 1
    """Rows from which the last stage builds items at a time; 1 without a stage."""
    num_carried: int = 0
    """Number of groups that earlier cuts left half delivered: the first rows of the lanes."""
    order_version: int = ORDER_VERSION
    """The order in which epochs of sources begin."""


@dataclass(frozen=True, slots=True)
class MixtureProgress:
    """Progress of a mixture."""

    progress: Progress
    """Its lanes and turns, as those of an epoch without end. The rows of carried groups are the first of a lane."""
    starts: tuple[CutStart, ...]
    """How each cut begins: those in `progress.earlier`, and then the current one."""
    carried: tuple[Group, ...] = ()
    """The groups that the current cut was left: group `i` is in lane `i % num_lanes`, before all rows of sources."""


@dataclass(frozen=True)
class Source:
    """The files and settings of a source, which may have had fewer files in earlier epochs."""

    identity: Identity
    """Those of the epochs that begin now."""
    earlier: tuple[tuple[int, Identity], ...] = ()
    """(first epoch that was not begun with them, the files and settings before), oldest first."""

    def identity_of(self, epoch: int) -> Identity:
        """Return the files and settings with which an epoch began."""
        return next((identity for stop, identity in self.earlier if epoch < stop), self.identity)

    def extended(self, identity: Identity, next_epoch: int) -> Source:
        """Return the source with other files from `next_epoch` on."""
        return Source(identity, (*self.earlier, (next_epoch, self.identity)))


def remainder_of(identity: Identity) -> Remainder:
    """Return how the lanes of a source handle the row by which they differ: unless told, each row comes once.

    Lanes without end need not be equally long for ranks to deliver equally many batches.
    """
    return identity.settings.remainder or "keep"


class SourceRange(NamedTuple):
    """Rows of a lane of a source."""

    source: str
    """Its name."""
    rows: EpochRange
    """The rows."""


@dataclass(frozen=True, eq=False)
class MixturePlan:
    """A mixture in its current cut: a pure function of its sources and of its progress."""

    sources: Mapping[str, Source]
    """The files and settings of each source."""
    mixture: MixtureProgress
    """The progress."""
    _plans: dict[tuple[int, str, int], Plan] = field(default_factory=dict, init=False, repr=False)
    _begun: dict[tuple[int, str], tuple[list[Begun], int]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def cuts(self) -> tuple[EarlierCut, ...]:
        """All cuts, the current one as if it ended here."""
        return (*self.mixture.progress.earlier, ended_cut(self.mixture.progress))

    @property
    def current(self) -> int:
        """Index of the current cut."""
        return len(self.mixture.starts) - 1

    @cached_property
    def mixings(self) -> tuple[Mixing, ...]:
        """Which source the rows of each cut come from."""
        return tuple(Mixing([source.weight for source in start.sources]) for start in self.mixture.starts)

    @cached_property
    def _indices(self) -> list[dict[str, int]]:
        """For each cut: name -> index of the source."""
        return [{source.name: i for i, source in enumerate(start.sources)} for start in self.mixture.starts]

    def lanes(self, cut: int, name: str) -> SourceLanes:
        """Return the lanes of a source in a cut."""
        start = self.mixture.starts[cut]
        source = start.sources[self._indices[cut][name]]
        identity = self.sources[name].identity_of(source.next_epoch)
        num_lanes, num_rows = self.cuts[cut].num_lanes, identity.files.num_rows
        version, remainder = start.order_version, remainder_of(identity)
        return SourceLanes(num_lanes, remainder, source.rests, source.next_epoch, num_rows, version)

    # -- The rows of a lane -------------------------------------------------------------------------------------------

    def group(self, lane: int, row: int) -> Group:
        """Return the group that begins at a row of a lane of the current cut."""
        group_rows = self.mixture.starts[-1].group_rows
        carried = self.mixture.carried[lane :: self.cuts[-1].num_lanes]
        index = row // group_rows
        return carried[index] if index < len(carried) else Group(self.current, lane, row - len(carried) * group_rows, 0)

    def ranges(self, group: Group, num_rows: int) -> list[SourceRange]:
        """Return where the first rows of a group come from: for each of its sources, one or several ranges."""
        cut, lane, row, _ = group
        sources = self.mixture.starts[cut].sources
        found = []
        for index, start, places in self.mixings[cut].lane(lane).split(row, row + num_rows):
            name = sources[index].name
            ranges = self.lanes(cut, name).ranges(lane, start, start + len(places))
            found += [SourceRange(name, each) for each in ranges]
        return found

    # -- The plans of epochs ------------------------------------------------------------------------------------------

    def plan(self, cut: int, name: str, epoch: int) -> Plan:
        """Return the plan of an epoch of a source in a cut of the mixture."""
        key = (cut, name, epoch)
        if key not in self._plans:
            lanes = self.lanes(cut, name)
            versions = {rest.epoch: rest.order_version for rest in lanes.rests}
            version = versions.get(epoch, lanes.order_version)
            earlier = tuple(each.ended_cut() for _, each in self._deliveries(name, epoch, cut))
            progress = Progress(epoch, lanes.sharing, fresh_cut(lanes.num_lanes, 1), earlier, order_version=version)
            # A lane is in one epoch, or passes into the next one.
            for old in [old for old in self._plans if old[:2] == key[:2] and old[2] < epoch - 1]:
                del self._plans[old]
            self._plans[key] = self.sources[name].identity_of(epoch).plan(progress)
        return self._plans[key]

    def begun(self, cut: int, name: str) -> tuple[list[Begun], int]:
        """Return the epochs of a source that had begun when a cut ended, or now; see `SourceLanes.begun`."""
        key = (cut, name)
        if key not in self._begun:
            self._begun[key] = self.lanes(cut, name).begun(self._source_rows[cut][self._indices[cut][name]])
        return self._begun[key]

    def _unfinished(self, name: str) -> list[Begun]:
        """Return the epochs of a source that have begun, and of which something is left."""
        return [each for each in self.begun(self.current, name)[0] if each.rows_left and not each.is_complete]

    def _deliveries(self, name: str, epoch: int, stop: int) -> list[tuple[int, Begun]]:
        """Return (cut, what it delivered) for the cuts before `stop` that delivered rows of an epoch of a source."""
        return [
            (cut, each)
            for cut in range(stop)
            if name in self._indices[cut]
            for each in self.begun(cut, name)[0]
            if each.rest.epoch == epoch and each.delivered.any()
        ]

    @cached_property
    def _source_rows(self) -> list[NDArray[np.int64]]:
        """For each cut: the rows that its lanes have taken of each source, shape (num_sources, num_lanes).

        Those of a group that is half delivered are among them: it stays whole.
        """
        found = []
        for start, cut, mixing in zip(self.mixture.starts, self.cuts, self.mixings, strict=True):
            rows, num_lanes = cut.rows(), cut.num_lanes
            if cut.positions is not None:
                rows[[position.offset > 0 for position in cut.positions]] += start.group_rows
            num_carried = np.bincount(np.arange(start.num_carried) % num_lanes, minlength=num_lanes)
            found.append(mixing.counts(np.maximum(rows - num_carried * start.group_rows, 0)))
        return found

    # -- The next cut -------------------------------------------------------------------------------------------------

    def cut_again(
        self, weights: Mapping[str, float], cut: CutProgress, sharing: Sharing, *, group_rows: int = 1
    ) -> MixtureProgress:
        """Return the progress of a new cut of what the sources have left. The positions of all lanes must be known.

        Args:
            weights: Name -> weight from now on. A source that the current cut doesn't have begins its first epoch. One
                that is no longer named is forgotten; with a weight of 0, it keeps its place.
            cut: The lanes and turns of the new cut, of which nothing has been delivered.
            sharing: How ranks share them.
            group_rows: Rows from which the last stage builds items at a time.

        Raises:
            ValueError: A source that is no longer named has rows in a group that is half delivered.
        """
        sources, known = [], self._indices[-1]
        for name, weight in weights.items():
            if name not in known:
                sources.append(SourceStart(name, weight))
                continue
            rests = tuple(each.rest._replace(num_rows=each.rows_left) for each in self._unfinished(name))
            sources.append(SourceStart(name, weight, self.begun(self.current, name)[1], rests))
        carried = self._half_delivered()
        for group in carried:
            gone = {each.source for each in self.ranges(group, self.mixture.starts[group.cut].group_rows)} - {*weights}
            if gone:
                message = (
                    f"source {min(gone)!r} can't be removed yet: some of its rows are in items that are half "
                    "delivered; give it a weight of 0 now, and remove it later"
                )
                raise ValueError(message)
        start = CutStart(tuple(sources), group_rows, len(carried))
        # A source that is removed and added again begins anew, so its earlier epochs must not be found.
        before = [
            replace(
                each, sources=tuple(s if s.name in weights else s._replace(name="", rests=()) for s in each.sources)
            )
            for each in self.mixture.starts
        ]
        progress = replace(self.mixture.progress, cut=cut, sharing=sharing, earlier=self.cuts, place=None)
        return MixturePlan(self.sources, MixtureProgress(progress, (*before, start), carried)).without_finished_cuts()

    def _half_delivered(self) -> tuple[Group, ...]:
        """Return the groups of which a part has been delivered, but not all, lane after lane."""
        found: list[Group] = []
        num_lanes, group_rows = self.cuts[-1].num_lanes, self.mixture.starts[-1].group_rows
        for lane, position in enumerate(current_cut(self.mixture.progress).all_positions()):
            waiting = self.mixture.carried[lane::num_lanes][position.rows // group_rows :]
            if position.offset or waiting:
                group = self.group(lane, position.rows)
                found += [group._replace(offset=group.offset + position.offset), *waiting[1:]]
        return tuple(found)

    def without_finished_cuts(self) -> MixtureProgress:
        """Return the progress without the earlier cuts of which nothing is left. All positions must be known."""
        mixture, last = self.mixture, self.current
        positions, group_rows = current_cut(mixture.progress).all_positions(), mixture.starts[-1].group_rows
        waiting = [
            i // len(positions) >= positions[i % len(positions)].rows // group_rows for i in range(len(mixture.carried))
        ]
        needed = {last}
        for name in self._indices[last]:
            for each in self._unfinished(name):
                needed |= {cut for cut, _ in self._deliveries(name, each.rest.epoch, last)}
        for group, is_waiting in zip(mixture.carried, waiting, strict=True):
            if is_waiting:
                needed.add(group.cut)
                for name, rows in self.ranges(group, mixture.starts[group.cut].group_rows):
                    needed |= {cut for cut, _ in self._deliveries(name, rows.epoch, group.cut)}
        kept = sorted(needed)
        carried = tuple(
            group._replace(cut=kept.index(group.cut) if is_waiting else -1)
            for group, is_waiting in zip(mixture.carried, waiting, strict=True)
        )
        progress = replace(mixture.progress, earlier=tuple(self.cuts[cut] for cut in kept[:-1]))
        return MixtureProgress(progress, tuple(mixture.starts[cut] for cut in kept), carried)

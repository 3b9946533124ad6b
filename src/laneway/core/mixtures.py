"""Mixtures: how far their sources have come in each cut, and the next cut of what is left of them.

A mixture is an epoch that never ends. Its lanes are cut, taken in turns, and counted as those of any epoch: its
`Progress` holds one cut after another. What a cut needs besides is how it began (`CutStart`): the weights, and what
each source had left. All else follows: the weights turn the rows of a lane into rows of each source (`Mixing`), these
into rows of its epochs (`SourceLanes`), and each epoch of a source is a plan of its own, cut again when the mixture is.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b85encode
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.endless import SourceLanes
from laneway.core.epoch_lanes import EqualEpochs, LaneShares, VaryingEpochs
from laneway.core.mixing import mixing_of
from laneway.core.order import ORDER_VERSION
from laneway.core.plan import Settings
from laneway.core.progress import (
    CutProgress,
    CutStart,
    Group,
    Progress,
    SourceStart,
    current_cut,
    ended_cut,
    fresh_cut,
    rows_in_mixture,
)
from laneway.errors import StateFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from laneway.core.division import Sharing
    from laneway.core.endless import Begun
    from laneway.core.epoch_lanes import EpochRange, Epochs
    from laneway.core.lanes import Remainder
    from laneway.core.mixing import Mixing
    from laneway.core.plan import Identity, Plan
    from laneway.core.progress import EarlierCut

NAME_LENGTH = 5
"""Length of `Source.files`: enough to tell the versions of a source apart."""


@dataclass(frozen=True)
class Source:
    """The files and settings of a source, to which files may have been added."""

    identity: Identity
    """Those of the epochs that begin now."""
    former: tuple[Identity, ...] = ()
    """Those before files were added, oldest first."""

    @property
    def files(self) -> str:
        """The name by which states know the files and settings of the epochs that begin now."""
        return name_of(self.identity)

    @property
    def all_files(self) -> list[str]:
        """The names of all that it had, oldest first."""
        return [*map(name_of, (*self.former, self.identity))]

    def identity_of(self, files: str) -> Identity:
        """Return the files and settings with a name.

        Raises:
            KeyError: The source never had them.
        """
        return {name_of(each): each for each in (*self.former, self.identity)}[files]

    def extended(self, identity: Identity) -> Source:
        """Return the source with other files for the epochs that begin in the next cut."""
        return Source(identity, (*self.former, self.identity))


def digest_of(identity: Identity) -> bytes:
    """Return a digest of files and settings, 20 bytes: of all that decides which row of a source comes when."""

    def compute() -> bytes:
        settings = asdict(replace(identity.settings, drop_last=False))
        defaults = {each.name: each.default for each in fields(Settings)}
        # Without those that have their default, so that further settings leave digests as they are.
        given = sorted((name, value) for name, value in settings.items() if value != defaults[name])
        text = json.dumps([identity.fingerprint_in(ORDER_VERSION), given])
        return hashlib.blake2b(text.encode(), digest_size=20).digest()

    return identity.derived("digest in mixtures", compute)


def name_of(identity: Identity) -> str:
    """Return the name of files and settings in states: the start of their digest, `NAME_LENGTH` characters."""
    digest = digest_of(identity)
    return identity.derived("name in mixtures", lambda: b85encode(digest).decode("ascii")[:NAME_LENGTH])


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
    progress: Progress
    """The progress."""
    _plans: dict[tuple[int, str, int], Plan] = field(default_factory=dict, init=False, repr=False)
    _lanes: dict[tuple[int, str], SourceLanes] = field(default_factory=dict, init=False, repr=False)
    _begun: dict[tuple[int, str], tuple[list[Begun], int]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def cuts(self) -> tuple[EarlierCut, ...]:
        """All cuts, the current one as if it ended here."""
        return (*self.progress.earlier, ended_cut(self.progress))

    @property
    def current(self) -> int:
        """Index of the current cut."""
        return len(self.progress.starts) - 1

    @cached_property
    def mixings(self) -> tuple[Mixing, ...]:
        """Which source the rows of each cut come from."""
        return tuple(mixing_of(*(source.weight for source in start.sources)) for start in self.progress.starts)

    @cached_property
    def _indices(self) -> list[dict[str, int]]:
        """For each cut: name -> index of the source."""
        return [{source.name: i for i, source in enumerate(start.sources)} for start in self.progress.starts]

    def lanes(self, cut: int, name: str) -> SourceLanes:
        """Return the lanes of a source in a cut."""
        if (cut, name) not in self._lanes:
            self._lanes[cut, name] = self._lanes_of(cut, name)
        return self._lanes[cut, name]

    def _lanes_of(self, cut: int, name: str) -> SourceLanes:
        start = self.progress.starts[cut]
        source = start.sources[self._indices[cut][name]]
        identity = self.sources[name].identity_of(source.files)
        version, first = start.order_version, source.next_epoch
        shares = LaneShares(self.cuts[cut].num_lanes, remainder_of(identity))
        epochs: Epochs = EqualEpochs(shares, first, identity.num_items(first, version))
        if identity.epochs_vary:
            epochs = VaryingEpochs(shares, first, partial(identity.num_items, order_version=version))
        return SourceLanes(shares, source.rests, first, epochs, version, source.files)

    # -- The rows of a lane -------------------------------------------------------------------------------------------

    def group(self, lane: int, row: int) -> Group:
        """Return the group that begins at a row of a lane of the current cut."""
        group_rows = self.progress.starts[-1].group_rows
        carried = self.progress.carried[lane :: self.cuts[-1].num_lanes]
        index = row // group_rows
        return carried[index] if index < len(carried) else Group(self.current, lane, row - len(carried) * group_rows, 0)

    def part(self, lane: int, start: int, stop: int) -> tuple[int, int, int, int]:
        """Return where row `start` of a lane of the current cut is, and how far the rows from there on stay together.

        Returns:
            The cut, the lane of that cut, the row in that lane, and the end of the part in the current lane, which is
            at most `stop`.
        """
        group_rows = self.progress.starts[-1].group_rows
        num_carried = len(self.progress.carried[lane :: self.cuts[-1].num_lanes])
        if start >= num_carried * group_rows:
            return self.current, lane, start - num_carried * group_rows, stop
        index, offset = divmod(start, group_rows)
        group = self.group(lane, index * group_rows)
        return group.cut, group.lane, group.row + offset, min(stop, (index + 1) * group_rows)

    def ranges(self, group: Group, num_rows: int | None = None) -> list[SourceRange]:
        """Return where the rows of a group, or its first ones, come from: for each of its sources, some ranges."""
        cut, lane, row, _, of_group = group
        if num_rows is None:
            num_rows = of_group or self.progress.starts[cut].group_rows
        sources = self.progress.starts[cut].sources
        found = []
        for index, start, places in self.mixings[cut].lane(lane).split(row, row + num_rows):
            name = sources[index].name
            ranges = self.lanes(cut, name).ranges(lane, start, start + len(places))
            found += [SourceRange(name, each) for each in ranges]
        return found

    def _sources_of(self, group: Group) -> set[str]:
        """Return the names of the sources of the rows of a group, also of those that are gone."""
        cut, lane, row, _, of_group = group
        start = self.progress.starts[cut]
        parts = self.mixings[cut].lane(lane).split(row, row + (of_group or start.group_rows))
        return {start.sources[index].name for index, _, places in parts if len(places)}

    # -- The plans of epochs ------------------------------------------------------------------------------------------

    def plan(self, cut: int, name: str, epoch: int) -> Plan:
        """Return the plan of an epoch of a source in a cut of the mixture."""
        key = (cut, name, epoch)
        if key not in self._plans:
            lanes = self.lanes(cut, name)
            _, num_rows, version, files = lanes.began(epoch)
            earlier = tuple(each.ended_cut() for _, each in self._deliveries(name, epoch, cut))
            progress = Progress(epoch, lanes.sharing, fresh_cut(lanes.num_lanes, 1), earlier, order_version=version)
            # A lane is in one epoch, or passes into the next one.
            for old in [old for old in self._plans if old[:2] == key[:2] and old[2] < epoch - 1]:
                del self._plans[old]
            plan = self.sources[name].identity_of(files).plan(progress)
            if plan.lanes.num_rows != num_rows:
                message = (
                    f"this state is damaged: it has {num_rows:,} rows left of epoch {epoch} of source {name!r}, and "
                    f"its cuts leave {plan.lanes.num_rows:,}"
                )
                raise StateFormatError(message)
            self._plans[key] = plan
        return self._plans[key]

    def begun(self, cut: int, name: str) -> tuple[list[Begun], int]:
        """Return the epochs of a source that had begun when a cut ended, or now; see `SourceLanes.begun`."""
        key = (cut, name)
        if key not in self._begun:
            self._begun[key] = self.lanes(cut, name).begun(self._source_rows[cut][self._indices[cut][name]])
        return self._begun[key]

    def taken(self, name: str) -> NDArray[np.int64]:
        """Return the rows of a source that each lane of the current cut has taken, shape (num_lanes,)."""
        found: NDArray[np.int64] = self._source_rows[-1][self._indices[-1][name]]
        return found

    def rows_in_cut(self, name: str) -> int:
        """Return the rows of a source that were delivered in the current cut, padding included."""
        return int(self.taken(name).sum())

    def rows_of(self, name: str) -> int:
        """Return the rows of a source that were delivered since the mixture began, padding included."""
        return self.progress.starts[-1].sources[self._indices[-1][name]].rows + self.rows_in_cut(name)

    def unfinished(self, name: str) -> list[Begun]:
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
        for start, cut, mixing in zip(self.progress.starts, self.cuts, self.mixings, strict=True):
            rows, num_lanes = cut.rows(), cut.num_lanes
            if cut.positions is not None:
                rows[[position.offset > 0 for position in cut.positions]] += start.group_rows
            num_carried = np.bincount(np.arange(start.num_carried) % num_lanes, minlength=num_lanes)
            found.append(mixing.counts(np.maximum(rows - num_carried * start.group_rows, 0)))
        return found

    # -- The next cut -------------------------------------------------------------------------------------------------

    def cut_again(
        self,
        weights: Mapping[str, float],
        cut: CutProgress,
        sharing: Sharing,
        *,
        group_rows: int = 1,
        batches_before: int = 0,
        ends: NDArray[np.int64] | None = None,
    ) -> Progress:
        """Return the progress of a new cut of what the sources have left. The positions of all lanes must be known.

        Args:
            weights: Name -> weight from now on. A source that the current cut doesn't have begins its first epoch. One
                that is no longer named is forgotten; with a weight of 0, it keeps its place.
            cut: The lanes and turns of the new cut, of which nothing has been delivered.
            sharing: How ranks share them.
            group_rows: Rows from which the last stage builds items at a time.
            batches_before: See `CutStart`.
            ends: Where each lane ends, which may be within a group; None: never.

        Raises:
            ValueError: A source that is no longer named has rows in a group that is half delivered.
        """
        sources, known = [], self._indices[-1]
        for name, weight in weights.items():
            files = self.sources[name].files
            if name not in known:
                sources.append(SourceStart(name, weight, files=files))
                continue
            rests = tuple(each.rest._replace(num_rows=each.rows_left) for each in self.unfinished(name))
            next_epoch, rows = self.begun(self.current, name)[1], self.rows_of(name)
            sources.append(SourceStart(name, weight, next_epoch, rests, files, rows))
        carried = self.half_delivered(ends)
        for group in carried:
            gone = self._sources_of(group) - {*weights}
            if gone:
                message = (
                    f"source {min(gone)!r} can't be removed yet: some of its rows are in items that are half "
                    "delivered; give it a weight of 0 now, and remove it later"
                )
                raise ValueError(message)
        rows_before, tokens = rows_in_mixture(self.progress), self.progress.tokens
        start = CutStart(
            tuple(sources), group_rows, len(carried), rows_before=rows_before, batches_before=batches_before
        )
        # A source that is removed and added again begins anew, so its earlier epochs must not be found.
        before = [
            replace(
                each,
                sources=tuple(
                    source._replace(rows=0) if source.name in weights else source._replace(name="", rests=(), rows=0)
                    for source in each.sources
                ),
            )
            for each in self.progress.starts
        ]
        progress = replace(
            self.progress,
            cut=cut,
            sharing=sharing,
            earlier=self.cuts,
            place=None,
            starts=(*before, start),
            carried=carried,
            tokens={name: tokens.get(name, 0) for name in weights} if tokens else tokens,
        )
        return MixturePlan(self.sources, progress).without_finished_cuts()

    def half_delivered(self, ends: NDArray[np.int64] | None) -> tuple[Group, ...]:
        """Return the groups of which a part has been delivered, but not all, lane after lane."""
        found: list[Group] = []
        num_lanes, group_rows = self.cuts[-1].num_lanes, self.progress.starts[-1].group_rows
        for lane, position in enumerate(current_cut(self.progress).all_positions()):
            waiting = self.progress.carried[lane::num_lanes][position.rows // group_rows :]
            if position.offset or waiting:
                group = self.group(lane, position.rows)
                if not waiting and ends is not None and ends[lane] - position.rows < group_rows:
                    group = group._replace(num_rows=int(ends[lane]) - position.rows)
                found += [group._replace(offset=group.offset + position.offset), *waiting[1:]]
        return tuple(found)

    def without_finished_cuts(self) -> Progress:
        """Return the progress without the earlier cuts of which nothing is left. All positions must be known."""
        mixture, last = self.progress, self.current
        positions, group_rows = current_cut(mixture).all_positions(), mixture.starts[-1].group_rows
        waiting = [
            i // len(positions) >= positions[i % len(positions)].rows // group_rows for i in range(len(mixture.carried))
        ]
        needed = {last}
        for name in self._indices[last]:
            for each in self.unfinished(name):
                needed |= {cut for cut, _ in self._deliveries(name, each.rest.epoch, last)}
        for group, is_waiting in zip(mixture.carried, waiting, strict=True):
            if is_waiting:
                needed.add(group.cut)
                for name, rows in self.ranges(group):
                    needed |= {cut for cut, _ in self._deliveries(name, rows.epoch, group.cut)}
        kept = sorted(needed)
        carried = tuple(
            group._replace(cut=kept.index(group.cut) if is_waiting else -1)
            for group, is_waiting in zip(mixture.carried, waiting, strict=True)
        )
        earlier, starts = (self.cuts[cut] for cut in kept[:-1]), (mixture.starts[cut] for cut in kept)
        return replace(mixture, earlier=tuple(earlier), starts=tuple(starts), carried=carried)

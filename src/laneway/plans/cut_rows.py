"""The rows of the lanes of one cut, in the data files: of a dataset, and of the sources of a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from laneway.core.cursor import LaneRange
from laneway.core.places import LaneRow, rows_of_lanes
from laneway.errors import CheckpointMismatchError, StateFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from laneway.core.mixtures import MixturePlan
    from laneway.core.plan import Plan
    from laneway.plans.row_numbers import RowNumbers, SourceNumbers


REMOVED = "(removed)"
"""What the sources are called that a state has no names of, because they were removed."""


class RowPlace(NamedTuple):
    """A row of a data file."""

    path: str
    """The file, relative to the root of the dataset."""
    row: int
    """The number of the row in the file."""


class SourceRowPlace(NamedTuple):
    """A row of a data file of a source of a mixture."""

    path: str
    """The file, relative to the root of the source."""
    row: int
    """The number of the row in the file."""
    source: str
    """The name of the source."""
    epoch: int
    """The epoch of the source, zero-based."""


class DocumentPlace(NamedTuple):
    """Tokens of a row of a data file that are in a pack."""

    path: str
    """The file, relative to the root of the dataset."""
    row: int
    """The number of the row in the file."""
    start: int
    """The first of these tokens, counted in the row."""
    stop: int
    """One past the last one."""
    pack: int
    """Index of the pack in the batch."""


class SourceDocumentPlace(NamedTuple):
    """Tokens of a row of a data file of a source of a mixture that are in a pack."""

    path: str
    """The file, relative to the root of the source."""
    row: int
    """The number of the row in the file."""
    source: str
    """The name of the source."""
    epoch: int
    """The epoch of the source, zero-based."""
    start: int
    """The first of these tokens, counted in the row."""
    stop: int
    """One past the last one."""
    pack: int
    """Index of the pack in the batch."""


AnyRowPlace = RowPlace | SourceRowPlace | DocumentPlace | SourceDocumentPlace


class CutRows(Protocol):
    """The rows of the lanes of one cut."""

    @property
    def plan(self) -> Plan | None:
        """The plan, with the lanes of the cut; None for a mixture."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources of a mixture; none for a dataset."""

    def count_sources(self, ranges: Sequence[LaneRange]) -> dict[str, int]:
        """Return how many rows of lanes come from which source of a mixture."""

    def rows(self, ranges: Sequence[LaneRange]) -> list[AnyRowPlace]:
        """Return where rows of lanes are in the files, or the documents of packs if lanes count these."""

    def find(self, wanted: SourceRowPlace) -> list[LaneRow]:
        """Return where a row, or the packs that have tokens of it, are in the lanes."""


class DatasetRows:
    """The rows of a cut of an epoch of a dataset."""

    sources = ()

    def __init__(self, plan: Plan, ends: NDArray[np.int64], numbers: RowNumbers) -> None:
        """Use the current cut of a plan.

        Args:
            plan: The plan.
            ends: Rows that each lane delivers, shape (num_lanes,).
            numbers: Row numbers of the dataset.
        """
        self.plan = plan
        self._ends = ends
        self._numbers = numbers

    def count_sources(self, ranges: Sequence[LaneRange]) -> dict[str, int]:  # noqa: ARG002 - it has none
        """See CutRows."""
        return {}

    def rows(self, ranges: Sequence[LaneRange]) -> list[AnyRowPlace]:
        """See CutRows."""
        plan, line = self.plan, self.plan.line
        if line is not None:
            return [DocumentPlace(*each) for each in self._numbers.documents(plan, line, ranges)]
        return [RowPlace(*each) for each in self._numbers.named(rows_of_lanes(plan, ranges))]

    def find(self, wanted: SourceRowPlace) -> list[LaneRow]:
        """See CutRows."""
        return self._numbers.find(self.plan, self._ends, wanted.path, wanted.row)


class MixtureRows:
    """The rows of a cut of a mixture."""

    plan = None

    def __init__(self, plan: MixturePlan, cut: int, numbers: Mapping[str, SourceNumbers]) -> None:
        """Use a cut of a mixture of rows, or of packs of known lengths, of which earlier cuts have left no groups.

        Args:
            plan: The mixture.
            cut: Index of the cut.
            numbers: Name of a source -> its row numbers.
        """
        self._mixed = plan
        self._cut = cut
        self._numbers = numbers

    @property
    def sources(self) -> tuple[str, ...]:
        """See CutRows."""
        return tuple(source.name for source in self._mixed.progress.starts[self._cut].sources if source.name)

    def count_sources(self, ranges: Sequence[LaneRange]) -> dict[str, int]:
        """See CutRows."""
        sources, mixing = self._mixed.progress.starts[self._cut].sources, self._mixed.mixings[self._cut]
        found: dict[str, int] = {}
        for lane, start, stop in ranges:
            for index, _, places in mixing.lane(lane).split(start, stop):
                name = sources[index].name or REMOVED
                found[name] = found.get(name, 0) + len(places)
        return found

    def rows(self, ranges: Sequence[LaneRange]) -> list[AnyRowPlace]:
        """See CutRows."""
        plan, cut = self._mixed, self._cut
        sources = plan.progress.starts[cut].sources
        found: list[AnyRowPlace] = []
        before = 0
        for lane, start, stop in ranges:
            of_range: dict[int, list[AnyRowPlace]] = {place: [] for place in range(stop - start)}
            for index, first, places in plan.mixings[cut].lane(lane).split(start, stop):
                name, taken = sources[index].name, 0
                if not name:
                    message = "some of its rows are of a source that was removed since, so the state doesn't tell which"
                    raise CheckpointMismatchError(message)
                for rows in plan.lanes(cut, name).ranges(lane, first, first + len(places)):
                    of_epoch = self._plan_of(name, rows.epoch)
                    numbers = self._numbers[name].of(of_epoch)
                    own, line = LaneRange(rows.lane, rows.start, rows.stop), of_epoch.line
                    own_places = places[taken : taken + own.stop - own.start].tolist()
                    taken += len(own_places)
                    if line is None:
                        named = numbers.named(rows_of_lanes(of_epoch, [own]))
                        for place, each in zip(own_places, named, strict=True):
                            of_range[place].append(SourceRowPlace(*each, name, rows.epoch))
                        continue
                    for path, row, first_token, end, pack in numbers.documents(of_epoch, line, [own]):
                        place = own_places[pack]
                        of_range[place].append(
                            SourceDocumentPlace(path, row, name, rows.epoch, first_token, end, before + place)
                        )
            found += [each for of_place in of_range.values() for each in of_place]
            before += stop - start
        return found

    def _plan_of(self, name: str, epoch: int) -> Plan:
        """Return the plan of an epoch of a source.

        Raises:
            CheckpointMismatchError: It was cut before, and the state has forgotten how.
        """
        try:
            return self._mixed.plan(self._cut, name, epoch)
        except StateFormatError:
            message = (
                f"epoch {epoch} of source {name!r} has ended since, and the state has forgotten the cuts before this "
                "one: which of its rows came when is known from an earlier checkpoint"
            )
            raise CheckpointMismatchError(message) from None

    def find(self, wanted: SourceRowPlace) -> list[LaneRow]:
        """See CutRows."""
        plan, cut = self._mixed, self._cut
        sources = plan.progress.starts[cut].sources
        index = next((i for i, source in enumerate(sources) if source.name == wanted.source), None)
        if index is None or not sources[index].weight:
            return []
        lanes = plan.lanes(cut, wanted.source)
        begun = {rest.epoch for rest in lanes.rests}
        if wanted.epoch not in begun and (wanted.epoch < lanes.next_epoch or lanes.has_end):
            return []
        of_epoch = self._plan_of(wanted.source, wanted.epoch)
        ends = lanes.rows_before(wanted.epoch + 1) - lanes.rows_before(wanted.epoch)
        # Lane `l` of the mixture reads lane `l + epoch` of the epoch.
        of_lanes = [(lane + wanted.epoch) % lanes.num_lanes for lane in range(lanes.num_lanes)]
        epoch_ends = ends.copy()
        epoch_ends[of_lanes] = ends
        before, found = lanes.rows_before(wanted.epoch), []
        numbers = self._numbers[wanted.source]
        for epoch_lane, row in numbers.find(of_epoch, epoch_ends, wanted.path, wanted.row):
            lane = (epoch_lane - wanted.epoch) % lanes.num_lanes
            row_of = plan.mixings[cut].lane(lane).row_of
            found.append(LaneRow(lane, row_of(index, int(before[lane]) + row)))
        return found

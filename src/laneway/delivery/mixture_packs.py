"""The packs of lanes of a mixture whose documents have known lengths: each source is packed by itself, packs are mixed.

Row `k` of a lane is a pack, and which source it comes from follows from the weights as for rows. The packs of an epoch
of a source are a line, which is cut into lanes; see `laneway.core.pack_line`.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from laneway.core.progress import LanePosition
from laneway.delivery.documents import DocumentReader
from laneway.delivery.known_packs import KnownPackReader, counter
from laneway.stages.runs import Flow, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.convert.open_rows import OpenRows
    from laneway.core.assignment import Assignment
    from laneway.core.cursor import LaneRange
    from laneway.core.epoch_lanes import EpochRange
    from laneway.core.mixtures import MixturePlan
    from laneway.core.plan import Plan
    from laneway.delivery.item_maker import ItemMaker
    from laneway.delivery.item_stages import Stages
    from laneway.reading.lane_reader import LaneReader
    from laneway.reading.threads import Caller
    from laneway.stages.runs import Items

_BLOCK_PACKS: Final = 1024
"""Packs of a lane whose sources are looked up together."""


class SourceRows(NamedTuple):
    """What reads rows of the lanes of an epoch of a source, and builds items of them."""

    lanes: LaneReader
    items: ItemMaker


class _OpenEpoch(NamedTuple):
    """An epoch of a source that is being read."""

    rows: SourceRows
    packs: KnownPackReader


class _Flowing(NamedTuple):
    """The packs that a lane takes of an epoch of a source."""

    epoch: int
    flow: Flow


class MixturePackReader:
    """Makes the packs of the lanes of a mixture: a lane takes packs of its sources in turn.

    For each lane, and each source of it, it holds some packs and the documents that they are made of.
    """

    def __init__(
        self,
        plan: MixturePlan,
        assignment: Assignment,
        stages: Stages,
        open_source: Callable[[str, Plan], SourceRows],
        threads: Caller,
    ) -> None:
        """Read lanes of the current cut of `plan`.

        Args:
            plan: The mixture, whose lanes count packs.
            assignment: The lanes that are read, and where they end.
            stages: How documents are packed.
            open_source: Opens an epoch of a source, given its name and the rows of its lanes.
            threads: Those that read; they end with `end`.
        """
        self._plan = plan
        self._assignment = assignment
        self._stages = stages
        self._open_source = open_source
        self._threads = threads
        self._open: dict[tuple[str, int], _OpenEpoch] = {}
        """(source, epoch) -> what reads it."""
        self._flows: dict[tuple[int, str], _Flowing] = {}
        """(lane, source) -> its packs."""

    def runs(self, lane: int, num_taken: int) -> Iterator[Run]:
        """Yield the packs of a lane after the first ones. Positions count packs.

        Raises:
            NotReproducibleError: A document has another length than is known.
        """
        plan, end = self._plan, int(self._assignment.ends[lane])
        sources = plan.progress.starts[-1].sources
        mixing = plan.mixings[-1].lane(lane)
        for first in range(num_taken, end, _BLOCK_PACKS):
            stop = min(first + _BLOCK_PACKS, end)
            source_of = np.empty(stop - first, np.int64)
            waiting = {}
            for index, start, places in mixing.split(first, stop):
                name = sources[index].name
                source_of[places] = index
                ranges = [*plan.lanes(plan.current, name).ranges(lane, start, start + len(places))]
                waiting[name] = _Waiting(ranges)
                self._begin(lane, name, ranges[0])
            number = first
            for index, packs in groupby(source_of.tolist()):
                name, num_packs = sources[index].name, sum(1 for _ in packs)
                for each in waiting[name].take(num_packs):
                    for items in self._take(lane, name, each):
                        yield Run(items, counter(number), LanePosition(number + len(items)))
                        number += len(items)

    def read(self, wanted: LaneRange) -> list[OpenRows]:
        """Refuse, as each source reads its own rows."""
        raise _no_rows(wanted.lane)

    def read_on(self, lane: int, start: int, stop: int) -> OpenRows:  # noqa: ARG002 - see `read`
        """Refuse; see `read`."""
        raise _no_rows(lane)

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:  # noqa: ARG002 - see `read`
        """Refuse; see `read`."""
        raise _no_rows(wanted[0].lane)

    def close(self) -> None:
        """Release windows and close files; the next packs open them again."""
        for each in self._open.values():
            each.rows.lanes.close()

    def end(self) -> None:
        """Release windows, files and threads."""
        self._flows.clear()
        for each in self._open.values():
            each.rows.items.close()
        self._open.clear()
        self._threads.end()

    def _take(self, lane: int, name: str, wanted: EpochRange) -> list[Items]:
        """Return packs of a source."""
        epoch, epoch_lane, start, stop = wanted
        key = (lane, name)
        flowing = self._flows.get(key)
        if flowing is None or flowing.epoch != epoch or flowing.flow.position.rows != start:
            runs = self._epoch(name, epoch).packs.runs(epoch_lane, start)
            self._flows[key] = _Flowing(epoch, Flow(runs, LanePosition(start)))
            if flowing is not None:
                self._leave(name, flowing.epoch)
        try:
            return self._flows[key].flow.take(stop - start)
        except Exception as error:
            error.add_note(f"this is a row of source {name!r}")
            raise

    def _begin(self, lane: int, name: str, wanted: EpochRange) -> None:
        """Begin to read the rows of packs of a source, without waiting, unless they are being read."""
        if (lane, name) not in self._flows:
            epoch = self._epoch(name, wanted.epoch)
            epoch.rows.lanes.begin(wanted.lane, epoch.packs.first_row(wanted.lane, wanted.start))

    def _epoch(self, name: str, epoch: int) -> _OpenEpoch:
        """Return what reads an epoch of a source."""
        key = (name, epoch)
        if key not in self._open:
            plan, lanes = self._plan.plan(self._plan.current, name, epoch), self._plan.lanes(self._plan.current, name)
            num_packs, num_lanes = lanes.began(epoch).num_rows, lanes.num_lanes
            own = [(lane + epoch) % num_lanes for lane in self._assignment.own_lanes]
            pieces = {lane: plan.pieces(lane, lanes.shares.end(num_packs, lane)) for lane in own}
            rows = self._open_source(name, plan.of_rows(pieces))
            documents = DocumentReader(rows.items, self._stages.expansion)
            packs = KnownPackReader.of(plan, pieces, self._stages, documents)
            self._open[key] = _OpenEpoch(rows, packs)
        return self._open[key]

    def _leave(self, name: str, epoch: int) -> None:
        """End what reads an epoch of a source, unless a lane is in it."""
        is_read = any(of == name and each.epoch == epoch for (_, of), each in self._flows.items())
        if not is_read and (name, epoch) in self._open:
            self._open.pop((name, epoch)).rows.items.close()


def _no_rows(lane: int) -> LookupError:
    return LookupError(f"lane {lane} of the mixture counts packs, and has no rows of its own")


class _Waiting:
    """Packs of a source that a lane has yet to take."""

    def __init__(self, ranges: list[EpochRange]) -> None:
        self._ranges = ranges[::-1]

    def take(self, num_packs: int) -> Iterator[EpochRange]:
        """Yield where the next packs are."""
        while num_packs:
            found = self._ranges.pop()
            stop = min(found.stop, found.start + num_packs)
            if stop < found.stop:
                self._ranges.append(found._replace(start=stop))
            num_packs -= stop - found.start
            yield found._replace(stop=stop)

"""What an audit has found of a source of a mixture: rows that are in findings, and how many came in each epoch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.intervals import Intervals
from laneway.inspection.report import AuditedEpoch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.mixture_line import MixtureLines
    from laneway.inspection.report import Unit


class EpochRows(NamedTuple):
    """The rows of an epoch of a source."""

    num_rows: int
    """All of them."""
    num_dropped: int
    """Those that `remainder="drop"` leaves out."""


@dataclass
class AuditedSource:
    """A source, from the start of a pass of the mixture, or from where it was added."""

    name: str
    """Its name."""
    first_epoch: int
    """Its first epoch."""
    unit: Unit
    """What is counted."""
    _lines_from: dict[int, MixtureLines] = field(default_factory=dict)
    """Epoch -> what tells the rows of each epoch from there on."""
    _dropped: dict[int, int] = field(default_factory=dict)
    """Epoch that several cuts delivered -> rows that the last of them left out."""
    _faulty: dict[int, Intervals] = field(default_factory=dict)
    """Epoch -> places of rows that are in findings."""
    _faulty_epochs: list[range] = field(default_factory=list)
    """Epochs all of whose rows are in findings."""

    num_faulty: Counter[int] = field(default_factory=Counter)
    """Epoch -> rows that are in findings, of which nobody knows which they are."""

    def learn(self, lines: MixtureLines) -> None:
        """Take what a cut tells of the rows of epochs."""
        self._lines_from[lines.starts[self.name].next_epoch] = lines
        self._dropped |= {epoch: lines.dropped(self.name, rows) for epoch, rows in lines.rests(self.name).items()}

    def rows(self, epoch: int) -> EpochRows:
        """Return the rows of an epoch."""
        known = [first for first in self._lines_from if first <= epoch]
        lines = self._lines_from[max(known, default=min(self._lines_from))]
        num_rows = lines.epoch_rows(self.name, epoch)
        num_dropped = self._dropped.get(epoch)
        return EpochRows(num_rows, lines.dropped(self.name, num_rows) if num_dropped is None else num_dropped)

    def alike(self, epochs: range) -> list[range]:
        """Return epochs as ranges, each of which has epochs with as many rows."""
        varies = any(lines.epochs_vary(self.name) for lines in self._lines_from.values())
        return [range(epoch, epoch + 1) for epoch in epochs] if varies else [epochs]

    def whole(self, epoch: int) -> Intervals:
        """Return the places of all rows of an epoch."""
        return Intervals.of(np.zeros(1, np.int64), np.array([self.rows(epoch).num_rows]))

    def rows_until(self, lines: MixtureLines, epoch: int) -> Intervals:
        """Return the places of the rows of an epoch that had been delivered, in this cut or before."""
        if self.name in lines.starts and epoch in lines.open_epochs(self.name):
            return lines.epoch(self.name, epoch).delivered
        stop = lines.next_epoch(self.name) if self.name in lines.starts else self.first_epoch
        return self.whole(epoch) if epoch < stop else Intervals.empty()

    def rows_before_cut(self, lines: MixtureLines, epoch: int) -> Intervals:
        """Return the places of the rows of an epoch that had been delivered before this cut; all, if it has ended."""
        if epoch in lines.rests(self.name) and epoch in lines.open_epochs(self.name):
            return lines.epoch(self.name, epoch).base
        return self.whole(epoch) if epoch < lines.starts[self.name].next_epoch else Intervals.empty()

    def add_faulty(self, epoch: int, places: Intervals) -> None:
        """Note that rows of an epoch are in a finding."""
        self._faulty[epoch] = self._faulty.get(epoch, Intervals.empty()) | places

    def add_faulty_epochs(self, epochs: range) -> None:
        """Note that all rows of some epochs are in a finding."""
        self._faulty_epochs.append(epochs)

    # -- At the end ---------------------------------------------------------------------------------------------------

    def epochs(self, lines: MixtureLines, *, is_left: bool) -> Iterator[AuditedEpoch]:
        """Yield what was delivered of each epoch, or of several that are alike.

        Args:
            lines: How far the mixture had come at its last checkpoint that has the source.
            is_left: Whether what is ahead is yet to be delivered, or left out.
        """
        half: dict[int, Intervals] = {}
        for group in lines.half_delivered:
            for (name, epoch), places in lines.of_group(group).items():
                if name == self.name:
                    half[epoch] = half.get(epoch, Intervals.empty()) | places
        stop = lines.next_epoch(self.name)
        opened = {*lines.open_epochs(self.name)}
        single = {*opened, *half, *self._dropped, *self._faulty, *self.num_faulty}
        edges = {self.first_epoch, stop, *single, *(epoch + 1 for epoch in single), *self._lines_from}
        edges |= {edge for epochs in self._faulty_epochs for edge in (epochs.start, epochs.stop)}
        edges |= {each.start for each in self.alike(range(self.first_epoch, stop))}
        for first, last in pairwise(sorted(edge for edge in edges if self.first_epoch <= edge <= stop)):
            nothing = Intervals.empty()
            in_groups = half.get(first, nothing)
            faulty = self._faulty.get(first, nothing)
            num_rows, num_dropped = self.rows(first)
            delivered, ahead, num_repeated = self.whole(first), in_groups, 0
            if first in opened:
                line = lines.epoch(self.name, first)
                delivered, ahead, num_repeated = line.delivered, line.ahead | in_groups, line.num_repeated
                num_dropped = num_rows - len(delivered | ahead)
                num_delivered = len(delivered - in_groups - faulty)
            else:
                num_delivered = len(delivered - in_groups - faulty) - num_dropped
            if any(first in epochs for epochs in self._faulty_epochs):
                num_delivered, num_dropped, ahead = 0, 0, nothing
            num_ahead = len(ahead - faulty)
            num_delivered -= self.num_faulty[first]
            yield AuditedEpoch(
                epoch=first,
                num_rows=num_rows * (last - first),
                num_delivered=max(0, num_delivered) * (last - first),
                num_left=num_ahead if is_left else 0,
                num_left_out=num_dropped * (last - first) + (0 if is_left else num_ahead),
                num_repeated=num_repeated,
                source=self.name,
                num_epochs=last - first,
                unit=self.unit,
            )

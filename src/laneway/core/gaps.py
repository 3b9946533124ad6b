"""Gaps: rows that are taken out of the order of an epoch, by their numbers in it.

The rows of an epoch are numbered 0, 1, 2, ... in the order in which the job delivers them: turn after turn, through all
cuts of the epoch. A gap keeps its numbers, however the rest is cut later.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Gap(NamedTuple):
    """Rows [start, stop) of an epoch's order."""

    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


class EpochGap(NamedTuple):
    """A gap, and its epoch."""

    epoch: int
    start: int
    stop: int

    @property
    def text(self) -> str:
        """The gap, for states and messages."""
        return f"rows {self.start} to {self.stop} of epoch {self.epoch}"


_TEXT = re.compile(r"rows (\d{1,18}) to (\d{1,18}) of epoch (\d{1,18})")


def text_of(gaps: Iterable[EpochGap]) -> str | None:
    """Return gaps as the setting that states hold; None: there are none."""
    return ", ".join(gap.text for gap in sorted(gaps)) or None


def parse_gaps(text: str | None) -> tuple[EpochGap, ...]:
    """Return the gaps from the text that `text_of` returned, in order."""
    return tuple(EpochGap(int(epoch), int(start), int(stop)) for start, stop, epoch in _TEXT.findall(text or ""))


def gaps_in(text: str | None, epoch: int) -> tuple[Gap, ...]:
    """Return the gaps of an epoch."""
    return tuple(Gap(gap.start, gap.stop) for gap in parse_gaps(text) if gap.epoch == epoch)


def gap_difference(saved: str | None, present: str | None, epoch: int, *, complete: bool) -> str | None:
    """Return how gaps keep a state from being loaded, or None if they don't.

    A state may be older than a gap, but the gap must lie ahead of it: so a run goes back to a checkpoint, and leaves
    out the rows that spoilt it.

    Args:
        saved: The gaps of the state.
        present: Those of the dataset.
        epoch: The epoch of the state.
        complete: Whether the state is of its end.
    """
    before, now = parse_gaps(saved), parse_gaps(present)
    behind = [gap for gap in now if gap not in before and gap.epoch < epoch + complete]
    if before == now or (not behind and {*before} <= {*now}):
        return None
    values = f"saved {saved!r}, this run has {present!r}"
    return f"{values}; {behind[0].text} had been delivered by then" if behind else values


def overlap(gaps: Iterable[EpochGap]) -> tuple[EpochGap, EpochGap] | None:
    """Return two gaps that have a row in common, or None."""
    ordered = sorted(gaps)
    for gap, following in pairwise(ordered):
        if gap.epoch == following.epoch and following.start < gap.stop:
            return gap, following
    return None

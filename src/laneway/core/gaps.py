"""Gaps: rows that are taken out of the order of an epoch, by their numbers in it.

The rows of an epoch are numbered 0, 1, 2, ... in the order in which the job delivers them: turn after turn, through all
cuts of the epoch. A gap keeps its numbers, however the rest is cut later.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from laneway.wording import counted

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


def turn_problem(gap: Gap, turn_rows: int, num_rows: int) -> str | None:
    """Return why a gap can't be taken out of a cut, or None if it consists of whole turns.

    Args:
        gap: Its rows, counted from the first one of the cut.
        turn_rows: Rows of a turn.
        num_rows: Rows of the cut, of which the last turn may be shorter.
    """
    early, late = gap.start % turn_rows, min(-gap.stop % turn_rows, num_rows - gap.stop)
    ways_out = [f"start {counted(early, 'row')} earlier"] if early else []
    ways_out += [f"stop {counted(late, 'row')} later"] if late else []
    if not ways_out:
        return None
    return f"a turn has {counted(turn_rows, 'row')}, and only whole turns can be: {', and '.join(ways_out)}"


def check_turns(gaps: Iterable[EpochGap], turn_rows: int, num_rows: int) -> None:
    """Check that gaps consist of whole turns, as the epochs that they are in will be cut.

    Args:
        gaps: Gaps of epochs that have not begun.
        turn_rows: Rows of a turn.
        num_rows: Rows of an epoch.

    Raises:
        ValueError: One of them doesn't.
    """
    for gap in gaps:
        problem = turn_problem(Gap(gap.start, gap.stop), turn_rows, num_rows)
        if problem is not None:
            message = f"{gap.text} can't be taken out: {problem}"
            raise ValueError(message)

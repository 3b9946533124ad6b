"""Weightings: which weights the sources of a mixture have from which row on, and after how many rows it ends."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

from laneway.core.mixing import exact_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

Stop = Literal["first_exhausted", "all_exhausted"]
"""When a mixture ends: once the first source has delivered all its rows, or once the last one has."""


class Phase(NamedTuple):
    """The weights of the sources from a row of the mixture on."""

    start: int
    """Number of rows that the whole job has delivered when they begin."""
    weights: Mapping[str, float]
    """Name -> weight of each source."""


def exact_shares(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Return name -> share of the rows of each source, in [0, 1], given the weights; see `exact_weights`."""
    exact = exact_weights([*weights.values()])
    total = sum(exact)
    return {name: weight / total for name, weight in zip(weights, exact, strict=True)}


def shares_of(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the same, rounded."""
    return {name: float(share) for name, share in exact_shares(weights).items()}


@dataclass(frozen=True)
class Weighting:
    """The weights of the sources, and the end of the mixture."""

    phases: tuple[Phase, ...]
    """The weights; the first phase starts at row 0, and each later one after those before."""
    stop: int | Stop | None = None
    """When the mixture ends: after a number of rows, or once sources are exhausted; None: never."""
    num_epochs: int = 1
    """Number of epochs after which a source is exhausted."""

    @property
    def largest_shares(self) -> dict[str, Fraction]:
        """Name -> the largest share of the rows that a source ever has."""
        found: dict[str, Fraction] = {}
        for phase in self.phases:
            for name, share in exact_shares(phase.weights).items():
                found[name] = max(found.get(name, Fraction(0)), share)
        return found

    @property
    def names(self) -> list[str]:
        """The names of the sources."""
        return [*self.phases[0].weights]

    def weights_at(self, num_rows: int) -> Mapping[str, float]:
        """Return the weights after a number of rows."""
        return next(phase.weights for phase in reversed(self.phases) if phase.start <= num_rows)

    def change_after(self, num_rows: int) -> int | None:
        """Return the row at which the weights change that are used after `num_rows` rows; None: they stay."""
        starts = [phase.start for phase in self.phases if phase.start > num_rows]
        is_before_end = bool(starts) and (not isinstance(self.stop, int) or starts[0] < self.stop)
        return starts[0] if is_before_end else None

    def rows_in_all(self, source_rows: Mapping[str, int]) -> int | None:
        """Return about how many rows the mixture delivers until it ends; None: it doesn't end.

        Args:
            source_rows: Name -> rows of each source, >= 1 unless it has no weight.

        Raises:
            ValueError: A source is never exhausted, because its weight becomes 0.
        """
        if self.stop is None or isinstance(self.stop, int):
            return self.stop
        read = {name for phase in self.phases for name, weight in phase.weights.items() if weight}
        left = {name: Fraction(rows * self.num_epochs) for name, rows in source_rows.items() if name in read}
        for phase, following in zip(self.phases, [*self.phases[1:], None], strict=True):
            shares = {name: share for name, share in exact_shares(phase.weights).items() if share}
            length = None if following is None else following.start - phase.start
            if self.stop == "first_exhausted":
                ends = [left[name] / share for name, share in shares.items()]
                if length is None or min(ends) <= length:
                    return phase.start + int(min(ends))
            else:
                waiting = [name for name, rows in left.items() if rows > 0]
                idle = [name for name in waiting if name not in shares]
                if length is None and idle:
                    message = f"the weight of source {idle[0]!r} becomes 0, so it is never exhausted: give another stop"
                    raise ValueError(message)
                end = max((left[name] / shares[name] for name in waiting if name in shares), default=Fraction(0))
                if not idle and (length is None or end <= length):
                    return phase.start - int(-end // 1)
            for name, share in shares.items():
                left[name] -= share * (length or 0)
        message = "the last weights have no end"
        raise AssertionError(message)

"""Which checkpoints are kept: policies, any of which keeps a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from laneway.arguments import check_choice, check_int

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laneway.checkpoint.layout import Checkpoint


@runtime_checkable
class Policy(Protocol):
    """Says which checkpoints to keep."""

    def kept(self, checkpoints: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        """Return those to keep of all checkpoints, oldest first."""


@dataclass(frozen=True, slots=True)
class KeepLatest:
    """Keeps the newest checkpoints."""

    count: int = 1
    """How many."""

    def __post_init__(self) -> None:
        check_int("count", self.count, minimum=1)

    def kept(self, checkpoints: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        """Return the newest ones."""
        return checkpoints[-self.count :]


@dataclass(frozen=True, slots=True)
class KeepEvery:
    """Keeps the first checkpoint of each span of `steps` steps, from step `steps` on, however old it is."""

    steps: int
    """Length of a span, >= 1."""

    def __post_init__(self) -> None:
        check_int("steps", self.steps, minimum=1)

    def kept(self, checkpoints: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        """Return the first of each span of steps; the span before the first `steps` steps has none."""
        first: dict[int, Checkpoint] = {}
        for each in checkpoints:
            first.setdefault(each.step // self.steps, each)
        return [each for span, each in first.items() if span]


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keeps the checkpoints with the best values of a metric, of those that were saved with it."""

    count: int
    """How many."""
    metric: str
    """Name of the metric, as in `save(metrics={...})`."""
    mode: Literal["min", "max"] = "min"
    """Whether small or large values are good."""

    def __post_init__(self) -> None:
        check_int("count", self.count, minimum=1)
        if not isinstance(self.metric, str):
            message = f"metric must be the name of a metric, not {self.metric!r}"
            raise TypeError(message)
        check_choice("mode", self.mode, ("min", "max"))

    def kept(self, checkpoints: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        """Return the best ones; of equal ones, the older. NaN is never good."""
        sign = 1 if self.mode == "min" else -1
        measured = [each for each in checkpoints if not math.isnan(each.metrics.get(self.metric, math.nan))]
        return sorted(measured, key=lambda each: sign * each.metrics[self.metric])[: self.count]


def check_policies(keep: Sequence[Policy]) -> tuple[Policy, ...]:
    """Return the policies in a list.

    Raises:
        TypeError: It is no list of policies.
    """
    found = keep if isinstance(keep, (list, tuple)) else [keep]
    for each in found:
        if each is keep or not isinstance(each, Policy):
            message = f"keep must be a list of policies such as [KeepLatest(3)], not {keep!r}"
            raise TypeError(message)
    return tuple(found)


def to_delete(
    checkpoints: Iterable[Checkpoint], policies: Sequence[Policy], resumed_from: int | None
) -> list[Checkpoint]:
    """Return the checkpoints that no policy keeps, oldest first.

    The newest one is always kept, and so are those with a tag.

    Args:
        checkpoints: All complete checkpoints, of which the newest one was verified.
        policies: What to keep; empty: everything.
        resumed_from: Number of the checkpoint that this run resumed from, which is kept until there is a newer one.
    """
    ordered = sorted(checkpoints, key=attrgetter("number"))
    if not policies or not ordered or ordered[-1].number == resumed_from:
        return []
    kept = {ordered[-1].number} | {each.number for policy in policies for each in policy.kept(ordered)}
    return [each for each in ordered if each.number not in kept and each.tag is None]

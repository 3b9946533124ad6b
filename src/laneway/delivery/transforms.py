"""The functions that a user has called on each row or batch, in sequence, and what becomes of rows if they fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.delivery.context import BatchContext, RowContext
    from laneway.delivery.row_errors import RowErrors


class _Step(NamedTuple):
    function: Callable[..., Any]
    takes_context: bool


@final
@dataclass(frozen=True, slots=True)
class Transforms:
    """Functions called in sequence. Unlike a closure that calls them, this can be pickled for a spawned worker."""

    steps: tuple[_Step, ...] = ()
    """The functions."""
    errors: RowErrors | None = None
    """What becomes of rows for which one of them fails; None: the error is raised."""

    def then(self, function: Callable[..., Any], *, takes_context: bool = False) -> Transforms:
        """Return these functions and one more.

        Args:
            function: Called with the result of the others and, if it takes one, with the context of the row or batch.
            takes_context: Whether it takes one.
        """
        return replace(self, steps=(*self.steps, _Step(function, takes_context)))

    def after(self, function: Callable[..., Any]) -> Transforms:
        """Return these functions after another one, which takes a context."""
        return replace(self, steps=(_Step(function, takes_context=True), *self.steps))

    def __bool__(self) -> bool:
        """Return whether they change rows or batches: masking adds a column."""
        return bool(self.steps) or (self.errors is not None and not self.errors.skips)

    @property
    def takes_context(self) -> bool:
        """Whether one of the functions takes a context."""
        return any(step.takes_context for step in self.steps)

    def __call__(self, item: Any, context: RowContext | BatchContext | None = None) -> Any:  # noqa: ANN401 - users'
        """Call all functions on a row or batch."""
        for function, takes_context in self.steps:
            item = function(item, context) if takes_context else function(item)
        return item

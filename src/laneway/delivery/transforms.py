"""The functions that a user has called on rows or batches, in sequence, and what becomes of rows if they fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.delivery.context import BatchContext, RowContext
    from laneway.delivery.row_errors import RowErrors


class _Step(NamedTuple):
    function: Callable[..., Any]
    takes_context: bool


class _ItemStep(NamedTuple):
    function: Callable[..., Any]
    takes_context: bool
    is_flat: bool


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


@final
@dataclass(frozen=True, slots=True)
class Expansion:
    """Functions that turn a row into items, in sequence: each is called on every item of those before it."""

    steps: tuple[_ItemStep, ...] = ()
    """The functions."""

    def then(self, function: Callable[..., Any], *, takes_context: bool = False, is_flat: bool = False) -> Expansion:
        """Return these functions and one more.

        Args:
            function: Called with an item and, if it takes one, with the context of the row.
            takes_context: Whether it takes one.
            is_flat: Whether it returns several items, or none; otherwise its result is an item.
        """
        return Expansion((*self.steps, _ItemStep(function, takes_context, is_flat)))

    @property
    def takes_context(self) -> bool:
        """Whether one of the functions takes a context."""
        return any(step.takes_context for step in self.steps)

    @property
    def num_flat(self) -> int:
        """Number of functions that return several items."""
        return sum(step.is_flat for step in self.steps)

    def __call__(self, row: Any, context: RowContext | None = None) -> list[Any]:  # noqa: ANN401 - users'
        """Return the items of a row."""
        items = [row]
        for function, takes_context, is_flat in self.steps:
            results = [function(item, context) if takes_context else function(item) for item in items]
            items = [item for result in results for item in _items_of(result)] if is_flat else results
        return items


def _items_of(result: Any) -> list[Any]:  # noqa: ANN401 - a user's function may return anything
    """Return the items that a function of `flat_map` has returned.

    Raises:
        TypeError: It has returned something else.
    """
    if result is None:
        return []
    if isinstance(result, (list, tuple, Iterator)):
        return [*result]
    message = (
        f"the function of flat_map returned {type(result).__name__}, but it must return a list of items, or yield "
        "them; None or an empty list drops the row (to return one item for each row, use map)"
    )
    raise TypeError(message)

"""Take items of a pass as an iterator does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.delivery.passes import Pass


def take(running: Pass) -> Any:
    """Return the next item, and deliver it; None at the end."""
    found = running.take()
    if found is None:
        return None
    received, num_taken, item = found
    received.taken = num_taken
    return item


def take_all(running: Pass) -> Iterator[Any]:
    """Yield the items that are left, each delivered."""
    while (item := take(running)) is not None:
        yield item

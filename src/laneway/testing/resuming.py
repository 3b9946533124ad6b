"""Whether a pipeline resumes exactly: after any item, what follows is what an uninterrupted run delivers."""

from __future__ import annotations

import io
import warnings
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch

from laneway.testing.comparing import comparable, first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class StatefulLoader(Protocol):
    """What has items and a state: a dataset, a mixture, a `SavableLoader`, a `StatefulDataLoader`."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Resume from a state."""


def assert_resumes_exactly(
    make_loader: Callable[[], StatefulLoader],
    *,
    stops: Iterable[int] | None = None,
    max_items: int | None = None,
) -> int:
    """Check that a pipeline resumes exactly, wherever it is stopped.

    It runs once without interruption, and is saved after each item. For each stop, a new loader loads that state, after
    a round trip through `torch.save` and `torch.load(weights_only=True)`, and must deliver exactly what followed:
    values, types, shapes and order.

    Args:
        make_loader: Returns a new loader, as a program that is started again would make it.
        stops: After how many items to stop; None: nine places from the first item to the last one.
        max_items: Take only so many items; needed for a loader that never ends.

    Returns:
        The number of items of the uninterrupted run.

    Raises:
        AssertionError: What follows a resume differs; the message says where.
        ValueError: A stop is not among the items, or the loader delivers none.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import SavableLoader, StatefulShardedDataset
        >>> from laneway.testing import assert_resumes_exactly
        >>> directory = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"id": range(100)}), f"{directory}/part-0.parquet", row_group_size=7)
        >>> assert_resumes_exactly(
        ...     lambda: SavableLoader(StatefulShardedDataset(directory, shuffle=True, batch_size=8))
        ... )
        13
    """
    loader = make_loader()
    states, items = [_saved(loader.state_dict())], []
    for item in islice(loader, max_items):
        items.append(comparable(item))
        states.append(_saved(loader.state_dict()))
    if not items:
        message = "the loader delivers no item, so there is nothing to resume"
        raise ValueError(message)
    chosen = sorted({len(items) * part // 8 for part in range(9)} if stops is None else set(stops))
    if not 0 <= chosen[0] <= chosen[-1] <= len(items):
        message = f"stops must be in [0, {len(items)}], the number of items, not {chosen}"
        raise ValueError(message)
    for stop in chosen:
        resumed = make_loader()
        resumed.load_state_dict(states[stop])
        limit = None if max_items is None else len(items) - stop
        with warnings.catch_warnings():
            # Resuming after the last item is right here: nothing follows in this epoch.
            warnings.filterwarnings("ignore", "the loaded state is of the last batch")
            found = [comparable(item) for item in islice(resumed, limit)]
        if found != items[stop:]:
            message = (
                f"resumed after {stop:,} of {len(items):,} items, the loader does not deliver what an uninterrupted "
                f"run does: {first_difference(items[stop:], found)}"
            )
            raise AssertionError(message)
    return len(items)


def _saved(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state after a round trip through a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded

"""Whether each row of an epoch is delivered once, however often the number of ranks changes on the way."""

from __future__ import annotations

from collections import Counter
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

from laneway.core.merge import merge_states
from laneway.testing.comparing import comparable, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from laneway.loader import SavableLoader

CHAINS = ((1, 2, 3), (2, 1), (3, 4, 2), (4, 1, 3))
"""Numbers of ranks, one after the other."""


def assert_exact_on_any_topology(
    make_loader: Callable[[int, int], SavableLoader],
    *,
    chains: Sequence[Sequence[int]] = CHAINS,
    items_per_stop: int = 2,
    rows: Callable[[Any], Iterable[Any]] | None = None,
) -> int:
    """Check that an epoch has each row once, while the job is stopped and resumed on other numbers of ranks.

    The ranks are loaders of this process, one after the other: no process group is needed. The states of all ranks are
    merged, as `save_state_global` does it, and each rank of the next job loads the result.

    Args:
        make_loader: Returns the loader of a rank, from the rank and the world size. Its dataset needs
            `remainder="keep"`: otherwise ranks may repeat a row so that all take as many batches, or drop one.
        chains: World sizes, one job after the other; they are repeated until the epoch is complete.
        items_per_stop: Items that each rank takes before the job is stopped.
        rows: Returns the rows of an item; None: those of a dict of columns, or of a table of pyarrow.

    Returns:
        The number of rows of an epoch.

    Raises:
        AssertionError: A row is lost or repeated; the message names one.
    """
    rows = rows or rows_of
    expected = _count(map(rows, make_loader(0, 1)))
    for world_sizes in chains:
        found = _count(map(rows, _items_of_jobs(make_loader, world_sizes, items_per_stop)))
        if found != expected:
            lost, extra = expected - found, found - expected
            example = next(iter((lost or extra).elements()))
            message = (
                f"jobs of {', '.join(map(str, world_sizes))} ranks, one after the other, lose {lost.total():,} and "
                f"repeat {extra.total():,} of {expected.total():,} rows, such as {example:.300}"
            )
            raise AssertionError(message)
    return expected.total()


def _items_of_jobs(
    make_loader: Callable[[int, int], SavableLoader], world_sizes: Sequence[int], items_per_stop: int
) -> list[Any]:
    received: list[Any] = []
    state: dict[str, Any] = {}
    for world_size in cycle(world_sizes):
        loaders = [make_loader(rank, world_size) for rank in range(world_size)]
        for loader in loaders:
            if state:
                loader.load_state_dict(state)
            received += islice(loader, items_per_stop)
        state = merge_states([loader.save_state_rank() for loader in loaders])
        if state["complete"]:
            break
    return received


def _count(rows: Iterable[Iterable[Any]]) -> Counter[str]:
    return Counter(repr(comparable(row)) for row in chain.from_iterable(rows))

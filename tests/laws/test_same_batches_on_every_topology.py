"""Law: with fixed lanes and turns, the global batches depend neither on the number of ranks nor on that of workers.

If ranks repeat or leave out a row to be equally long, which row that is depends on their number.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from laneway.core.options import LaneOptions
from laneway.core.progress import Progress
from tests.laws.simulation import Job, identities

if TYPE_CHECKING:
    from laneway.core.plan import Identity

LANES = 8
TOPOLOGIES = [(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4), (1, 1, 8), (1, 2, 4)]
"""Ranks, workers and turns of a batch."""


def global_turns(job: Job, steps: int | None = None) -> list[int]:
    return [row for step in job.run(steps) for row in step]


@given(identities(remainder="keep"), st.integers(1, 4))
def test_all_topologies_deliver_the_same_rows_in_the_same_order(identity: Identity, turn_rows: int) -> None:
    orders = [
        global_turns(Job(identity, world, workers, LaneOptions(LANES, turn_rows, turn_rows * turns), Progress(0)))
        for world, workers, turns in TOPOLOGIES
    ]
    assert all(order == orders[0] for order in orders)


@given(identities(), st.integers(1, 4))
def test_all_topologies_deliver_the_same_whole_batches(identity: Identity, turn_rows: int) -> None:
    num_rows = identity.files.num_rows
    num_whole = num_rows // (LANES * turn_rows) * LANES * turn_rows
    orders = [
        global_turns(Job(identity, world, workers, LaneOptions(LANES, turn_rows, turn_rows * turns), Progress(0)))
        for world, workers, turns in TOPOLOGIES
        if world * turns == LANES
    ]
    for order, (world, _, _) in zip(orders, [each for each in TOPOLOGIES if each[0] * each[2] == LANES], strict=True):
        assert order[:num_whole] == orders[0][:num_whole]
        if identity.settings.remainder == "pad":
            assert set(order) == set(range(num_rows))
        else:
            assert num_rows - len(order) < world
            assert max(Counter(order).values(), default=1) == 1


@given(
    identities(remainder="keep"),
    st.integers(1, 4),
    st.sampled_from(TOPOLOGIES),
    st.sampled_from(TOPOLOGIES),
    st.integers(0, 9),
)
def test_the_topology_may_change_mid_epoch(
    identity: Identity, turn_rows: int, before: tuple[int, int, int], after: tuple[int, int, int], rounds: int
) -> None:
    uninterrupted = global_turns(Job(identity, 1, 1, LaneOptions(LANES, turn_rows, turn_rows), Progress(0)))
    first = Job(identity, before[0], before[1], LaneOptions(LANES, turn_rows, turn_rows * before[2]), Progress(0))
    # A number of turns that both can take as whole batches.
    rows = global_turns(first, rounds * LANES // (before[0] * before[2]))
    second = Job(identity, after[0], after[1], LaneOptions(None, None, turn_rows * after[2]), first.whole_progress())
    assert rows + global_turns(second) == uninterrupted

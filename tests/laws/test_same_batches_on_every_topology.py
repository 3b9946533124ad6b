"""Law: with fixed lanes and turns, the global batches depend neither on the number of ranks nor on that of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from laneway.core.options import LaneOptions
from laneway.core.progress import Progress
from tests.laws.simulation import Job, identities

if TYPE_CHECKING:
    from laneway.core.plan import Identity

TOPOLOGIES = [(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4), (1, 1, 8), (1, 2, 4)]


def global_turns(job: Job, steps: int | None = None) -> list[int]:
    return [row for step in job.run(steps) for row in step]


@given(identities(), st.integers(1, 4))
def test_all_topologies_deliver_the_same_rows_in_the_same_order(identity: Identity, turn_rows: int) -> None:
    orders = [
        global_turns(Job(identity, world, workers, LaneOptions(8, turn_rows, turn_rows * turns), Progress(0)))
        for world, workers, turns in TOPOLOGIES
    ]
    assert all(order == orders[0] for order in orders)


@given(identities(), st.integers(1, 4), st.sampled_from(TOPOLOGIES), st.sampled_from(TOPOLOGIES), st.integers(0, 4))
def test_the_topology_may_change_mid_epoch(
    identity: Identity, turn_rows: int, before: tuple[int, int, int], after: tuple[int, int, int], steps: int
) -> None:
    uninterrupted = global_turns(Job(identity, 1, 1, LaneOptions(8, turn_rows, turn_rows), Progress(0)))
    first = Job(identity, before[0], before[1], LaneOptions(8, turn_rows, turn_rows * before[2]), Progress(0))
    rows = global_turns(first, steps * 8)
    second = Job(identity, after[0], after[1], LaneOptions(None, None, turn_rows * after[2]), first.whole_progress())
    assert rows + global_turns(second) == uninterrupted

"""Who reads which lane."""

from __future__ import annotations

from laneway.core.turns import WorkerPlace, has_one_owner_per_lane


def test_batches_go_round_the_ranks_and_then_the_workers() -> None:
    firsts = {(r, k): WorkerPlace(r, 2, k, 3).first_turn(12, 2) for r in range(2) for k in range(3)}
    assert firsts == {(0, 0): 12, (1, 0): 14, (0, 1): 16, (1, 1): 18, (0, 2): 20, (1, 2): 22}
    assert WorkerPlace(0, 2, 0, 3).stride(2) == 12


def test_workers_share_lanes_whose_number_their_turns_divide() -> None:
    assert has_one_owner_per_lane(12, WorkerPlace(0, 2, 0, 3), 2)
    assert not has_one_owner_per_lane(8, WorkerPlace(0, 2, 0, 3), 1)


def test_a_worker_owns_the_lanes_that_its_turns_come_to() -> None:
    assert WorkerPlace(0, 2, 0, 1).own_lanes(4, 8, 2) == [4, 5, 0, 1]
    assert WorkerPlace(1, 2, 1, 3).own_lanes(2, 6, 1) == [5]

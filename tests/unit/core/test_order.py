"""Permutations."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.order import permutation, shard_order, window_order


@given(st.integers(0, 2000), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_an_order_is_a_permutation_and_the_same_every_time(length: int, seed: int, epoch: int) -> None:
    order = shard_order(length, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))
    assert (order == shard_order(length, seed=seed, epoch=epoch)).all()


def test_every_part_of_the_key_matters() -> None:
    base = {"seed": 1, "epoch": 2, "lane": 3, "window": 4}
    orders = {str(window_order(50, **{**base, part: 9}).tolist()) for part in base}
    orders |= {str(window_order(50, **base).tolist()), str(shard_order(50, seed=1, epoch=2).tolist())}
    assert len(orders) == 6


def test_parts_of_a_key_do_not_run_together() -> None:
    assert permutation(50, "a", 1, 23).tolist() != permutation(50, "a", 12, 3).tolist()

"""Permutations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core import order as order_module
from laneway.core.order import (
    _hash,
    _key,
    permutation,
    rank_in_window,
    row_seeds,
    shard_order,
    window_order,
    window_part,
)


@given(st.integers(0, 2000), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_an_order_is_a_permutation_and_the_same_every_time(length: int, seed: int, epoch: int) -> None:
    order = shard_order(length, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))
    assert (order == shard_order(length, seed=seed, epoch=epoch)).all()


@given(length=st.integers(0, 300), seed=st.integers(0, 2**63 - 1))
def test_an_order_is_that_of_all_bits_of_its_hashes_even_if_most_are_alike(length: int, seed: int) -> None:
    def alike(key: np.uint64, counters: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        # Distinct, as counters are below 2**9.
        bits = _hash(key, counters)
        return (bits >> np.uint64(62) << np.uint64(62)) | (counters * np.uint64(77)) % np.uint64(512)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "_hash", alike)
        found = permutation(length, seed)
    bits = alike(_key(seed), np.arange(1, length + 1, dtype=np.uint64))
    assert found.tolist() == np.argsort(bits, kind="stable").tolist()


def test_every_part_of_the_key_matters() -> None:
    base = {"seed": 1, "epoch": 2, "lane": 3, "window": 4}
    orders = {str(window_order(50, **{**base, part: 9}).tolist()) for part in base}
    orders |= {str(window_order(50, **base).tolist()), str(shard_order(50, seed=1, epoch=2).tolist())}
    assert len(orders) == 6


def test_parts_of_a_key_do_not_run_together() -> None:
    assert permutation(50, "a", 1, 23).tolist() != permutation(50, "a", 12, 3).tolist()


def test_the_seeds_of_rows_are_frozen() -> None:
    seeds = row_seeds(np.array([0, 1, 1_000_000]), seed=7, epoch=3, path="part-0.parquet")
    assert seeds.tolist() == [845572861425280829, 5791258208078485808, 14495300323894822782]


@given(st.lists(st.integers(0, 2**62), unique=True), st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.text())
def test_the_seed_of_a_row_is_its_own(rows: list[int], seed: int, epoch: int, path: str) -> None:
    seeds = row_seeds(np.array(rows, np.int64), seed=seed, epoch=epoch, path=path)
    assert seeds.dtype == np.uint64
    assert len({*seeds.tolist()}) == len(rows)
    for row, found in zip(rows, seeds.tolist(), strict=True):
        assert row_seeds(np.array([row]), seed=seed, epoch=epoch, path=path).tolist() == [found]
    others = row_seeds(np.array(rows, np.int64), seed=seed, epoch=epoch + 1, path=path).tolist()
    assert all(mine != other for mine, other in zip(seeds.tolist(), others, strict=True))


@given(st.integers(1, 3_000), st.data())
def test_a_part_of_a_window_is_that_of_its_whole_order(num_rows: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, num_rows))
    stop = data.draw(st.integers(start, num_rows))
    key = {"seed": num_rows, "epoch": 2, "lane": 3, "window": 4}
    order = window_order(num_rows, **key)
    assert window_part(num_rows, start, stop, **key).tolist() == order[start:stop].tolist()
    for place in {start, stop} - {num_rows}:
        assert rank_in_window(num_rows, int(order[place]), **key) == place

"""A shuffled epoch as a whole is statistically random, and each of its batches mixes the rows of many shards.

The checks, and what each one detects:

- chi-square of (position of a shard in the files) x (position in the epoch): shards that stay near their position;
- chi-square of the same for the rows of a window: rows that stay near their position;
- rank correlation of two epochs: an epoch that repeats the previous one, or its reverse;
- serial correlation, and rows that still follow their predecessor: runs of file order that survive;
- distinct shards in a batch: batches made of few shards.

Everything is a function of the seed, so a check always passes or always fails; bounds are at five standard deviations.
"""

from __future__ import annotations

import numpy as np
import pytest

from laneway.core.cutting import cut_epoch
from laneway.core.division import Sharing, divide
from laneway.core.lanes import Lanes, Windows
from laneway.core.order import ORDER_VERSION, permutation, window_order
from laneway.core.plan import Identity, Settings
from laneway.core.progress import Progress, fresh_cut
from tests.laws.simulation import file_table, rows_of

SHARDS, SHARD_ROWS, WINDOW_SHARDS = 800, 50, 8
IDENTITY = Identity(
    file_table([[SHARD_ROWS] * 40] * 20),
    Settings(
        seed=11,
        shuffle=True,
        shard_bytes=SHARD_ROWS * 10,
        shard_rows=None,
        window_bytes=WINDOW_SHARDS * SHARD_ROWS * 10,
        remainder=None,
        drop_last=False,
    ),
)


def epoch_order(epoch: int, num_lanes: int = 1) -> np.ndarray:
    """Return the row numbers of an epoch in the order of delivery, lane after lane."""
    plan = IDENTITY.plan(Progress(epoch, cut=fresh_cut(num_lanes, 50)))
    return np.concatenate([rows_of(plan, lane, 0, int(rows)) for lane, rows in enumerate(plan.lanes.rows)])


def chi_square_sigmas(table: np.ndarray) -> float:
    """Return the chi-square of a contingency table, in standard deviations above the mean under independence."""
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float((((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def contingency(orders: list[np.ndarray], bins: int) -> np.ndarray:
    """Count (bin of origin, bin of delivery) over permutations of the same length."""
    length = len(orders[0])
    delivered = np.arange(length) * bins // length
    table = np.zeros((bins, bins))
    for order in orders:
        np.add.at(table, (order * bins // length, delivered), 1)
    return table


def test_shards_are_delivered_anywhere() -> None:
    orders = [permutation(SHARDS, "shards", 11, epoch) for epoch in range(200)]
    assert abs(chi_square_sigmas(contingency(orders, 20))) < 5


def test_rows_are_delivered_anywhere_in_their_window() -> None:
    orders = [window_order(400, seed=11, epoch=0, lane=0, window=window) for window in range(400)]
    assert abs(chi_square_sigmas(contingency(orders, 20))) < 5


def test_the_check_detects_a_weak_shuffle() -> None:
    rng = np.random.default_rng(0)
    near = [np.argsort(np.arange(400) + rng.normal(0, 200, 400)) for _ in range(400)]
    assert chi_square_sigmas(contingency(near, 20)) > 5


def test_rows_of_a_dataset_that_is_smaller_than_one_round_of_turns_are_shuffled_as_well() -> None:
    # No lane has a whole turn of its own: all lanes share the windows.
    plan = IDENTITY.plan(Progress(0, cut=fresh_cut(16, 4_000)))
    assert {*plan.windows.lane.tolist()} == {16}
    order = np.concatenate([rows_of(plan, lane, 0, int(rows)) for lane, rows in enumerate(plan.lanes.rows)])
    assert sorted(order.tolist()) == list(range(SHARDS * SHARD_ROWS))
    followers = (np.diff(order) == 1).sum()
    assert followers < 100 + 5 * np.sqrt(100), "about one row per window follows its predecessor"
    distinct = [len({*(batch // SHARD_ROWS)}) for batch in order.reshape(-1, 50)]
    assert np.mean(distinct) > 0.95 * WINDOW_SHARDS * (1 - (7 / 8) ** 50)


@pytest.mark.parametrize("num_lanes", [1, 8])
def test_epochs_are_uncorrelated(num_lanes: int) -> None:
    positions = [np.argsort(epoch_order(epoch, num_lanes)) for epoch in range(4)]
    bound = 5 / np.sqrt(SHARDS)  # rows of a shard move together: there are as many independent items as shards
    for first in range(4):
        for second in range(first):
            assert abs(np.corrcoef(positions[first], positions[second])[0, 1]) < bound


def test_no_runs_of_file_order_survive() -> None:
    order = epoch_order(0)
    in_windows = order.reshape(-1, WINDOW_SHARDS * SHARD_ROWS)
    centred = in_windows - in_windows.mean(axis=1, keepdims=True)
    serial = (centred[:, :-1] * centred[:, 1:]).mean(axis=1) / centred.var(axis=1)
    assert abs(serial.mean()) < 5 / np.sqrt(order.size)
    # In a random order, about one row per window follows its predecessor.
    followers = (np.diff(in_windows, axis=1) == 1).sum()
    assert followers < in_windows.shape[0] + 5 * np.sqrt(in_windows.shape[0])


@pytest.mark.parametrize("num_lanes", [1, 8])
def test_batches_mix_the_rows_of_many_shards(num_lanes: int) -> None:
    batches = epoch_order(3, num_lanes).reshape(-1, 50)
    distinct = np.array([len(set(batch // SHARD_ROWS)) for batch in batches])
    # A batch of 50 random rows misses each of the eight shards of a window with probability (7 / 8) ** 50.
    assert distinct.mean() > 0.95 * WINDOW_SHARDS * (1 - (7 / 8) ** 50)
    assert distinct.min() >= WINDOW_SHARDS - 3


def test_another_seed_is_another_order() -> None:
    orders = [permutation(1000, "shards", seed, 0) for seed in range(50)]
    matches = [np.count_nonzero(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert abs(np.mean(matches) - 1) < 5 / np.sqrt(len(matches))
    assert isinstance(epoch_order(0), np.ndarray)


def test_windows_have_about_the_target_size() -> None:
    division = divide(ORDER_VERSION, IDENTITY.files.num_rows, 4, 50, Sharing())
    windows, lanes = cut_epoch(IDENTITY.shards, division, window_bytes=4000, shuffle=True, seed=1, epoch=0)
    assert isinstance(windows, Windows)
    assert isinstance(lanes, Lanes)
    sizes = windows.rows * 10
    assert sizes.max() <= 4000 + SHARD_ROWS * 10
    assert sizes.min() >= 4000 - 2 * SHARD_ROWS * 10, "no lane ends with a window too small to mix"

"""The order of an epoch: all randomness of laneway, as functions that never change.

A permutation is the stable argsort of a keyed counter hash: the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014) over `key + i * gamma`. The finaliser is a bijection, so there
are no ties. No random generator of a library is used, because its stream may change between releases.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDER_VERSION = 2
"""The order of epochs that begin now. Changes whenever shards, windows or lanes are cut in another way.

Version 1 measured blocks as they are encoded, and cut the line evenly into lanes.
"""
ORDER_VERSIONS = (1, ORDER_VERSION)
"""The orders that can be computed. A state names the order of its epoch, and the epoch is finished in that order."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROWS_AT_ONCE = 1 << 15
"""Rows that are hashed together: their hashes stay in the cache of a core."""


def _key(*parts: int | str) -> np.uint64:
    text = "/".join(str(part) for part in parts)
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _hash(key: np.uint64, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the keyed hash of counters, uint64 of the same shape: distinct for distinct counters."""
    with np.errstate(over="ignore"):
        bits = key + counters * _GAMMA
        bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
        bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
        bits ^= bits >> np.uint64(31)
    return bits


def permutation(length: int, *key: int | str) -> NDArray[np.int64]:
    """Return the permutation of range(length) for a key.

    Args:
        length: Number of items, >= 0.
        key: The values that, with `length`, determine the permutation.

    Returns:
        int64 array of shape (length,).
    """
    rows = np.arange(length, dtype=np.uint64)
    bits = _hash(_key(*key), rows + np.uint64(1))
    # Sorting values is several times as fast as argsort, so each hash carries its row in its lowest bits.
    low_bits = np.uint64((1 << max(length - 1, 0).bit_length()) - 1)
    rows |= bits & ~low_bits
    rows.sort()
    is_tied = np.zeros(length, bool)
    np.less_equal(rows[1:] ^ rows[:-1], low_bits, out=is_tied[1:])
    rows &= low_bits
    order = rows.view(np.int64)
    if is_tied.any():
        # Rows whose hashes differ in the lowest bits only.
        is_tied[:-1] |= is_tied[1:]
        tied = order[is_tied]
        order[is_tied] = tied[np.argsort(bits[tied])]
    return order


def shard_order(num_shards: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which a shuffled epoch visits its shards.

    A pure function: every rank computes it on its own, and it is the same on every platform and in every release.

    Args:
        num_shards: Number of shards, >= 0.
        seed: Any int in [0, 2**63).
        epoch: Zero-based.

    Returns:
        int64 array of shape (num_shards,): a permutation of range(num_shards).
    """
    return permutation(num_shards, "shards", seed, epoch)


def window_order(num_rows: int, *, seed: int, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
    """Return the order in which a shuffled window delivers its rows.

    Args:
        num_rows: Number of rows of the window, >= 0.
        seed: Any int in [0, 2**63).
        epoch: Zero-based.
        lane: Lane of the window in the epoch's first cut, see `Windows.lane`.
        window: Index of the window in that lane.

    Returns:
        int64 array of shape (num_rows,): a permutation of range(num_rows).
    """
    return permutation(num_rows, "window", seed, epoch, lane, window)


def window_part(
    num_rows: int, start: int, stop: int, *, seed: int, epoch: int, lane: int, window: int
) -> NDArray[np.int64]:
    """Return `window_order(...)[start:stop]` in a fraction of the time: the rest need not be in order.

    Args:
        num_rows: Number of rows of the window.
        start: First place, >= 0.
        stop: One past the last place, <= `num_rows`.
        seed: See `window_order`, as for `epoch`, `lane` and `window`.
        epoch: Zero-based.
        lane: The lane.
        window: The window.

    Returns:
        int64 array of shape (stop - start,).
    """
    if start >= stop:
        return np.zeros(0, np.int64)
    key, margin = _key("window", seed, epoch, lane, window), 8 * math.isqrt(num_rows) + 16
    while True:
        # Hashes are spread evenly, so those of the wanted places are in a narrow band.
        low, high = (min(max(place, 0), num_rows) * 2**64 // num_rows for place in (start - margin, stop + margin))
        num_below, rows, bits = _hashes_between(key, num_rows, low, high)
        if num_below <= start and stop <= num_below + len(rows):
            return rows[np.argsort(bits, kind="stable")[start - num_below : stop - num_below]]
        margin *= 4


def _hashes_between(
    key: np.uint64, num_rows: int, low: int, high: int
) -> tuple[int, NDArray[np.int64], NDArray[np.uint64]]:
    """Return how many rows have a hash below `low`, and the rows whose hash is in [low, high), with their hashes."""
    num_below, rows, hashes = 0, [], []
    for first in range(0, num_rows, _ROWS_AT_ONCE):
        bits = _hash(key, np.arange(first + 1, min(first + _ROWS_AT_ONCE, num_rows) + 1, dtype=np.uint64))
        is_below = bits < np.uint64(low)
        num_below += int(np.count_nonzero(is_below))
        found = np.flatnonzero(~is_below & (bits <= np.uint64(high - 1)))
        rows.append(found + first)
        hashes.append(bits[found])
    return num_below, np.concatenate(rows).astype(np.int64, copy=False), np.concatenate(hashes)


def rank_in_window(num_rows: int, row: int, *, seed: int, epoch: int, lane: int, window: int) -> int:
    """Return the place of a row in the order of a window: the inverse of `window_order`.

    Args:
        num_rows: Number of rows of the window.
        row: The row, in [0, num_rows).
        seed: See `window_order`, as for `epoch`, `lane` and `window`.
        epoch: Zero-based.
        lane: The lane.
        window: The window.
    """
    key = _key("window", seed, epoch, lane, window)
    (bits,) = _hash(key, np.array([row + 1], np.uint64)).tolist()
    return _hashes_between(key, num_rows, bits, bits + 1)[0]


def row_seeds(rows: NDArray[np.int64], *, seed: int, epoch: int, path: str) -> NDArray[np.uint64]:
    """Return a seed for each of some rows of a data file, whatever batch, worker or rank they are in.

    Args:
        rows: Row numbers in the file, int64 of shape (rows,).
        seed: Any int in [0, 2**63).
        epoch: Zero-based.
        path: The file, relative to the dataset's root.

    Returns:
        uint64 array of shape (rows,), distinct for distinct rows.
    """
    return _hash(_key("row", seed, epoch, path), rows.astype(np.uint64) + np.uint64(1))


def lane_phases(lanes: NDArray[np.int64], num_nodes: int) -> NDArray[np.uint64]:
    """Return where the lanes of a mixture begin in the pattern of each node of its tree, as fractions of 2**64.

    Args:
        lanes: Lanes, int64 of shape (lanes,).
        num_nodes: Nodes of the tree, <= 2**20.

    Returns:
        uint64 array of shape (num_nodes, lanes).
    """
    nodes = np.arange(1, num_nodes + 1, dtype=np.uint64)
    return _hash(_key("mixture"), nodes[:, None] + lanes.astype(np.uint64) * np.uint64(2**20))


def split_bits(rows: NDArray[np.int64], *, seed: int, path: str) -> NDArray[np.uint64]:
    """Return a hash for each of some rows of a data file, the same in every epoch, by which rows are split.

    Args:
        rows: Row numbers in the file, int64 of shape (rows,).
        seed: Any int in [0, 2**63).
        path: The file, relative to the dataset's root.

    Returns:
        uint64 array of shape (rows,).
    """
    return _hash(_key("split", seed, path), rows.astype(np.uint64) + np.uint64(1))


def base_seed(*, seed: int, epoch: int, rank: int) -> int:
    """Return the seed from which the DataLoader workers of a rank derive their own random generators.

    Args:
        seed: Any int in [0, 2**63).
        epoch: Zero-based.
        rank: Data-parallel rank.

    Returns:
        An int in [0, 2**63).
    """
    return int(_key("workers", seed, epoch, rank)) >> 1

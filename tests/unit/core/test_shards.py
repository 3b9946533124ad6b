"""Cutting data files into shards."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.files import FileTable
from laneway.core.shards import Shard, cut_shards, group_by_size


def table(blocks: list[list[int]], row_bytes: int = 10) -> FileTable:
    sizes = [[rows * row_bytes for rows in file] for file in blocks]
    names = [f"{i:03}" for i in range(len(blocks))]
    return FileTable.build(names, [1] * len(blocks), ["0"] * len(blocks), list(zip(blocks, sizes, strict=True)), "s")


blocks_of_files = st.lists(st.lists(st.integers(0, 20), max_size=8), max_size=6)


@given(blocks_of_files, st.integers(1, 500))
def test_shards_cover_every_row_once_and_are_cut_at_blocks(blocks: list[list[int]], shard_bytes: int) -> None:
    files = table(blocks)
    shards = cut_shards(files, files.block_bytes, shard_bytes=shard_bytes)
    for i, path in enumerate(files.paths):
        own = [shard for shard in shards if shard.path == path]
        assert all(shard.row_length > 0 for shard in own)
        assert sum(shard.row_length for shard in own) == sum(blocks[i])
        assert all(a.row_offset + a.row_length == b.row_offset for a, b in pairwise(own))
        assert {shard.row_offset for shard in own} <= {0, *np.cumsum(blocks[i]).tolist()}
    assert shards.num_bytes.sum() == files.block_bytes.sum()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_groups_exceed_the_target_by_one_item_at_most(sizes: list[int], target: int) -> None:
    starts = group_by_size(np.array(sizes), np.zeros(len(sizes), np.int64), target)
    group_sizes = np.add.reduceat(sizes, starts)
    assert group_sizes.max() <= target + max(sizes)
    assert len(group_sizes) <= max(1, -(-sum(sizes) // target))


def test_groups_of_equal_items_are_of_equal_size() -> None:
    starts = group_by_size(np.full(9, 8), np.zeros(9, np.int64), 64)
    assert np.diff([*starts, 9]).tolist() in ([4, 5], [5, 4])


def test_shards_can_be_cut_by_rows() -> None:
    files = table([[5, 5, 5, 5], [30], []])
    shards = cut_shards(files, files.block_bytes, shard_bytes=1, shard_rows=10)
    assert list(shards) == [Shard("000", 0, 10), Shard("000", 10, 10), Shard("001", 0, 30)]


def test_shards_are_as_large_as_blocks_are_said_to_be() -> None:
    files = table([[5] * 8])
    assert len(cut_shards(files, files.block_bytes, shard_bytes=200)) == 2
    decoded = cut_shards(files, files.block_bytes * 4, shard_bytes=200)
    assert len(decoded) == 8
    assert decoded.num_bytes.tolist() == [200] * 8


def test_a_shard_table_is_a_sequence() -> None:
    files = table([[5], [7]])
    shards = cut_shards(files, files.block_bytes, shard_bytes=1)
    assert len(shards) == 2
    assert shards[-1] == shards[1] == Shard("001", 0, 7)
    assert shards[:1] == [Shard("000", 0, 5)]
    assert Shard("001", 0, 7) in shards
    assert repr(shards) == "<2 shards of 2 files>"
    with pytest.raises(IndexError):
        shards[2]

"""Shards: consecutive rows that are read together, cut at row groups and record batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from laneway.core.files import FileTable


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Consecutive rows of one data file."""

    path: str
    """Path relative to the dataset's root."""
    row_offset: int
    """First row, counted within the data file."""
    row_length: int
    """Number of rows."""


@dataclass(frozen=True, eq=False)
class ShardTable(Sequence[Shard]):
    """All shards of a dataset in file order, as columns; indexing returns a `Shard`."""

    paths: Sequence[str]
    """Paths of the data files."""
    file_index: NDArray[np.int64]
    """Index into `paths`, shape (num_shards,)."""
    row_offset: NDArray[np.int64]
    """First row in the data file, shape (num_shards,)."""
    row_length: NDArray[np.int64]
    """Number of rows, at least 1, shape (num_shards,)."""
    num_bytes: NDArray[np.int64]
    """Size in bytes, shape (num_shards,): an estimate of the decoded rows; in order version 1, as they are encoded."""
    first_block: NDArray[np.int64]
    """First block, counted over all files, shape (num_shards,). A shard has no rows of the next one's first block."""

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.file_index)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> list[Shard]: ...
    def __getitem__(self, index: int | slice) -> Shard | list[Shard]:
        """Return the shard at `index`, or a list of shards for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file_index = self.file_index[index]
        return Shard(self.paths[file_index], int(self.row_offset[index]), int(self.row_length[index]))

    def __iter__(self) -> Iterator[Shard]:
        """Yield the shards in file order."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'shard')} of {counted(len(self.paths), 'file')}>"


def group_by_size(sizes: NDArray[np.int64], owner: NDArray[np.int64], target: int) -> NDArray[np.int64]:
    """Group consecutive items of the same owner into groups of similar size, about `target`.

    The items of an owner are spread evenly over as few groups as possible; an item belongs to the group that contains
    its middle. So a group exceeds `target` by at most its largest item, and there is no small group at the end.

    Args:
        sizes: Size of each item, shape (n,).
        owner: Owner of each item, non-decreasing, shape (n,).
        target: Target size of a group, >= 1.

    Returns:
        int64 array of shape (num_groups,): index of the first item of each group.
    """
    if len(sizes) == 0:
        return np.zeros(0, np.int64)
    ends = np.cumsum(sizes)
    is_first = np.ones(len(sizes), bool)
    np.not_equal(owner[1:], owner[:-1], out=is_first[1:])
    firsts = np.flatnonzero(is_first)
    owner_start = ends[firsts] - sizes[firsts]
    total = np.diff(np.append(owner_start, ends[-1]))
    num_groups = np.maximum(-(-total // target), 1)
    group_size = np.maximum(-(-total // num_groups), 1)
    num_items = np.diff(np.append(firsts, len(sizes)))
    # In place: new memory for millions of items takes longer than the arithmetic.
    group = sizes + 1
    group //= 2
    np.subtract(ends, group, out=group)
    group -= np.repeat(owner_start, num_items)
    group //= np.repeat(group_size, num_items)
    np.minimum(group, np.repeat(num_groups - 1, num_items), out=group)
    is_first[1:] |= group[1:] != group[:-1]
    return np.flatnonzero(is_first).astype(np.int64, copy=False)


def cut_shards(
    files: FileTable, block_bytes: NDArray[np.int64], *, shard_bytes: int, shard_rows: int | None = None
) -> ShardTable:
    """Cut every data file at its blocks into shards of about `shard_bytes`, or of about `shard_rows` rows.

    Args:
        files: The data files.
        block_bytes: Size of each of their blocks in bytes, by which shards and windows are measured.
        shard_bytes: Target size of a shard in bytes.
        shard_rows: Target number of rows of a shard; replaces `shard_bytes` if given.

    Returns:
        The shards, without empty ones. A block is never cut: a block larger than the target is a shard of its own.
    """
    file_of_block = np.repeat(np.arange(files.num_files), np.diff(files.block_starts))
    sizes = block_bytes if shard_rows is None else files.block_rows.astype(np.int64)
    starts = group_by_size(sizes, file_of_block, shard_bytes if shard_rows is None else shard_rows)
    file_index = file_of_block[starts]
    # Not `block_row_starts`, which a table of selected rows would keep for nothing else.
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(files.block_rows, out=bounds[1:])
    row_offset = bounds[starts]
    row_length = np.diff(row_offset, append=bounds[-1])
    row_offset -= bounds[files.block_starts][file_index]
    is_kept = row_length > 0
    # Millions of blocks are not copied, as hardly any is empty.
    kept = slice(None) if is_kept.all() else is_kept
    return ShardTable(
        paths=files.paths,
        file_index=file_index[kept],
        row_offset=row_offset[kept],
        row_length=row_length[kept],
        num_bytes=(np.add.reduceat(block_bytes, starts) if len(starts) else starts)[kept],
        first_block=starts[kept],
    )

"""All ranks, with real worker processes: together they deliver the rows of an epoch, none of them twice."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, get_args

import pytest
from torch.utils.data import DataLoader

from laneway import SavableLoader, StatefulShardedDataset
from laneway.core.lanes import Remainder
from tests.compat.loaders import flat, ids
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("remainder", get_args(Remainder))
@pytest.mark.parametrize("num_workers", range(5))
@pytest.mark.parametrize("world_size", range(1, 6))
def test_ranks_and_workers_share_an_epoch(
    tmp_path: Path, world_size: int, num_workers: int, remainder: Remainder
) -> None:
    num_rows = write_corpus(tmp_path)
    delivered = []
    for rank in range(world_size):
        dataset = StatefulShardedDataset(
            tmp_path, shuffle=True, batch_size=3, shard_rows=4, remainder=remainder, rank=rank, world_size=world_size
        )
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
        batches = ids(loader)
        assert len(batches) == len(loader)
        delivered.append(batches)
    rows = Counter(row for batches in delivered for row in flat(batches))
    if remainder == "keep":
        assert rows == Counter(range(num_rows))
    else:
        assert len({len(batches) for batches in delivered}) == 1
        assert len({len(flat(batches)) for batches in delivered}) == 1
    if remainder == "pad":
        assert set(rows) == set(range(num_rows))
        assert rows.total() - num_rows < world_size
    if remainder == "drop":
        assert set(rows.values()) == {1}
        assert num_rows - rows.total() < world_size


@pytest.mark.parametrize("remainder", get_args(Remainder))
def test_fewer_rows_than_lanes(tmp_path: Path, remainder: Remainder) -> None:
    write_corpus(tmp_path, files=((1,), (), (2,)))
    rows: Counter[int] = Counter()
    for rank in range(2):
        dataset = StatefulShardedDataset(tmp_path, batch_size=2, remainder=remainder, rank=rank, world_size=2)
        rows.update(flat(ids(DataLoader(dataset, batch_size=None, num_workers=3))))
    assert rows.total() == {"keep": 3, "pad": 4, "drop": 2}[remainder]
    assert len(rows) == {"keep": 3, "pad": 3, "drop": 2}[remainder]


def test_several_ranks_pad_by_default_and_one_keeps(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    lengths = [
        len(flat(ids(StatefulShardedDataset(tmp_path, batch_size=5, rank=rank, world_size=5)))) for rank in range(5)
    ]
    assert lengths == [10] * 5
    assert len(flat(ids(StatefulShardedDataset(tmp_path, batch_size=5)))) == num_rows


def test_a_dataset_without_rows_delivers_none(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((), ()))
    for remainder in get_args(Remainder):
        dataset = StatefulShardedDataset(tmp_path, batch_size=5, remainder=remainder, shuffle=True)
        assert list(dataset) == []
        assert len(dataset) == 0
        assert list(DataLoader(dataset, batch_size=None, num_workers=2)) == []


def test_rank_and_world_size_come_from_the_environment_of_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rows = write_corpus(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        rows += flat(ids(StatefulShardedDataset(tmp_path, batch_size=5)))
    assert sorted(rows) == list(range(num_rows))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match=r"rank is 1, world_size is None"):
        StatefulShardedDataset(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'many', not an int"):
        StatefulShardedDataset(tmp_path)
    with pytest.raises(ValueError, match=r"rank 3 is not in \[0, 3\)"):
        StatefulShardedDataset(tmp_path, rank=3, world_size=3)


def test_a_number_of_lanes_that_the_workers_cannot_share_raises_a_warning(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path, batch_size=5, lanes=8, rank=0, world_size=3, remainder="keep")
    with pytest.warns(UserWarning, match="8 lanes can't be shared by 3 rank.* multiple of 3"):
        batches = ids(dataset)
    assert len(flat(batches)) == num_rows // 3
    assert len(dataset) == len(batches)


def test_a_pass_that_drops_every_row_raises_a_warning(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((1,), (), (2,)))
    dataset = StatefulShardedDataset(tmp_path, batch_size=4, drop_last=True)
    for source in (dataset, SavableLoader(dataset), SavableLoader(dataset, num_workers=2)):
        with pytest.warns(UserWarning, match="3 rows, fewer than a batch of 4, so drop_last drops all of them"):
            assert list(source) == []


def test_rank_0_warns_if_there_is_no_whole_batch_for_each_rank(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((1,), (), (2,)))
    first, second = (StatefulShardedDataset(tmp_path, batch_size=2, rank=rank, world_size=2) for rank in range(2))
    message = (
        "the dataset has 3 rows, fewer than a batch of 2 for each of 2 ranks, so no batch is whole: use fewer ranks"
    )
    for source in (first, SavableLoader(first)):
        with pytest.warns(UserWarning, match=message):
            list(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(flat(ids(second))) == 2

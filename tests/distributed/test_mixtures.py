"""Mixtures on real ranks with real workers: each row once, equal batches, one state, weights that all ranks change."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import Checkpoints, LanewayError, Mixture, SavableLoader, StatefulShardedDataset
from laneway.dcp import GatheredState
from laneway.errors import CollectiveError
from tests.distributed.ranks import restore, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.distributed.ranks import RunRanks

SIZES = {"web": 90, "code": 31, "rare": 2}
FIRST = {"web": 0, "code": 1000, "rare": 2000}
WEIGHTS = {"web": 0.7, "code": 0.29, "rare": 0.01}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, num_rows in SIZES.items():
        table = pa.table({"id": range(FIRST[name], FIRST[name] + num_rows)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=7)
    return tmp_path


def loader_of(
    folder: Path, num_workers: int, batch_size: int, weights: dict[str, float] | None = None, **options: Any
) -> SavableLoader:
    sources = {
        name: StatefulShardedDataset(folder / f"{name}.parquet", shuffle=True, seed=1, shard_rows=5, window_bytes=200)
        for name in SIZES
    }
    return SavableLoader(Mixture(sources, weights or WEIGHTS, **options).batch(batch_size), num_workers=num_workers)


def ids(batches: Any, count: int | None = None) -> list[list[int]]:
    return [batch["id"].tolist() for batch in islice(batches, count)]


def leg(
    rank: int, folder: Path, index: int, num_workers: int, batch_size: int, count: int, way: str
) -> tuple[list[list[int]], dict[str, Any], Any]:
    """Resume from the last leg, change the weights on the way, and save."""
    del rank
    loader = loader_of(folder, num_workers, batch_size)
    if index:
        restore(loader, way, folder / f"leg {index - 1}")
    batches = iter(loader)
    received = ids(batches, count)
    loader.set_weights({"web": 1, "code": 2 + index, "rare": 0.1})
    received += ids(batches, count)
    save(loader, way, folder / f"leg {index}")
    return received, loader.state_dict(), loader.sources


@pytest.mark.parametrize("way", ["global", "global from every rank", "state_dict", "dcp"])
def test_each_row_comes_once_over_changes_of_ranks_workers_batches_and_weights(
    run_ranks: RunRanks, folder: Path, way: str
) -> None:
    delivered = Counter[int]()
    for index, (world_size, num_workers, batch_size, count) in enumerate([(2, 2, 3, 2), (3, 0, 2, 1), (1, 2, 4, 2)]):
        ranks = run_ranks(leg, world_size, folder, index, num_workers, batch_size, count, way)
        delivered.update(row for received, _, _ in ranks for batch in received for row in batch)
        assert all(state == ranks[0][1] for _, state, _ in ranks), "any rank's state is the job's"
        assert {len(batch) for received, _, _ in ranks for batch in received} == {batch_size}
    sources = ranks[0][2]
    for name in ("web", "code"):
        rows = [count for row, count in delivered.items() if FIRST[name] <= row < FIRST[name] + 1000]
        assert sum(rows) == sources[name].rows
        assert max(rows) <= sources[name].epoch + 2
        assert min([*rows, *[0] * (SIZES[name] - len(rows))]) >= sources[name].epoch


def finite(rank: int, folder: Path, stop: Any) -> list[int]:
    del rank
    loader = loader_of(folder, 2, 4, {"web": 3, "code": 1, "rare": 0}, stop=stop)
    return [len(batch) for batch in ids(loader)]


@pytest.mark.parametrize(
    ("stop", "least", "most"), [(99, 99, 101), ("first_exhausted", 110, 124), ("all_exhausted", 120, 140)]
)
def test_all_ranks_deliver_equally_many_batches(
    run_ranks: RunRanks, folder: Path, stop: Any, least: int, most: int
) -> None:
    ranks = run_ranks(finite, 3, folder, stop)
    assert len({*map(tuple, ranks)}) == 1
    assert least <= sum(map(sum, ranks)) <= most


def differing(rank: int, folder: Path) -> list[str]:
    loader = loader_of(folder, 0, 4)
    batches, found = iter(loader), []
    for change, taken in (({"web": 1 + rank, "code": 1, "rare": 0}, 1), (dict.fromkeys(SIZES, 1), 1 + rank)):
        ids(batches, taken)
        try:
            loader.set_weights(change)
        except (CollectiveError, LanewayError) as error:
            found.append(str(error))
    return found


def test_ranks_that_change_the_weights_in_different_ways_are_refused(run_ranks: RunRanks, folder: Path) -> None:
    for calls, counts in run_ranks(differing, 2, folder):
        assert "all ranks must make the same call: rank 0 called set_weights({'web': 1" in calls
        assert "after the same number of batches: rank 0 has taken 2, rank 1 has taken 3" in counts


def uneven(rank: int, folder: Path, index: int) -> list[int]:
    loader = loader_of(folder, 0, 3)
    if index:
        restore(loader, "global", folder / "uneven")
    received = ids(loader, 2 + rank if index == 0 else 2)
    if index == 0:
        with pytest.raises(LanewayError, match="not in lockstep"):
            loader.state_dict(check=True)
        save(loader, "global", folder / "uneven")
    return [row for batch in received for row in batch]


def test_a_state_gathered_from_ranks_apart_resumes_on_other_ranks(run_ranks: RunRanks, folder: Path) -> None:
    rows = Counter(
        row for index in (0, 1) for of_rank in run_ranks(uneven, 2 + index, folder, index) for row in of_rank
    )
    assert sum(rows.values()) == 3 * (2 + 3) + 3 * 2 * 3
    assert max(count for row, count in rows.items() if row < 2000) == 1


def of_other_weights(rank: int, folder: Path) -> list[str]:
    """Return the error of each call of ranks whose mixtures have other weights."""
    loader = loader_of(folder, 0, 4, {"web": 3, "code": 1 + rank, "rare": 0})
    ids(loader, 2)
    same = loader_of(folder, 0, 4)
    ids(same, 1)
    state = same.save_state_global()
    checkpoints = Checkpoints(folder / "run")
    checkpoints.save(1, loader=same)
    calls: list[Callable[[], object]] = [
        loader.save_state_global,
        lambda: loader.state_dict(check=True),
        lambda: loader.restore_state_global(state if rank == 0 else None),
        lambda: GatheredState(loader).load_state_dict(same.state_dict()),
        lambda: checkpoints.resume(loader=loader),
    ]
    found = []
    for call in calls:
        try:
            call()
        except LanewayError as error:
            found.append(str(error))
    return found


def test_ranks_whose_mixtures_have_other_weights_are_refused(run_ranks: RunRanks, folder: Path) -> None:
    expected = [r"rank 0 has weights\['code'\]=1, and rank 1 has weights\['code'\]=2: create the"] * 4
    expected += [r"rank 0 has loader: weights\['code'\]=1, and rank 1 has loader: weights\['code'\]=2: create the"]
    for found in run_ranks(of_other_weights, 2, folder):
        assert len(found) == len(expected)
        for pattern, message in zip(expected, found, strict=True):
            assert re.search("different arguments: " + pattern, message)


def with_loaders_of_other_names(rank: int, folder: Path) -> str:
    """Resume two loaders on rank 0, and one of them on the other ranks."""
    loaders = {"train": loader_of(folder, 0, 4), "eval": loader_of(folder, 0, 2)}
    checkpoints = Checkpoints(folder / "run of two loaders")
    checkpoints.save(1, loader=loaders)
    given = loaders if rank == 0 else {"train": loaders["train"]}
    with pytest.raises(LanewayError) as caught:
        checkpoints.resume(loader=given, strict=False)
    return str(caught.value)


def test_loaders_of_ranks_are_compared_by_their_names(run_ranks: RunRanks, folder: Path) -> None:
    for found in run_ranks(with_loaders_of_other_names, 2, folder):
        assert "rank 0 has loader/eval: weights_of=rows, " in found
        assert "rank 1 has loader/eval: weights_of=none, " in found
        assert "loader/train" not in found


def with_other_arguments(rank: int, folder: Path) -> list[str]:
    """Return the error of each call of ranks that would cut what is left into other lanes."""
    same = loader_of(folder, 0, 4)
    ids(same, 1)
    state = same.save_state_global()
    checkpoints = Checkpoints(folder / "run of others")
    checkpoints.save(1, loader=same)
    found = []
    for loader in (loader_of(folder, 0, 4 + rank), loader_of(folder, 2 * rank, 4)):
        before = loader.save_state_rank()
        calls: list[Callable[[], object]] = [
            partial(loader.restore_state_global, state if rank == 0 else None),
            partial(GatheredState(loader).load_state_dict, same.state_dict()),
            partial(checkpoints.resume, loader=loader),
        ]
        for call in calls:
            with pytest.raises(LanewayError) as caught:
                call()
            found.append(str(caught.value))
        assert loader.save_state_rank() == before
    same.restore_state_global(state if rank == 0 else None)
    return found


def test_ranks_that_would_resume_with_other_batches_or_workers_are_refused(run_ranks: RunRanks, folder: Path) -> None:
    for found in run_ranks(with_other_arguments, 2, folder):
        assert len(found) == 6
        for each in found[:3]:
            assert re.search("rank 0 has (loader: )?batch_size=4, ", each)
            assert re.search("rank 1 has (loader: )?batch_size=5, ", each)
        for each in found[3:]:
            assert re.search("rank 0 has (loader: )?lanes=2, ", each)
            assert re.search("rank 1 has (loader: )?lanes=4, ", each)

"""Samples of a plan are what the plan says, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import Mixture, StatefulShardedDataset
from laneway.plans.epoch_plan import cuts_of
from laneway.plans.samples import evenly, sample_batches, sample_lanes, start_up
from tests.corpora import UNEQUAL_FILES, write_corpus
from tests.planned import numbers_of

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.plans.epoch_plan import EpochPlan

SHARD_ROWS = 4


@pytest.fixture
def dataset(tmp_path: Path) -> StatefulShardedDataset:
    write_corpus(tmp_path / "data")
    return StatefulShardedDataset(
        tmp_path / "data", batch_size=3, shuffle=True, seed=4, shard_rows=SHARD_ROWS, window_bytes=200
    )


@pytest.fixture(params=[False, True], ids=["fresh", "resumed"])
def plan(dataset: StatefulShardedDataset, request: pytest.FixtureRequest) -> EpochPlan:
    if not request.param:
        return dataset.plan(0, 2, 2)
    batches = iter(dataset)
    for _ in range(5):
        next(batches)
    return dataset.plan(None, 2, 2, state=dataset.state_dict())


def shards_of_rows(dataset: StatefulShardedDataset) -> list[int]:
    """Return the shard of each row of all files."""
    return [index for index, shard in enumerate(dataset.shards) for _ in range(shard.row_length)]


@pytest.mark.parametrize(
    ("number", "most", "expected"),
    [(3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (10, 1, [0]), (0, 4, []), (5, 5, [0, 1, 2, 3, 4])],
)
def test_the_first_and_the_last_are_among_those_at_even_distances(number: int, most: int, expected: list[int]) -> None:
    assert evenly(number, most) == expected


def test_sampled_batches_are_those_of_the_plan(dataset: StatefulShardedDataset, plan: EpochPlan) -> None:
    files, shard_of = dataset.manifest.files, shards_of_rows(dataset)
    samples = sample_batches(plan, 1000, 1000)
    assert plan.num_steps is not None
    found = {(each.step, each.rank): each for each in samples.batches}
    assert len(found) == len(samples.batches)
    num_found = 0
    for step in range(plan.num_steps):
        for rank, rows in enumerate(plan.rows_of(step)):
            if not rows:
                assert (step, rank) not in found
                continue
            batch, places = found[step, rank], numbers_of(files, rows)
            num_found += 1
            assert batch.places.tolist() == places
            assert batch.shards == len({shard_of[place] for place in places})
            assert batch.files == len({row.path for row in rows})
            beside = [place for place in places if {place - 1, place + 1} & {*places}]
            assert batch.adjacent == pytest.approx(len(beside) / len(places))
    assert num_found == len(found)


@pytest.mark.parametrize("strategy", ["best_fit", "chunk"])
def test_sampled_batches_of_packs_are_the_rows_of_their_documents(tmp_path: Path, strategy: Any) -> None:
    for part in range(2):
        tokens = [[0] * (1 + (part + row) % 7) for row in range(40)]
        pq.write_table(pa.table({"input_ids": tokens}), tmp_path / f"part-{part}.parquet", row_group_size=10)
    rows = StatefulShardedDataset(tmp_path, shuffle=True, seed=2, shard_rows=10).count_lengths("input_ids")
    dataset = rows.pack(8, strategy=strategy, group_rows=16 if strategy == "best_fit" else None).batch(3)
    plan = dataset.plan(0, 2)
    samples = sample_batches(plan, 1000, 1000)
    assert len(samples.batches) == 2 * (plan.num_steps or 0)
    for each in samples.batches:
        documents = plan.rows_of(each.step)[each.rank]
        assert {*each.places.tolist()} == {40 * int(place.path[5]) + place.row for place in documents}
        assert len({*each.places.tolist()}) == len(each.places)


def test_batches_of_a_perfect_shuffle_have_as_many_shards_as_are_expected(
    dataset: StatefulShardedDataset, plan: EpochPlan
) -> None:
    random, owner = np.random.default_rng(0), np.array(shards_of_rows(dataset))
    expected = {len(each.places): each.expected_shards for each in sample_batches(plan, 1000, 1000).batches}
    drawn = [len(np.unique(owner[random.permutation(48)[:3]])) for _ in range(2000)]
    assert expected[3] == pytest.approx(np.mean(drawn), rel=0.05)


def test_few_of_many_batches_leave_out_the_ends(dataset: StatefulShardedDataset) -> None:
    samples = sample_batches(dataset.plan(0, 4), 2, 2)
    assert [(each.step, each.rank) for each in samples.batches] == [(1, 0), (1, 3), (3, 0), (3, 3)]
    assert samples.num_ranks == 2


def test_a_whole_epoch_in_one_batch_is_mixed_perfectly(tmp_path: Path) -> None:
    write_corpus(tmp_path / "data")
    samples = sample_batches(StatefulShardedDataset(tmp_path / "data", batch_size=48).plan(0, 1), 10, 10)
    assert (samples.mixing, samples.adjacent) == (1.0, 1.0)


def test_sampled_lanes_add_up_to_the_cuts(plan: EpochPlan) -> None:
    found = sample_lanes(plan, 1000, 1000)
    cuts = [cut for cut in cuts_of(plan) if cut.stretch.num_steps]
    assert [each.is_delivered for each in found] == [cut.is_delivered for cut in cuts]
    for each, cut in zip(found, cuts, strict=True):
        taken = (cut.stretch.ends - cut.stretch.starts).tolist()
        assert [lane.num_rows for lane in each.lanes] == taken
        assert (each.num_rows, each.longest) == (sum(taken), max(taken))
        for lane in each.lanes:
            assert sum(stop - start for _, start, stop in lane.windows) == lane.num_rows
    assert [len(lane.windows) for lane in sample_lanes(plan, 1, 0)[0].lanes] == [0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_starting_up_reads_the_first_window_of_each_lane(tmp_path: Path, *, shuffle: bool) -> None:
    write_corpus(tmp_path / "data")
    dataset = StatefulShardedDataset(
        tmp_path / "data", batch_size=3, shuffle=shuffle, seed=4, shard_rows=SHARD_ROWS, window_bytes=200
    )
    plan = dataset.plan(0, 2, 2)
    (cut,) = cuts_of(plan)
    of_cut = cut.rows.plan
    assert of_cut is not None
    expected: list[tuple[set[int], int]] = [(set(), 0), (set(), 0)]
    for lane in range(plan.num_lanes):
        segment = next(iter(of_cut.lanes.segments(lane)))
        opened, num_blocks = expected[lane % 2]
        ranges = of_cut.window_files(segment.window)
        if not shuffle:
            ((file_index, start, _),) = ranges
            ranges = [type(ranges[0])(file_index, start + segment.start, start + segment.stop)]
        for file_index, start, stop in ranges:
            ends = np.cumsum(UNEQUAL_FILES[file_index]).tolist()
            blocks = zip([0, *ends], ends, strict=False)
            num_blocks += sum(low < stop and start < high for low, high in blocks)
            opened.add(file_index)
        expected[lane % 2] = opened, num_blocks
    found = start_up(plan)
    assert [(each.files, each.blocks) for each in found] == [(len(opened), blocks) for opened, blocks in expected]
    assert all(0 < each.num_bytes <= total for each, total in zip(found, plan.bytes_per_rank or (), strict=True))


def test_nothing_is_read_at_the_end_of_an_epoch(dataset: StatefulShardedDataset) -> None:
    for _ in dataset:
        pass
    plan = dataset.plan(None, 2, 2, state=dataset.state_dict())
    assert (plan.bytes_per_rank, start_up(plan)) == ((0, 0), [])


def test_mixtures_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "data")
    plan = Mixture({"a": StatefulShardedDataset(tmp_path / "data")}, {"a": 1}).batch(3).plan(0, 1)
    for sample in (sample_lanes, sample_batches):
        with pytest.raises(ValueError, match="only those of single datasets can be drawn"):
            sample(plan, 8, 8)

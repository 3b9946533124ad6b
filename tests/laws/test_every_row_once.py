"""Law: together, the workers of a job deliver every row of an epoch exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress, current_cut
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PLAIN, Job, deliver, file_table, identities

if TYPE_CHECKING:
    from laneway.core.lanes import Remainder

topologies = st.tuples(st.integers(1, 5), st.integers(1, 4))
batch_sizes = st.integers(1, 7)


@given(identities(remainder="keep"), topologies, batch_sizes)
def test_every_row_is_delivered_once_when_the_remainder_is_kept(
    identity: Identity, topology: tuple[int, int], batch_size: int
) -> None:
    job = Job(identity, *topology, LaneOptions(None, None, batch_size), Progress(0))
    rows = [row for step in job.run() for row in step]
    assert sorted(rows) == list(range(identity.files.num_rows))


@given(identities(remainder="pad"), topologies, batch_sizes)
def test_padding_repeats_less_than_one_row_per_rank_and_loses_none(
    identity: Identity, topology: tuple[int, int], batch_size: int
) -> None:
    job = Job(identity, *topology, LaneOptions(None, None, batch_size), Progress(0))
    rows = Counter(row for step in job.run() for row in step)
    assert set(rows) == set(range(identity.files.num_rows))
    assert rows.total() - len(rows) < job.world_size


@given(identities(remainder="drop"), topologies, batch_sizes)
def test_dropping_loses_less_than_one_row_per_rank_and_repeats_none(
    identity: Identity, topology: tuple[int, int], batch_size: int
) -> None:
    job = Job(identity, *topology, LaneOptions(None, None, batch_size), Progress(0))
    rows = Counter(row for step in job.run() for row in step)
    assert set(rows.values()) <= {1}
    assert identity.files.num_rows - rows.total() < job.world_size


@given(identities(), topologies, batch_sizes, st.sampled_from(["pad", "drop"]))
def test_all_ranks_deliver_the_same_number_of_batches_of_the_same_size(
    identity: Identity, topology: tuple[int, int], batch_size: int, remainder: Remainder
) -> None:
    world_size, num_workers = topology
    settings = Identity(identity.files, replace(identity.settings, remainder=remainder))
    job = Job(settings, world_size, num_workers, LaneOptions(None, None, batch_size), Progress(0))
    while not job.is_at_end:
        assert len({len(batch) for batch in job.step()}) == 1


@given(identities(), topologies, st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 12, 24]), st.booleans())
def test_only_the_last_batch_of_a_rank_may_be_short(
    identity: Identity,
    topology: tuple[int, int],
    turn_rows: int,
    turns: int,
    lanes: int | None,
    drop_last: bool,
) -> None:
    world_size, num_workers = topology
    settings, batch_size = replace(identity.settings, drop_last=drop_last), turn_rows * turns
    options = LaneOptions(lanes, turn_rows, batch_size)
    job = Job(Identity(identity.files, settings), world_size, num_workers, options, Progress(0))
    steps = []
    while not job.is_at_end:
        steps.append(job.step())
    num_rows = identity.files.num_rows
    num_whole, num_left = divmod(num_rows, world_size * batch_size)
    assert all(len(batch) == batch_size for step in steps[:num_whole] for batch in step)
    if drop_last:
        assert len(steps) == num_whole, "only the rows of the last, incomplete global batch are lost"
    else:
        assert len(steps) == num_whole + (num_left > 0 and (settings.remainder != "drop" or num_left >= world_size))
        last = [len(batch) for step in steps[num_whole:] for batch in step]
        assert max(last, default=0) - min(last, default=0) <= 1


@given(identities(), topologies, st.integers(1, 3), st.integers(1, 3), st.integers(0, 24), st.booleans())
def test_the_length_of_a_rank_is_the_number_of_items_it_delivers(
    identity: Identity, topology: tuple[int, int], turn_rows: int, turns: int, lanes: int, rows_only: bool
) -> None:
    world_size, num_workers = topology
    batch_size = None if rows_only else turn_rows * turns
    options = LaneOptions(lanes or None, turn_rows, batch_size)
    for rank in range(world_size):
        delivered = 0
        job = Job(identity, world_size, num_workers, options, Progress(0))
        for worker in range(num_workers):
            cursor = job.cursors[rank, worker]
            while batch := cursor.next_batch():
                delivered += 1 if batch_size else sum(stop - start for _, start, stop in batch.ranges)
                deliver(cursor, batch)
        place = WorkerPlace(rank, world_size, 0, num_workers)
        assert delivered == options.num_items(identity.files.num_rows, place, identity.settings)


@pytest.mark.parametrize("remainder", ["keep", "pad", "drop"])
def test_a_dataset_may_have_fewer_rows_than_lanes(remainder: Remainder) -> None:
    settings = replace(PLAIN, remainder=remainder)
    job = Job(Identity(file_table([[2], [], [1]]), settings), 4, 2, LaneOptions(None, None, 2), Progress(0))
    rows = sorted(row for step in job.run() for row in step)
    expected = {"keep": [0, 1, 2], "drop": []}
    if remainder == "pad":
        assert len(rows) == job.world_size
        assert set(rows) == {0, 1, 2}
    else:
        assert rows == expected[remainder]


@given(identities(), topologies, batch_sizes)
def test_no_lane_is_read_by_two_workers(identity: Identity, topology: tuple[int, int], batch_size: int) -> None:
    job = Job(identity, *topology, LaneOptions(None, None, batch_size), Progress(0))
    owners = Counter(
        lane
        for cursor in job.cursors.values()
        if not cursor.is_at_end
        for lane in current_cut(cursor.progress()).positions
    )
    assert set(owners.values()) <= {1}

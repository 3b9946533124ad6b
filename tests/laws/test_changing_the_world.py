"""Law: an epoch that is stopped and resumed with other numbers of ranks and workers delivers every row once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.options import LaneOptions
from laneway.core.order import ORDER_VERSIONS
from laneway.core.progress import Progress, current_cut
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import Job, identities, load

if TYPE_CHECKING:
    from laneway.core.plan import Identity

runs = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 8))


@given(
    identities(remainder="keep"),
    st.lists(runs, min_size=1, max_size=6),
    st.sampled_from([None, 4, 6, 12]),
    st.sampled_from(ORDER_VERSIONS),
)
@settings(max_examples=300)
def test_no_row_is_lost_or_repeated_when_the_world_changes_size(
    identity: Identity, chain: list[tuple[int, int, int, int]], lanes: int | None, order_version: int
) -> None:
    progress, rows = Progress(3, order_version=order_version), Counter[int]()
    for world_size, num_workers, batch_size, steps in chain:
        job = Job(identity, world_size, num_workers, LaneOptions(lanes, None, batch_size), progress)
        rows.update(row for step in job.run(steps) for row in step)
        progress = job.whole_progress()
    rows.update(row for step in Job(identity, 1, 1, LaneOptions(None, None, 5), progress).run() for row in step)
    assert rows == Counter(range(identity.files.num_rows))


@given(identities(remainder="pad"), st.lists(runs, min_size=1, max_size=5))
def test_padding_never_loses_a_row_and_keeps_ranks_in_step_when_the_world_changes_size(
    identity: Identity, chain: list[tuple[int, int, int, int]]
) -> None:
    progress, rows, padded = Progress(0), Counter[int](), 0
    for world_size, num_workers, batch_size, steps in [*chain, (2, 2, 3, 10**6)]:
        job = Job(identity, world_size, num_workers, LaneOptions(None, None, batch_size), progress)
        for _ in range(steps):
            if all(cursor.is_at_end for cursor in job.cursors.values()):
                break
            batches = job.step()
            assert len({len(batch) for batch in batches}) == 1
            rows.update(row for batch in batches for row in batch)
        padded += world_size - 1
        progress = job.whole_progress()
    assert set(rows) == set(range(identity.files.num_rows))
    assert rows.total() - len(rows) <= padded


@given(identities(), st.lists(runs, min_size=1, max_size=4), st.sampled_from(ORDER_VERSIONS))
def test_the_state_of_a_whole_job_survives_a_round_trip(
    identity: Identity, chain: list[tuple[int, int, int, int]], order_version: int
) -> None:
    progress = Progress(0, order_version=order_version)
    for world_size, num_workers, batch_size, steps in chain:
        job = Job(identity, world_size, num_workers, LaneOptions(None, None, batch_size), progress)
        job.run(steps)
        progress = job.whole_progress()
        complete = all(cursor.is_at_end for cursor in job.cursors.values())
        state = write_state(identity, progress, WorkerPlace(0, world_size), complete=complete)
        assert load(state, identity) == progress


@given(identities(remainder="keep"), st.lists(runs, min_size=1, max_size=4))
def test_completed_shards_are_those_whose_rows_were_all_delivered(
    identity: Identity, chain: list[tuple[int, int, int, int]]
) -> None:
    progress, delivered = Progress(0), set[int]()
    for world_size, num_workers, batch_size, steps in chain:
        job = Job(identity, world_size, num_workers, LaneOptions(None, None, batch_size), progress)
        delivered.update(row for step in job.run(steps) for row in step)
        progress = job.whole_progress()
        completed = job.plan.completed_shards(current_cut(progress).rows()).tolist()
        shards, files = identity.shards, identity.files
        first = files.block_row_starts[files.block_starts[:-1]][shards.file_index] + shards.row_offset
        expected = [
            i
            for i, (start, length) in enumerate(zip(first, shards.row_length, strict=True))
            if delivered >= set(range(start, start + length))
        ]
        assert completed == expected

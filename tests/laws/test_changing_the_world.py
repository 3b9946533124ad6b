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
from tests.laws.simulation import Job, identities, jobs_of, load

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
    for job, steps in jobs_of(identity, chain, progress, lanes=lanes):
        rows.update(row for step in job.run(steps) for row in step)
        progress = job.whole_progress()
    rows.update(row for step in Job(identity, 1, 1, LaneOptions(None, None, 5), progress).run() for row in step)
    assert rows == Counter(range(identity.files.num_rows))


@given(identities(remainder="pad"), st.lists(runs, min_size=1, max_size=5))
def test_padding_never_loses_a_row_and_keeps_ranks_in_step_when_the_world_changes_size(
    identity: Identity, chain: list[tuple[int, int, int, int]]
) -> None:
    rows, padded = Counter[int](), 0
    for job, steps in jobs_of(identity, [*chain, (2, 2, 3, 10**6)], Progress(0)):
        for batches in job.take(steps):
            assert len({len(batch) for batch in batches}) == 1
            rows.update(row for batch in batches for row in batch)
        padded += job.world_size - 1
    assert set(rows) == set(range(identity.files.num_rows))
    assert rows.total() - len(rows) <= padded


@given(identities(), st.lists(runs, min_size=1, max_size=4), st.sampled_from(ORDER_VERSIONS))
def test_the_state_of_a_whole_job_survives_a_round_trip(
    identity: Identity, chain: list[tuple[int, int, int, int]], order_version: int
) -> None:
    for job, steps in jobs_of(identity, chain, Progress(0, order_version=order_version)):
        job.run(steps)
        progress = job.whole_progress()
        state = write_state(identity, progress, WorkerPlace(0, job.world_size), complete=job.is_at_end)
        assert load(state, identity) == progress


@given(identities(remainder="keep"), st.lists(runs, min_size=1, max_size=4))
def test_completed_shards_are_those_whose_rows_were_all_delivered(
    identity: Identity, chain: list[tuple[int, int, int, int]]
) -> None:
    delivered = set[int]()
    for job, steps in jobs_of(identity, chain, Progress(0)):
        delivered.update(row for step in job.run(steps) for row in step)
        completed = job.plan.completed_shards(current_cut(job.whole_progress()).rows()).tolist()
        shards, files = identity.shards, identity.files
        first = files.block_row_starts[files.block_starts[:-1]][shards.file_index] + shards.row_offset
        expected = [
            i
            for i, (start, length) in enumerate(zip(first, shards.row_length, strict=True))
            if delivered >= set(range(start, start + length))
        ]
        assert completed == expected

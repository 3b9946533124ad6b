"""Law: a plan tells the rows of every step, and the step of every row, whatever cuts came before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laneway import CheckpointMismatchError, Mixture, StatefulShardedDataset
from laneway.core.options import LaneOptions
from laneway.core.progress import Progress
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.plans.cut_rows import SourceRowPlace
from tests.laws.mixture_simulation import MixtureJob, SourceRow
from tests.laws.simulation import Job, identities
from tests.planned import dataset_of, numbers_of

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.core.files import FileTable
    from laneway.core.plan import Identity
    from laneway.plans.cut_rows import AnyRowPlace
    from laneway.plans.epoch_plan import EpochPlan

runs = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 8))


def planned_steps(plan: EpochPlan, identity: Identity, first: int, stop: int) -> list[list[list[int]]]:
    """Return the numbers of the rows of each rank at each step."""
    return [[numbers_of(identity.files, rank) for rank in plan.rows_of(step)] for step in range(first, stop)]


def flat(steps: list[list[list[int]]]) -> list[int]:
    return [row for step in steps for rank in step for row in rank]


@given(identities(), st.lists(runs, min_size=1, max_size=4), st.sampled_from([None, 12]))
@settings(max_examples=150)
def test_the_plan_of_a_state_has_what_was_delivered_and_what_follows(
    identity: Identity, chain: list[tuple[int, int, int, int]], lanes: int | None
) -> None:
    assume(identity.files.num_rows)
    progress, delivered, state = Progress(3), list[int](), None
    for world_size, num_workers, batch_size, steps in chain:
        options = LaneOptions(lanes, None, batch_size)
        dataset = dataset_of(identity, lanes=lanes, batch_size=batch_size)
        plan = dataset.plan(3, world_size, num_workers, state=state)
        expected = Job(identity, world_size, num_workers, options, progress).take()
        assert flat(planned_steps(plan, identity, 0, plan.next_step)) == delivered
        assert planned_steps(plan, identity, plan.next_step, plan.num_steps or 0) == expected
        assert plan.batches_per_rank == tuple(
            sum(map(bool, of_rank)) for of_rank in ([step[rank] for step in expected] for rank in range(world_size))
        )
        for step, ranks in enumerate(expected):
            places = plan.rows_of(plan.next_step + step)
            for rank, rows in enumerate(ranks):
                for index in range(len(rows)):
                    found = plan.where(*places[rank][index][:2])
                    worker = step % num_workers
                    assert (plan.next_step + step, rank, worker, index) in found
                    assert len(found) <= 1 + (identity.settings.remainder == "pad") * (1 + len(chain))
        job = Job(identity, world_size, num_workers, options, progress)
        delivered += flat(job.take(steps))
        progress = job.whole_progress()
        place = WorkerPlace(0, world_size)
        state = write_state(dataset.definition.identity, progress, place, complete=job.is_at_end)


@given(identities(), st.tuples(st.integers(1, 4), st.integers(1, 3)), st.integers(1, 3), st.integers(1, 3))
def test_a_row_is_told_to_be_left_out_or_repeated(
    identity: Identity, topology: tuple[int, int], turn_rows: int, turns: int
) -> None:
    assume(identity.files.num_rows)
    dataset = dataset_of(identity, turn_rows=turn_rows, batch_size=turn_rows * turns)
    plan = dataset.plan(0, *topology)
    files = identity.files
    rows_of_files = zip(files.paths, files.rows.tolist(), strict=True)
    counts = [len(plan.where(path, row)) for path, rows in rows_of_files for row in range(rows)]
    assert counts.count(0) == plan.rows_dropped
    assert sum(counts) - len(counts) + counts.count(0) == plan.rows_repeated
    lengths = [len(dataset.shard(topology[0], rank)) for rank in range(topology[0])]
    assert (plan.num_steps, plan.batches_per_rank) == (max(lengths), tuple(lengths))


mixtures = st.tuples(
    st.sampled_from([None, 90, "all_exhausted"]), st.lists(st.sampled_from([1, 0.3, 7]), min_size=2, max_size=2)
)


@given(
    st.lists(identities(remainder="keep"), min_size=2, max_size=2),
    mixtures,
    st.lists(runs, min_size=1, max_size=4),
)
@settings(max_examples=8)
def test_the_plan_of_the_state_of_a_mixture_has_what_was_delivered_and_what_follows(
    found: list[Identity], how: tuple[Any, list[float]], chain: list[tuple[int, int, int, int]]
) -> None:
    assume(all(each.files.num_rows for each in found))
    sources = {name: dataset_of(each, rank=0, world_size=1) for name, each in zip("ab", found, strict=True)}
    files = {name: each.files for name, each in zip("ab", found, strict=True)}
    stop, weights = how
    mixture = Mixture(sources, dict(zip("ab", weights, strict=True)), stop=stop, rank=0, world_size=1)
    progress, delivered, state = Progress(0), list[SourceRow](), None
    for world_size, num_workers, batch_size, steps in chain:
        batched = mixture.batch(batch_size)
        plan = batched.plan(0, world_size, num_workers, state=state)
        expected = MixtureJob(batched.definition.mixed, world_size, num_workers, progress).take(steps + 2)
        for step, ranks in [*enumerate(expected)][-4:]:
            places = plan.rows_of(plan.next_step + step)
            assert [[row_of(files, each) for each in rank] for rank in places] == ranks
            for rank, rows in enumerate(places):
                for index, place in [*enumerate(rows)][-1:]:
                    assert isinstance(place, SourceRowPlace)
                    (when,) = plan.where(place.path, place.row, source=place.source, epoch=place.epoch)
                    assert when == (plan.next_step + step, rank, step % num_workers, index)
        before = [plan.rows_of(step) for step in range(plan.next_step)] if knows_all(plan) else None
        assert before is None or [row_of(files, each) for of in before for rank in of for each in rank] == delivered
        job = MixtureJob(batched.definition.mixed, world_size, num_workers, progress)
        delivered += [row for step in job.take(steps) for rank in step for row in rank]
        progress = job.whole_progress()
        state = write_state(batched.definition.identity, progress, WorkerPlace(0, world_size), complete=job.is_at_end)


def row_of(files: dict[str, FileTable], place: AnyRowPlace) -> SourceRow:
    assert isinstance(place, SourceRowPlace)
    return SourceRow(place.source, place.epoch, *numbers_of(files[place.source], [place]))


def knows_all(plan: EpochPlan) -> bool:
    """Return whether no cut was forgotten, of which nothing was left."""
    try:
        for step in range(plan.next_step):
            plan.rows_of(step)
    except (ValueError, CheckpointMismatchError):
        return False
    return True


def test_a_row_that_lanes_of_a_mixture_leave_out_comes_at_no_step(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(10)}), tmp_path / "part-0.parquet")
    source = StatefulShardedDataset(tmp_path, remainder="drop")
    plan = Mixture({"a": source}, {"a": 1}, stop=24, lanes=4).batch(1).plan()
    places = [place for step in range(plan.num_steps or 0) for place in plan.rows_of(step)[0]]
    for row in range(10):
        found = plan.where("part-0.parquet", row, source="a")
        expected = [step for step, place in enumerate(places) if place == ("part-0.parquet", row, "a", 0)]
        assert [each.step for each in found] == expected
    assert len([place for place in places if isinstance(place, SourceRowPlace) and place.epoch == 0]) == 8

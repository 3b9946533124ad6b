"""Laws: the main process of a rank counts by tags alone, with any workers; and what it infers of others is true."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.assignment import resolve_cut
from laneway.core.cursor import BatchRanges, LaneRange
from laneway.core.job import JobInference
from laneway.core.options import LaneOptions
from laneway.core.progress import Progress, current_cut
from laneway.core.state import write_job_state, write_state
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PlannedCursor, deliver, identities, load, open_epoch, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.plan import Identity


@dataclass
class Rank:
    """A rank whose workers tag their batches, and whose main process counts the batches."""

    identity: Identity
    progress: Progress
    place: WorkerPlace
    options: LaneOptions

    def __post_init__(self) -> None:
        """Open the epoch at every worker, and start counting."""
        self.assignment = resolve_cut(self.identity, self.progress, self.place, self.options)
        self.is_over = self.assignment.is_complete
        if not self.is_over:
            self.cursor = PlannedCursor(self.identity, self.assignment.of_rank())
        self.batches, self.rows = self.in_rotation(), list[int]()

    def in_rotation(self) -> Iterator[BatchRanges]:
        """Yield the batches that a DataLoader takes from its workers in rotation, without those at their end."""
        places = [replace(self.place, worker=worker) for worker in range(self.place.num_workers)]
        workers = [open_epoch(self.identity, self.progress, place, self.options) for place in places]
        while not self.is_over and workers:
            for worker in list(workers):
                if worker.skip_empty_batch():
                    continue
                batch = worker.next_batch()
                if batch is None:
                    workers.remove(worker)
                    continue
                deliver(worker, batch)
                yield batch

    def step(self) -> list[int]:
        """Deliver a batch, or a row, and return its rows; none at the end."""
        if not self.rows:
            for batch in self.batches:
                self.taken = batch
                assert self.cursor.batch_at(batch.turn) == batch
                self.rows = [row for lanes in batch.ranges for row in rows_of(self.cursor.plan, *lanes)]
                assert self.rows
                break
        if self.options.batch_size is None:
            delivered, self.rows = self.rows[:1], self.rows[1:]
            if delivered:
                lane, start, stop = self.taken.ranges[0]
                self.cursor.deliver_rows(self.taken.turn, LaneRange(lane, start, stop - len(self.rows)))
        else:
            delivered, self.rows = self.rows, []
            if delivered:
                deliver(self.cursor, self.taken)
        return delivered

    def own(self) -> tuple[Progress, bool]:
        """Return the progress of this rank, and whether it is complete."""
        if self.is_over:
            return self.assignment.progress, True
        return self.cursor.progress(), self.cursor.is_at_end

    def job(self) -> dict[str, Any] | None:
        """Return the state of the whole job as this rank infers it, or None if it can't."""
        progress, complete = self.own()
        place = WorkerPlace(0, self.place.world_size)
        if progress.place is None:
            return write_state(self.identity, progress, place, complete=complete)
        inference = JobInference(self.assignment, yields_rows=self.options.batch_size is None)
        job = inference.job_turn(progress, is_complete=complete)
        return None if job is None else write_job_state(self.identity, progress, place, job)


def ranks_of(
    identity: Identity, progress: Progress, world_size: int, num_workers: int, options: LaneOptions
) -> list[Rank]:
    """Return all ranks of a job."""
    return [Rank(identity, progress, WorkerPlace(r, world_size, 0, num_workers), options) for r in range(world_size)]


def gather(ranks: list[Rank]) -> Progress:
    """Return the progress of all ranks together."""
    parts = [rank.own()[0] for rank in ranks]
    if parts[0].place is None:
        return parts[0]
    positions = {lane: position for part in parts for lane, position in current_cut(part).positions.items()}
    next_turn = max(current_cut(part).next_turn for part in parts)
    cut = replace(current_cut(parts[0]), positions=positions, next_turn=next_turn)
    return replace(parts[0], cut=cut, place=None)


@given(identities(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_the_order_of_a_rank_does_not_depend_on_its_workers(
    identity: Identity, world_size: int, turn_rows: int, turns_per_batch: int
) -> None:
    options = LaneOptions(6 * world_size * turns_per_batch, turn_rows, turn_rows * turns_per_batch)
    orders = []
    for num_workers in (1, 2, 3, 6):
        ranks = ranks_of(identity, Progress(1), world_size, num_workers, options)
        orders.append([[rank.step() for rank in ranks] for _ in range(identity.files.num_rows + 60)])
        assert all(rank.own()[1] for rank in ranks)
    assert all(order == orders[0] for order in orders)


@given(
    identities(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(
        [
            (None, None, 3),
            (None, 2, 4),
            (12, 1, 3),
            (24, 1, 2),
            (None, 1, 1),
            (7, None, 2),
            (None, 1, None),
            (None, 4, None),
            (12, 3, None),
        ]
    ),
    st.lists(st.integers(0, 9), max_size=3),
)
@settings(max_examples=300)
def test_the_state_of_the_job_that_a_rank_infers_is_true_if_all_ranks_are_in_lockstep(
    identity: Identity, world_size: int, num_workers: int, given: tuple[int | None, int | None, int], pauses: list[int]
) -> None:
    progress = Progress(0)
    for pause in [*pauses, 10**6]:
        ranks = ranks_of(identity, progress, world_size, num_workers, LaneOptions(*given))
        for _ in range(pause):
            inferred = [rank.job() for rank in ranks]
            actual = gather(ranks)
            for job in filter(None, inferred):
                assert current_cut(load(job, identity)).positions == current_cut(actual).positions
                assert job["complete"] == all(rank.own()[1] for rank in ranks)
            # All ranks that can infer a state infer the same one, so any of them may save it.
            assert len({repr(job) for job in inferred if job}) <= 1
            batches = [rank.step() for rank in ranks]
            if not any(batches):
                break
        progress = gather(ranks)
        world_size = world_size % 4 + 1


@given(identities(remainder="pad"), st.integers(2, 4), st.integers(1, 3), st.integers(0, 30))
def test_padded_ranks_can_always_infer_the_whole_job(
    identity: Identity, world_size: int, num_workers: int, steps: int
) -> None:
    ranks = ranks_of(identity, Progress(0), world_size, num_workers, LaneOptions(None, None, 3))
    for _ in range(steps):
        assert len({len(rank.step()) for rank in ranks}) == 1
    assert all(rank.job() for rank in ranks)


runs = st.tuples(
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([None, 1, 2, 3, 4, 6]),
    st.lists(st.integers(0, 5), max_size=3),
)


@given(identities(remainder="keep"), st.lists(runs, min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_no_row_is_lost_or_repeated_whichever_rank_saves_the_state(
    identity: Identity, chain: list[tuple[int, int, int | None, list[int]]], random: object
) -> None:
    progress, rows = Progress(2), Counter[int]()
    for world_size, num_workers, batch_size, pauses in chain:
        ranks = ranks_of(
            identity,
            progress,
            world_size,
            num_workers,
            LaneOptions(None, 3 if batch_size is None else None, batch_size),
        )
        for pause in pauses:
            rows.update(row for _ in range(pause) for rank in ranks for row in rank.step())
        job = random.choice(ranks).job()  # type: ignore[attr-defined]  # hypothesis gives a random.Random
        progress = load(job, identity) if job else gather(ranks)
    (last,) = ranks_of(identity, progress, 1, 1, LaneOptions(None, None, 4))
    while batch := last.step():
        rows.update(batch)
    assert rows == Counter(range(identity.files.num_rows))

"""The cursor: where one worker is in an epoch, what it delivers next, and how much a rank delivers in all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from laneway.core.lanes import rows_to_deliver
from laneway.core.plan import Identity, Plan, Settings, is_complete, is_in_step, replay
from laneway.core.progress import CutProgress, LaneProgress, Progress, fresh_cut, present_cut
from laneway.core.turns import WorkerPlace, has_one_owner_per_lane, place_differences
from laneway.errors import CheckpointMismatchError


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """What a user may leave to laneway, and what may change from run to run."""

    lanes: int | None
    """Number of lanes; None: one turn of a batch for each worker."""
    turn_rows: int | None
    """Rows of a turn; None: one batch, or one row where there are no batches."""
    batch_size: int | None
    """Rows of a batch; None: single rows."""

    @property
    def default_turn_rows(self) -> int:
        """Rows of a turn of an epoch that begins now."""
        return self.turn_rows or self.batch_size or 1

    def turns_per_batch(self, turn_rows: int) -> int | None:
        """Return the turns that make a batch, or None where a batch is no whole number of turns."""
        if self.batch_size is None:
            return 1
        turns, rest = divmod(self.batch_size, turn_rows)
        return None if rest else turns

    def num_lanes(self, place: WorkerPlace) -> int:
        """Return the lanes to cut into: those wished for, if the workers can share them, else as many as they can."""
        turns_per_batch = self.turns_per_batch(self.default_turn_rows) or 1
        if self.lanes is not None and has_one_owner_per_lane(self.lanes, place, turns_per_batch):
            return self.lanes
        return place.stride(turns_per_batch)

    def ranks_in_part(self, place: WorkerPlace) -> int:
        """Return how many ranks may go on from within a turn, and still deliver equally much."""
        return place.world_size if self.batch_size is None or place.world_size == 1 else 0

    def warning_for(self, place: WorkerPlace) -> str | None:
        """Return what to tell a user whose wish for lanes can't be met at `place`, if it can't."""
        num_lanes = self.num_lanes(place)
        if self.lanes in {None, num_lanes}:
            return None
        return (
            f"{self.lanes} lanes can't be shared by {place.world_size} rank(s) with {place.num_workers} worker(s): "
            f"epochs are cut into {num_lanes}, and their order is another one; give lanes= a multiple of {num_lanes}"
        )


class LaneRange(NamedTuple):
    """Rows [start, stop) of a lane."""

    lane: int
    start: int
    stop: int


class Step(NamedTuple):
    """What a worker delivers next: the rows of one batch, or a run of single rows."""

    turn: int
    """First of the turns that it comes from."""
    ranges: list[LaneRange]
    """The rows, in order; none of the ranges is empty."""


class Cursor:
    """Where one worker is in an epoch: it says what comes next, and counts what was delivered."""

    def __init__(self, plan: Plan, progress: Progress, place: WorkerPlace, turns_per_batch: int) -> None:
        """Stand where `progress` says.

        Args:
            plan: The plan that belongs to `progress`.
            progress: Of the worker at `place`, or of the whole job.
            place: The worker.
            turns_per_batch: Turns of one batch.
        """
        cut = present_cut(progress)
        self.plan = plan
        self._place = place
        self._progress = progress
        self._num_lanes = cut.num_lanes
        self._turn_rows = cut.turn_rows
        self._turns_per_batch = turns_per_batch
        self._stride = place.stride(turns_per_batch)
        self.next_turn = place.first_turn(cut.next_turn, turns_per_batch)
        """The first turn of this worker's next batch."""
        ends = plan.rows_to_deliver(progress.remainder, cut.turn_rows)
        lanes = place.own_lanes(cut.next_turn, cut.num_lanes, turns_per_batch)
        self._positions = {lane: cut.lanes.rows[lane] for lane in lanes}
        self._ends = {lane: int(ends[lane]) for lane in lanes}
        self._rows_left = sum(max(self._ends[lane] - self._positions[lane], 0) for lane in lanes)
        self._asked: Step | None = None
        """What `step_at` returned last, for it is asked several times about one batch; None: that is no longer true."""

    @property
    def epoch(self) -> int:
        """The epoch that this cursor is in."""
        return self.plan.epoch

    @property
    def is_at_end(self) -> bool:
        """Whether this worker has delivered all its rows of the epoch."""
        return self._rows_left == 0

    def end_of(self, lane: int) -> int:
        """Return how many rows a lane of this worker delivers."""
        return self._ends[lane]

    def progress(self) -> Progress:
        """Return what has been delivered up to now."""
        lanes = LaneProgress(dict(self._positions))
        place = None if len(self._positions) == self._num_lanes else self._place
        job_turn = self.next_turn - self._place.first_turn(0, self._turns_per_batch)
        cut = CutProgress(self._num_lanes, self._turn_rows, job_turn, lanes)
        before = self._progress
        return Progress(before.epoch, before.remainder, cut, before.earlier, place)

    def next_batch(self) -> Step | None:
        """Return the rows of this worker's next batch, or None at the end of the epoch."""
        first_turn = self.next_turn
        while not self.is_at_end:
            step = self.step_at(first_turn)
            if step.ranges:
                return step
            first_turn += self._stride
        return None

    def step_at(self, first_turn: int) -> Step:
        """Return what is left of the turns of one batch, perhaps nothing.

        Args:
            first_turn: The first of them, a turn of this worker.
        """
        step = self._asked
        if step is None or step.turn != first_turn:
            turns = range(first_turn, first_turn + self._turns_per_batch)
            ranges = [self._rest_of_turn(turn % self._num_lanes) for turn in turns]
            step = self._asked = Step(first_turn, [rows for rows in ranges if rows.start < rows.stop])
        return step

    def pass_over(self) -> bool:
        """Pass over this worker's next batch if its turns are empty though later ones are not; tell whether so."""
        if self.is_at_end or self.step_at(self.next_turn).ranges:
            return False
        self.next_turn += self._stride
        return True

    def next_run(self, max_rows: int) -> Step | None:
        """Return up to `max_rows` rows that come next and lie together in one lane, or None at the end.

        A worker that reads one lane may run through several turns; one that reads more ends with the turn.
        """
        step = self.next_batch()
        if step is None:
            return None
        lane, start, stop = step.ranges[0]
        if len(self._positions) == 1:
            stop = self._ends[lane]
        return Step(step.turn, [LaneRange(lane, start, min(stop, start + max_rows))])

    def _rest_of_turn(self, lane: int) -> LaneRange:
        start = self._positions[lane]
        return LaneRange(lane, start, min(start - start % self._turn_rows + self._turn_rows, self._ends[lane]))

    def deliver_batch(self, step: Step) -> None:
        """Count what `next_batch` or `step_at` returned as delivered."""
        self._asked = None
        for lane, start, stop in step.ranges:
            self._positions[lane] = stop
            self._rows_left -= stop - start
        self.next_turn = max(self.next_turn, step.turn + self._stride)

    def deliver_rows(self, run: Step, count: int) -> None:
        """Count the next rows of what `next_run`, or `step_at` for a single turn, returned as delivered."""
        self._asked = None
        lane = run.ranges[0].lane
        before, turn_rows = self._positions[lane], self._turn_rows
        position = before + count
        is_cut_short = position == self._ends[lane] and position % turn_rows > 0
        turns_ended = position // turn_rows - before // turn_rows + is_cut_short
        self._positions[lane] = position
        self._rows_left -= count
        self.next_turn = max(self.next_turn, run.turn) + turns_ended * self._stride


class RowRun:
    """Rows that are delivered one by one. They are counted many at once, when somebody asks: nothing is as many."""

    def __init__(self, cursor: Cursor) -> None:
        """Hold no rows yet; those to come are counted by `cursor`."""
        self._cursor = cursor
        self._num_uncounted = 0
        self.rows: list[Any] = []
        """What is still to be delivered, last first: to take one is to deliver it."""

    def begin(self, run: Step, rows: list[Any]) -> None:
        """Go on with the rows of another run."""
        self.count()
        self._run, self.rows, self._num_uncounted = run, rows[::-1], len(rows)

    def count(self) -> None:
        """Count what has been taken up to now as delivered."""
        if self._num_uncounted > len(self.rows):
            self._cursor.deliver_rows(self._run, self._num_uncounted - len(self.rows))
            self._num_uncounted = len(self.rows)

    def drop(self) -> None:
        """Let go of the rows that are still to be delivered."""
        self.count()
        self.rows, self._num_uncounted = [], 0


class Settled(NamedTuple):
    """An epoch as the present workers read it: in the cut that it was in, or cut again for them."""

    plan: Plan
    progress: Progress
    turns_per_batch: int
    """Turns that make a batch."""


def settle(identity: Identity, progress: Progress, place: WorkerPlace, options: LaneOptions) -> Settled:
    """Return an epoch as the workers of `place` read it; all of them, on every rank, come to the same.

    An epoch that has not begun is cut as wished. One that has goes on in its present cut where the workers
    can share its lanes and have come to the same turn, and is cut again where not.

    Args:
        identity: The rows and settings.
        progress: Of the whole job; or of a rank or worker, and then only the one at `place` can go on from it.
        place: Any of the workers.
        options: Lanes and turns of an epoch that begins, and the batch size.

    Raises:
        CheckpointMismatchError: The progress is that of one worker, and the one at `place` can't go on from it.
    """
    remainder = identity.settings.remainder_for(place.world_size)
    if progress.cut is None:
        cut = fresh_cut(options.num_lanes(place), options.default_turn_rows)
        progress = replace(progress, cut=cut, remainder=remainder)
    plan = replay(identity, progress)
    cut = present_cut(progress)
    turns_per_batch = options.turns_per_batch(cut.turn_rows)
    if progress.place is not None:
        _check_is_own(progress, progress.place, place, turns_per_batch)
    elif is_complete(plan, progress):
        return Settled(plan, progress, 1)
    elif (
        turns_per_batch is None
        or not has_one_owner_per_lane(cut.num_lanes, place, turns_per_batch)
        or cut.next_turn % (place.world_size * turns_per_batch)
        or not is_in_step(plan, replace(progress, remainder=remainder), ranks_in_part=options.ranks_in_part(place))
    ):
        earlier = LaneProgress.of(cut.positions().tolist())
        new_cut = fresh_cut(options.num_lanes(place), options.default_turn_rows)
        progress = replace(progress, cut=new_cut, earlier=(*progress.earlier, earlier))
        plan = replay(identity, progress)
        turns_per_batch = options.turns_per_batch(new_cut.turn_rows)
    return Settled(plan, replace(progress, remainder=remainder), turns_per_batch or 1)


def open_epoch(identity: Identity, progress: Progress, place: WorkerPlace, options: LaneOptions) -> Cursor:
    """Return the cursor of the worker at `place`; for the arguments and errors see `settle`."""
    settled = settle(identity, progress, place, options)
    if is_complete(settled.plan, settled.progress):
        # Whoever asks has nothing left to deliver, and knows all that is to be known.
        whole = settled.progress.place is None
        return Cursor(settled.plan, settled.progress, WorkerPlace() if whole else place, settled.turns_per_batch)
    return Cursor(settled.plan, settled.progress, place, settled.turns_per_batch)


def rank_length(num_rows: int, place: WorkerPlace, settings: Settings, options: LaneOptions) -> int:
    """Return what a rank delivers in a whole epoch: batches, or rows where there are no batches.

    Args:
        num_rows: Rows of the dataset.
        place: Any worker of the rank.
        settings: How the rows are put in order.
        options: Lanes, turns and batches.
    """
    num_lanes = options.num_lanes(place)
    turn_rows = options.default_turn_rows
    turns_per_batch = options.turns_per_batch(turn_rows) or 1
    bounds = np.array([lane * num_rows // num_lanes for lane in range(num_lanes + 1)], np.int64)
    ends = rows_to_deliver(
        np.diff(bounds),
        remainder=settings.remainder_for(place.world_size),
        turn_rows=turn_rows,
        drop_last=settings.drop_last,
    )
    of_rank = np.arange(num_lanes) // turns_per_batch % place.world_size == place.rank
    if options.batch_size is None:
        return int(ends[of_rank].sum())
    turns = -(-ends[of_rank] // turn_rows)
    return int(turns.reshape(-1, turns_per_batch).max(axis=1).sum())


def num_items_left(settled: Settled, place: WorkerPlace, options: LaneOptions) -> int:
    """Return what the rank of `place` has still to deliver of an epoch: batches, or rows where there are no batches."""
    if is_complete(settled.plan, settled.progress):
        return 0
    cut = present_cut(settled.progress)
    ends = settled.plan.rows_to_deliver(settled.progress.remainder, cut.turn_rows)
    own = place.of_rank().own_lanes(cut.next_turn, cut.num_lanes, settled.turns_per_batch)
    rows_left = np.maximum(ends[own] - cut.positions()[own], 0)
    if options.batch_size is None:
        return int(rows_left.sum())
    starts = cut.positions()[own] // cut.turn_rows
    turns_left = np.where(rows_left, -(-ends[own] // cut.turn_rows) - starts, 0)
    return int(turns_left.reshape(-1, settled.turns_per_batch).max(axis=1).sum())


def _check_is_own(progress: Progress, saved: WorkerPlace, place: WorkerPlace, turns_per_batch: int | None) -> None:
    """Check that a part of the job's progress is all that the worker at `place` needs."""
    cut = present_cut(progress)
    # The progress of a whole rank may be shared among another number of workers, if they can share its lanes.
    reader = place.of_rank() if saved.num_workers == 1 else place
    lines = place_differences(saved, reader)
    if not lines and (
        turns_per_batch is None
        or not has_one_owner_per_lane(cut.num_lanes, place, turns_per_batch)
        or not cut.lanes.rows.keys() >= {*reader.own_lanes(cut.next_turn, cut.num_lanes, turns_per_batch)}
    ):
        num_known = len(cut.lanes.rows)
        known = f"lanes: this is the state of {num_known} of {cut.num_lanes}, with turns of {cut.turn_rows:,} rows"
        problem = f"{place.num_workers} worker(s) with batches of this size can't share them"
        way_out = "give the batch_size and num_workers of the run that saved it, or load merge_states() of all ranks"
        lines = [f"{known}: {problem} ({way_out})"]
    if lines:
        message = "\n  ".join(["this checkpoint does not belong to this worker", *lines])
        raise CheckpointMismatchError(message)

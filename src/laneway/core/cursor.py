"""The cursor: the position of one worker in an epoch, and the rows that it delivers next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from laneway.core.progress import CutProgress, LanePosition, tokens_of_place

if TYPE_CHECKING:
    from laneway.core.assignment import Assignment
    from laneway.core.progress import Progress, Tokens


Positions = Sequence[tuple[int, LanePosition]]
"""(lane, position) for each of several lanes."""


class LaneRange(NamedTuple):
    """Rows [start, stop) of a lane."""

    lane: int
    start: int
    stop: int


class BatchRanges(NamedTuple):
    """The rows of one batch, or consecutive rows of one lane that are delivered one by one."""

    turn: int
    """The first turn that the rows come from."""
    ranges: list[LaneRange]
    """The rows, in order, without empty ranges."""

    def new_positions(self) -> Positions:
        """Return (lane, position after these rows) for each of their lanes."""
        return [(lane, LanePosition(stop)) for lane, _, stop in self.ranges]


class Cursor:
    """The position of one worker in an epoch: returns the rows that come next, and counts delivered rows."""

    def __init__(self, assignment: Assignment, tokens: Tokens | None = None) -> None:
        """Start at the progress of an assignment.

        Args:
            assignment: The assignment.
            tokens: Tokens of sources that the worker or rank has counted so far; None: those of the progress.
        """
        cut, place = assignment.cut, assignment.place
        self._progress = assignment.progress
        self._is_last_cut = assignment.is_last
        self._turn_end = assignment.turn_end
        self.is_endless = assignment.is_endless
        """Whether it never ends."""
        self._num_lanes = cut.num_lanes
        self._turn_rows = cut.turn_rows
        self._turns_per_batch = assignment.turns_per_batch
        self._stride = place.stride(assignment.turns_per_batch)
        self.next_turn = place.first_turn(cut.next_turn, assignment.turns_per_batch)
        """The first turn of this worker's next batch."""
        lanes = assignment.own_lanes
        self._positions = {lane: cut.positions[lane] for lane in lanes}
        self._ends = {lane: int(assignment.ends[lane]) for lane in lanes}
        self._place = None if len(lanes) == cut.num_lanes else place
        """The worker whose lanes these are; None: they are all lanes."""
        self._lead = place.first_turn(0, assignment.turns_per_batch)
        """Turns from the job's next turn to this worker's."""
        self._rows_left: int | None = None
        """Rows that this worker has yet to deliver; None: to be computed."""
        self.tokens = tokens_of_place(assignment.progress, assignment.place) if tokens is None else tokens
        """Tokens of sources that it has counted; see `Progress`."""
        self._last_answer: BatchRanges | None = None
        """The last result of `batch_at`, which is called several times per batch; None if it is outdated."""

    @property
    def epoch(self) -> int:
        """The epoch of this cursor."""
        return self._progress.epoch

    @property
    def is_at_end(self) -> bool:
        """Whether this worker has delivered all its rows of the cut, or all its batches of the epoch."""
        return self._is_at_turn_end or self._num_rows_left() == 0

    @property
    def is_last(self) -> bool:
        """Whether the epoch ends where this worker comes to its end."""
        return self._is_last_cut or self._is_at_turn_end

    @property
    def _is_at_turn_end(self) -> bool:
        return self._turn_end is not None and self.next_turn >= self._turn_end

    def position_of(self, lane: int) -> LanePosition:
        """Return the position of a lane of this worker."""
        return self._positions[lane]

    def end_of(self, lane: int) -> int:
        """Return the number of rows that a lane of this worker delivers."""
        return self._ends[lane]

    def progress(self) -> Progress:
        """Return the progress of this worker."""
        cut = CutProgress(self._num_lanes, self._turn_rows, self.next_turn - self._lead, dict(self._positions))
        return replace(self._progress, cut=cut, place=self._place, tokens=self.tokens)

    # -- Next rows ----------------------------------------------------------------------------------------------------

    def next_batch(self) -> BatchRanges | None:
        """Return the rows of this worker's next batch, or None at the end of the epoch."""
        first_turn = self.next_turn
        while not self.is_at_end and (self._turn_end is None or first_turn < self._turn_end):
            batch = self.batch_at(first_turn)
            if batch.ranges:
                return batch
            first_turn += self._stride
        return None

    def next_rows(self, max_rows: int) -> BatchRanges | None:
        """Return the next rows of one lane, at most `max_rows`, or None at the end of the epoch.

        They may span several turns if this worker reads only one lane; otherwise they end with the turn.
        """
        batch = self.next_batch()
        if batch is None:
            return None
        lane, start, stop = batch.ranges[0]
        if len(self._positions) == 1:
            stop = self._ends[lane]
        return BatchRanges(batch.turn, [LaneRange(lane, start, min(stop, start + max_rows))])

    def batch_at(self, first_turn: int) -> BatchRanges:
        """Return the undelivered rows of the turns of one batch, perhaps none.

        Args:
            first_turn: The first turn of a batch of this worker.
        """
        batch = self._last_answer
        if batch is None or batch.turn != first_turn:
            turns = range(first_turn, first_turn + self._turns_per_batch)
            ranges = [self._rest_of_turn(turn % self._num_lanes) for turn in turns]
            batch = self._last_answer = BatchRanges(first_turn, [rows for rows in ranges if rows.start < rows.stop])
        return batch

    def _rest_of_turn(self, lane: int) -> LaneRange:
        start = self._positions[lane].rows
        return LaneRange(lane, start, min(start - start % self._turn_rows + self._turn_rows, self._ends[lane]))

    # -- Delivered rows -----------------------------------------------------------------------------------------------

    def skip_empty_batch(self) -> bool:
        """Skip this worker's next batch if it is empty but a later one is not; return whether it was skipped."""
        if self.is_at_end or self.batch_at(self.next_turn).ranges:
            return False
        self.next_turn += self._stride
        return True

    def deliver_batch(self, turn: int, positions: Positions) -> None:
        """Count a batch as delivered. Counting it twice, or again after an interruption, changes nothing.

        Args:
            turn: The first turn of the batch.
            positions: (lane, new position) for each lane of the batch.
        """
        left = self._num_rows_left()
        self._last_answer = self._rows_left = None
        for lane, position in positions:
            left -= position.rows - self._positions[lane].rows
            self._positions[lane] = position
        self.next_turn = max(self.next_turn, turn + self._stride)
        self._rows_left = left

    def deliver_rows(self, turn: int, rows: LaneRange) -> None:
        """Count rows as delivered. Counting them twice, or again after an interruption, changes nothing.

        Args:
            turn: The turn of the first of these rows.
            rows: Rows of a lane of this worker, perhaps none.
        """
        left = self._num_rows_left()
        self._last_answer = self._rows_left = None
        lane, start, stop = rows
        turn_rows = self._turn_rows
        is_cut_short = stop == self._ends[lane] and stop % turn_rows > 0 and start < stop
        turns_ended = stop // turn_rows - start // turn_rows + is_cut_short
        left -= stop - self._positions[lane].rows
        self._positions[lane] = LanePosition(stop)
        self.next_turn = max(self.next_turn, turn + turns_ended * self._stride)
        self._rows_left = left

    def _num_rows_left(self) -> int:
        """Return the number of rows that this worker has yet to deliver."""
        if self._rows_left is None:
            # Counting was interrupted.
            self._rows_left = sum(max(end - self._positions[lane].rows, 0) for lane, end in self._ends.items())
        return self._rows_left

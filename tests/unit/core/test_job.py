"""What a rank infers of its whole job, by example; the laws are in tests/laws."""

from __future__ import annotations

import pytest

from laneway.core.assignment import resolve_cut
from laneway.core.cursor import Cursor, LaneRange
from laneway.core.job import JobInference
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import CutProgress, JobTurn, LanePosition, Progress
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PLAIN, deliver, file_table


class Rank:
    """A rank that delivers, and infers."""

    def __init__(
        self, num_rows: int, options: LaneOptions, rank: int, *, in_order: bool = True, progress: Progress | None = None
    ) -> None:
        """Begin as a rank of two."""
        identity = Identity(file_table([[num_rows]]), PLAIN)
        assignment = resolve_cut(identity, progress or Progress(0), WorkerPlace(rank, 2), options)
        self.cursor = Cursor(assignment)
        self.inference = JobInference(assignment, yields_rows=options.batch_size is None, in_order=in_order)

    def take(self, num_batches: int) -> Rank:
        for _ in range(num_batches):
            batch = self.cursor.next_batch()
            assert batch is not None
            deliver(self.cursor, batch)
        return self

    def take_rows(self, count: int) -> Rank:
        lane = min(self.cursor.progress().cut.positions)  # type: ignore[union-attr]  # a cursor has a cut
        start = self.cursor.progress().cut.positions[lane].rows  # type: ignore[union-attr]  # as above
        self.cursor.deliver_rows(self.cursor.next_turn, LaneRange(lane, start, start + count))
        return self

    def job(self) -> JobTurn | None:
        return self.inference.job_turn(self.cursor.progress(), is_complete=self.cursor.is_at_end)


def at(next_turn: int, part_rows: int = 0) -> JobTurn:
    return JobTurn(next_turn, part_rows, is_complete=False)


def ended(num_turns: int) -> JobTurn:
    return JobTurn(num_turns, 0, is_complete=True)


BATCHES, ROWS = LaneOptions(None, None, 2), LaneOptions(None, 4, None)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_of_equal_length_know_the_job_after_every_batch(rank: int) -> None:
    jobs = [Rank(12, BATCHES, rank).take(taken).job() for taken in range(4)]
    assert jobs == [at(0), at(2), at(4), ended(6)]


def test_progress_of_the_whole_job_leaves_nothing_to_infer() -> None:
    rank = Rank(12, BATCHES, 0)
    assert rank.inference.job_turn(Progress(0, cut=CutProgress(2, 2, 0, {})), is_complete=False) is None


def test_a_rank_whose_batches_may_come_out_of_order_knows_the_job_at_its_end_only() -> None:
    jobs = [Rank(12, BATCHES, 0, in_order=False).take(taken).job() for taken in range(4)]
    assert jobs == [None, None, None, ended(6)]


@pytest.mark.parametrize("position", [LanePosition(1), LanePosition(4), LanePosition(2, 1)])
def test_nothing_is_inferred_if_a_lane_is_not_where_its_turn_says(position: LanePosition) -> None:
    rank = Rank(12, BATCHES, 1)
    cut = CutProgress(2, 2, 2, {1: position})
    assert rank.inference.job_turn(Progress(0, cut=cut, place=WorkerPlace(1, 2)), is_complete=False) is None


def test_the_longer_rank_alone_knows_the_end_of_a_job_that_keeps_its_remainder() -> None:
    # Lanes of four and five rows: rank 1 delivers a third batch, of one row.
    ranks = [Rank(9, BATCHES, rank) for rank in (0, 1)]
    assert [rank.take(2).job() for rank in ranks] == [None, at(4)]
    assert ranks[1].take(1).job() == ended(6)


def test_a_rank_that_has_skipped_empty_turns_no_longer_knows_the_job() -> None:
    # Order version 1: lanes of one, one, one and two rows: after the first round, only lane 3 of rank 1 has a row left.
    rank = Rank(5, LaneOptions(4, None, 1), 1, progress=Progress(0, order_version=1)).take(2)
    assert rank.job() == at(4)
    assert rank.cursor.skip_empty_batch()
    assert rank.job() is None
    assert rank.take(1).job() == ended(8)


def test_a_rank_partway_through_a_turn_of_rows_infers_that_all_ranks_are() -> None:
    for rank in (0, 1):
        assert Rank(20, ROWS, rank).take_rows(3).job() == at(0, 3)
        assert Rank(20, ROWS, rank).take_rows(5).job() == at(2, 1)


def test_nothing_is_inferred_partway_through_a_turn_in_which_a_lane_ends() -> None:
    # Lanes of three and four rows, in turns of four.
    assert Rank(7, ROWS, 1).take_rows(2).job() == at(0, 2)
    assert Rank(7, ROWS, 1).take_rows(3).job() is None
    assert Rank(7, ROWS, 1).take_rows(4).job() == ended(2)
    assert Rank(7, ROWS, 0).take_rows(3).job() is None


def test_nothing_is_inferred_after_a_lane_ended_within_a_turn_of_rows() -> None:
    # Order version 1: lanes of three, four, three and four rows, in turns of four: after four rows, rank 0 has begun
    # its second lane.
    before = Progress(0, order_version=1)
    assert Rank(14, LaneOptions(4, 4, None), 1, progress=before).take_rows(4).job() is None


def test_ranks_know_the_job_up_to_the_last_batch_that_all_of_them_have() -> None:
    # Four lanes of two rows, then turns of lanes 0 and 1, and one more row, for rank 1.
    ranks = [Rank(13, LaneOptions(4, 2, 2), rank) for rank in (0, 1)]
    for turn in (0, 2, 4, 6):
        assert [rank.job() for rank in ranks] == ([at(turn)] * 2 if turn < 6 else [None, at(6)])
        if turn < 6:
            for rank in ranks:
                rank.take(1)
    assert ranks[1].take(1).job() == ended(8)


def test_a_rank_that_resumes_infers_from_the_present_cut() -> None:
    cut = CutProgress(2, 2, 4, {0: LanePosition(4), 1: LanePosition(4)})
    later = Rank(13, BATCHES, 1, progress=Progress(0, cut=cut))
    assert later.job() == at(4)
    assert later.take(2).job() == ended(8)

"""Gaps as settings, and which gaps a state can be loaded with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from laneway.core.gaps import EpochGap, Gap, gap_difference, gaps_in, overlap, parse_gaps, text_of
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress
from laneway.core.schema import parse_state, sealed
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.laws.simulation import PLAIN, Job, file_table, load

FILES = file_table([[20], [20]])
IDENTITY = Identity(FILES, PLAIN)
OPTIONS = LaneOptions(None, None, 4)


def without(text: str | None) -> Identity:
    return Identity(FILES, replace(PLAIN, without=text))


def state_after(steps: int, identity: Identity = IDENTITY) -> dict[str, Any]:
    """Return the state of two ranks that deliver eight rows a step."""
    job = Job(identity, 2, 1, OPTIONS, Progress(1))
    job.run(steps)
    complete = job.is_at_end
    return write_state(identity, job.whole_progress(), WorkerPlace(0, 2), complete=complete)


def test_gaps_are_written_in_order_and_read_back() -> None:
    gaps = [EpochGap(2, 0, 5), EpochGap(0, 70, 80), EpochGap(0, 10, 20)]
    text = text_of(gaps)
    assert text == "rows 10 to 20 of epoch 0, rows 70 to 80 of epoch 0, rows 0 to 5 of epoch 2"
    assert parse_gaps(text) == (*sorted(gaps),)
    assert gaps_in(text, 0) == (Gap(10, 20), Gap(70, 80))
    assert (text_of([]), parse_gaps(None), gaps_in(text, 1)) == (None, (), ())


def test_gaps_overlap_if_they_have_a_row_in_common() -> None:
    assert overlap([EpochGap(0, 4, 8), EpochGap(0, 0, 4), EpochGap(1, 0, 9)]) is None
    assert overlap([EpochGap(0, 4, 8), EpochGap(0, 0, 5)]) == (EpochGap(0, 0, 5), EpochGap(0, 4, 8))


def test_a_state_may_be_older_than_gaps_that_lie_ahead_of_it() -> None:
    ahead = "rows 8 to 16 of epoch 1, rows 0 to 4 of epoch 2"
    assert gap_difference(None, ahead, 1, complete=False) is None
    assert gap_difference("rows 8 to 16 of epoch 1", ahead, 1, complete=False) is None
    assert load(state_after(1), without(ahead)).epoch == 1


def test_a_gap_that_was_delivered_is_named() -> None:
    for text, steps in (("rows 8 to 16 of epoch 0", 1), ("rows 32 to 40 of epoch 1", 5)):
        with pytest.raises(CheckpointMismatchError, match=f"without: saved None, .*; {text} had been delivered by"):
            load(state_after(steps), without(text))
    for steps in (2, 3):
        with pytest.raises(CheckpointMismatchError, match="without rows 8 to 16 of its epoch: some of these, or rows"):
            load(state_after(steps), without("rows 8 to 16 of epoch 1"))


def test_a_state_with_a_gap_that_the_dataset_lacks_is_refused() -> None:
    identity = without("rows 8 to 16 of epoch 1")
    with pytest.raises(CheckpointMismatchError, match="without: saved 'rows 8 to 16 of epoch 1', this run has None"):
        load(state_after(1, identity), IDENTITY)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rows 8 to 18 of epoch 1", "a turn has 4 rows, and only whole turns can be: stop 2 rows later"),
        ("rows 9 to 16 of epoch 1", "a turn has 4 rows, and only whole turns can be: start 1 row earlier"),
        ("rows 32 to 44 of epoch 1", "the epoch has 8 rows from there on, not 12"),
        ("rows 0 to 40 of epoch 1", "no row of the epoch is left"),
        ("rows 0 to 20 of epoch 1, rows 20 to 40 of epoch 1", "no row of the epoch is left"),
    ],
)
def test_a_gap_that_does_not_fit_the_turns_is_refused(text: str, problem: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=problem):
        Job(without(text), 2, 1, OPTIONS, Progress(1))


def test_rows_of_the_old_order_can_not_be_taken_out() -> None:
    job = Job(IDENTITY, 2, 1, OPTIONS, Progress(1, order_version=1))
    job.run(1)
    state = write_state(IDENTITY, job.whole_progress(), WorkerPlace(0, 2), complete=False)
    with pytest.raises(
        CheckpointMismatchError, match=r"rows 8 to 16 can't be taken out .* it began in an older release"
    ):
        load(state, without("rows 8 to 16 of epoch 1"))


def test_what_is_known_of_gaps_in_an_earlier_cut_is_checked() -> None:
    first = state_after(1)
    identity = without("rows 16 to 24 of epoch 1")
    job = Job(identity, 1, 3, LaneOptions(None, None, 2), load(first, identity))
    job.run(2)
    state = write_state(identity, job.whole_progress(), WorkerPlace(), complete=False)
    assert state["earlier_cuts"] == [[2, 4, 2, 1, 2, 0, None, None]]
    # A gap that is given now is one of the current cut. The cut before it doesn't have it.
    later = without("rows 16 to 24 of epoch 1, rows 32 to 36 of epoch 1")
    again = Job(later, 2, 1, LaneOptions(None, None, 4), load(state, later))
    assert {row for step in again.run() for row in step} < {*range(40)}
    state = write_state(later, again.whole_progress(), WorkerPlace(), complete=True)
    assert [cut[8:] for cut in state["earlier_cuts"]] == [[[16, 24]], []]
    for gaps in ([24, 16], [1], [-1, 4], "16", [[16, 24]], None, [16, 24, 20, 30]):
        damaged = sealed({**state, "earlier_cuts": [[*cut[:8], gaps] for cut in state["earlier_cuts"]]})
        with pytest.raises(StateFormatError, match="an earlier cut is"):
            parse_state(damaged)

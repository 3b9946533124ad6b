"""Assignments of mixtures: which cut a worker reads, and how far its lanes go."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from laneway.core.mixture_assignment import ENDLESS, Mixed, following_cut, resolve_mixture
from laneway.core.mixture_cuts import batches_taken
from laneway.core.mixtures import Source
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut, rows_in_mixture, rows_in_step
from laneway.core.turns import WorkerPlace
from laneway.core.weighting import Phase, Weighting
from laneway.errors import CheckpointMismatchError
from tests.laws.simulation import PLAIN, file_table

if TYPE_CHECKING:
    from laneway.core.assignment import Assignment

SOURCES = {"a": Source(Identity(file_table([[12]]), PLAIN)), "b": Source(Identity(file_table([[9, 9]]), PLAIN))}
EVEN = Phase(0, {"a": 1, "b": 1})


def mixed(*phases: Phase, stop: Any = None, options: LaneOptions | None = None, **changes: Any) -> Mixed:
    return Mixed(SOURCES, Weighting(phases or (EVEN,), stop), options or LaneOptions(None, None, 4), **changes)


def after(found: Assignment, next_turn: int) -> Progress:
    """Return the progress of the whole job after a number of turns."""
    cut = found.cut
    rows = rows_in_step(cut.num_lanes, cut.turn_rows, found.progress.sharing, next_turn, 0)
    positions = dict(enumerate(map(LanePosition, rows.tolist())))
    return replace(found.progress, cut=replace(cut, next_turn=next_turn, positions=positions))


def test_an_endless_mixture_has_endless_lanes() -> None:
    found = resolve_mixture(mixed(), Progress(0), WorkerPlace(1, 2, 2, 3))
    assert found.ends.tolist() == [ENDLESS] * 6
    assert (found.is_last, found.is_endless, found.is_complete, found.own_lanes) == (True, True, False, [5])


def test_a_number_of_rows_is_divided_as_those_of_an_epoch() -> None:
    assert resolve_mixture(mixed(stop=10), Progress(0), WorkerPlace(0, 1, 0, 2)).ends.tolist() == [6, 4]
    assert resolve_mixture(mixed(stop=9), Progress(0), WorkerPlace(0, 2)).ends.tolist() == [5, 5]
    assert resolve_mixture(mixed(stop=9, drop_last=True), Progress(0), WorkerPlace(0, 2)).ends.tolist() == [4, 4]


def test_what_a_number_of_rows_has_left_is_cut_again() -> None:
    found = resolve_mixture(mixed(stop=30), Progress(0), WorkerPlace(0, 2))
    progress = after(found, 4)
    resumed = resolve_mixture(mixed(stop=30), progress, WorkerPlace(0, 3))
    assert rows_in_mixture(resumed.progress) == 16
    assert resumed.ends.sum() in range(14, 18)
    done = resolve_mixture(mixed(stop=30), after(found, 10), WorkerPlace(0, 3))
    assert done.is_complete


def test_a_change_of_weights_ends_a_cut_after_whole_global_batches() -> None:
    change = Phase(10, {"a": 0, "b": 1})
    found = resolve_mixture(mixed(EVEN, change), Progress(0), WorkerPlace(0, 2))
    assert (found.ends.tolist(), found.is_last) == ([8, 8], False)
    following = resolve_mixture(mixed(EVEN, change), following_cut(found), WorkerPlace(0, 2))
    assert (following.ends.tolist(), following.is_last) == ([ENDLESS] * 2, True)
    start = following.progress.starts[-1]
    assert (start.rows_before, [source.weight for source in start.sources]) == (16, [0, 1])


def test_a_resumed_schedule_that_has_changed_begins_a_new_cut_only_where_it_must() -> None:
    found = resolve_mixture(mixed(), Progress(0), WorkerPlace())
    progress = after(found, 5)
    same = resolve_mixture(mixed(EVEN, Phase(100, {"a": 0, "b": 1})), progress, WorkerPlace())
    assert (same.ends.tolist(), len(same.progress.starts), same.is_last) == ([100], 1, False)
    other = resolve_mixture(mixed(EVEN, Phase(12, {"a": 0, "b": 1}), Phase(16, EVEN.weights)), progress, WorkerPlace())
    assert (other.ends.tolist(), other.is_last) == ([ENDLESS], True)


@pytest.mark.parametrize("place", [WorkerPlace(), WorkerPlace(0, 3)])
def test_sources_are_exhausted_within_the_rows_of_lanes(place: WorkerPlace) -> None:
    first = resolve_mixture(mixed(stop="first_exhausted"), Progress(0), place)
    last = resolve_mixture(mixed(stop="all_exhausted"), Progress(0), place)
    assert abs(int(first.ends.sum()) - 24) <= 3 * place.world_size
    assert abs(int(last.ends.sum()) - 36) <= 3 * place.world_size
    assert len({*first.ends.tolist()}) == len({*last.ends.tolist()}) == 1
    again = resolve_mixture(mixed(stop="all_exhausted"), Progress(1), place)
    assert [source.next_epoch for source in again.progress.starts[-1].sources] == [2, 1]
    assert np.array_equal(again.ends, last.ends)


def test_the_progress_of_a_worker_needs_the_same_mixture() -> None:
    place = WorkerPlace(1, 2)
    found = resolve_mixture(mixed(), Progress(0), place)
    own = replace(current_cut(found.progress), positions={1: LanePosition(4)}, next_turn=2)
    progress = replace(found.progress, cut=own, place=place)
    assert resolve_mixture(mixed(), progress, place).progress == progress
    for other in (mixed(Phase(0, {"a": 2, "b": 1})), mixed()._replace(sources={**SOURCES, "a": SOURCES["b"]})):
        with pytest.raises(CheckpointMismatchError, match="source 'a' has another weight or other files"):
            resolve_mixture(other, progress, place)
    with pytest.raises(CheckpointMismatchError, match="can't share them"):
        resolve_mixture(mixed(options=LaneOptions(None, None, 3)), progress, place)


def test_a_source_without_rows_is_named() -> None:
    empty = {**SOURCES, "b": Source(Identity(file_table([[]]), PLAIN))}
    with pytest.raises(ValueError, match="source 'b' has 0 rows: give it a weight of 0"):
        resolve_mixture(mixed()._replace(sources=empty), Progress(0), WorkerPlace())


def test_batches_of_an_epoch_are_counted_through_other_ranks_batch_sizes_and_cuts() -> None:
    """However many turns a batch of all ranks takes, and whether the lanes are cut again for it."""
    taken, progress = 0, Progress(0)
    for world_size, batch_size, steps, is_cut_again in [
        (2, 4, 4, False),
        (4, 4, 2, False),
        (2, 8, 1, False),
        (3, 4, 3, True),
        (1, 4, 4, False),
    ]:
        options = LaneOptions(12 if world_size == 3 else 8, 4, batch_size)
        of_batches = mixed(options=options, epoch_batches=20)
        found = resolve_mixture(of_batches, progress, WorkerPlace(0, world_size))
        assert (len(found.progress.earlier) > len(progress.earlier)) == is_cut_again
        assert found.num_items_left(batch_size) == 20 - taken
        progress = after(found, found.cut.next_turn + steps * found.progress.sharing.job_turns)
        taken += steps
        assert batches_taken(progress) == taken


def test_an_epoch_of_batches_ends_wherever_lanes_are() -> None:
    found = resolve_mixture(mixed(epoch_batches=3), Progress(0), WorkerPlace(0, 2))
    assert (found.turn_end, found.is_complete, found.ends.tolist()) == (6, False, [ENDLESS] * 2)
    done = after(found, 6)
    assert resolve_mixture(mixed(epoch_batches=3), done, WorkerPlace(1, 3)).is_complete
    following = resolve_mixture(mixed(epoch_batches=3), replace(done, epoch=1), WorkerPlace(0, 2))
    assert (following.is_complete, following.turn_end, following.num_items_left(4)) == (False, 12, 3)

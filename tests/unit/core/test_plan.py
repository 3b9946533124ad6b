"""Plans: an epoch replayed from its cuts, and where its rows are."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from laneway.core.lanes import Segment
from laneway.core.pack_line import KnownPacks, PackPlaces
from laneway.core.plan import FileRange, Identity
from laneway.core.progress import EarlierCut, LanePosition, Progress, fresh_cut
from tests.laws.simulation import PLAIN, file_table, rows_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.pack_line import PackedDocuments, PackPiece

SHUFFLED = replace(PLAIN, shuffle=True, window_bytes=80)


def cut_twice(*rows: int) -> Progress:
    """Return an epoch whose first cut has delivered so many rows of each of its lanes, before a cut into two."""
    earlier = EarlierCut(len(rows), positions=tuple(map(LanePosition, rows)))
    return Progress(0, cut=fresh_cut(2, 1), earlier=(earlier,))


def test_plans_depend_on_the_positions_of_earlier_cuts() -> None:
    identity = Identity(file_table([[12]]), PLAIN)
    for rows, lanes in (((1, 1, 1), [[1, 2, 3, 5, 11], [6, 7, 9, 10]]), ((4, 0, 2), [[4, 5, 6], [7, 10, 11]])):
        plan = identity.plan(cut_twice(*rows))
        assert [rows_of(plan, lane, 0, int(plan.lanes.rows[lane])) for lane in (0, 1)] == lanes


@pytest.mark.parametrize(
    "other",
    [Progress(1, cut=fresh_cut(2, 1)), Progress(0, cut=fresh_cut(3, 1)), cut_twice(0, 0), cut_twice(3)],
    ids=["epoch", "lanes", "cuts", "lanes of an earlier cut"],
)
def test_the_cached_plan_is_not_used_for_another_epoch_or_cut(other: Progress) -> None:
    first = Progress(0, cut=fresh_cut(2, 1))
    files = file_table([[6], [7], [8]])
    used, fresh = Identity(files, SHUFFLED), Identity(files, SHUFFLED)
    used.plan(first)
    plan, expected = used.plan(other), fresh.plan(other)
    assert plan.epoch == expected.epoch
    assert plan.lanes.num_lanes == expected.lanes.num_lanes
    assert len(plan.lanes_before) == len(other.earlier)
    for lane, num_rows in enumerate(expected.lanes.rows.tolist()):
        assert rows_of(plan, lane, 0, num_rows) == rows_of(expected, lane, 0, num_rows)


def test_the_cached_plan_is_reused_as_lanes_advance() -> None:
    identity = Identity(file_table([[12]]), PLAIN)
    progress = cut_twice(1, 2)
    moved = replace(progress, cut=replace(fresh_cut(2, 1), positions={0: LanePosition(3), 1: LanePosition()}))
    assert identity.plan(progress) is identity.plan(moved)


class CountingPacks:
    """Packs two rows at a time, and counts how often."""

    num_calls = 0

    def places(self, lengths: NDArray[np.int64]) -> PackPlaces:
        type(self).num_calls += 1
        edges = np.array([0, len(lengths)])
        return PackPlaces(edges // 2, edges, np.zeros(2, np.int64))

    def documents(self, piece: PackPiece, lengths: NDArray[np.int64]) -> PackedDocuments:
        raise NotImplementedError

    def depends_on_order(self, num_documents: int) -> bool:
        return num_documents > 1


def test_packs_that_one_process_has_counted_are_not_counted_again_by_another() -> None:
    packs = KnownPacks(np.ones(40, np.int32), CountingPacks())
    identity = replace(Identity(file_table([[40]]), SHUFFLED), packs=packs)
    assert identity.num_items(3) == 20
    sent = pickle.loads(pickle.dumps(identity))
    assert sent.num_items(3) == 20
    assert CountingPacks.num_calls == 1
    again = pickle.loads(pickle.dumps(sent))
    assert (again.num_items(3), CountingPacks.num_calls) == (20, 1)
    # Of another order, other packs.
    other = replace(again, settings=replace(again.settings, seed=8))
    assert (other.num_items(3), CountingPacks.num_calls) == (20, 2)
    assert (sent.num_items(4), CountingPacks.num_calls) == (20, 3)


def test_a_pickled_identity_leaves_out_plans_and_shards_and_derives_the_same_plan() -> None:
    identity = Identity(file_table([[5], [6]]), SHUFFLED)
    plan = identity.plan(cut_twice(3, 4))
    sent = pickle.loads(pickle.dumps(identity))
    assert vars(sent).keys() == {
        "files",
        "settings",
        "selection",
        "packs",
        "_counted_packs",
        "_last_plan",
        "_last_line",
        "_derived",
    }
    assert not sent._last_plan
    assert not sent._last_line
    assert not sent._derived
    other = sent.plan(cut_twice(3, 4))
    assert [rows_of(other, lane, 0, 2) for lane in (0, 1)] == [rows_of(plan, lane, 0, 2) for lane in (0, 1)]


def test_a_window_lists_the_row_ranges_of_its_data_files() -> None:
    plan = Identity(file_table([[6], [0], [7, 1]]), PLAIN).plan(Progress(0, cut=fresh_cut(2, 1)))
    found = [plan.window_files(window) for window in range(len(plan.windows.lane))]
    assert found == [[FileRange(0, 0, 6)], [FileRange(2, 0, 1)], [FileRange(2, 1, 7)], [FileRange(2, 7, 8)]]
    assert plan.window_order(0) is None


def test_a_row_of_a_shuffled_segment_is_located_in_its_file() -> None:
    plan = Identity(file_table([[4], [4]]), SHUFFLED).plan(Progress(0, cut=fresh_cut(1, 1)))
    (segment,) = plan.lanes.segments(0)
    delivered = rows_of(plan, 0, 0, 8)
    found = [plan.locate(segment, index) for index in range(8)]
    assert found == [(row // 4, row % 4) for row in delivered]
    assert found != sorted(found)
    assert plan.locate(Segment(0, 5, 8), 1) == found[6]


def test_a_row_outside_its_segment_is_an_error_that_names_both() -> None:
    plan = Identity(file_table([[4]]), PLAIN).plan(Progress(0, cut=fresh_cut(1, 1)))
    with pytest.raises(IndexError, match=r"row 4 is outside Segment\(window=0"):
        plan.locate(Segment(0, 0, 4), 4)


def test_a_shard_may_be_completed_by_several_cuts_together() -> None:
    # Shards 0, 1 and 2 of four rows; the first cut has lanes [0..6) and [6..12), the second [4, 5, 8] and [9, 10, 11].
    plan = Identity(file_table([[4, 4, 4]]), PLAIN).plan(cut_twice(4, 2))
    expected = [((0, 0), [0]), ((2, 0), [0, 1]), ((2, 3), [0, 1]), ((3, 3), [0, 1, 2])]
    for rows, completed in expected:
        assert plan.completed_shards(fresh_cut(2, 1).rows() + rows).tolist() == completed


def test_the_remainder_is_kept_on_one_rank_and_padded_on_several_unless_chosen() -> None:
    default, chosen = replace(PLAIN, remainder=None), replace(PLAIN, remainder="drop")
    assert [default.remainder_for(world_size) for world_size in (1, 2)] == ["keep", "pad"]
    assert [chosen.remainder_for(world_size) for world_size in (1, 2)] == ["drop", "drop"]

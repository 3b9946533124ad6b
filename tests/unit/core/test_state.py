"""States: written, compared with a dataset, and read."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from types import NoneType
from typing import TYPE_CHECKING, Any

import pytest

from laneway.core.assignment import is_fresh, resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.differences import identity_differences
from laneway.core.division import Sharing
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, EarlierCut, JobTurn, LanePosition, Progress
from laneway.core.schema import Role, names_of, parse_state, sealed, without_defaults
from laneway.core.state import identity_fields, num_added_files, write_job_state, write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.laws.simulation import PLAIN, file_table, load

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = file_table([[6], [7]])
IDENTITY = Identity(FILES, PLAIN)
OTHER = Settings(
    seed=8,
    shuffle=True,
    shard_bytes=1,
    shard_rows=None,
    window_bytes=101,
    remainder="drop",
    drop_last=True,
    selection="filter (x > 3)",
    categories="x: 3 values 0123456789abcdef",
    without="rows 4 to 6 of epoch 9",
    stages="flat_map",
    epoch_batches=7,
    table="Delta table 3f, version 4",
)
"""Differs from PLAIN in every field."""


def progress_of(rows: dict[int, int], next_turn: int = 0, **changes: Any) -> Progress:
    positions = {lane: LanePosition(count) for lane, count in rows.items()}
    return replace(Progress(3, cut=CutProgress(2, 2, next_turn, positions)), **changes)


def a_state(identity: Identity = IDENTITY) -> dict[str, Any]:
    return write_state(identity, progress_of({0: 2, 1: 2}, 2), WorkerPlace(), complete=False)


# -- Another dataset --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_a_state_that_differs_in_any_setting_is_refused_and_the_setting_is_named(name: str) -> None:
    saved, present = getattr(OTHER, name), getattr(PLAIN, name)
    assert saved != present
    state = a_state(Identity(FILES, replace(PLAIN, **{name: saved})))
    with pytest.raises(CheckpointMismatchError) as refused:
        load(state, IDENTITY)
    assert identity_differences([name], {name: saved}, {name: present})[0] in str(refused.value)
    assert f"use the same {name}, or" in str(refused.value)


def test_a_state_of_an_unknown_order_is_refused() -> None:
    with pytest.raises(CheckpointMismatchError, match="order_version: saved 3, this release reads 1 and 2"):
        load(sealed({**a_state(), "order_version": 3}), IDENTITY)


def test_an_epoch_is_finished_in_the_order_in_which_it_began() -> None:
    begun = progress_of({0: 2, 1: 2}, 2, order_version=1)
    state = write_state(IDENTITY, begun, WorkerPlace(), complete=False)
    assert (state["order_version"], state["fingerprint"]) == (1, FILES.fingerprint_v1)
    assert load(state, IDENTITY) == begun
    for place in (WorkerPlace(), WorkerPlace(1, 3)):
        resumed = resolve_cut(IDENTITY, begun, place, LaneOptions(None, None, 2))
        assert resumed.progress.order_version == 1
        assert not is_fresh(IDENTITY, resumed, LaneOptions(None, None, 2))
    uncut = Progress(4, order_version=1)
    assert load(write_state(IDENTITY, uncut, WorkerPlace(), complete=False), IDENTITY) == uncut


def test_a_state_of_other_files_is_refused_and_the_change_is_named() -> None:
    state = a_state(Identity(file_table([[6], [8]]), PLAIN))
    with pytest.raises(CheckpointMismatchError, match=r"files: part-001\.parquet had 8 rows, now 7"):
        load(state, IDENTITY)
    cut_otherwise = a_state(Identity(file_table([[3, 3], [7]]), PLAIN))
    with pytest.raises(CheckpointMismatchError, match="the same files had other row groups, or other columns"):
        load(cut_otherwise, IDENTITY)


def test_the_file_table_of_a_state_is_read_only_if_the_fingerprint_differs() -> None:
    assert load(sealed({**a_state(), "files": "?"}), IDENTITY) == load(a_state(), IDENTITY)
    with pytest.raises(StateFormatError, match="truncated or damaged"):
        load(sealed({**a_state(), "files": "?", "fingerprint": "0"}), IDENTITY)


def test_the_state_of_a_worker_holds_no_file_table() -> None:
    place = WorkerPlace(0, 1, 1, 2)
    progress = progress_of({1: 2}, 2, place=place)
    state = write_state(IDENTITY, progress, place, complete=False)
    assert state["files"] == ""
    assert write_state(IDENTITY, Progress(0), place, complete=False)["files"] == ""
    other = write_state(Identity(file_table([[6], [8]]), PLAIN), progress, place, complete=False)
    prints = f"saved those with fingerprint {other['fingerprint'][:8]}, this run has {state['fingerprint'][:8]}"
    with pytest.raises(CheckpointMismatchError, match=f"files: {prints}"):
        load(other, IDENTITY, place)


def test_all_differences_are_listed_in_one_error() -> None:
    state = write_state(
        Identity(file_table([[6], [8]]), OTHER),
        progress_of({0: 2}, place=WorkerPlace(0, 2)),
        WorkerPlace(0, 2),
        complete=False,
    )
    with pytest.raises(CheckpointMismatchError) as refused:
        load(state, IDENTITY, WorkerPlace(1, 2))
    names = [line.strip().split(":")[0] for line in str(refused.value).splitlines() if ": " in line]
    assert {"files", *(field.name for field in fields(Settings)), "rank"} <= {*names}


def test_every_identity_field_is_written_from_the_identity() -> None:
    for order_version in (1, 2):
        fields = identity_fields(IDENTITY, order_version)
        assert {*names_of(Role.IDENTITY)} == fields.keys()
        state = write_state(IDENTITY, Progress(0, order_version=order_version), WorkerPlace(), complete=False)
        assert without_defaults(fields).items() <= state.items()
        assert fields.keys() - state.keys() == {
            "categories",
            "epoch_batches",
            "selection",
            "stages",
            "table",
            "without",
        }


# -- Files that joined ------------------------------------------------------------------------------------------------


def completed(identity: Identity, world_size: int = 1, rank: int = 0) -> dict[str, Any]:
    place = WorkerPlace(rank, world_size)
    found = resolve_cut(identity, Progress(3), place, LaneOptions(None, None, 2))
    rows = {lane: LanePosition(int(found.ends[lane])) for lane in found.own_lanes}
    cut = replace(found.cut, next_turn=20, positions=rows)
    progress = replace(found.progress, cut=cut, place=None if world_size == 1 else place)
    return write_state(identity, progress, place, complete=True)


GROWN = Identity(file_table([[6], [7], [8], [1]]), PLAIN)


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (3, 2)])
def test_a_complete_state_is_accepted_although_files_were_added(world_size: int, rank: int) -> None:
    saved = parse_state(completed(IDENTITY, world_size, rank))
    place = WorkerPlace(rank, world_size)
    assert num_added_files(saved, GROWN) == 2
    progress = load(saved.original, GROWN, place)
    resumed = resolve_cut(GROWN, progress, place, LaneOptions(None, None, 2))
    assert (resumed.is_complete, resumed.progress.epoch) == (True, 3)
    again = write_state(GROWN, resumed.progress, place, complete=True)
    assert load(again, GROWN, place) == progress
    assert num_added_files(parse_state(again), GROWN) == 0


def test_no_other_state_of_other_files_is_accepted() -> None:
    for files in ([[6], [8], [8]], [[6]], [[3, 3], [7]]):
        other = Identity(file_table(files), PLAIN)
        assert num_added_files(parse_state(completed(IDENTITY)), other) == 0
        with pytest.raises(CheckpointMismatchError, match="files: "):
            load(completed(IDENTITY), other)
    assert num_added_files(parse_state(a_state()), GROWN) == 0
    with pytest.raises(CheckpointMismatchError, match=r"files: part-002\.parquet is new"):
        load(a_state(), GROWN)
    with pytest.raises(CheckpointMismatchError, match="seed: saved 7, this run has 8"):
        load(completed(IDENTITY), Identity(GROWN.files, replace(PLAIN, seed=8)))


# -- Another place ----------------------------------------------------------------------------------------------------


def rank_state() -> dict[str, Any]:
    place = WorkerPlace(1, 2)
    progress = progress_of({1: 2}, 2, place=place, sharing=Sharing(2))
    return write_state(IDENTITY, progress, place, complete=False)


def test_a_rank_reads_its_own_state_only() -> None:
    state = rank_state()
    assert (state["scope"], state["lane_indices"], state["positions"]) == ("rank", None, None)
    assert load(state, IDENTITY, WorkerPlace(1, 2)) == progress_of(
        {1: 2}, 2, place=WorkerPlace(1, 2), sharing=Sharing(2)
    )
    for place, problem in ((WorkerPlace(0, 2), "rank: saved 1, this is 0"), (WorkerPlace(1, 3), "world_size: saved 2")):
        with pytest.raises(CheckpointMismatchError, match=problem) as refused:
            load(state, IDENTITY, place)
        assert "this checkpoint does not belong to this rank" in str(refused.value)
        assert "merge_states()" in str(refused.value)


def test_a_worker_reads_its_own_state_only() -> None:
    place = WorkerPlace(0, 1, 1, 2)
    state = write_state(IDENTITY, progress_of({1: 2}, 2, place=place), place, complete=False)
    assert state["scope"] == "worker"
    assert load(state, IDENTITY, place).place == place
    assert load(state, IDENTITY).place == place, "the main process does not know yet who will read"
    for other, problem in (
        (WorkerPlace(0, 1, 0, 2), "worker: saved 1, this is 0"),
        (WorkerPlace(0, 1, 1, 3), "num_workers: saved 2, this is 3"),
    ):
        with pytest.raises(CheckpointMismatchError, match=problem):
            load(state, IDENTITY, other)


def test_any_rank_of_any_job_reads_the_state_of_a_whole_job() -> None:
    state = write_state(IDENTITY, progress_of({0: 2, 1: 2}, 2), WorkerPlace(1, 2), complete=False)
    for place in (WorkerPlace(0, 1), WorkerPlace(4, 5)):
        assert load(state, IDENTITY, place) == progress_of({0: 2, 1: 2}, 2)


# -- Positions --------------------------------------------------------------------------------------------------------


def test_the_state_of_an_epoch_without_a_cut_holds_only_its_number() -> None:
    state = write_state(IDENTITY, Progress(4), WorkerPlace(1, 2), complete=False)
    assert (state["lanes"], state["positions"], state["lane_remainder"]) == (None, None, None)
    assert load(state, IDENTITY, WorkerPlace(3, 5)) == Progress(4)


def test_positions_are_written_in_the_order_of_lanes() -> None:
    state = write_state(IDENTITY, progress_of({1: 4, 0: 2}, 4), WorkerPlace(), complete=False)
    assert state["positions"] == [2, 4]


def test_positions_are_written_only_if_they_are_not_in_step() -> None:
    for rows, next_turn, part_rows in (({0: 2, 1: 0}, 1, 0), ({0: 3, 1: 2}, 2, 1), ({0: 0, 1: 0}, 0, 0)):
        progress = progress_of(rows, next_turn)
        state = write_state(IDENTITY, progress, WorkerPlace(), complete=False)
        assert (state["positions"], state["part_rows"]) == (None, part_rows)
        assert load(state, IDENTITY) == progress
    for rows, next_turn in (({0: 2, 1: 3}, 2), ({0: 2, 1: 0}, 2)):
        assert write_state(IDENTITY, progress_of(rows, next_turn), WorkerPlace(), complete=False)["positions"]


def test_a_state_is_small_however_many_lanes_were_cut_however_often() -> None:
    identity, progress = Identity(file_table([[10**6]]), PLAIN), Progress(0)
    for world_size in range(1, 21):
        found = resolve_cut(identity, progress, WorkerPlace(0, world_size), LaneOptions(None, 1, 64))
        cut = replace(found.cut, next_turn=world_size * 64)
        rows = {lane: LanePosition(1) for lane in range(cut.num_lanes)}
        progress = replace(found.progress, cut=replace(cut, positions=rows), place=None)
    state = write_state(identity, progress, WorkerPlace(), complete=False)
    assert len(state["earlier_cuts"]) == 19
    assert len(json.dumps({**state, "files": ""})) < 2500
    assert load(state, identity) == progress


def test_what_a_run_of_many_lanes_writes_can_be_read() -> None:
    identity, place = Identity(file_table([[300_000]]), PLAIN), WorkerPlace(1, 2)
    found = resolve_cut(identity, Progress(0), place, LaneOptions(None, 1, 2**15 + 1))
    assert found.cut.num_lanes == 2**16 + 2
    cursor = Cursor(found)
    for _ in range(2):
        state = write_state(identity, cursor.progress(), place, complete=False)
        assert len(json.dumps({**state, "files": ""})) < 1000
        assert load(state, identity, place) == cursor.progress()
        batch = cursor.next_batch()
        assert batch is not None
        cursor.deliver_batch(batch.turn, batch.new_positions())


def test_a_complete_job_needs_no_positions() -> None:
    # Two lanes of six rows and one more row, in lane 0.
    done = progress_of({0: 7, 1: 6}, 8)
    assert write_state(IDENTITY, done, WorkerPlace(), complete=True)["positions"] is None
    assert load(write_state(IDENTITY, done, WorkerPlace(), complete=True), IDENTITY) == done


def test_a_next_turn_that_contradicts_the_positions_is_damage() -> None:
    def state(rows: dict[int, int], next_turn: int, **changes: Any) -> dict[str, Any]:
        return write_state(IDENTITY, progress_of(rows, next_turn, **changes), WorkerPlace(), complete=False)

    for rows, next_turn in (({0: 4, 1: 2}, 1), ({0: 4, 1: 2}, 2), ({0: 2, 1: 2}, 6), ({0: 1, 1: 1}, 2)):
        with pytest.raises(StateFormatError, match=f"next_turn is {next_turn}, but lane . is at position"):
            load(state(rows, next_turn), IDENTITY)
    # One lane may lag: batches of a rank may arrive out of order.
    assert load(state({0: 4, 1: 0}, 4), IDENTITY).cut is not None
    worker = WorkerPlace(0, 1, 1, 2)
    lagging = Progress(3, cut=CutProgress(4, 1, 4, {1: LanePosition(1), 3: LanePosition(0)}), place=worker)
    with pytest.raises(StateFormatError, match="next_turn is 4, but lane 3 is at position 0"):
        load(write_state(IDENTITY, lagging, worker, complete=False), IDENTITY, worker)


def test_a_job_in_lockstep_needs_no_positions() -> None:
    for job, rows in (
        (JobTurn(3, 0, is_complete=False), {0: 4, 1: 2}),
        (JobTurn(2, 1, is_complete=False), {0: 3, 1: 3}),
        (JobTurn(8, 0, is_complete=True), {0: 6, 1: 7}),
    ):
        progress = progress_of({0: 2}, place=WorkerPlace(0, 2), sharing=Sharing(2))
        state = write_job_state(IDENTITY, progress, WorkerPlace(0, 2), job)
        assert (state["scope"], state["positions"]) == ("global", None)
        assert load(state, IDENTITY) == progress_of(rows, job.next_turn, sharing=Sharing(2))


@pytest.mark.parametrize(("world_size", "rows"), [(1, {0: 3, 1: 2}), (2, {0: 3, 1: 3})])
def test_part_rows_apply_to_each_rank_of_the_job_that_saved_the_state(world_size: int, rows: dict[int, int]) -> None:
    job = JobTurn(2, 1, is_complete=False)
    sharing = Sharing(world_size)
    state = write_job_state(IDENTITY, progress_of({0: 2}, sharing=sharing), WorkerPlace(0, world_size), job)
    assert load(state, IDENTITY) == progress_of(rows, 2, sharing=sharing)


def test_a_lane_may_deliver_the_row_that_pads_it_and_no_more() -> None:
    def state(*rows: int) -> dict[str, Any]:
        progress = progress_of(dict(enumerate(rows)), 10, sharing=Sharing(2, 1, "pad"), order_version=1)
        return write_state(IDENTITY, progress, WorkerPlace(), complete=True)

    assert load(state(7, 7), IDENTITY).cut is not None
    with pytest.raises(StateFormatError, match="lane 0 is at position 8, but has 6 rows"):
        load(state(8, 7), IDENTITY)
    with pytest.raises(StateFormatError, match="lane 1 is at position 9, but has 7 rows"):
        load(state(7, 9), IDENTITY)


def test_positions_of_earlier_cuts_are_checked_against_their_lanes() -> None:
    earlier = EarlierCut(2, positions=(LanePosition(6), LanePosition(9)))
    progress = progress_of({0: 0, 1: 0}, earlier=(earlier,))
    with pytest.raises(StateFormatError, match="lane 1 is at position 9, but has 6 rows"):
        load(write_state(IDENTITY, progress, WorkerPlace(), complete=True), IDENTITY)


@pytest.mark.parametrize(("rows", "complete"), [({0: 4, 1: 2}, True), ({0: 7, 1: 6}, False)])
def test_a_state_that_contradicts_its_positions_is_damaged(rows: dict[int, int], complete: bool) -> None:
    state = write_state(IDENTITY, progress_of(rows, 8), WorkerPlace(), complete=False)
    state = sealed({**state, "complete": complete})
    with pytest.raises(StateFormatError, match=f"complete={complete} contradicts its positions"):
        load(state, IDENTITY)


def test_each_state_has_its_own_containers() -> None:
    progress = progress_of({0: 4, 1: 2}, 4, earlier=(EarlierCut(1, positions=(LanePosition(1),)),))
    one, other = (write_state(IDENTITY, progress, WorkerPlace(), complete=False) for _ in range(2))
    one["positions"].append(5)
    one["earlier_cuts"][0][-2].append(5)
    one["seed"] = 0
    assert other["positions"] == [4, 2]
    assert other["earlier_cuts"] == [[1, 1, 1, 1, 0, 0, [1], None]]
    assert identity_fields(IDENTITY, 2)["seed"] == 7


def test_nothing_in_a_state_is_a_dict_so_that_dcp_finds_the_same_keys_in_every_state() -> None:
    def values_in(value: object) -> Iterator[object]:
        yield value
        for inner in value if isinstance(value, list) else ():
            yield from values_in(inner)

    earlier = (EarlierCut(1, positions=(LanePosition(1),)), EarlierCut(2, next_turn=1))
    cut = CutProgress(2, 2, 4, {0: LanePosition(4), 1: LanePosition(2)})
    for progress in (Progress(0), Progress(0, Sharing(), cut, earlier)):
        state = write_state(IDENTITY, progress, WorkerPlace(), complete=False)
        assert state.keys() == {"format", "version", *names_of(*Role)} - {
            "categories",
            "mixture",
            "selection",
            "stages",
            "epoch_batches",
            "table",
            "tokens",
            "without",
        }
        assert {type(value) for field in state.values() for value in values_in(field)} <= {
            int,
            bool,
            str,
            list,
            NoneType,
        }

"""The schema of states: parsing, and states of earlier versions."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal

import numpy as np
import pytest

from laneway.core import schema
from laneway.core.consistency import scope_of
from laneway.core.division import Sharing
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, EarlierCut, LanePosition, Progress
from laneway.core.schema import (
    FIELDS,
    REQUIRED,
    Role,
    StateField,
    decode_cut,
    decode_positions,
    encode_cut,
    encode_positions,
    names_of,
    parse_state,
    positions_of,
    sealed,
    setting_fields,
    wrap_state,
)
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.laws.simulation import PLAIN, file_table, load

IDENTITY = Identity(file_table([[6], [7]]), PLAIN)
EARLIER = (EarlierCut(3, positions=tuple(map(LanePosition, (2, 0, 1)))),)
PROGRESS = Progress(3, cut=CutProgress(2, 2, 2, {0: LanePosition(2), 1: LanePosition(2)}), earlier=EARLIER)
OUT_OF_STEP = replace(PROGRESS, cut=CutProgress(2, 2, 4, {0: LanePosition(4), 1: LanePosition(2)}))
BEFORE = replace(OUT_OF_STEP, order_version=1)
SETTINGS_WITH_DEFAULTS = ("categories", "epoch_batches", "selection", "stages", "table", "without")
ABSENT: dict[str, object] = {**dict.fromkeys(SETTINGS_WITH_DEFAULTS), "mixture": [], "tokens": []}
"""The fields that are left out of a state where they have these values."""


def a_state(progress: Progress = PROGRESS) -> dict[str, Any]:
    return write_state(IDENTITY, progress, WorkerPlace(), complete=False)


def as_version_2(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of order version 1 as version 2 wrote it: no digest, and earlier cuts as rows and offsets."""
    new = {"digest", "lane_world_size", "lane_batch_turns"}
    old = {name: value for name, value in state.items() if name not in new}
    cuts = [[decode_cut(cut).rows().tolist(), cut[-1]] for cut in state["earlier_cuts"]]
    if state["scope"] != "global" and state["positions"] is None:
        positions = positions_of(parse_state(state))
        old |= {"lane_indices": [*positions], "positions": [rows for rows, _ in positions.values()], "part_rows": 0}
    return old | {"version": 2, "earlier_cuts": cuts}


def as_version_1(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of order version 1 as version 1 wrote it: without offsets, and with earlier cuts as rows."""
    old = {
        **as_version_2(state),
        "version": 1,
        "earlier_cuts": [decode_cut(cut).rows().tolist() for cut in state["earlier_cuts"]],
    }
    del old["offsets"]
    return old


# -- Fields of settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LaterSettings(Settings):
    """Settings of a later release, which has one more."""

    flavour: Literal["plain", "mixed"] | int | None = None


def test_every_setting_is_an_identity_field() -> None:
    found = {each.name: each for each in FIELDS}
    for setting in fields(Settings):
        assert found[setting.name].role is Role.IDENTITY
    assert found["remainder"].types == (str, NoneType)
    assert found["drop_last"].types == (bool,)


def test_a_setting_with_a_default_is_a_field_with_that_default() -> None:
    assert setting_fields(LaterSettings)[:-1] == setting_fields(Settings)
    assert setting_fields(LaterSettings)[-1] == StateField("flavour", (str, int, NoneType), Role.IDENTITY, None)
    assert {each.name for each in setting_fields(Settings) if each.default is not REQUIRED} == {
        *SETTINGS_WITH_DEFAULTS,
    }


def test_a_state_that_lacks_a_field_with_a_default_gets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "FIELDS", (*FIELDS, *setting_fields(LaterSettings)[-1:]))
    old = as_version_2(a_state(BEFORE))
    assert parse_state(old).fields["flavour"] is None
    assert parse_state({**old, "flavour": 4}).fields["flavour"] == 4
    assert names_of(Role.IDENTITY)[-1] == "flavour"
    with pytest.raises(StateFormatError, match=r"flavour is 1\.5, not str or int or NoneType"):
        parse_state({**old, "flavour": 1.5})


def test_a_state_that_lacks_a_required_field_is_refused() -> None:
    for each in FIELDS:
        state = a_state()
        if each.name in ABSENT:
            assert each.name not in state
            continue
        del state[each.name]
        problem = "its digest is ''" if each.name == "digest" else f"truncated: {each.name} missing"
        with pytest.raises(StateFormatError, match=problem):
            parse_state(state)


def test_any_field_that_was_changed_is_damage() -> None:
    state, other = a_state(), a_state(replace(OUT_OF_STEP, epoch=4))
    changed = {**other, "seed": 8, "files": "", "fingerprint": "0", "rank": 1, "world_size": 2, "shuffle": True}
    changed |= {"selection": "filter (x > 3)", "categories": "x: 3 values 0123456789abcdef"}
    changed |= {"without": "rows 4 to 6 of epoch 3"}
    changed |= {"stages": "flat_map", "epoch_batches": 7, "table": "Delta table 3f, version 4"}
    for name in (each.name for each in FIELDS):
        if state.get(name) != changed.get(name):
            with pytest.raises(StateFormatError, match="this state is damaged"):
                parse_state({**state, name: changed[name]})
    assert sealed(state) == state
    assert parse_state(sealed({**state, "seed": 8})).fields["seed"] == 8


def test_an_older_version_is_not_a_way_around_the_digest() -> None:
    state = a_state(BEFORE)
    for version in (1, 2):
        with pytest.raises(StateFormatError, match="only later ones have a digest, so it was changed"):
            parse_state({**state, "version": version})


# -- Versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_version", [as_version_1, as_version_2])
def test_a_state_of_an_older_version_is_read_as_one_of_this_version(as_version: Any) -> None:
    old = as_version(a_state(BEFORE))
    parsed = parse_state(old)
    assert parsed.original == old
    assert parsed.fields == {**a_state(BEFORE), "digest": "", **ABSENT}
    assert parsed.fields["version"] == 3
    assert load(old, IDENTITY) == BEFORE
    assert sealed(old) == old, "older versions have no digest"


def test_the_cuts_of_older_versions_are_read() -> None:
    assert as_version_1(a_state(BEFORE))["earlier_cuts"] == [[2, 0, 1]]
    assert as_version_2(a_state(BEFORE))["earlier_cuts"] == [[[2, 0, 1], None]]
    assert parse_state(as_version_1(a_state(BEFORE))).fields["earlier_cuts"] == [[3, 1, 1, 1, 0, 0, [2, 0, 1], None]]


@pytest.mark.parametrize("earlier", [[3], [[]], [["2"]], [[-1]], [[2.0]], 3, None])
def test_a_damaged_earlier_cut_of_version_1_is_refused(earlier: object) -> None:
    with pytest.raises(StateFormatError, match="this state is damaged"):
        parse_state({**as_version_1(a_state(BEFORE)), "earlier_cuts": earlier})


def test_a_rank_of_an_older_version_needs_the_list_of_its_lanes() -> None:
    state = {**as_version_2(a_state(BEFORE)), "scope": "rank", "positions": None}
    with pytest.raises(StateFormatError, match="not of a whole job, but has no lane_indices"):
        parse_state(state)


@pytest.mark.parametrize("version", [0, 4, "2", None, True, 2.0, [1], np.array([1, 1])])
def test_an_unknown_version_is_refused_and_the_supported_ones_are_named(version: object) -> None:
    with pytest.raises(StateFormatError, match=r"format version .*, and this release .* reads versions 1 to 3"):
        parse_state({**a_state(), "version": version})


# -- Positions --------------------------------------------------------------------------------------------------------


def test_offsets_are_written_only_if_one_of_them_is_not_0() -> None:
    rows, both = [LanePosition(2), LanePosition(0)], [LanePosition(2, 0), LanePosition(0, 7)]
    assert encode_positions(rows) == [[2, 0], None]
    assert encode_positions(both) == [[2, 0], [0, 7]]
    assert decode_positions(*encode_positions(rows)) == rows
    assert decode_positions(*encode_positions(both)) == both


def test_a_cut_is_a_list_of_numbers_and_of_positions_that_are_not_in_step() -> None:
    in_step = EarlierCut(8, 3, Sharing(2, 4), 16, 1)
    assert encode_cut(in_step) == [8, 3, 2, 4, 16, 1, None, None]
    listed = EarlierCut(2, 3, Sharing(2), positions=(LanePosition(2), LanePosition(0, 7)))
    assert encode_cut(listed) == [2, 3, 2, 1, 0, 0, [2, 0], [0, 7]]
    for cut in (in_step, listed):
        assert decode_cut(encode_cut(cut)) == cut


def test_offsets_of_lanes_and_of_earlier_cuts_are_in_a_state_that_a_dataset_without_stages_refuses() -> None:
    cut = CutProgress(2, 2, 2, {0: LanePosition(2, 3), 1: LanePosition(2)})
    earlier = [((LanePosition(1), LanePosition(0, 9))), (LanePosition(1),)]
    cuts = tuple(EarlierCut(len(positions), positions=positions) for positions in earlier)
    state = json.loads(json.dumps(a_state(Progress(3, cut=cut, earlier=cuts))))
    assert (state["positions"], state["offsets"]) == ([2, 2], [3, 0])
    assert [cut[-2:] for cut in state["earlier_cuts"]] == [[[1, 0], [0, 9]], [[1], None]]
    assert positions_of(parse_state(state)) == {0: LanePosition(2, 3), 1: LanePosition(2)}
    for offsets, encoded in ((state["offsets"], []), (None, state["earlier_cuts"][:1])):
        with pytest.raises(CheckpointMismatchError, match="a stage that turns rows into several items"):
            load(sealed({**state, "offsets": offsets, "earlier_cuts": encoded}), IDENTITY)


@pytest.mark.parametrize("offsets", [[1], [1, 2, 3], [-1, 0], ["1", 0], [True, 0], [2**48, 0], [[], 0], [10**5000, 0]])
def test_offsets_that_do_not_fit_the_positions_are_refused(offsets: list[Any]) -> None:
    state = a_state(OUT_OF_STEP)
    with pytest.raises(StateFormatError, match=r"damaged: positions is .*, offsets"):
        parse_state({**state, "offsets": offsets})
    with pytest.raises(StateFormatError, match=r"damaged: positions is .*, offsets"):
        parse_state({**state, "earlier_cuts": [[2, 1, 1, 1, 0, 0, [1, 2], offsets]]})


def test_offsets_without_positions_are_refused() -> None:
    with pytest.raises(StateFormatError, match="it has offsets, but no positions"):
        parse_state({**a_state(), "positions": None, "offsets": [1, 0]})


@pytest.mark.parametrize(
    "cut",
    [
        {"lanes": 1},
        [[1], None],
        [1],
        [1, 1, 1, 1, 0, 0, [1]],
        [1, 1, 1, 1, 0, 0, [1], None, 0],
        [1, 1, 1, 1, 0, 0, [], None],
        [1, 1, 1, 1, 0, 0, [1, 1], None],
        [True, 1, 1, 1, 0, 0, None, None],
        [1.0, 1, 1, 1, 0, 0, None, None],
        [0, 1, 1, 1, 0, 0, None, None],
        [2**20 + 1, 1, 1, 1, 0, 0, None, None],
        [1, 0, 1, 1, 0, 0, None, None],
        [1, 1, 0, 1, 0, 0, None, None],
        [1, 1, 1, 0, 0, 0, None, None],
        [3, 1, 2, 1, 0, 0, None, None],
        [1, 1, 1, 1, -1, 0, None, None],
        [1, 1, 1, 1, 2**48, 0, None, None],
        [1, 2**47, 1, 1, 2**47, 0, None, None],
        [2**20, 2**47, 1, 2**20, 0, 0, None, None],
        [1, 1, 1, 1, 0, 1, None, None],
        [1, 2, 1, 1, 0, 1, [1], None],
    ],
)
def test_an_earlier_cut_is_a_list_of_consistent_numbers(cut: object) -> None:
    with pytest.raises(StateFormatError, match="this state is damaged"):
        parse_state(sealed({**a_state(), "earlier_cuts": [cut]}))


def test_the_lanes_of_all_earlier_cuts_are_limited() -> None:
    cuts = [[2**20, 1, 1, 1, 1, 0, None, None]] * 17
    assert len(parse_state(sealed({**a_state(), "earlier_cuts": cuts[1:]})).fields["earlier_cuts"]) == 16
    with pytest.raises(StateFormatError, match="its earlier cuts have 17,825,792 lanes"):
        parse_state(sealed({**a_state(), "earlier_cuts": cuts}))


def test_part_rows_are_valid_only_where_lanes_are_in_step() -> None:
    in_step = a_state()
    assert in_step["positions"] is None
    assert parse_state(sealed({**in_step, "part_rows": 1})).fields["part_rows"] == 1
    for state in (
        {**in_step, "part_rows": 2},
        {**in_step, "part_rows": -1},
        {**a_state(OUT_OF_STEP), "part_rows": 1},
    ):
        with pytest.raises(StateFormatError, match="damaged: part_rows is"):
            parse_state(sealed(state))


# -- What is a state --------------------------------------------------------------------------------------------------


def test_the_scope_of_a_state_follows_from_its_place() -> None:
    assert [scope_of(place) for place in (None, WorkerPlace(1, 2), WorkerPlace(1, 2, 0, 2))] == [
        "global",
        "rank",
        "worker",
    ]


def test_a_wrapped_state_is_parsed_and_unknown_keys_are_dropped() -> None:
    wrapped = wrap_state({**a_state(), "of a later release": 1})
    assert len(wrapped) == 1
    assert parse_state(wrapped).fields == {**a_state(), **ABSENT}


def test_a_parsed_state_knows_the_worker_that_saved_it() -> None:
    saved = parse_state(sealed({**a_state(), "rank": 1, "world_size": 3, "worker": 2, "num_workers": 4}))
    assert saved.place == WorkerPlace(1, 3, 2, 4)
    assert saved.is_global

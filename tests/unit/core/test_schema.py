"""The schema of states: parsing, and states of earlier versions."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal

import pytest

from laneway.core import schema
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, LanePosition, Progress
from laneway.core.schema import (
    FIELDS,
    REQUIRED,
    Role,
    StateField,
    decode_positions,
    encode_positions,
    names_of,
    parse_state,
    positions_of,
    scope_of,
    setting_fields,
    wrap_state,
)
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.laws.simulation import PLAIN, file_table, load

IDENTITY = Identity(file_table([[6], [7]]), PLAIN)
EARLIER = (tuple(map(LanePosition, (2, 0, 1))),)
PROGRESS = Progress(3, "keep", CutProgress(2, 2, 2, {0: LanePosition(2), 1: LanePosition(2)}), EARLIER)


def a_state(progress: Progress = PROGRESS) -> dict[str, Any]:
    return write_state(IDENTITY, progress, WorkerPlace(), complete=False)


def as_version_1(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as version 1 wrote it: without offsets, and with earlier cuts as lists of rows."""
    earlier = [rows for rows, _ in state["earlier_cuts"]]
    old = {**state, "version": 1, "earlier_cuts": earlier}
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
    assert all(each.default is REQUIRED for each in setting_fields(Settings))


def test_a_state_that_lacks_a_field_with_a_default_gets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "FIELDS", (*FIELDS, *setting_fields(LaterSettings)[-1:]))
    assert parse_state(a_state()).fields["flavour"] is None
    assert parse_state({**a_state(), "flavour": 4}).fields["flavour"] == 4
    assert names_of(Role.IDENTITY)[-1] == "flavour"
    with pytest.raises(StateFormatError, match=r"flavour is 1\.5, not str or int or NoneType"):
        parse_state({**a_state(), "flavour": 1.5})


def test_a_state_that_lacks_a_required_field_is_refused() -> None:
    for each in FIELDS:
        state = a_state()
        del state[each.name]
        with pytest.raises(StateFormatError, match=f"truncated: {each.name} missing"):
            parse_state(state)


# -- Versions ---------------------------------------------------------------------------------------------------------


def test_a_state_of_version_1_is_read_as_one_of_version_2() -> None:
    old = as_version_1(a_state())
    assert old["earlier_cuts"] == [[2, 0, 1]]
    parsed = parse_state(old)
    assert parsed.original == old
    assert parsed.fields == a_state()
    assert parsed.fields["version"] == 2
    assert load(old, IDENTITY) == PROGRESS


@pytest.mark.parametrize("earlier", [[3], [[]], [["2"]], [[-1]], [[2.0]], 3, None])
def test_a_damaged_earlier_cut_of_version_1_is_refused(earlier: object) -> None:
    with pytest.raises(StateFormatError, match=r"damaged: (an earlier cut|earlier_cuts) is"):
        parse_state({**as_version_1(a_state()), "earlier_cuts": earlier})


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_an_unknown_version_is_refused_and_the_supported_ones_are_named(version: object) -> None:
    with pytest.raises(
        StateFormatError, match=f"format version {version!r}, and this release .* reads versions 1 to 2"
    ):
        parse_state({**a_state(), "version": version})


# -- Positions --------------------------------------------------------------------------------------------------------


def test_offsets_are_written_only_if_one_of_them_is_not_0() -> None:
    rows, both = [LanePosition(2), LanePosition(0)], [LanePosition(2, 0), LanePosition(0, 7)]
    assert encode_positions(rows) == [[2, 0], None]
    assert encode_positions(both) == [[2, 0], [0, 7]]
    assert decode_positions(*encode_positions(rows)) == rows
    assert decode_positions(*encode_positions(both)) == both


def test_offsets_of_lanes_and_of_earlier_cuts_are_in_a_state_that_a_dataset_without_stages_refuses() -> None:
    cut = CutProgress(2, 2, 2, {0: LanePosition(2, 3), 1: LanePosition(2)})
    earlier = ((LanePosition(1), LanePosition(0, 9)), (LanePosition(1),))
    progress = Progress(3, "keep", cut, earlier)
    state = json.loads(json.dumps(a_state(progress)))
    assert (state["positions"], state["offsets"]) == ([2, 2], [3, 0])
    assert state["earlier_cuts"] == [[[1, 0], [0, 9]], [[1], None]]
    assert positions_of(parse_state(state).fields) == [LanePosition(2, 3), LanePosition(2)]
    for offsets, cuts in ((state["offsets"], []), (None, state["earlier_cuts"][:1])):
        with pytest.raises(CheckpointMismatchError, match="a stage that turns rows into several items"):
            load({**state, "offsets": offsets, "earlier_cuts": cuts}, IDENTITY)


@pytest.mark.parametrize("offsets", [[1], [1, 2, 3], [-1, 0], ["1", 0], [True, 0], [2**48, 0]])
def test_offsets_that_do_not_fit_the_positions_are_refused(offsets: list[Any]) -> None:
    with pytest.raises(StateFormatError, match=r"damaged: positions .* don't fit lanes"):
        parse_state({**a_state(), "offsets": offsets})
    cut = [[1, 2], offsets]
    with pytest.raises(StateFormatError, match="damaged: an earlier cut is"):
        parse_state({**a_state(), "earlier_cuts": [cut]})


def test_offsets_without_positions_are_refused() -> None:
    with pytest.raises(StateFormatError, match="it has offsets, but no positions"):
        parse_state({**a_state(), "positions": None, "offsets": [1, 0]})


@pytest.mark.parametrize("cut", [{"positions": [1], "offsets": None}, [[1]], [[1], None, 0], [1], [[], None]])
def test_an_earlier_cut_has_exactly_positions_and_offsets(cut: object) -> None:
    with pytest.raises(StateFormatError, match="an earlier cut is"):
        parse_state({**a_state(), "earlier_cuts": [cut]})


def test_part_rows_are_valid_only_in_a_job_in_lockstep() -> None:
    in_step = {**a_state(), "positions": None}
    assert parse_state({**in_step, "part_rows": 1}).fields["part_rows"] == 1
    for state in ({**in_step, "part_rows": 2}, {**in_step, "part_rows": -1}, {**a_state(), "part_rows": 1}):
        with pytest.raises(StateFormatError, match="damaged: part_rows is"):
            parse_state(state)


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
    assert parse_state(wrapped).fields == a_state()


def test_a_parsed_state_knows_the_worker_that_saved_it() -> None:
    saved = parse_state({**a_state(), "rank": 1, "world_size": 3, "worker": 2, "num_workers": 4})
    assert saved.place == WorkerPlace(1, 3, 2, 4)
    assert saved.is_global

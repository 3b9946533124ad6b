"""The schema of states: the name, types and role of each field. Parses states.

A field that is declared here, or added to `Settings`, is checked, compared, merged and named in error messages
according to its role. `core.state` writes the fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from enum import Enum
from operator import itemgetter
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from laneway.core.consistency import MAX_COUNT, check_lanes, check_tokens, refuse, require
from laneway.core.differences import shorten
from laneway.core.division import Sharing
from laneway.core.gaps import Gap
from laneway.core.plan import Settings
from laneway.core.progress import EarlierCut, LanePosition
from laneway.core.sealing import Seal
from laneway.core.turns import WorkerPlace, turns_taken
from laneway.errors import CheckpointMismatchError, StateFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = "laneway.state"
"""The value of `format` in every state."""
FORMAT_VERSION = 3
"""Version of the fields below.

Version 1 had no offsets, and each earlier cut was a list of rows. In version 2, each earlier cut was a pair of rows and
offsets of all lanes, and states had no digest.
"""

SCOPE_APART = "ranks"
"""Scope of what `core.apart` writes: the states of ranks that are in different epochs."""

_MAX_INT = 2**64
"""Bound of all numbers: larger ones are damage, and Python may refuse to print them."""
_BOUNDS = {"seed": 2**63, "shard_bytes": 2**62, "shard_rows": MAX_COUNT + 1, "window_bytes": 2**62}
"""Upper bounds of settings, which are those of the arguments, so that int64 can hold them."""


class Role(Enum):
    """The purpose of a field."""

    IDENTITY = "identifies the dataset and its order: compared on load, and equal in all states that are merged"
    JOB = "describes the whole job: equal in all states that are merged"
    OWN = "describes the rank or worker that saved it"
    DETAIL = "derived from other fields, or from the files: neither compared nor merged"


REQUIRED: Any = object()
"""Marks a field without a default."""


@dataclass(frozen=True, slots=True)
class StateField:
    """A field of a state."""

    name: str
    """Key of the field."""
    types: tuple[type, ...]
    """Accepted types of its value."""
    role: Role
    """Its purpose."""
    default: Any = REQUIRED
    """Its value in states saved before the field existed; REQUIRED: every state has it."""


def _types(hint: Any) -> tuple[type, ...]:  # noqa: ANN401 - a type hint has no common type
    if get_origin(hint) is Literal:
        return tuple({type(choice) for choice in get_args(hint)})
    if get_origin(hint) in {Union, UnionType}:
        return tuple(dict.fromkeys(found for part in get_args(hint) for found in _types(part)))
    return (hint,)


def setting_fields(settings: type) -> tuple[StateField, ...]:
    """Return a state field for each field of a dataclass of settings."""
    hints = get_type_hints(settings)
    return tuple(
        StateField(
            each.name,
            _types(hints[each.name]),
            Role.IDENTITY,
            REQUIRED if each.default is dataclasses.MISSING else each.default,
        )
        for each in dataclasses.fields(settings)
    )


FIELDS: tuple[StateField, ...] = (
    StateField("fingerprint", (str,), Role.IDENTITY),
    StateField("files", (str,), Role.DETAIL),
    *setting_fields(Settings),
    StateField("order_version", (int,), Role.JOB),
    StateField("scope", (str,), Role.OWN),
    StateField("rank", (int,), Role.OWN),
    StateField("world_size", (int,), Role.JOB),
    StateField("worker", (int,), Role.OWN),
    StateField("num_workers", (int,), Role.OWN),
    StateField("epoch", (int,), Role.JOB),
    StateField("complete", (bool,), Role.OWN),
    StateField("over", (bool,), Role.OWN),
    StateField("lanes", (int, NoneType), Role.JOB),
    StateField("turn_rows", (int, NoneType), Role.JOB),
    StateField("lane_world_size", (int, NoneType), Role.JOB),
    StateField("lane_batch_turns", (int, NoneType), Role.JOB),
    StateField("lane_remainder", (str, NoneType), Role.JOB),
    StateField("next_turn", (int,), Role.OWN),
    StateField("part_rows", (int,), Role.OWN),
    StateField("lane_indices", (list, NoneType), Role.OWN),
    StateField("positions", (list, NoneType), Role.OWN),
    StateField("offsets", (list, NoneType), Role.OWN),
    StateField("earlier_cuts", (list,), Role.JOB),
    StateField("mixture", (list,), Role.JOB, default=[]),
    StateField("tokens", (list,), Role.OWN, default=[]),
    StateField("digest", (str,), Role.DETAIL, default=""),
)
"""All fields of a state except `format` and `version`."""


def names_of(*roles: Role) -> list[str]:
    """Return the names of the fields that have one of these roles."""
    return [each.name for each in FIELDS if each.role in roles]


@dataclass(frozen=True, slots=True)
class SavedState:
    """A parsed state: its fields have the right types and are consistent."""

    original: dict[str, Any]
    """The state as it was passed, in its own format version, without keys that are not fields."""
    fields: Mapping[str, Any]
    """Its fields, in the current format version."""

    @property
    def is_global(self) -> bool:
        """Whether the state is that of the whole job."""
        return bool(self.fields["scope"] == "global")

    @property
    def is_complete(self) -> bool:
        """Whether the worker, rank or job has delivered all its rows of the epoch."""
        return bool(self.fields["complete"])

    @property
    def is_over(self) -> bool:
        """Whether the training loop has left the epoch behind, so that the next pass is the next epoch."""
        return bool(self.fields["over"])

    def place_to_compare(self, place: WorkerPlace, *, is_worker: bool) -> WorkerPlace:
        """Return with which place that of the state is compared when `place` loads it.

        Args:
            place: The worker or rank.
            is_worker: Whether it is a worker. Otherwise the state may be that of any worker of the rank.
        """
        if not is_worker:
            place = replace(place, worker=self.place.worker, num_workers=self.place.num_workers)
        if self.is_global:
            place = replace(place, rank=self.place.rank, world_size=self.place.world_size)
        return place

    @property
    def has_offsets(self) -> bool:
        """Whether a lane stopped within a row that becomes several items."""
        return any([self.fields["offsets"], *(cut[7] for cut in self.fields["earlier_cuts"])])

    @property
    def sharing(self) -> Sharing:
        """How ranks share the current cut."""
        return Sharing(*(self.fields[name] for name in ("lane_world_size", "lane_batch_turns", "lane_remainder")))

    @property
    def place(self) -> WorkerPlace:
        """The worker that saved it."""
        return WorkerPlace(*(self.fields[name] for name in ("rank", "world_size", "worker", "num_workers")))


def encode_positions(positions: Sequence[LanePosition]) -> list[Any]:
    """Return positions as a pair: the rows of each, and the offset of each, or None if all offsets are 0."""
    offsets = [offset for _, offset in positions]
    return [[rows for rows, _ in positions], offsets if any(offsets) else None]


def decode_positions(rows: list[int], offsets: list[int] | None) -> list[LanePosition]:
    """Return the positions from the pair that `encode_positions` returned."""
    return [*map(LanePosition, rows, offsets or [0] * len(rows))]


def encode_cut(cut: EarlierCut) -> list[Any]:
    """Return a cut as a list: lanes, rows of a turn, ranks, turns of a batch, next turn, part of it, positions.

    The positions are two items, as `encode_positions` returns them, or two Nones if all lanes were in step. A last item
    lists the gaps that were known, start and stop of each, if more are known now.
    """
    positions = [None, None] if cut.positions is None else encode_positions(cut.positions)
    gaps = [] if cut.gaps is None else [[edge for gap in cut.gaps for edge in gap]]
    return [cut.num_lanes, cut.turn_rows, *cut.sharing[:2], cut.next_turn, cut.part_rows, *positions, *gaps]


def decode_cut(encoded: list[Any]) -> EarlierCut:
    """Return the cut from the list that `encode_cut` returned."""
    num_lanes, turn_rows, world_size, batch_turns, next_turn, part_rows, rows, offsets, *known = encoded
    positions = None if rows is None else (*decode_positions(rows, offsets),)
    gaps = (*map(Gap, known[0][::2], known[0][1::2]),) if known else None
    return EarlierCut(num_lanes, turn_rows, Sharing(world_size, batch_turns), next_turn, part_rows, positions, gaps)


def positions_of(saved: SavedState) -> dict[int, LanePosition]:
    """Return lane -> position of the current cut, for a state that holds positions or is that of a rank or worker.

    If these are in step, they follow from the next turn.
    """
    fields, place = saved.fields, saved.place
    rows, num_lanes = fields["positions"], fields["lanes"]
    if rows is not None:
        lanes = fields["lane_indices"] or range(num_lanes)
        return dict(zip(lanes, decode_positions(rows, fields["offsets"]), strict=True))
    next_turn, turn_rows = fields["next_turn"], fields["turn_rows"]
    lanes = place.own_lanes(next_turn, num_lanes, fields["lane_batch_turns"])
    found = {lane: LanePosition(turns_taken(next_turn, lane, num_lanes) * turn_rows) for lane in sorted(lanes)}
    found[lanes[0]] = LanePosition(found[lanes[0]].rows + fields["part_rows"])
    return found


_IDENTITY = [each for each in FIELDS if each.role in {Role.IDENTITY, Role.DETAIL} and each.name != "digest"]
_REQUIRED_OF_IDENTITY = [each.name for each in _IDENTITY if each.default is REQUIRED]
_DEFAULTS_OF_IDENTITY = {each.name: each.default for each in _IDENTITY if each.default is not REQUIRED}
_OTHERS = [each for each in FIELDS if each.role in {Role.JOB, Role.OWN}]
_others_of = itemgetter(*(each.name for each in _OTHERS if each.default is REQUIRED))
_DEFAULTS_OF_OTHERS = {each.name: each.default for each in _OTHERS if each.default is not REQUIRED}
_DEFAULTS = _DEFAULTS_OF_IDENTITY | _DEFAULTS_OF_OTHERS


def seal_of(identity: Mapping[str, Any]) -> Seal:
    """Return the seal of states with these fields of the identity; those that have their default may be missing."""
    values = [identity[name] for name in _REQUIRED_OF_IDENTITY]
    others = {name: identity.get(name, default) for name, default in _DEFAULTS_OF_IDENTITY.items()}
    return Seal((FORMAT, FORMAT_VERSION, *values, *without_defaults(others).items()))


def without_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return some fields as a state holds them: without those that have their default."""
    return {name: value for name, value in fields.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def digest_with(seal: Seal, fields: Mapping[str, Any]) -> str:
    """Return the digest of a state, given the seal of its identity and its other fields."""
    others = {name: fields.get(name, default) for name, default in _DEFAULTS_OF_OTHERS.items()}
    return seal.digest((*_others_of(fields), *without_defaults(others).items()))


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state whose fields were changed with the digest that it needs; older versions have none."""
    if state["version"] != FORMAT_VERSION:
        return dict(state)
    return {**without_defaults(state), "digest": digest_with(seal_of(state), state)}


_KEY = "laneway"


def wrap_state(state: dict[str, Any]) -> dict[str, Any]:
    """Wrap a state under one key, as a single value that torch.distributed.checkpoint does not flatten."""
    return {_KEY: [state]}


def unwrap_state(state: object) -> object:
    """Return the state inside a result of `wrap_state`, and any other argument unchanged."""
    inner = state.get(_KEY) if isinstance(state, dict) and len(state) == 1 else None
    return inner[0] if isinstance(inner, list) and len(inner) == 1 else state


def parse_state(state: object) -> SavedState:
    """Parse a state, and check that its fields have the right types and are consistent.

    Args:
        state: A state of any format version, wrapped or not, as returned or after a round trip through JSON or
            torch.save.

    Returns:
        The state, with its fields in the current format version.

    Raises:
        StateFormatError: The value is not a state, or it is damaged.
        CheckpointMismatchError: It holds ranks that were in different epochs; see `core.apart`.
    """
    state = _checked_format(unwrap_state(state))
    version = state.get("version")
    fields = {each.name: each.default for each in FIELDS if each.default is not REQUIRED}
    fields |= _upgrade(state, version)
    missing = [each.name for each in FIELDS if each.name not in fields]
    if missing:
        message = f"this state is truncated: {', '.join(missing)} missing"
        raise StateFormatError(message)
    _check_types(fields)
    if fields["scope"] == SCOPE_APART:
        message = (
            "this state holds the states of ranks that were in different epochs: load it with load_state_dict() or "
            "restore_state_global() of a SavableLoader, on the same number of ranks"
        )
        raise CheckpointMismatchError(message)
    for name, bound in _BOUNDS.items():
        require(0 <= (fields[name] or 0) < bound, f"{name} is {fields[name]}")
    require(0 <= fields["epoch"] < MAX_COUNT, f"epoch is {fields['epoch']}")
    require(0 <= fields["next_turn"] < MAX_COUNT, f"next_turn is {fields['next_turn']}")
    for index, count in (("rank", "world_size"), ("worker", "num_workers")):
        require(
            0 <= fields[index] < fields[count] <= MAX_COUNT,
            f"{index} is {fields[index]} of {count} {fields[count]}",
        )
    require(fields["complete"] or not fields["over"], "it is over, but not complete")
    known = {"format": FORMAT, "version": FORMAT_VERSION} | {each.name: fields[each.name] for each in FIELDS}
    parsed = SavedState({name: value for name, value in state.items() if name in known}, known)
    has_lanes = version == FORMAT_VERSION or fields["lanes"] is None or fields["lane_indices"] is not None
    require(parsed.is_global or has_lanes, "it is not of a whole job, but has no lane_indices")
    check_lanes(known, parsed.place)
    check_tokens(known["tokens"])
    if version == FORMAT_VERSION:
        try:
            digest = digest_with(seal_of(known), known)
        except (RecursionError, TypeError, ValueError):
            # All other fields have been checked.
            refuse(f"mixture is {shorten(known['mixture'])}")
        if known["digest"] != digest:
            found = shorten(known["digest"])
            refuse(f"its digest is {found}, that of its fields is {digest!r}, so a field was changed")
    return parsed


def _checked_format(state: object) -> dict[str, Any]:
    """Return a value that is a state of laneway, of any version."""
    if not isinstance(state, dict):
        message = f"a state must be the dict that state_dict() returned, not {type(state).__name__}"
        raise StateFormatError(message)
    if not state:
        message = "an empty dict is not a state: pass what state_dict() returned, or don't load a state"
        raise StateFormatError(message)
    if type(state.get("format")) is not str or state["format"] != FORMAT:
        keys = ", ".join(map(shorten, list(state)[:5]))
        hint = "; pass the part of the checkpoint that state_dict() returned"
        if "_snapshot" in state or "_iterator_finished" in state:
            hint = "; it is a state of StatefulDataLoader, which only a StatefulDataLoader can load"
        message = (
            f"this dict is not a state of a laneway dataset: its 'format' is not {FORMAT!r}, its keys are {keys}{hint}"
        )
        raise StateFormatError(message)
    return state


def _check_types(fields: Mapping[str, Any]) -> None:
    """Check that each field has one of its types, and that numbers can be printed."""
    for each in FIELDS:
        value = fields[each.name]
        if type(value) not in each.types:
            expected = " or ".join(found.__name__ for found in each.types)
            refuse(f"{each.name} is {shorten(value)}, not {expected}")
        if type(value) is int and abs(value) >= _MAX_INT:
            refuse(f"{each.name} has too many digits")


def _upgrade(state: Mapping[str, Any], version: object) -> Mapping[str, Any]:
    """Return the fields of a state in the current format version."""
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        message = (
            f"this state has format version {shorten(version)}, and this release of laneway reads versions 1 to "
            f"{FORMAT_VERSION}: load it with the release that saved it, or a later one"
        )
        raise StateFormatError(message)
    if version == FORMAT_VERSION:
        return state
    require("digest" not in state, f"its version is {version}, but only later ones have a digest, so it was changed")
    upgraded = {**state, "digest": "", "over": False}
    earlier = state.get("earlier_cuts")
    if version == 1:
        upgraded["offsets"] = None
        earlier = [[rows, None] for rows in earlier] if isinstance(earlier, list) else earlier
    if isinstance(earlier, list):
        # Neither turns nor ranks had an influence on how these were cut.
        cuts = [cut for cut in earlier if isinstance(cut, list) and len(cut) == 2 and isinstance(cut[0], list)]  # noqa: PLR2004 - a pair
        is_damaged = len(cuts) < len(earlier)
        upgraded["earlier_cuts"] = earlier if is_damaged else [[len(cut[0]), 1, 1, 1, 0, 0, *cut] for cut in cuts]
    is_cut = state.get("lanes") is not None
    return upgraded | {
        "lane_world_size": state.get("world_size") if is_cut else None,
        "lane_batch_turns": 1 if is_cut else None,
    }

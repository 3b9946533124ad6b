"""The schema of states: the name, types and role of each field. Parses states.

A field that is declared here, or added to `Settings`, is checked, compared, merged and named in error messages
according to its role. `core.state` writes the fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from laneway.core.lanes import MAX_LANES, Remainder
from laneway.core.plan import Settings
from laneway.core.progress import LanePosition
from laneway.core.turns import WorkerPlace
from laneway.errors import StateFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = "laneway.state"
"""The value of `format` in every state."""
FORMAT_VERSION = 2
"""Version of the fields below. Version 1 had no offsets, and each earlier cut was a list of rows."""

_MAX_COUNT = 2**48
"""Upper bound of rows, turns and epochs: larger than any dataset, and small enough that int64 can't overflow."""
_MAX_PROCESSES = 2**20
"""Upper bound of ranks, and of workers of a rank."""
_REMAINDERS = get_args(Remainder)

Scope = Literal["global", "rank", "worker"]
"""Which lanes a state holds: those of the whole job, of a rank or of a worker."""


class Role(Enum):
    """The purpose of a field."""

    IDENTITY = "identifies the dataset and its order: compared on load, and equal in all states that are merged"
    JOB = "describes the whole job: equal in all states that are merged"
    OWN = "describes the rank or worker that saved it"
    DETAIL = "only names the differences in a mismatch: neither compared nor merged"


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
    StateField("order_version", (int,), Role.IDENTITY),
    StateField("fingerprint", (str,), Role.IDENTITY),
    StateField("files", (str,), Role.DETAIL),
    *setting_fields(Settings),
    StateField("scope", (str,), Role.OWN),
    StateField("rank", (int,), Role.OWN),
    StateField("world_size", (int,), Role.JOB),
    StateField("worker", (int,), Role.OWN),
    StateField("num_workers", (int,), Role.OWN),
    StateField("epoch", (int,), Role.JOB),
    StateField("complete", (bool,), Role.OWN),
    StateField("over", (bool,), Role.OWN, default=False),
    StateField("lanes", (int, NoneType), Role.JOB),
    StateField("turn_rows", (int, NoneType), Role.JOB),
    StateField("lane_remainder", (str, NoneType), Role.JOB),
    StateField("next_turn", (int,), Role.OWN),
    StateField("part_rows", (int,), Role.OWN),
    StateField("lane_indices", (list, NoneType), Role.OWN),
    StateField("positions", (list, NoneType), Role.OWN),
    StateField("offsets", (list, NoneType), Role.OWN),
    StateField("earlier_cuts", (list,), Role.JOB),
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

    @property
    def has_offsets(self) -> bool:
        """Whether a lane stopped within a row that becomes several items."""
        return any([self.fields["offsets"], *(offsets for _, offsets in self.fields["earlier_cuts"])])

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


def position_fields(positions: Sequence[LanePosition]) -> dict[str, Any]:
    """Return positions as the two fields of the current cut."""
    rows, offsets = encode_positions(positions)
    return {"positions": rows, "offsets": offsets}


def positions_of(fields: Mapping[str, Any]) -> list[LanePosition]:
    """Return the positions of the current cut from the two fields of a state."""
    return decode_positions(fields["positions"], fields["offsets"])


_KEY = "laneway"


def wrap_state(state: dict[str, Any]) -> dict[str, Any]:
    """Wrap a state under one key, as a single value that torch.distributed.checkpoint does not flatten."""
    return {_KEY: [state]}


def _unwrap(state: object) -> object:
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
    """
    state = _unwrap(state)
    if not isinstance(state, dict):
        message = f"a state must be the dict that state_dict() returned, not {type(state).__name__}"
        raise StateFormatError(message)
    if state.get("format") != FORMAT:
        keys = ", ".join(map(repr, list(state)[:5])) or "none"
        hint = ""
        if "_snapshot" in state or "_iterator_finished" in state:
            hint = "; it is a state of StatefulDataLoader, which only a StatefulDataLoader can load"
        message = (
            f"this dict is not a state of a laneway dataset: its 'format' is not {FORMAT!r}, its keys are {keys}{hint}"
        )
        raise StateFormatError(message)
    fields = {each.name: each.default for each in FIELDS if each.default is not REQUIRED}
    fields |= _upgrade(state)
    missing = [each.name for each in FIELDS if each.name not in fields]
    if missing:
        message = f"this state is truncated: {', '.join(missing)} missing"
        raise StateFormatError(message)
    for each in FIELDS:
        value = fields[each.name]
        if type(value) not in each.types:
            expected = " or ".join(found.__name__ for found in each.types)
            message = f"this state is damaged: {each.name} is {value!r}, not {expected}"
            raise StateFormatError(message)
    for name in ("epoch", "next_turn"):
        require(0 <= fields[name] < _MAX_COUNT, f"{name} is {fields[name]}")
    for index, count in (("rank", "world_size"), ("worker", "num_workers")):
        require(
            0 <= fields[index] < fields[count] <= _MAX_PROCESSES,
            f"{index} is {fields[index]} of {count} {fields[count]}",
        )
    require(fields["complete"] or not fields["over"], "it is over, but not complete")
    known = {"format": FORMAT, "version": FORMAT_VERSION} | {each.name: fields[each.name] for each in FIELDS}
    parsed = SavedState({name: value for name, value in state.items() if name in known}, known)
    _check_lanes(parsed)
    return parsed


def _upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a state in the current format version."""
    version = state.get("version")
    if version == FORMAT_VERSION:
        return state
    if version == 1:
        earlier = state.get("earlier_cuts")
        if isinstance(earlier, list):
            earlier = [[rows, None] for rows in earlier]
        return {**state, "offsets": None, "earlier_cuts": earlier}
    message = (
        f"this state has format version {version!r}, and this release of laneway reads versions 1 to {FORMAT_VERSION}: "
        "load it with the release that saved it, or a later one"
    )
    raise StateFormatError(message)


def _check_lanes(state: SavedState) -> None:
    fields, is_whole = state.fields, state.is_global
    num_lanes, known = fields["lanes"], fields["lane_indices"]
    if num_lanes is None:
        require(is_whole, f"scope is {fields['scope']!r}, but it has no lanes")
        require(not fields["positions"] and not fields["earlier_cuts"], "it has positions, but no lanes")
        require(not fields["complete"], "it is complete, but has no lanes")
        return
    require(0 < num_lanes <= MAX_LANES, f"lanes is {num_lanes:,}")
    require(0 < (fields["turn_rows"] or 0) < _MAX_COUNT, f"turn_rows is {fields['turn_rows']!r}")
    remainder = fields["lane_remainder"]
    require(remainder in _REMAINDERS, f"lane_remainder is {remainder!r}")
    scope = scope_of(None if known is None else state.place)
    require(fields["scope"] == scope, f"scope is {fields['scope']!r} with lane_indices {known!r}")
    part_rows, in_lockstep = fields["part_rows"], is_whole and fields["positions"] is None
    require(0 <= part_rows < (fields["turn_rows"] if in_lockstep else 1), f"part_rows is {part_rows}")
    if in_lockstep:
        require(fields["offsets"] is None, "it has offsets, but no positions")
    else:
        _check_positions(fields, list(range(num_lanes)) if is_whole else known, num_lanes)
    for cut in fields["earlier_cuts"]:
        is_pair = isinstance(cut, list) and len(cut) == 2  # noqa: PLR2004 - a pair of positions and offsets
        require(is_pair and bool(cut[0]) and _are_positions(*cut), f"an earlier cut is {cut!r}")


def _check_positions(fields: Mapping[str, Any], lanes: list[Any], num_lanes: int) -> None:
    positions = fields["positions"]
    are_consistent = (
        _are_positions(positions, fields["offsets"])
        and _are_counts(lanes)
        and len(lanes) == len(positions) == len({*lanes})
        and max(lanes, default=0) < num_lanes
    )
    if not are_consistent:
        message = f"this state is damaged: positions {positions!r} don't fit lanes {lanes!r} of {num_lanes:,}"
        raise StateFormatError(message)


def _are_positions(rows: object, offsets: object) -> bool:
    if not isinstance(rows, list) or not _are_counts(rows):
        return False
    return offsets is None or (isinstance(offsets, list) and len(offsets) == len(rows) and _are_counts(offsets))


def _are_counts(numbers: list[Any]) -> bool:
    return {*map(type, numbers)} <= {int} and 0 <= min(numbers, default=0) <= max(numbers, default=0) < _MAX_COUNT


def scope_of(place: WorkerPlace | None) -> Scope:
    """Return the scope of a state that holds the lanes of `place`; None: all lanes."""
    if place is None:
        return "global"
    return "rank" if place.num_workers == 1 else "worker"


def require(condition: bool, problem: str) -> None:  # noqa: FBT001 - it reads as a sentence
    """Raise a StateFormatError unless a condition holds.

    Raises:
        StateFormatError: The condition does not hold.
    """
    if not condition:
        message = f"this state is damaged: {problem}"
        raise StateFormatError(message)

"""Consistency of a state: what its fields for lanes and positions must fulfil, whatever dataset it belongs to."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from laneway.core.differences import shorten
from laneway.core.lanes import MAX_EARLIER_LANES, MAX_LANES, Remainder
from laneway.errors import StateFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.core.turns import WorkerPlace

MAX_COUNT = 2**48
"""Upper bound of rows, turns and epochs: larger than any dataset."""

_MAX_ROWS = 2**62
"""Upper bound of the products of such numbers, so that int64 can't overflow."""
_REMAINDERS = get_args(Remainder)

Scope = Literal["global", "rank", "worker"]
"""Which lanes a state holds: those of the whole job, of a rank or of a worker."""


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
        refuse(problem)


def refuse(problem: str) -> NoReturn:
    """Raise a StateFormatError.

    Raises:
        StateFormatError: Always.
    """
    message = f"this state is damaged: {problem}"
    raise StateFormatError(message)


def are_positions(rows: object, offsets: object) -> bool:
    """Return whether two values are the rows of some lanes, and their offsets or None."""
    if not isinstance(rows, list) or not _are_counts(rows):
        return False
    return offsets is None or (isinstance(offsets, list) and len(offsets) == len(rows) and _are_counts(offsets))


def _are_counts(numbers: list[Any]) -> bool:
    return {*map(type, numbers)} <= {int} and 0 <= min(numbers, default=0) <= max(numbers, default=0) < MAX_COUNT


def _has_gaps_or_none(items: list[Any]) -> bool:
    """Return whether what follows an earlier cut is a list of gaps, or nothing."""
    if not items:
        return True
    gaps = items[0]
    if len(items) > 1 or not isinstance(gaps, list) or len(gaps) % 2 or not _are_counts(gaps):
        return False
    return all(start <= stop for start, stop in pairwise(gaps))


def check_tokens(tokens: Any) -> None:  # noqa: ANN401 - any value of a state
    """Check that the tokens of sources are counts.

    Raises:
        StateFormatError: They are not.
    """
    if not _are_counts(tokens):
        refuse(f"tokens are {shorten(tokens)}")


def check_lanes(fields: Mapping[str, Any], place: WorkerPlace) -> None:
    """Check that the fields for lanes and positions are consistent.

    Args:
        fields: The fields of a state, which have the right types.
        place: The worker that saved it.

    Raises:
        StateFormatError: They contradict each other, or are too large.
    """
    scope, num_lanes, positions = fields["scope"], fields["lanes"], fields["positions"]
    if num_lanes is None:
        require(scope == "global", "it is not of a whole job, but it has no lanes")
        require(not positions and not fields["earlier_cuts"], "it has positions, but no lanes")
        require(not fields["complete"], "it is complete, but has no lanes")
        return
    if scope not in {"global", scope_of(place)}:
        refuse(f"scope is {shorten(scope)} with {place.num_workers:,} workers")
    if fields["lane_remainder"] not in _REMAINDERS:
        refuse(f"lane_remainder is {shorten(fields['lane_remainder'])}")
    for cut in fields["earlier_cuts"]:
        if not (isinstance(cut, list) and len(cut) >= len(_CUT) and {*map(type, cut[:6])} == {int}):
            refuse(f"an earlier cut is {shorten(cut)}")
        if not _has_gaps_or_none(cut[len(_CUT) :]):
            refuse(f"an earlier cut is {shorten(cut)}")
    cuts = [*(cut[: len(_CUT)] for cut in fields["earlier_cuts"]), [fields[name] for name in _CUT]]
    for cut in cuts:
        _check_cut(fields["order_version"], *cut)
    num_earlier = sum(cut[0] for cut in cuts[:-1])
    require(num_earlier <= MAX_EARLIER_LANES, f"its earlier cuts have {num_earlier:,} lanes")
    for cut in cuts[:-1]:
        if cut[6] is not None and len(cut[6]) != cut[0]:
            refuse(f"an earlier cut is {shorten(cut)}")
    _check_positions(fields, place)


_CUT = (
    "lanes",
    "turn_rows",
    "lane_world_size",
    "lane_batch_turns",
    "next_turn",
    "part_rows",
    "positions",
    "offsets",
)
"""What an earlier cut consists of, by the names of the fields of the current one."""


def _check_cut(  # noqa: PLR0917 - the items of an earlier cut, in its order
    order_version: int,
    num_lanes: int,
    turn_rows: int | None,
    world_size: int | None,
    batch_turns: int | None,
    next_turn: int,
    part_rows: int,
    positions: object,
    offsets: object,
) -> None:
    require(0 < num_lanes <= MAX_LANES, f"lanes is {num_lanes:,}")
    require(0 < (turn_rows or 0) < MAX_COUNT, f"turn_rows is {turn_rows}")
    require(0 < (world_size or 0) <= MAX_LANES, f"lane_world_size is {world_size}")
    require(0 < (batch_turns or 0) <= MAX_LANES, f"lane_batch_turns is {batch_turns}")
    turn_rows, world_size, batch_turns = turn_rows or 0, world_size or 0, batch_turns or 0
    is_shared = order_version == 1 or num_lanes % (world_size * batch_turns) == 0
    require(is_shared, f"{num_lanes:,} lanes are shared by {world_size:,} ranks with {batch_turns:,} turns a batch")
    require(0 <= next_turn < MAX_COUNT, f"next_turn is {next_turn}")
    is_counted = max(next_turn // num_lanes + 2, batch_turns) * turn_rows < _MAX_ROWS
    require(is_counted, f"turn {next_turn:,} of turns of {turn_rows:,} rows is beyond any dataset")
    require(0 <= part_rows < (turn_rows if positions is None else 1), f"part_rows is {part_rows}")
    if positions is None:
        require(offsets is None, "it has offsets, but no positions")
    elif not are_positions(positions, offsets):
        refuse(f"positions is {shorten(positions)}, offsets {shorten(offsets)}")


def _check_positions(fields: Mapping[str, Any], place: WorkerPlace) -> None:
    """Check the lanes and positions of the current cut."""
    num_lanes, lanes, positions = fields["lanes"], fields["lane_indices"], fields["positions"]
    if fields["scope"] == "global":
        require(lanes is None, "it is of a whole job, but has lane_indices")
        fits = positions is None or len(positions) == num_lanes
    elif positions is None:
        require(lanes is None, "it has lane_indices, but no positions")
        # Which lanes it has follows from its place.
        fits = place.world_size == fields["lane_world_size"]
        fits = fits and num_lanes % place.stride(fields["lane_batch_turns"]) == 0
    else:
        fits = isinstance(lanes, list) and _are_counts(lanes)
        fits = fits and len(lanes) == len(positions) == len({*lanes}) and max(lanes, default=0) < num_lanes
    if not fits:
        refuse(f"positions {shorten(positions)} don't fit lanes {shorten(lanes)} of {num_lanes:,}")

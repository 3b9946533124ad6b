"""Closing gaps: the lanes of a cut without the rows that are taken out of its order; the turns behind a gap move up."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from laneway.core.division import TurnDivision
from laneway.core.gaps import Gap, turn_problem
from laneway.core.lanes import Lanes
from laneway.core.turns import turns_taken
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.core.division import Division


def close_gaps(
    lanes: Lanes, division: Division, gaps: Collection[Gap], before: Collection[Gap] = (), num_delivered: int = 0
) -> tuple[Lanes, Division, dict[Gap, Gap]]:
    """Return the lanes and the division of a cut without the gaps that the cut before it didn't have.

    Args:
        lanes: The lanes of the cut.
        division: Their division.
        gaps: The gaps that are known in this cut, by the numbers of their rows in the epoch.
        before: Those that were known in the cut before it: their numbers are not given to other rows.
        num_delivered: Rows delivered in earlier cuts.

    Returns:
        Lanes and division, and where each gap was in the order of the cut, counted from its first row.

    Raises:
        CheckpointMismatchError: A gap can't be taken out of this cut.
    """
    new = [gap for gap in sorted(gaps) if gap not in before]
    if not new:
        return lanes, division, {}
    places: dict[Gap, Gap] = {}
    for gap in new:
        start = gap.start - num_delivered - sum(each.num_rows for each in before if each.start < gap.start)
        places[gap] = Gap(start, start + gap.num_rows)
        problem = _problem_with(places[gap], division)
        if problem:
            message = f"rows {gap.start:,} to {gap.stop:,} can't be taken out of the epoch: {problem}"
            raise CheckpointMismatchError(message)
    if sum(gap.num_rows for gap in new) == division.num_rows:
        message = "no row of the epoch is left after those that are taken out: choose the next one with set_epoch()"
        raise CheckpointMismatchError(message)
    return *take_out(lanes, cast("TurnDivision", division), [*places.values()]), places


def _problem_with(place: Gap, division: Division) -> str | None:
    """Return why a gap can't be taken out of a cut, or None if it can."""
    if not division.has_turns:
        return "it began in an older release, whose order has no row numbers; rows of its next epoch can be"
    start, stop = place
    num_rows = division.num_rows
    if start < 0:
        return f"{min(-start, stop - start):,} of them have been delivered; load a state that was saved before"
    if stop > num_rows:
        return f"the epoch has {max(num_rows - start, 0):,} rows from there on, not {stop - start:,}"
    return turn_problem(place, division.turn_rows, num_rows)


def check_undelivered(
    gaps: Collection[Gap], places: Mapping[Gap, Gap], division: Division, rows: NDArray[np.int64]
) -> None:
    """Check that no row of some gaps had been delivered when a state was saved, nor a row behind them.

    Args:
        gaps: Some of the gaps of a cut.
        places: Where each gap of the cut was in its order.
        division: The division without the gaps.
        rows: Rows delivered from each lane, shape (num_lanes,).

    Raises:
        CheckpointMismatchError: Some rows were.
    """
    num_closed = 0
    for gap, place in places.items():
        if gap in gaps and (rows > rows_before(cast("TurnDivision", division), place.start - num_closed)).any():
            message = (
                f"this checkpoint can't be resumed without rows {gap.start:,} to {gap.stop:,} of its epoch: some of "
                "these, or rows behind them, had been delivered when it was saved; load an earlier one"
            )
            raise CheckpointMismatchError(message)
        num_closed += place.num_rows


def rows_before(division: TurnDivision, place: int) -> NDArray[np.int64]:
    """Return how many rows each lane has of the first `place` rows in the order of a cut, shape (num_lanes,)."""
    num_lanes, turn_rows = division.num_lanes, division.turn_rows
    num_own = num_lanes * division.lane_rows
    turns, part = divmod(min(place, num_own), turn_rows)
    rows = turns_taken(turns, np.arange(num_lanes, dtype=np.int64), num_lanes) * turn_rows
    rows[turns % num_lanes] += part
    bounds = division.bounds[num_lanes:]
    np.add.at(rows, division.lane[num_lanes:], np.clip(place - bounds[:-1], 0, np.diff(bounds)))
    return rows


def take_out(lanes: Lanes, division: TurnDivision, places: Sequence[Gap]) -> tuple[Lanes, TurnDivision]:
    """Return the lanes and the division of a cut without some gaps: turns behind a gap move up, to other lanes.

    Args:
        lanes: The lanes of the cut.
        division: Their division.
        places: Where the gaps are, in order, disjoint, of whole turns.

    Returns:
        The lanes, whose order is that of the cut without the gaps, and their division.
    """
    num_rows = division.num_rows - sum(gap.num_rows for gap in places)
    changed = TurnDivision(
        num_rows, division.num_lanes, division.turn_rows, division.world_size, division.turns_per_batch
    )
    kept = np.array([0, *(edge for gap in places for edge in gap), division.num_rows], np.int64).reshape(-1, 2)
    starts = np.cumsum(kept[:, 1] - kept[:, 0]) - (kept[:, 1] - kept[:, 0])
    # Rounds of all lanes, and after them what is cut by rows, less than a round and a global batch.
    num_in_rounds = int(np.diff(np.minimum(kept, division.num_lanes * division.lane_rows)).sum())
    num_in_turns = min(num_in_rounds, changed.num_rows - changed.num_short)
    stops = np.minimum(kept[:, 1], np.maximum(kept[:, 0] + num_in_turns - starts, kept[:, 0]))
    in_turns = _moved_turns(division, np.stack([kept[:, 0], stops], axis=1))
    rest = _moved_rows(division, changed, np.stack([stops, kept[:, 1]], axis=1), num_in_turns)
    pieces = _Pieces(*(np.concatenate(columns) for columns in zip(in_turns, rest, strict=True)))
    return _laid(lanes, pieces), changed


class _Pieces(NamedTuple):
    """Rows of lanes that become rows of new lanes, in the order that they have there."""

    new_lane: NDArray[np.int64]
    lane: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


def _moved_turns(division: TurnDivision, kept: NDArray[np.int64]) -> _Pieces:
    """Return the pieces of whole turns, all from rounds of all lanes.

    Args:
        division: The division.
        kept: Places [start, stop) of the turns that are kept, shape (n, 2).
    """
    num_lanes, turn_rows = division.num_lanes, division.turn_rows
    turns = kept // turn_rows
    before = np.cumsum(turns[:, 1] - turns[:, 0]) - (turns[:, 1] - turns[:, 0])
    new_lane = np.arange(num_lanes, dtype=np.int64)
    # The turns of a lane between two gaps all move to the same other lane.
    lane = (new_lane + (turns[:, :1] - before[:, None])) % num_lanes
    start, stop = ((turns[:, edge, None] - lane + num_lanes - 1) // num_lanes * turn_rows for edge in (0, 1))
    return _Pieces(np.tile(new_lane, len(kept)), lane.ravel(), start.ravel(), stop.ravel())


def _moved_rows(division: TurnDivision, changed: TurnDivision, kept: NDArray[np.int64], first: int) -> _Pieces:
    """Return the pieces of the last rows.

    Args:
        division: The division.
        changed: The division without the gaps.
        kept: Places [start, stop) of the rows, shape (n, 2).
        first: Where the first of them is without the gaps: a multiple of the rows of a turn.
    """
    num_lanes, turn_rows = division.num_lanes, division.turn_rows
    kept = kept[kept[:, 0] < kept[:, 1]]
    lengths = kept[:, 1] - kept[:, 0]
    starts = first + np.cumsum(lengths) - lengths
    # Turns begin at these places, with the gaps and without.
    num_in_rounds = num_lanes * division.lane_rows
    first_place = kept[0, 0] if len(kept) else num_in_rounds
    turns = np.append(
        np.arange(first_place - first_place % turn_rows, num_in_rounds, turn_rows), division.bounds[num_lanes:]
    )
    num_whole = changed.num_rows - changed.num_short
    new_turns = np.append(np.arange(first, num_whole, turn_rows), changed.bounds[num_lanes + changed.num_whole :])
    moved = (turns[:, None] + (starts - kept[:, 0]))[(turns[:, None] > kept[:, 0]) & (turns[:, None] < kept[:, 1])]
    cuts = np.unique(np.concatenate([new_turns, starts, moved, [changed.num_rows]]))
    start, stop = cuts[:-1], cuts[1:]
    piece = np.searchsorted(starts, start, side="right") - 1
    place = start + (kept[:, 0] - starts)[piece]
    new_lane = (first // turn_rows + np.searchsorted(new_turns, start, side="right") - 1) % num_lanes
    lane, row = _rows_at(division, place)
    return _Pieces(new_lane, lane, row, row + stop - start)


def _rows_at(division: TurnDivision, place: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lanes of places in the order of a cut, and which of the rows of the lanes they are."""
    num_lanes, turn_rows = division.num_lanes, division.turn_rows
    turn = place // turn_rows
    bounds = division.bounds[num_lanes:]
    shared = np.searchsorted(bounds, place, side="right") - 1
    is_shared = place >= bounds[0]
    lane = np.where(is_shared, np.append(division.lane[num_lanes:], 0)[shared], turn % num_lanes)
    row = turn // num_lanes * turn_rows + place % turn_rows
    return lane, np.where(is_shared, division.lane_rows + place - bounds[shared], row)


def _laid(lanes: Lanes, pieces: _Pieces) -> Lanes:
    """Return new lanes that consist of pieces of lanes."""
    kept = np.flatnonzero(pieces.start < pieces.stop)
    order = kept[np.argsort(pieces.new_lane[kept], kind="stable")]
    line = lanes.row_starts
    base = line[lanes.segment_starts[pieces.lane[order]]]
    start, stop = base + pieces.start[order], base + pieces.stop[order]
    first = np.searchsorted(line, start, side="right") - 1
    counts = np.searchsorted(line, stop, side="left") - first
    ends = np.cumsum(counts)
    num_segments = int(ends[-1]) if len(ends) else 0
    segment = np.arange(num_segments) + np.repeat(first - (ends - counts), counts)
    low = np.maximum(line[segment], np.repeat(start, counts))
    high = np.minimum(line[segment + 1], np.repeat(stop, counts))
    offset = lanes.start[segment] - line[segment]
    new_lane = np.repeat(pieces.new_lane[order], counts)
    has_rows = low < high
    num_of_lane = np.bincount(new_lane[has_rows], minlength=lanes.num_lanes)
    return Lanes(
        window=lanes.window[segment][has_rows],
        start=(low + offset)[has_rows],
        stop=(high + offset)[has_rows],
        segment_starts=np.concatenate([[0], np.cumsum(num_of_lane)]).astype(np.int64),
    )

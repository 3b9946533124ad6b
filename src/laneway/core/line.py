"""The line of an epoch, as far as a state alone tells of it: rows by their place in it, whatever file they are in.

How lanes are cut depends on the number of rows, not on the files that hold them. So an epoch of one imaginary file with
as many rows has the same lanes, and in file order a row of that file is a place in the line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.core.assignment import assign_whole_job
from laneway.core.files import FileTable
from laneway.core.intervals import Intervals
from laneway.core.lanes import Lanes, Segment
from laneway.core.pack_line import have_known_packs
from laneway.core.places import FileRows, rows_of_segment
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut, ended_cut
from laneway.core.saved_files import decode_files, decode_parts, names_files
from laneway.core.state import locate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from laneway.core.plan import Plan
    from laneway.core.schema import SavedState


def num_rows_in(state: Mapping[str, Any]) -> int | None:
    """Return the rows of an epoch that a state belongs to, with those taken out of it; None: it doesn't tell.

    Args:
        state: The fields of the state of a dataset.
    """
    encoded = state["files"]
    if not encoded or state["selection"] is not None or counts_packs(state):
        return None
    if names_files(encoded):
        return sum(facts.rows for facts in decode_files(encoded).values())
    return decode_parts(encoded).num_rows


def counts_packs(state: Mapping[str, Any]) -> bool:
    """Return whether lanes count packs of documents of known lengths, by the fields of a state."""
    return have_known_packs(state["stages"])


def line_identity(state: Mapping[str, Any], of: int | Identity) -> Identity:
    """Return the identity of a line with the settings of a state.

    Args:
        state: The fields of the state.
        of: Rows of an epoch; or the identity of the files.
    """
    settings = Settings(**{each.name: state[each.name] for each in fields(Settings)})
    if isinstance(of, int):
        return _line_identity(settings, of)
    return line_of_identity(of if of.settings == settings else replace(of, settings=settings))


def line_of_identity(identity: Identity) -> Identity:
    """Return the identity of one imaginary file with as many rows as an epoch of some files, and the same settings.

    Packs of documents of known lengths are in a line already.
    """
    if identity.packs is not None:
        return identity
    return identity.derived("line", lambda: _line_identity(identity.settings, identity.selected.num_rows))


def _line_identity(settings: Settings, num_rows: int) -> Identity:
    table = FileTable.build(["line"], [0], [""], [([num_rows], [0])], "")
    return Identity(table, replace(settings, shuffle=False, shard_rows=None, selection=None, categories=None))


@dataclass(frozen=True, eq=False)
class LineProgress:
    """How far the line of an epoch has been delivered, as one or several states of the same step tell."""

    progress: Progress
    """The progress; the positions of some lanes may be unknown."""
    num_rows: int
    """Rows of the line."""
    delivered: Intervals
    """Places of the rows that were delivered, in all cuts."""
    base: Intervals
    """Those of earlier cuts."""
    ahead: Intervals
    """Places of the rows that are yet to be delivered."""
    unknown: Intervals
    """Places of the rows of lanes of which nothing is known."""
    num_repeated: int
    """Rows that were delivered twice, so that ranks deliver equally many."""
    is_complete: bool
    """Whether the epoch has been delivered."""

    @classmethod
    def of(cls, states: Sequence[SavedState], of: int | Identity) -> LineProgress:
        """Return what states of the same step tell, of the whole job or of different ranks or workers.

        Args:
            states: The states.
            of: See `line_identity`.

        Raises:
            StateFormatError: Positions contradict lanes.
        """
        fields = states[0].fields
        identity = line_identity(fields, of)
        num_rows = identity.line_length(fields["epoch"], fields["order_version"])
        nothing = Intervals.empty()
        if fields["lanes"] is None:
            progress = Progress(fields["epoch"], order_version=fields["order_version"])
            whole = Intervals.of(np.zeros(1, np.int64), np.array([num_rows]))
            out = Intervals.of(*np.array([*identity.gaps(progress.epoch)], np.int64).reshape(-1, 2).T)
            return cls(progress, num_rows, nothing, nothing, whole - out, nothing, 0, is_complete=num_rows == 0)
        parts = [locate(saved, identity) for saved in states]
        progress, cut = parts[0], current_cut(parts[0])
        positions: dict[int, LanePosition] = {}
        for part in parts:
            positions.update(current_cut(part).positions)
        next_turn = max(current_cut(part).next_turn for part in parts)
        progress = replace(progress, cut=CutProgress(cut.num_lanes, cut.turn_rows, next_turn, positions))
        plan, assignment = identity.plan(progress), assign_whole_job(identity, progress)
        is_unknown = np.ones(cut.num_lanes, bool)
        is_unknown[[*positions]] = False
        rows = ended_cut(progress).rows()
        ends = np.minimum(assignment.ends, plan.lanes.rows)
        base = nothing
        for lanes, taken in zip(plan.lanes_before, plan.rows_before, strict=True):
            base |= places_of(plan, lanes.delivered(taken))
        unknown = places_of(plan, plan.lanes.delivered(np.where(is_unknown, ends, 0)))
        return cls(
            progress,
            num_rows,
            base | places_of(plan, plan.lanes.delivered(rows)),
            base,
            places_of(plan, plan.lanes.delivered(np.where(is_unknown, 0, ends)).undelivered(rows)),
            unknown,
            int(np.maximum(rows - plan.lanes.rows, 0).sum()),
            is_complete=all(saved.is_complete for saved in states) and not len(unknown),
        )


def places_of(plan: Plan, lanes: Lanes) -> Intervals:
    """Return the places of the rows of lanes of an imaginary file, each window of which is one piece of it.

    Segments of lanes of packs are places already.
    """
    if plan.line is not None:
        return Intervals.of(lanes.start, lanes.stop)
    start = plan.windows.start[plan.windows.piece_starts[lanes.window]]
    return Intervals.of(start + lanes.start, start + lanes.stop)


def ranges_of_line(plan: Plan, places: Intervals, most: int = 1000) -> Iterator[tuple[int, int, int]]:
    """Yield some places of the line as ranges of files (index of the file, start, stop), at most `most` of them.

    Of packs, these are the rows that have tokens in them.
    """
    if plan.line is not None:
        pairs = zip(places.starts.tolist(), places.stops.tolist(), strict=True)
        rows = np.concatenate([plan.line.documents(*pair).document for pair in pairs])
        places = Intervals.of(rows, rows + 1)
    for segment, is_whole in segments_of_line(plan, places):
        found = files_of_segment(plan, segment, is_whole=is_whole)[:most]
        yield from found
        most -= len(found)
        if not most:
            return


def segments_of_line(plan: Plan, places: Intervals) -> Iterator[tuple[Segment, bool]]:
    """Yield the segments of the windows of a plan at some places of the line, and whether each is a whole window."""
    ends = np.cumsum(plan.windows.rows)
    rows = plan.windows.rows
    for start, stop in zip(places.starts.tolist(), places.stops.tolist(), strict=True):
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        for window in range(first, last + 1):
            before = int(ends[window] - rows[window])
            segment = Segment(window, max(start - before, 0), min(stop - before, int(rows[window])))
            yield segment, segment.stop - segment.start == rows[window]


def files_of_segment(plan: Plan, segment: Segment, *, is_whole: bool) -> list[tuple[int, int, int]]:
    """Return the rows of a segment as ranges (index of the file, start, stop), in the order of the files."""
    if is_whole:
        return sorted((rows.file_index, rows.start, rows.stop) for rows in plan.window_files(segment.window))
    file_index, row = _sorted(rows_of_segment(plan, segment))
    is_first = np.ones(len(row), bool)
    is_first[1:] = (np.diff(file_index) != 0) | (np.diff(row) != 1)
    firsts = np.flatnonzero(is_first)
    lasts = np.append(firsts[1:], len(row)) - 1
    return [*zip(file_index[firsts].tolist(), row[firsts].tolist(), (row[lasts] + 1).tolist(), strict=True)]


def _sorted(rows: FileRows) -> FileRows:
    order = np.lexsort((rows.row, rows.file_index))
    return FileRows(rows.file_index[order], rows.row[order])

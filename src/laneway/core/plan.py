"""The plan of an epoch: its windows and lanes, replayed from progress, and where their rows are in the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from laneway.core.lanes import Lanes, Remainder, Segment, Windows, cut_again, cut_epoch, rows_to_deliver
from laneway.core.order import window_order
from laneway.core.progress import Progress, present_cut
from laneway.core.shards import cut_shards
from laneway.core.turns import turns_taken

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.files import FileTable
    from laneway.core.shards import ShardTable


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the order of the rows, besides the files; all of it is compared when a state is loaded."""

    seed: int
    """Any int in [0, 2**63)."""
    shuffle: bool
    """Whether the epoch is shuffled."""
    shard_bytes: int
    """Wanted uncompressed size of a shard."""
    shard_rows: int | None
    """Wanted rows of a shard, in place of `shard_bytes`."""
    window_bytes: int
    """Wanted uncompressed size of a window."""
    remainder: Remainder | None
    """What to do about the row by which lanes differ; None: "keep" on one rank, "pad" on several."""
    drop_last: bool
    """Whether a lane's last turn is dropped where it is not whole."""

    def remainder_for(self, world_size: int) -> Remainder:
        """Return what to do about the remainder on `world_size` ranks."""
        return self.remainder or ("keep" if world_size == 1 else "pad")


class FileRange(NamedTuple):
    """Rows [start, stop) of a data file."""

    file_index: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Identity:
    """Which rows, in which order: what a state belongs to."""

    files: FileTable
    """The data files."""
    settings: Settings
    """How they are put in order."""

    _last_plan: dict[object, Plan] = field(default_factory=dict, init=False, repr=False)
    """What `replay` returned last: loading, beginning and forked workers all ask for the same."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what follows from the rest, and may be large."""
        return {"files": self.files, "settings": self.settings, "_last_plan": {}}

    @cached_property
    def shards(self) -> ShardTable:
        """All shards, in file order."""
        return cut_shards(self.files, shard_bytes=self.settings.shard_bytes, shard_rows=self.settings.shard_rows)


@dataclass(frozen=True, eq=False)
class Plan:
    """An epoch in its present cut. A pure function of the identity and the progress."""

    identity: Identity
    """What is put in order."""
    epoch: int
    """Zero-based."""
    windows: Windows
    """The windows of the epoch, made by its first cut."""
    lanes: Lanes
    """The lanes of the present cut."""
    lanes_before: tuple[Lanes, ...]
    """The lanes of each earlier cut, oldest first."""
    positions_before: tuple[NDArray[np.int64], ...]
    """Rows that they delivered, each of shape (num_lanes of that cut,)."""

    def rows_to_deliver(self, remainder: Remainder, turn_rows: int) -> NDArray[np.int64]:
        """Return how many rows each lane delivers in this cut, shape (num_lanes,)."""
        drop_last = self.identity.settings.drop_last
        return rows_to_deliver(self.lanes.rows, remainder=remainder, turn_rows=turn_rows, drop_last=drop_last)

    def window_files(self, window: int) -> list[FileRange]:
        """Return the rows of the data files that make a window, before it is shuffled."""
        shards, windows = self.identity.shards, self.windows
        pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
        shard = windows.shard[pieces]
        offset = shards.row_offset[shard]
        columns = (shards.file_index[shard], offset + windows.start[pieces], offset + windows.stop[pieces])
        return [FileRange(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def window_order(self, window: int) -> NDArray[np.int64] | None:
        """Return the order in which a window delivers its rows, or None where that is the order of the files."""
        settings, windows = self.identity.settings, self.windows
        if not settings.shuffle:
            return None
        return window_order(
            int(windows.rows[window]),
            seed=settings.seed,
            epoch=self.epoch,
            lane=int(windows.lane[window]),
            window=windows.index_in_lane(window),
        )

    def locate(self, segment: Segment, index: int) -> tuple[str, int]:
        """Return path and row in the data file of the row that is number `index` of a segment."""
        order = self.window_order(segment.window)
        row = segment.start + index if order is None else int(order[segment.start + index])
        for file_index, start, stop in self.window_files(segment.window):
            if row < stop - start:
                return self.identity.files.paths[file_index], start + row
            row -= stop - start
        message = f"row {index} lies outside {segment}"
        raise IndexError(message)

    def completed_shards(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards all of whose rows have been delivered, in file order.

        Args:
            positions: Rows delivered of each lane of the present cut, shape (num_lanes,).
        """
        delivered = np.zeros(len(self.identity.shards), np.int64)
        windows = self.windows
        all_lanes, all_positions = (*self.lanes_before, self.lanes), (*self.positions_before, positions)
        for lanes in map(Lanes.before, all_lanes, all_positions):
            whole = (lanes.start == 0) & (lanes.stop == windows.rows[lanes.window])
            piece_rows = np.zeros(len(windows.shard), np.int64)
            is_whole = np.zeros(len(windows.lane), bool)
            is_whole[lanes.window[whole]] = True
            pieces_whole = np.repeat(is_whole, np.diff(windows.piece_starts))
            piece_rows[pieces_whole] = (windows.stop - windows.start)[pieces_whole]
            for i in np.flatnonzero(~whole):
                window, rows = int(lanes.window[i]), slice(int(lanes.start[i]), int(lanes.stop[i]))
                pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
                ends = np.cumsum(windows.stop[pieces] - windows.start[pieces])
                order = self.window_order(window)
                taken = np.arange(rows.start, rows.stop) if order is None else order[rows]
                piece = np.searchsorted(ends, taken, side="right")
                piece_rows[pieces] += np.bincount(piece, minlength=len(ends))
            np.add.at(delivered, windows.shard, piece_rows)
        return np.flatnonzero(delivered >= self.identity.shards.row_length)


def replay(identity: Identity, progress: Progress) -> Plan:
    """Return the plan of an epoch as of the cut that its progress is in.

    Args:
        identity: The rows and settings.
        progress: Of an epoch that has been cut.
    """
    settings, known = identity.settings, identity._last_plan  # noqa: SLF001 - it is one of us
    counts = [*(len(earlier.rows) for earlier in progress.earlier), present_cut(progress).num_lanes]
    key = (progress.epoch, *counts, *(tuple(earlier.rows.items()) for earlier in progress.earlier))
    if key in known:
        return known[key]
    windows, lanes = cut_epoch(
        identity.shards,
        num_lanes=counts[0],
        window_bytes=settings.window_bytes,
        shuffle=settings.shuffle,
        seed=settings.seed,
        epoch=progress.epoch,
    )
    lanes_before, positions_before = [], [earlier.positions(len(earlier.rows)) for earlier in progress.earlier]
    for positions, num_lanes in zip(positions_before, counts[1:], strict=True):
        lanes_before.append(lanes)
        lanes = cut_again(lanes, positions, num_lanes)
    plan = Plan(identity, progress.epoch, windows, lanes, tuple(lanes_before), tuple(positions_before))
    known.clear()
    known[key] = plan
    return plan


def is_complete(plan: Plan, progress: Progress) -> bool:
    """Tell whether the lanes that are known have delivered all that they deliver in this epoch."""
    cut = present_cut(progress)
    ends = plan.rows_to_deliver(progress.remainder, cut.turn_rows)
    return all(rows >= ends[lane] for lane, rows in cut.lanes.rows.items())


def is_in_step(plan: Plan, progress: Progress, *, ranks_in_part: int) -> bool:
    """Tell whether the lanes are where the job's next turn says.

    Args:
        plan: The plan that belongs to `progress`.
        progress: Of the whole job.
        ranks_in_part: So many ranks may each have taken the same part of their next turn, as they may where rows are
            delivered one by one.
    """
    cut = present_cut(progress)
    positions = cut.positions()
    ahead = positions - positions_at(plan, progress, cut.next_turn)
    taking = (cut.next_turn + np.arange(ranks_in_part)) % cut.num_lanes
    part = positions[taking] % cut.turn_rows
    if np.all(ahead[taking] == part) and np.all(part == part[:1]):
        ahead[taking] = 0
    return not ahead.any()


def positions_at(plan: Plan, progress: Progress, next_turn: int) -> NDArray[np.int64]:
    """Return the position of each lane when all turns before `next_turn` have been taken, shape (num_lanes,)."""
    cut = present_cut(progress)
    turns = turns_taken(next_turn, np.arange(cut.num_lanes), cut.num_lanes)
    return np.minimum(turns * cut.turn_rows, plan.rows_to_deliver(progress.remainder, cut.turn_rows))

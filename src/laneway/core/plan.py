"""The plan of an epoch: its windows and lanes, replayed from its progress, and the place of their rows in the files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from laneway.core.lanes import Lanes, Remainder, Segment, Windows, cut_again, cut_epoch
from laneway.core.order import ORDER_VERSION, window_order
from laneway.core.progress import LanePositions, Progress, current_cut
from laneway.core.shards import cut_shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.files import FileTable
    from laneway.core.shards import ShardTable


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments that, with the files, determine the order of the rows.

    States hold each field under its name: it is compared when a state is loaded, must be equal in all states that are
    merged, and is named in mismatches. A field that is added after a release needs a default,
    the value for older states, and a new FORMAT_VERSION, so that older releases refuse the new states.
    """

    seed: int
    """Any int in [0, 2**63)."""
    shuffle: bool
    """Whether the epoch is shuffled."""
    shard_bytes: int
    """Target uncompressed size of a shard in bytes."""
    shard_rows: int | None
    """Target number of rows of a shard, instead of `shard_bytes`."""
    window_bytes: int
    """Target uncompressed size of a window in bytes."""
    remainder: Remainder | None
    """How to handle lanes whose lengths differ by one row; None: "keep" on one rank, "pad" on several."""
    drop_last: bool
    """Whether the last turn of a lane is dropped if it is incomplete."""

    def remainder_for(self, world_size: int) -> Remainder:
        """Return how `world_size` ranks handle lanes whose lengths differ by one row."""
        return self.remainder or ("keep" if world_size == 1 else "pad")


class FileRange(NamedTuple):
    """Rows [start, stop) of a data file."""

    file_index: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Identity:
    """The files and settings that a state belongs to."""

    files: FileTable
    """The data files."""
    settings: Settings
    """The arguments that determine the order of their rows."""
    _last_plan: dict[object, Plan] = field(default_factory=dict, init=False, repr=False)
    """The last plan by its key: loading a state, starting a pass and forked workers all need the same one."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out derived values, which may be large."""
        return {"files": self.files, "settings": self.settings, "_last_plan": {}}

    @cached_property
    def shards(self) -> ShardTable:
        """All shards, in file order."""
        return cut_shards(self.files, shard_bytes=self.settings.shard_bytes, shard_rows=self.settings.shard_rows)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields that identify the dataset and its order in a state."""
        return {
            "order_version": ORDER_VERSION,
            "fingerprint": self.files.fingerprint,
            "files": self.files.encoded,
            **asdict(self.settings),
        }

    def plan(self, progress: Progress) -> Plan:
        """Return the plan of an epoch in its current cut.

        Args:
            progress: Progress of an epoch that has been cut.
        """
        counts = (*map(len, progress.earlier), current_cut(progress).num_lanes)
        key = (progress.epoch, counts, progress.earlier)
        plan = self._last_plan.get(key)
        if plan is None:
            plan = self._replay(progress.epoch, counts, progress.earlier)
            self._last_plan.clear()
            self._last_plan[key] = plan
        return plan

    def _replay(self, epoch: int, lane_counts: tuple[int, ...], earlier: tuple[LanePositions, ...]) -> Plan:
        windows, lanes = cut_epoch(
            self.shards,
            num_lanes=lane_counts[0],
            window_bytes=self.settings.window_bytes,
            shuffle=self.settings.shuffle,
            seed=self.settings.seed,
            epoch=epoch,
        )
        lanes_before, rows_before = [], [np.array([lane.rows for lane in cut], np.int64) for cut in earlier]
        for rows, num_lanes in zip(rows_before, lane_counts[1:], strict=True):
            lanes_before.append(lanes)
            lanes = cut_again(lanes, rows, num_lanes)
        return Plan(self, epoch, windows, lanes, tuple(lanes_before), tuple(rows_before))


@dataclass(frozen=True, eq=False)
class Plan:
    """An epoch in its current cut: a pure function of the identity and of the earlier cuts."""

    identity: Identity
    """The files and settings."""
    epoch: int
    """Zero-based."""
    windows: Windows
    """The windows of the epoch, created by its first cut."""
    lanes: Lanes
    """The lanes of the current cut."""
    lanes_before: tuple[Lanes, ...]
    """The lanes of each earlier cut, oldest first."""
    rows_before: tuple[NDArray[np.int64], ...]
    """Rows delivered from the lanes of each earlier cut, each of shape (num_lanes of that cut,)."""

    def window_files(self, window: int) -> list[FileRange]:
        """Return the ranges of data files that make up a window, in the order before shuffling."""
        shards, windows = self.identity.shards, self.windows
        pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
        shard = windows.shard[pieces]
        offset = shards.row_offset[shard]
        columns = (shards.file_index[shard], offset + windows.start[pieces], offset + windows.stop[pieces])
        return [FileRange(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def window_order(self, window: int) -> NDArray[np.int64] | None:
        """Return the order in which a window delivers its rows, int64 of shape (rows,), or None without shuffling."""
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
        """Return the path of the data file with row `index` of a segment, and the row number in that file."""
        order = self.window_order(segment.window)
        row = segment.start + index if order is None else int(order[segment.start + index])
        for file_index, start, stop in self.window_files(segment.window):
            if row < stop - start:
                return self.identity.files.paths[file_index], start + row
            row -= stop - start
        message = f"row {index} lies outside {segment}"
        raise IndexError(message)

    def completed_shards(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards that have been delivered completely.

        Args:
            rows: Rows delivered from each lane of the current cut, shape (num_lanes,).

        Returns:
            int64 array of shape (num_completed,): indices of the shards in file order.
        """
        delivered = np.zeros(len(self.identity.shards), np.int64)
        windows = self.windows
        all_lanes, all_rows = (*self.lanes_before, self.lanes), (*self.rows_before, rows)
        for lanes in map(Lanes.delivered, all_lanes, all_rows):
            whole = (lanes.start == 0) & (lanes.stop == windows.rows[lanes.window])
            piece_rows = np.zeros(len(windows.shard), np.int64)
            is_whole = np.zeros(len(windows.lane), bool)
            is_whole[lanes.window[whole]] = True
            pieces_whole = np.repeat(is_whole, np.diff(windows.piece_starts))
            piece_rows[pieces_whole] = (windows.stop - windows.start)[pieces_whole]
            for i in np.flatnonzero(~whole):
                window, part = int(lanes.window[i]), slice(int(lanes.start[i]), int(lanes.stop[i]))
                pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
                ends = np.cumsum(windows.stop[pieces] - windows.start[pieces])
                order = self.window_order(window)
                taken = np.arange(part.start, part.stop) if order is None else order[part]
                piece = np.searchsorted(ends, taken, side="right")
                piece_rows[pieces] += np.bincount(piece, minlength=len(ends))
            np.add.at(delivered, windows.shard, piece_rows)
        return np.flatnonzero(delivered >= self.identity.shards.row_length)

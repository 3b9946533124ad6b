"""The plan of an epoch: its windows and lanes, replayed from its progress, and the place of their rows in the files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from laneway.core.closing import close_gaps
from laneway.core.cutting import cut_again, cut_epoch
from laneway.core.division import EvenDivision, Sharing, divide
from laneway.core.gaps import gaps_in
from laneway.core.lanes import Lanes, Remainder, Segment, Windows
from laneway.core.order import ORDER_VERSION, window_order
from laneway.core.pack_line import PackLine
from laneway.core.progress import EarlierCut, Progress, current_cut
from laneway.core.shards import cut_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from laneway.core.division import Division
    from laneway.core.files import FileTable
    from laneway.core.gaps import Gap
    from laneway.core.pack_line import KnownPacks, PackPiece, PackPlaces
    from laneway.core.selection import Selection
    from laneway.core.shards import ShardTable

T = TypeVar("T")


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
    """Target size of a shard in bytes."""
    shard_rows: int | None
    """Target number of rows of a shard, instead of `shard_bytes`."""
    window_bytes: int
    """Target size of a window in bytes."""
    remainder: Remainder | None
    """How to handle the one row by which ranks differ; None: "keep" on one rank, "pad" on several."""
    drop_last: bool
    """Whether the last global batch is dropped if it is incomplete."""
    selection: str | None = None
    """Which rows of the files belong to the dataset; None: all. See `Selection.text`."""
    categories: str | None = None
    """The vocabularies of columns that are delivered as ids; None: there are none."""
    without: str | None = None
    """The rows that are taken out of the order of epochs; None: there are none. See `core.gaps`."""
    stages: str | None = None
    """The stages that make items of the rows, on which offsets within rows depend; None: there are none."""
    epoch_batches: int | None = None
    """Of a mixture without an end: batches of each rank that make an epoch; None: there are no epochs."""
    table: str | None = None
    """The version of the table that says which rows there are; None: it has no version, or files are read as such."""

    def remainder_for(self, world_size: int) -> Remainder:
        """Return how `world_size` ranks handle the one row by which they differ."""
        return self.remainder or ("keep" if world_size == 1 else "pad")


class FileRange(NamedTuple):
    """Rows [start, stop) of a data file."""

    file_index: int
    start: int
    stop: int

    def is_followed_by(self, other: FileRange) -> bool:
        """Return whether `other` begins where this range ends, in the same file."""
        return (self.file_index, self.stop) == (other.file_index, other.start)


@dataclass(frozen=True, eq=False)
class Identity:
    """The files and settings that a state belongs to."""

    files: FileTable
    """The data files."""
    settings: Settings
    """The arguments that determine the order of their rows."""
    selection: Selection | None = None
    """How many rows of each block belong to the dataset; None: all."""
    packs: KnownPacks | None = None
    """The lengths of the documents of these rows, if packs are delivered and counted in advance; else None."""
    _counted_packs: dict[tuple[int, int], PackPlaces] = field(default_factory=dict, init=False, repr=False)
    """Where the packs of some epochs are, if another process has counted them."""
    _last_plan: dict[object, Plan] = field(default_factory=dict, init=False, repr=False)
    """The last plan by its key: loading a state, starting a pass and forked workers all need the same one."""
    _last_line: dict[tuple[int, int], tuple[Windows, PackLine]] = field(default_factory=dict, init=False, repr=False)
    """The last line of packs by its key: it takes a step for each document."""
    _derived: dict[object, Any] = field(default_factory=dict, init=False, repr=False)
    """Other values that follow from files and settings; see `derived`."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out derived values, which may be large."""
        kept = {"files": self.files, "settings": self.settings, "selection": self.selection, "packs": self.packs}
        return {**kept, "_counted_packs": self.counted_packs(), "_last_plan": {}, "_last_line": {}, "_derived": {}}

    def counted_packs(self) -> dict[tuple[int, int], PackPlaces]:
        """Return (order version, epoch) -> where its packs are, of those that take less time to send than to count."""
        lines = {
            key: line.places for key, (_, line) in self._last_line.items() if line.places.is_small(len(line.lengths))
        }
        return {**self._counted_packs, **lines}

    def with_counted_packs(self, packs: Mapping[tuple[int, int], PackPlaces]) -> Identity:
        """Return the same with what `counted_packs` of another process returned."""
        found = replace(self)
        found._counted_packs.update(packs)  # noqa: SLF001 - a copy of this object
        return found

    def derived(self, key: object, compute: Callable[[], T]) -> T:
        """Return a value that follows from files and settings, which is computed once."""
        if key not in self._derived:
            self._derived[key] = compute()
        found: T = self._derived[key]
        return found

    @property
    def encoded_files(self) -> str:
        """The data files as states hold them."""
        return self.files.encoded

    @property
    def shards(self) -> ShardTable:
        """All shards, in file order."""
        return self.shards_in(ORDER_VERSION)

    @property
    def selected(self) -> FileTable:
        """The data files as if they had no rows but the selected ones."""
        selection = self.selection
        return self.files if selection is None else self.derived("selected", lambda: selection.files(self.files))

    def shards_in(self, order_version: int) -> ShardTable:
        """Return all shards of an order, in file order."""
        files, settings, selection = self.selected, self.settings, self.selection
        sizes = files.block_bytes if order_version == 1 else files.block_memory_bytes
        if selection is not None:
            sizes = selection.selected_bytes(self.files, sizes)
        return self.derived(
            ("shards", order_version),
            lambda: cut_shards(files, sizes, shard_bytes=settings.shard_bytes, shard_rows=settings.shard_rows),
        )

    def fingerprint_in(self, order_version: int) -> str:
        """Return the identity of the rows in an order: it covers all that determines the place of a row."""
        fingerprint = self.files.fingerprint_v1 if order_version == 1 else self.files.fingerprint
        return fingerprint if self.selection is None else self.selection.fingerprint(fingerprint)

    def gaps(self, epoch: int) -> tuple[Gap, ...]:
        """Return the rows that are taken out of the order of an epoch, by their numbers."""
        text = self.settings.without
        return () if text is None else self.derived(("gaps", epoch), lambda: gaps_in(text, epoch))

    def num_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch."""
        return self.selected.num_rows - sum(gap.num_rows for gap in self.gaps(epoch))

    @property
    def counts_items(self) -> bool:
        """Whether lanes count the items that are delivered: rows, or packs of documents of known lengths."""
        return self.settings.stages is None or self.packs is not None

    def num_items(self, epoch: int, order_version: int = ORDER_VERSION) -> int:
        """Return the number of rows of an epoch, or of packs if documents have known lengths."""
        packs = self.packs
        if packs is None:
            return self.num_rows(epoch)
        key = ("packs", order_version, epoch) if self.epochs_vary else ("packs", order_version)
        return self.derived(key, lambda: self._pack_line(packs, order_version, epoch)[1].places.num_packs)

    def line_length(self, epoch: int, order_version: int = ORDER_VERSION) -> int:
        """Return the number of places of an epoch: its items, with those that are taken out of it."""
        return self.selected.num_rows if self.packs is None else self.num_items(epoch, order_version)

    @property
    def epochs_vary(self) -> bool:
        """Whether epochs have other numbers of items each, as packs of documents that come in another order."""
        packs = self.packs
        return packs is not None and self.settings.shuffle and packs.packing.depends_on_order(len(packs.lengths))

    def sharing(self, world_size: int, turns_per_batch: int) -> Sharing:
        """Return how ranks share lanes with these settings."""
        return Sharing(world_size, turns_per_batch, self.settings.remainder_for(world_size))

    def plan(self, progress: Progress) -> Plan:
        """Return the plan of an epoch in its current cut.

        Args:
            progress: Progress of an epoch that has been cut.
        """
        cut, sharing = current_cut(progress), progress.sharing
        key = (progress.order_version, progress.epoch, progress.earlier, cut.num_lanes, cut.turn_rows, *sharing[:2])
        plan = self._last_plan.get(key)
        if plan is None:
            current = EarlierCut(cut.num_lanes, cut.turn_rows, sharing)
            plan = self._replay(progress.order_version, progress.epoch, (*progress.earlier, current))
            self._last_plan.clear()
            self._last_plan[key] = plan
        return plan

    def _replay(self, version: int, epoch: int, cuts: tuple[EarlierCut, ...]) -> Plan:
        shards, num_rows = self.shards_in(version), self.selected.num_rows
        gaps, num_delivered = self.gaps(epoch), 0
        first, *others = cuts
        line = None
        if self.packs is None:
            division = divide(version, num_rows, first.num_lanes, first.turn_rows, first.sharing)
            windows, lanes = self._cut_epoch(version, division, epoch)
        else:
            windows, line = self._pack_line(self.packs, version, epoch)
            division = divide(version, line.places.num_packs, first.num_lanes, first.turn_rows, first.sharing)
            lanes = cut_again(line.packs, division)
        lanes_before, rows_before = [], [cut.rows() for cut in cuts[:-1]]
        known = [gaps if cut.gaps is None else cut.gaps for cut in cuts]
        lanes, division, places = close_gaps(lanes, division, known[0])
        for rows, cut, gaps_before, gaps in zip(rows_before, others, known[:-1], known[1:], strict=True):
            lanes_before.append(lanes)
            rest = lanes.undelivered(rows)
            num_delivered += lanes.num_rows - rest.num_rows
            division = divide(version, rest.num_rows, cut.num_lanes, cut.turn_rows, cut.sharing)
            lanes = cut_again(rest, division)
            lanes, division, places = close_gaps(lanes, division, gaps, gaps_before, num_delivered)
        before = tuple(lanes_before), tuple(rows_before)
        return Plan(self, epoch, shards, windows, lanes, division, places, *before, line)

    def _cut_epoch(self, version: int, division: Division, epoch: int) -> tuple[Windows, Lanes]:
        settings = self.settings
        return cut_epoch(
            self.shards_in(version),
            division,
            window_bytes=settings.window_bytes,
            shuffle=settings.shuffle,
            seed=settings.seed,
            epoch=epoch,
        )

    def _pack_line(self, known: KnownPacks, version: int, epoch: int) -> tuple[Windows, PackLine]:
        """Return the windows of an epoch whose rows are in one line, and the packs along it."""
        key = (version, epoch)
        if key not in self._last_line:
            division = EvenDivision(self.selected.num_rows, 1, 1)
            windows, rows = self._cut_epoch(version, division, epoch)
            plan = Plan(self, epoch, self.shards_in(version), windows, rows, division, {}, (), ())
            lengths = known.lengths[plan.rows_in_files()]
            places = self._counted_packs.get(key) or known.packing.places(lengths.astype(np.int64))
            # That of this epoch, and of the next one.
            for old in [*self._last_line][:-1]:
                del self._last_line[old]
            self._last_line[key] = windows, PackLine(rows, lengths, places, known.packing)
        return self._last_line[key]


@dataclass(frozen=True, eq=False)
class Plan:
    """An epoch in its current cut: a pure function of the identity and of the earlier cuts."""

    identity: Identity
    """The files and settings."""
    epoch: int
    """Zero-based."""
    shards: ShardTable
    """All shards, in file order, as the order of the epoch cuts them."""
    windows: Windows
    """The windows of the epoch, created by its first cut."""
    lanes: Lanes
    """The lanes of the current cut."""
    division: Division
    """How the current cut divides what the earlier ones left, without its gaps."""
    gaps: Mapping[Gap, Gap]
    """Each gap of the current cut, and where it was in its order, counted from the first row of the cut."""
    lanes_before: tuple[Lanes, ...]
    """The lanes of each earlier cut, oldest first."""
    rows_before: tuple[NDArray[np.int64], ...]
    """Rows delivered from the lanes of each earlier cut, each of shape (num_lanes of that cut,)."""
    line: PackLine | None = None
    """The packs that the lanes count in the place of rows; None: they count rows."""

    def of_rows(self, pieces: Mapping[int, list[PackPiece]]) -> Plan:
        """Return the plan of the rows of which lanes of packs are made.

        Args:
            pieces: Lane -> its packs, as `pieces` returns them.
        """
        if self.line is None:
            return self
        return replace(self, lanes=self.line.lanes_of(pieces, self.lanes.num_lanes), line=None)

    def pieces(self, lane: int, stop: int) -> list[PackPiece]:
        """Return the packs before `stop` of a lane, its padding included; none if lanes count rows."""
        return [] if self.line is None else self.line.pieces(self.lanes.segments(lane, 0, stop))

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """The first row of each shard, counted over the selected rows of all files, shape (num_shards,)."""
        return self.identity.selected.row_starts[self.shards.file_index] + self.shards.row_offset

    def rows_in_files(self) -> NDArray[np.int64]:
        """Return the number of each row of a line, counted over the selected rows of all files, in its order."""
        windows = self.windows
        starts = self.shard_starts[windows.shard] + windows.start
        found = []
        for window, (low, high) in enumerate(zip(windows.piece_starts[:-1], windows.piece_starts[1:], strict=True)):
            counts = windows.stop[low:high] - windows.start[low:high]
            before = np.cumsum(counts) - counts
            rows = np.repeat(starts[low:high] - before, counts) + np.arange(counts.sum())
            order = self.window_order(window)
            found.append(rows if order is None else rows[order])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def window_files(self, window: int) -> list[FileRange]:
        """Return the ranges of data files that make up a window, in the order before shuffling."""
        shards, windows = self.shards, self.windows
        pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
        shard = windows.shard[pieces]
        offset = shards.row_offset[shard]
        columns = (shards.file_index[shard], offset + windows.start[pieces], offset + windows.stop[pieces])
        return [FileRange(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def window_order(self, window: int) -> NDArray[np.int64] | None:
        """Return the order in which a window delivers its rows, int64 of shape (rows,), or None without shuffling."""
        if not self.identity.settings.shuffle:
            return None
        return window_order(int(self.windows.rows[window]), **self.window_key(window))

    def window_key(self, window: int) -> dict[str, int]:
        """Return what the order of a window depends on besides its number of rows; see `laneway.core.order`."""
        return {
            "seed": self.identity.settings.seed,
            "epoch": self.epoch,
            "lane": int(self.windows.lane[window]),
            "window": self.windows.index_in_lane(window),
        }

    def locate(self, segment: Segment, index: int) -> tuple[int, int]:
        """Return the index of the data file with row `index` of a segment, and which of its selected rows it is."""
        order = self.window_order(segment.window)
        row = segment.start + index if order is None else int(order[segment.start + index])
        for file_index, start, stop in self.window_files(segment.window):
            if row < stop - start:
                return file_index, start + row
            row -= stop - start
        message = f"row {index} is outside {segment}"
        raise IndexError(message)

    def completed_shards(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards that have been delivered completely.

        Args:
            rows: Rows delivered from each lane of the current cut, shape (num_lanes,).

        Returns:
            int64 array of shape (num_completed,): indices of the shards in file order.
        """
        if self.line is not None:
            return self._completed_by_packs(self.line, rows)
        delivered = np.zeros(len(self.shards), np.int64)
        windows = self.windows
        all_lanes, all_rows = (*self.lanes_before, self.lanes), (*self.rows_before, rows)
        for lanes in map(Lanes.delivered, all_lanes, all_rows):
            whole = (lanes.start == 0) & (lanes.stop == windows.rows[lanes.window])
            piece_rows = np.zeros(len(windows.shard), np.int64)
            is_whole = np.zeros(len(windows.lane), bool)
            is_whole[lanes.window[whole]] = True
            pieces_whole = np.repeat(is_whole, np.diff(windows.piece_starts))
            piece_rows[pieces_whole] = (windows.stop - windows.start)[pieces_whole]
            # Many lanes may share a window, so each window is put in order once.
            parts = np.flatnonzero(~whole)
            parts = parts[np.argsort(lanes.window[parts], kind="stable")]
            starts = np.flatnonzero(np.diff(lanes.window[parts], prepend=-1))
            for of_window in np.split(parts, starts[1:]) if len(parts) else ():
                window = int(lanes.window[of_window[0]])
                pieces = slice(windows.piece_starts[window], windows.piece_starts[window + 1])
                ends = np.cumsum(windows.stop[pieces] - windows.start[pieces])
                order = self.window_order(window)
                ranges = [np.arange(lanes.start[i], lanes.stop[i]) for i in of_window]
                taken = np.concatenate(ranges)
                piece = np.searchsorted(ends, taken if order is None else order[taken], side="right")
                piece_rows[pieces] += np.bincount(piece, minlength=len(ends))
            np.add.at(delivered, windows.shard, piece_rows)
        return np.flatnonzero(delivered >= self.shards.row_length)

    def _completed_by_packs(self, line: PackLine, packs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards of which all packs have been delivered; see `completed_shards`."""
        done = [*map(Lanes.delivered, (*self.lanes_before, self.lanes), (*self.rows_before, packs))]
        segments = [each for lanes in done for each in zip(lanes.start.tolist(), lanes.stop.tolist(), strict=True)]
        finished = np.zeros(len(line.lengths), bool)
        finished[self.rows_in_files()] = line.finished_rows(segments)
        counts = np.concatenate([[0], np.cumsum(finished)])
        starts, lengths = self.shard_starts, self.shards.row_length
        return np.flatnonzero(counts[starts + lengths] - counts[starts] == lengths)

"""What the ranks of a job read of an epoch, and what a worker holds in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from laneway.reading.windows import REQUEST_BYTES, num_window_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.division import Sharing
    from laneway.core.plan import Plan
    from laneway.delivery.dataset_definition import DatasetDefinition

_DECODING: Final = 3
"""Memory to decode a block, in multiples of its decoded size."""


class StartUp(NamedTuple):
    """What a rank reads before all of its lanes can deliver: the first window of each."""

    files: int
    """Data files that it opens."""
    blocks: int
    """Row groups that it reads, each time that it reads them."""
    num_bytes: int
    """About how many bytes of the files these are."""


@dataclass(frozen=True, eq=False)
class Costs:
    """What reading the current cut of an epoch of a dataset costs."""

    definition: DatasetDefinition
    """The dataset."""
    plan: Plan
    """The epoch."""

    def bytes_of_ranks(self, starts: NDArray[np.int64], ends: NDArray[np.int64], sharing: Sharing) -> list[int]:
        """Return about how many bytes of the files each rank reads to deliver rows of lanes.

        A row group is read as a whole, and again by each window and each lane that has rows of it.

        Args:
            starts: Rows, or packs, that were delivered from each lane before, shape (num_lanes,).
            ends: Those that have been delivered from each lane at the end, shape (num_lanes,).
            sharing: How ranks share the lanes.
        """
        return _bytes_of_ranks(*self._of_rows(starts, ends), sharing)

    def start_up(self, starts: NDArray[np.int64], ends: NDArray[np.int64], sharing: Sharing) -> list[StartUp]:
        """Return what each rank reads for the first window of each of its lanes; see `bytes_of_ranks`."""
        plan, starts, ends = self._of_rows(starts, ends)
        windows, lanes, shards = plan.windows, plan.lanes, plan.shards
        lane = np.flatnonzero(starts < np.minimum(ends, lanes.rows))
        line = lanes.row_starts[lanes.segment_starts[lane]]
        segment = np.searchsorted(lanes.row_starts, line + starts[lane], side="right") - 1
        first_ends = starts.copy()
        first_ends[lane] = np.minimum(lanes.row_starts[segment + 1] - line, ends[lane])
        window = lanes.window[segment]
        counts = windows.piece_starts[window + 1] - windows.piece_starts[window]
        piece = np.repeat(windows.piece_starts[window] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        start, stop = windows.start[piece], windows.stop[piece]
        if not plan.identity.settings.shuffle:
            # Each window is one piece, of which the segment is a part.
            delivered = line + starts[lane] - lanes.row_starts[segment]
            start, stop = start + lanes.start[segment] + delivered, start + lanes.stop[segment]
        shard = windows.shard[piece]
        first, last = _blocks_of_rows(plan, shard, start, stop)
        has_rows = np.concatenate([[0], np.cumsum(plan.identity.selected.block_rows > 0)])
        rank = np.repeat(lane // sharing.turns_per_batch % sharing.world_size, counts)
        blocks = np.bincount(rank, weights=has_rows[last] - has_rows[first], minlength=sharing.world_size)
        opened = np.unique(rank * len(shards.paths) + shards.file_index[shard]) // max(len(shards.paths), 1)
        files = np.bincount(opened, minlength=sharing.world_size)
        read = _bytes_of_ranks(plan, starts, first_ends, sharing)
        columns = (files.tolist(), blocks.astype(np.int64).tolist(), read)
        return [StartUp(*each) for each in zip(*columns, strict=True)]

    def _of_rows(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[Plan, NDArray[np.int64], NDArray[np.int64]]:
        """Return the plan of the rows that lanes deliver, and rows of each lane in the place of packs."""
        plan, line = self.plan, self.plan.line
        if line is None:
            return plan, starts, ends
        ranges = enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
        pieces = {lane: line.pieces(plan.lanes.segments(lane, start, stop)) for lane, (start, stop) in ranges}
        of_rows = plan.of_rows(pieces)
        return of_rows, np.zeros_like(starts), of_rows.lanes.rows

    def worker_memory(self, lanes_per_worker: int, num_workers: int) -> int:
        """Return the bytes of decoded rows that a worker holds at most; see docs/explanation/performance.md."""
        definition, plan = self.definition, self.plan
        settings, files, is_remote = plan.identity.settings, plan.identity.files, not definition.storage.is_local
        largest = int(files.block_memory_bytes.max(initial=0))
        block = max(largest, REQUEST_BYTES if is_remote else settings.shard_bytes)
        window, assembled = max(settings.shard_bytes, largest), 0
        if settings.shuffle:
            windows, shards = plan.windows, plan.shards
            rows, whole = windows.stop - windows.start, shards.row_length[windows.shard]
            sizes, parts = shards.num_bytes[windows.shard].astype(np.float64), np.flatnonzero(rows != whole)
            sizes[parts] *= rows[parts] / whole[parts]
            ends = np.concatenate([[0.0], np.cumsum(sizes)])[windows.piece_starts]
            window = assembled = int(np.diff(ends).max(initial=0))
        ahead = 1 + definition.prefetch_windows
        threads = num_window_threads(num_workers, is_remote=is_remote)
        return lanes_per_worker * ahead * window + threads * (assembled + _DECODING * block)


def _bytes_of_ranks(plan: Plan, starts: NDArray[np.int64], ends: NDArray[np.int64], sharing: Sharing) -> list[int]:
    """Return about how many bytes of the files each rank reads; see `Costs.bytes_of_ranks`."""
    windows, lanes = plan.windows, plan.lanes.between(starts, ends)
    if plan.identity.settings.shuffle:
        of_pieces = _bytes_of(plan, windows.shard, windows.start, windows.stop)
        sizes = np.diff(_before(of_pieces)[windows.piece_starts])[lanes.window]
    else:
        # Each window is one piece.
        offset = windows.start[lanes.window]
        sizes = _bytes_of(plan, windows.shard[lanes.window], offset + lanes.start, offset + lanes.stop)
    rank = np.arange(lanes.num_lanes) // sharing.turns_per_batch % sharing.world_size
    of_segments = np.repeat(rank, np.diff(lanes.segment_starts))
    found = np.bincount(of_segments, weights=sizes, minlength=sharing.world_size)
    return [*map(int, found.tolist())]


def _bytes_of(
    plan: Plan, shard: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the bytes in the files of the blocks that hold rows [start, stop) of some shards."""
    shards = plan.shards
    # Most pieces are whole shards.
    ends = plan.identity.derived("stored bytes before blocks", lambda: _stored_bytes(plan))
    found: NDArray[np.float64] = np.diff(ends[shards.first_block], append=ends[-1])[shard]
    parts = np.flatnonzero((start > 0) | (stop < shards.row_length[shard]))
    first, last = _blocks_of_rows(plan, shard[parts], start[parts], stop[parts])
    found[parts] = ends[last] - ends[first]
    return found


def _blocks_of_rows(
    plan: Plan, shard: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first block that holds rows [start, stop) of some shards, and one past the last one."""
    selected, shards = plan.identity.selected, plan.shards
    before, blocks = selected.row_starts[shards.file_index[shard]] + shards.row_offset[shard], selected.block_row_starts
    first = np.searchsorted(blocks, before + start, side="right") - 1
    return first, np.searchsorted(blocks, before + stop, side="left")


def _stored_bytes(plan: Plan) -> NDArray[np.float64]:
    """Return the bytes in the files before each block, of blocks with selected rows, shape (num_blocks + 1,)."""
    files = plan.identity.files
    encoded = np.diff(_before(files.block_bytes)[files.block_starts])
    # Blocks are compressed, by about as much as their file.
    sizes = np.repeat(files.sizes / np.maximum(encoded, 1), np.diff(files.block_starts))
    sizes *= files.block_bytes
    sizes[plan.identity.selected.block_rows <= 0] = 0
    return _before(sizes)


def _before(sizes: NDArray[np.integer] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of the sizes before each item, shape (num_items + 1,)."""
    found = np.zeros(len(sizes) + 1)
    np.cumsum(sizes, out=found[1:])
    return found

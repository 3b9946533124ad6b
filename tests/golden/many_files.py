"""Orders of datasets of many files, from file tables alone: how lanes and windows are cut where sizes are odd.

In a dataset of small files, the number of files in a window is limited, not their bytes. The numbers of files and lanes
below are such that a limit of one more or one fewer cuts other windows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.core.cutting import cut_again, cut_epoch
from laneway.core.division import Division, Sharing, divide
from laneway.core.files import FileTable
from laneway.core.order import ORDER_VERSION, window_order
from laneway.core.shards import cut_shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.core.lanes import Lanes, Remainder, Windows
    from laneway.core.shards import ShardTable

SEED = 23
NUM_EPOCHS = 2
TURN_ROWS = 4
_REMAINDERS: tuple[Remainder, ...] = ("pad", "drop", "keep")

CASES: dict[str, dict[str, Any]] = {
    "1020 small files": {"num_files": 1020, "mean_rows": 5, "window_bytes": 2**20, "lanes": [1, 4, 8]},
    "900 small files": {"num_files": 900, "mean_rows": 5, "window_bytes": 2**20, "lanes": [1, 7, 64]},
    "1024 small files, an odd size": {"num_files": 1024, "mean_rows": 5, "window_bytes": 1_000_001, "lanes": [1, 2]},
    "tiny rows": {"num_files": 60, "mean_rows": 6, "window_bytes": 19, "lanes": [3, 17, 41], "row_bytes": 1},
    "small and large files": {"num_files": 300, "mean_rows": 40, "window_bytes": 9_973, "lanes": [1, 2, 13]},
    "more lanes than files": {"num_files": 3, "mean_rows": 9, "window_bytes": 1_000, "lanes": [5, 31]},
}


def file_table(num_files: int, mean_rows: int, row_bytes: int) -> FileTable:
    """Return a table of files of 1 to `2 * mean_rows` rows, every 7th of them in two blocks, every 11th empty."""
    blocks = []
    for index in range(num_files + num_files // 10):
        rows = 1 + index * 7_919 % (2 * mean_rows)
        counts = [] if index % 11 == 10 else [rows, rows // 2 + 1] if index % 7 == 3 else [rows]
        blocks.append((counts, [count * (row_bytes + index % 5) + index % 3 for count in counts]))
    names = [f"part-{index:05}.parquet" for index in range(len(blocks))]
    return FileTable.build(names, [1] * len(blocks), [""] * len(blocks), blocks, "")


def rows_of_window(
    files: FileTable, shards: ShardTable, windows: Windows, window: int, epoch: int
) -> NDArray[np.int64]:
    """Return the rows of a window, numbered over all files, in the order of delivery."""
    pieces = range(windows.piece_starts[window], windows.piece_starts[window + 1])
    first_rows = files.block_row_starts[files.block_starts[:-1]]
    rows = []
    for piece in pieces:
        shard = windows.shard[piece]
        start = first_rows[shards.file_index[shard]] + shards.row_offset[shard]
        rows.append(np.arange(start + windows.start[piece], start + windows.stop[piece]))
    found = np.concatenate(rows)
    index, lane = windows.index_in_lane(window), int(windows.lane[window])
    return found[window_order(len(found), seed=SEED, epoch=epoch, lane=lane, window=index)]


def describe(lanes: Lanes, division: Division, rows: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Return what is frozen of a cut: its segments, lengths and remainders, a digest of its order and parts of it."""
    order = [
        rows[window][start:stop] for window, start, stop in zip(lanes.window, lanes.start, lanes.stop, strict=True)
    ]
    line = np.concatenate(order)
    lengths = [
        division.ends(remainder, drop_last=drop_last) for remainder in _REMAINDERS for drop_last in (False, True)
    ]
    return {
        "segments": np.diff(lanes.segment_starts).tolist(),
        "rows": lanes.rows.tolist(),
        "delivered": [int(each.sum()) for each in lengths],
        "digest": hashlib.blake2b(line.astype("<i8").tobytes(), digest_size=16).hexdigest(),
        "first": line[:24].tolist(),
        "last": line[-24:].tolist(),
    }


def orders(case: str, version: int = ORDER_VERSION) -> dict[str, Any]:
    """Return what is frozen of a case: for each epoch and number of lanes, the first cut and a later one.

    Args:
        case: One of `CASES`.
        version: Order version.
    """
    arguments = CASES[case]
    files = file_table(arguments["num_files"], arguments["mean_rows"], arguments.get("row_bytes", 17))
    shards = cut_shards(files, files.block_bytes, shard_bytes=2**16)
    found = {}
    for epoch in range(NUM_EPOCHS):
        for num_lanes in arguments["lanes"]:
            first = divide(version, files.num_rows, num_lanes, TURN_ROWS, Sharing(num_lanes))
            windows, lanes = cut_epoch(
                shards,
                first,
                window_bytes=arguments["window_bytes"],
                shuffle=True,
                seed=SEED,
                epoch=epoch,
            )
            rows = [rows_of_window(files, shards, windows, window, epoch) for window in range(len(windows.lane))]
            rest = lanes.undelivered(lanes.rows * 2 // 5)
            second = divide(version, rest.num_rows, num_lanes + 2, TURN_ROWS, Sharing(num_lanes + 2))
            found[f"epoch {epoch}, {num_lanes} lanes"] = {
                "pieces": np.diff(windows.piece_starts).tolist(),
                "cut": describe(lanes, first, rows),
                "cut again": describe(cut_again(rest, second), second, rows),
            }
    return found

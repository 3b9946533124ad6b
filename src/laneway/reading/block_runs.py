"""What is read at once when all rows of some blocks are read, by threads: runs of neighbouring blocks of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from laneway.core.files import FileTable

_RUN_BYTES: Final = 64 << 20
"""Most bytes of a run, if all columns of its blocks were read."""
_REMOTE_THREADS: Final = 16
_LOCAL_THREADS: Final = 4


def num_reading_threads(*, is_remote: bool) -> int:
    """Return how many threads read runs at a time."""
    return _REMOTE_THREADS if is_remote else _LOCAL_THREADS


def block_runs(
    files: FileTable, is_wanted: NDArray[np.bool_], kinds: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield file, first block and one past the last block, counted in the file, of each run.

    Args:
        files: The data files.
        is_wanted: The blocks to read, bool of shape (num_blocks,).
        kinds: Of each block, a kind; a run has blocks of one kind only. None: all are of one.
    """
    blocks = np.flatnonzero(is_wanted)
    file_of = np.searchsorted(files.block_starts, blocks, side="right") - 1
    sizes = files.block_memory_bytes[blocks]
    is_cut = (np.diff(blocks) != 1) | (np.diff(file_of) != 0)
    if kinds is not None:
        is_cut |= kinds[blocks[1:]] != kinds[blocks[:-1]]
    cuts, bytes_of = [*is_cut.tolist(), True], sizes.tolist()
    start, num_bytes = 0, 0
    for stop, is_last in enumerate(cuts[: len(blocks)], start=1):
        num_bytes += bytes_of[stop - 1]
        if is_last or num_bytes + bytes_of[stop] > _RUN_BYTES:
            file_index = int(file_of[start])
            base = int(files.block_starts[file_index])
            yield file_index, int(blocks[start]) - base, int(blocks[stop - 1]) + 1 - base
            start, num_bytes = stop, 0

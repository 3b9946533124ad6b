"""Parts of a range of rows: a few blocks each, so that reading a part takes a bounded amount of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.plan import FileRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from laneway.core.files import FileTable


class Part(NamedTuple):
    """Rows of a data file that are read at once."""

    rows: FileRange
    """The rows."""
    num_bytes: int
    """Estimated bytes of the blocks that hold them, once they are decoded."""
    is_whole: bool
    """Whether all rows of these blocks belong to the part."""


def cut_at_blocks(
    files: FileTable, rows: FileRange, max_bytes: int, sizes_of: Callable[[slice], NDArray[np.int64]]
) -> list[Part]:
    """Cut a range of rows at the bounds of blocks.

    Args:
        files: The data files.
        rows: Rows of one of them, not empty.
        max_bytes: Maximum of `Part.num_bytes`; a block that is larger is a part of its own.
        sizes_of: Returns the bytes of consecutive blocks, counted over all files, once they are decoded.

    Returns:
        The parts, in order.
    """
    file_index, start, stop = rows
    blocks = slice(files.block_starts[file_index], files.block_starts[file_index + 1])
    bounds = files.block_row_starts[blocks.start : blocks.stop + 1]
    offset = int(bounds[0])
    first = int(np.searchsorted(bounds, offset + start, side="right")) - 1
    end = int(np.searchsorted(bounds, offset + stop, side="left"))
    block_bounds = (bounds[first : end + 1] - offset).tolist()
    # A block without rows is not read.
    of_parts = slice(blocks.start + first, blocks.start + end)
    sizes = (sizes_of(of_parts) * (files.block_rows[of_parts] > 0)).tolist()
    parts: list[Part] = []
    part_first, num_bytes = 0, 0
    for i, size in enumerate([*sizes, max_bytes + 1]):
        if i > part_first and num_bytes + size > max_bytes:
            part_start, part_stop = block_bounds[part_first], block_bounds[i]
            wanted = FileRange(file_index, max(start, part_start), min(stop, part_stop))
            is_whole = wanted.start == part_start and wanted.stop == part_stop
            parts.append(Part(wanted, num_bytes, is_whole))
            part_first, num_bytes = i, 0
        num_bytes += size
    return parts

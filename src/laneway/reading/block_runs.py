"""What is read at once when all rows of some blocks are read, by threads: runs of neighbouring blocks of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from laneway.core.files import FileTable

_RUN_BYTES: Final = 64 << 20
"""Most bytes of a run, as if all columns of its blocks were read."""
_KNOWN_RUN_BYTES: Final = 16 << 20
"""Most bytes of a run if the widths of its columns are known: enough that what a run costs by itself is little."""
_REMOTE_THREADS: Final = 16
_LOCAL_THREADS: Final = 4


def num_reading_threads(*, is_remote: bool) -> int:
    """Return how many threads read runs at a time."""
    return _REMOTE_THREADS if is_remote else _LOCAL_THREADS


def row_bits(types: Iterable[pa.DataType]) -> int | None:
    """Return the bits that a row of these columns takes in memory, or None if a column has values of any length."""
    num_bits = 0
    for each in types:
        found = _value_bits(each)
        if found is None:
            return None
        num_bits += found
    return num_bits


def _value_bits(data_type: Any) -> int | None:  # noqa: ANN401 - the stubs of pyarrow don't know the width of a type
    """Return the bits that a value takes, with the one that tells whether it is null."""
    if pa.types.is_fixed_size_list(data_type):
        found = _value_bits(data_type.value_type)
        return None if found is None else found * data_type.list_size + 1
    if pa.types.is_primitive(data_type) or pa.types.is_decimal(data_type):
        return int(data_type.bit_width) + 1
    return None


def block_runs(
    files: FileTable, schema: pa.Schema, is_wanted: NDArray[np.bool_], kinds: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield file, first block and one past the last block, counted in the file, of each run.

    Args:
        files: The data files.
        schema: The columns that are read.
        is_wanted: The blocks to read, bool of shape (num_blocks,).
        kinds: Of each block, a kind; a run has blocks of one kind only. None: all are of one.
    """
    blocks = np.flatnonzero(is_wanted)
    file_of = np.searchsorted(files.block_starts, blocks, side="right") - 1
    bits = row_bits(schema.types)
    sizes = files.block_memory_bytes[blocks] if bits is None else files.block_rows[blocks] * bits // 8
    most = _RUN_BYTES if bits is None else _KNOWN_RUN_BYTES
    is_cut = (np.diff(blocks) != 1) | (np.diff(file_of) != 0)
    if kinds is not None:
        is_cut |= kinds[blocks[1:]] != kinds[blocks[:-1]]
    cuts, bytes_of = [*is_cut.tolist(), True], sizes.tolist()
    start, num_bytes = 0, 0
    for stop, is_last in enumerate(cuts[: len(blocks)], start=1):
        num_bytes += bytes_of[stop - 1]
        if is_last or num_bytes + bytes_of[stop] > most:
            file_index = int(file_of[start])
            base = int(files.block_starts[file_index])
            yield file_index, int(blocks[start]) - base, int(blocks[stop - 1]) + 1 - base
            start, num_bytes = stop, 0

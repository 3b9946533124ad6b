"""Planning a selection: how many rows of each block the steps select, as far as possible without reading the block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from laneway.core.selection import Selection
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from laneway.reading.steps import RowSelection, Run, Slice, select

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from laneway.catalog.manifest import Manifest
    from laneway.reading.steps import Step
    from laneway.storage.filesystem import Storage


def selected_rows(manifest: Manifest, selection: RowSelection | None) -> NDArray[np.int64]:
    """Return how many rows of each block are selected, shape (num_blocks,)."""
    return manifest.files.block_rows if selection is None else selection.counts.block_rows


def slice_of(manifest: Manifest, selection: RowSelection | None, start: int, stop: int) -> Slice:
    """Return the step that selects rows [start, stop) of those that are left, counted in the order of the files."""
    ends = np.cumsum(selected_rows(manifest, selection))
    num_rows = int(ends[-1]) if len(ends) else 0
    start, stop = min(start, num_rows), min(stop, num_rows)
    if start >= stop:
        return Slice(start, start, (len(ends), 0), (-1, 0))
    starts = np.concatenate([[0], ends])
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    return Slice(start, stop, (first, start - int(starts[first])), (last, stop - int(starts[last])))


def extend(
    manifest: Manifest, storage: Storage, selection: RowSelection | None, step: Step, schema: pa.Schema | None
) -> RowSelection:
    """Return a selection with one more step, after counting what it selects.

    Args:
        manifest: The files.
        storage: Where they are.
        selection: The rows that the step chooses from; None: all.
        step: The step.
        schema: Types of columns that the user gave; see `select_columns`.
    """
    before = () if selection is None else selection.steps
    steps = (*before, step)
    names = list(dict.fromkeys(name for each in steps for name in each.columns))
    given = None if schema is None or not {*names} <= {*schema.names} else schema
    columns = select_columns(manifest, names, given) if names else select_columns(manifest, [])
    counts = _counts(manifest, storage, selection, steps, columns)
    text = " | ".join(each.text for each in steps)
    return RowSelection(steps, columns, Selection(text, counts))


def _counts(
    manifest: Manifest, storage: Storage, selection: RowSelection | None, steps: tuple[Step, ...], columns: pa.Schema
) -> NDArray[np.int64]:
    left, step = selected_rows(manifest, selection), steps[-1]
    if isinstance(step, Slice):
        return _counts_of_slice(left, step)
    counts = left.copy()
    files = manifest.files
    reader = RowReader(manifest, storage, columns)
    for file_index in range(files.num_files):
        first, stop = int(files.block_starts[file_index]), int(files.block_starts[file_index + 1])
        for block in range(first, stop):
            if left[block] == 0:
                continue
            run = Run.of(manifest, file_index, block - first, block - first + 1)
            rows = reader.read(file_index, run.first_row, run.first_row + run.num_rows)
            counts[block] = np.count_nonzero(select(steps, rows, run))
    return counts


def _counts_of_slice(left: NDArray[np.int64], step: Slice) -> NDArray[np.int64]:
    ends = np.cumsum(left)
    found: NDArray[np.int64] = np.clip(ends, step.start, step.stop) - np.clip(ends - left, step.start, step.stop)
    return found

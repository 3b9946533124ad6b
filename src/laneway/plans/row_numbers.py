"""Row numbers in files of the rows that a plan counts: if rows are selected, what the selection looks at is read."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from laneway.core.pack_rows import find_packs, packed_rows
from laneway.core.places import find_row
from laneway.reading.selected import SelectedReader
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from laneway.core.cursor import LaneRange
    from laneway.core.files import FileTable
    from laneway.core.pack_line import PackLine
    from laneway.core.places import FileRows, LaneRow
    from laneway.core.plan import Plan
    from laneway.delivery.dataset_definition import DatasetDefinition

_NUM_BLOCKS = 256
"""Blocks whose masks are remembered."""


class RowNumbers:
    """Translates between the rows that a plan counts and those of the files, of one dataset."""

    def __init__(self, definition: DatasetDefinition) -> None:
        """Prepare for the rows of a dataset."""
        selection, self._reader = definition.selection, None
        if selection is not None:
            self._reader = SelectedReader(definition.manifest, definition.storage, pa.schema([]), None, selection)
            self._rows_of_block = lru_cache(_NUM_BLOCKS)(self._reader.rows_of_block)
        self._files = definition.manifest.files

    def named(self, rows: FileRows) -> list[tuple[str, int]]:
        """Return (path, number in the file) of rows that a plan counts."""
        paths = self._files.paths
        numbers = self._in_files(rows).tolist()
        return [(paths[index], row) for index, row in zip(rows.file_index.tolist(), numbers, strict=True)]

    def documents(
        self, plan: Plan, line: PackLine, ranges: Sequence[LaneRange]
    ) -> list[tuple[str, int, int, int, int]]:
        """Return (path, number in the file, first token, one past the last one, pack) of the documents of packs."""
        found = packed_rows(plan, line, ranges)
        tokens = zip(found.start.tolist(), found.stop.tolist(), found.pack.tolist(), strict=True)
        return [(*row, *of_row) for row, of_row in zip(self.named(found.rows), tokens, strict=True)]

    def find(self, plan: Plan, ends: NDArray[np.int64], path: str, row: int) -> list[LaneRow]:
        """Return where a row of a file, or the packs that have tokens of it, are in the lanes of a plan.

        Raises:
            ValueError: There is no such file or row, or it is not selected.
        """
        file_index = find_file(self._files, path, [row])
        in_plan = self._in_plan(file_index, row)
        if in_plan is None:
            message = f"row {row:,} of {path} is not selected, so no epoch of this dataset has it"
            raise ValueError(message)
        line = plan.line
        if line is None:
            return find_row(plan, ends, file_index, in_plan)
        return find_packs(plan, line, ends, file_index, in_plan)

    def _in_files(self, rows: FileRows) -> NDArray[np.int64]:
        """Return the numbers in their files of rows that a plan counts, shape (rows,)."""
        reader = self._reader
        if reader is None:
            return rows.row
        found = np.empty_like(rows.row)
        for file_index in np.unique(rows.file_index).tolist():
            starts = reader.starts(file_index)
            places = np.flatnonzero(rows.file_index == file_index)
            blocks = np.searchsorted(starts, rows.row[places], side="right") - 1
            for block in np.unique(blocks).tolist():
                of_block = places[blocks == block]
                found[of_block] = self._rows_of_block(file_index, block)[rows.row[of_block] - starts[block]]
        reader.close()
        return found

    def _in_plan(self, file_index: int, row: int) -> int | None:
        """Return as which row of its file a plan counts a row of a file; None: it is not selected."""
        reader, files = self._reader, self._files
        if reader is None:
            return row
        first, stop = files.block_starts[file_index : file_index + 2]
        bounds = files.block_row_starts[first : stop + 1] - files.block_row_starts[first]
        block = int(np.searchsorted(bounds, row, side="right")) - 1
        starts = reader.starts(file_index)
        if starts[block] == starts[block + 1]:
            return None
        rows = self._rows_of_block(file_index, block)
        reader.close()
        index = int(np.searchsorted(rows, row))
        return int(starts[block]) + index if index < len(rows) and rows[index] == row else None


class SourceNumbers:
    """The same for a source of a mixture, which may have had fewer files before."""

    def __init__(self, definition: DatasetDefinition) -> None:
        """Prepare for the rows of a source."""
        self._definition = definition
        self._numbers: dict[int, RowNumbers] = {}

    def of(self, plan: Plan) -> RowNumbers:
        """Return the row numbers of an epoch."""
        definition = self._definition.of(plan.identity)
        return self._numbers.setdefault(id(definition), RowNumbers(definition))

    def find(self, plan: Plan, ends: NDArray[np.int64], path: str, row: int) -> list[LaneRow]:
        """Return where a row is in the lanes of an epoch: nowhere, if its file was added later; see `RowNumbers.find`.

        Raises:
            ValueError: There is no such file or row, or it is not selected.
        """
        if self._definition.of(plan.identity) is not self._definition:
            find_file(self._definition.manifest.files, path, [row])
            if not _look_up(plan.identity.files.paths, path)[1]:
                return []
        return self.of(plan).find(plan, ends, path, row)


def _look_up(paths: Sequence[str], path: str) -> tuple[int, bool]:
    """Return where a path is among sorted ones, or would be, and whether it is there."""
    index = bisect_left(paths, path)
    return index, index < len(paths) and paths[index] == path


def find_file(files: FileTable, path: str, rows: Iterable[int]) -> int:
    """Return the index of a file, checked to have some rows.

    Args:
        files: The data files.
        path: Path relative to the dataset's root.
        rows: Numbers of rows in the file.

    Raises:
        ValueError: There is no such file or row.
    """
    index, is_there = _look_up(files.paths, path)
    if not is_there:
        near = [files.paths[i] for i in range(max(0, index - 1), min(index + 2, files.num_files))]
        message = (
            f"there is no file {path!r} among the {files.num_files:,} of this dataset: give its path relative to the "
            f"dataset's root, such as {near[0]!r}"
        )
        raise ValueError(message)
    num_rows = int(files.rows[index])
    for row in rows:
        if not 0 <= row < num_rows:
            message = f"there is no row {row:,} of {path}: it has {counted(num_rows, 'row')}"
            raise ValueError(message)
    return index

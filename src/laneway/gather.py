"""Rows in memory that are handed out in slices, and how those of several runs are put in another order.

Numbers are copied to their places as soon as a run has been read, so that a window is held once; neighbouring columns
of one dtype share an array, so that they are sent together. All other columns stay Arrow's: they are put
together and taken in order when all runs are there.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from laneway.columns import CONVERSION_ERRORS, NullFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.columns import ToStored


class Block(NamedTuple):
    """Numbers of neighbouring columns of one dtype and shape."""

    names: tuple[str, ...]
    """The columns."""
    values: NDArray[Any]
    """Of shape (columns, rows, *shape of one value)."""

    def slice(self, start: int, stop: int) -> Block:
        """Return rows [start, stop), without a copy."""
        return Block(self.names, self.values[:, start:stop])


@dataclass(frozen=True, slots=True)
class OpenRows:
    """Rows that are handed out in slices."""

    num_rows: int
    """How many."""
    blocks: tuple[Block, ...]
    """Columns of numbers, in the order of the schema and of the rows."""
    rest: pa.RecordBatch | None
    """The other columns, and maybe more; None: there are none."""


class NotAtOnceError(Exception):
    """Not all numbers of a column can be converted: some of its rows are an error, when they are asked for."""


class Gathering:
    """Rows of several runs on their way to one order. Runs may come in any order, and from several threads."""

    def __init__(self, at_once: Mapping[str, ToStored], order: NDArray[np.int64], run_rows: Sequence[int]) -> None:
        """Wait for runs.

        Args:
            at_once: Column -> what makes an array of its numbers, in the order of the schema.
            order: The row of the runs, counted over all of them, that comes at each place; shape (rows,).
            run_rows: Rows of each run.
        """
        self._at_once = at_once
        self._order = order
        self._starts = np.concatenate([[0], np.cumsum(run_rows, dtype=np.int64)])
        self._places = np.full(self._starts[-1], -1)
        self._places[order] = np.arange(len(order))
        self._is_whole = len(order) == len(self._places)
        self._rest: list[pa.Table | None] = [None] * len(run_rows)
        self._blocks: tuple[Block, ...] | None = None
        self._num_missing = len(run_rows)
        self._lock = threading.Lock()

    def put(self, run_index: int, table: pa.Table) -> bool:
        """Take the rows of a run, and tell whether it was the last one.

        Raises:
            NotAtOnceError: A null, or a value that can't be converted, is among the numbers.
        """
        start = int(self._starts[run_index])
        columns = [table.column(name).chunks for name in self._at_once]
        for chunks in zip(*columns, strict=True):
            self._put_numbers(start, chunks)
            start += len(chunks[0])
        rest = [name for name in table.column_names if name not in self._at_once]
        self._rest[run_index] = table.select(rest) if rest else None
        with self._lock:
            self._num_missing -= 1
            return not self._num_missing

    def _put_numbers(self, start: int, chunks: Sequence[pa.Array[Any]]) -> None:
        try:
            found = [to_array(chunk) for to_array, chunk in zip(self._at_once.values(), chunks, strict=True)]
        except (NullFoundError, *CONVERSION_ERRORS):
            raise NotAtOnceError from None
        with self._lock:
            if self._blocks is None:
                self._blocks = tuple(_blocks(dict(zip(self._at_once, found, strict=True)), len(self._order)))
        places = self._places[start : start + len(chunks[0])]
        is_wanted = None if self._is_whole else places >= 0
        if is_wanted is not None:
            places = places[is_wanted]
        values = iter(found)
        for block in self._blocks:
            for into in block.values:
                numbers = next(values)
                into[places] = numbers if is_wanted is None else numbers[is_wanted]

    def finish(self) -> list[OpenRows]:
        """Return all rows; several parts only where a column is too long for one."""
        num_rows, blocks = len(self._order), self._blocks or ()
        runs = [run for run in self._rest if run is not None]
        self._rest.clear()
        if not runs:
            return [OpenRows(num_rows, blocks, None)]
        table = pa.concat_tables(runs)
        runs.clear()
        order = cast("pa.Int64Array", pa.array(self._order))
        batches = table.take(order).combine_chunks().to_batches()
        starts = accumulate((len(batch) for batch in batches), initial=0)
        return [
            OpenRows(len(batch), tuple(block.slice(start, start + len(batch)) for block in blocks), batch)
            for start, batch in zip(starts, batches, strict=False)
        ]


def _blocks(columns: dict[str, NDArray[Any]], num_rows: int) -> list[Block]:
    """Return blocks, not filled yet, for columns like these."""
    blocks = []
    for (dtype, shape), names in groupby(columns, lambda name: (columns[name].dtype, columns[name].shape[1:])):
        alike = tuple(names)
        blocks.append(Block(alike, np.empty((len(alike), num_rows, *shape), dtype)))
    return blocks

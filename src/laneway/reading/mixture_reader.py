"""Reads rows of the lanes of a mixture: blocks of rows of all sources, put in the order of the mixture at once."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from laneway.convert.arrays import record_batch, take_rows
from laneway.convert.open_rows import OpenRows
from laneway.core.cursor import LaneRange
from laneway.reading.assembler import empty_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from laneway.convert.batches import BatchConverter
    from laneway.core.mixing import LaneMixing, SourceRows
    from laneway.core.mixtures import MixturePlan
    from laneway.core.plan import Plan
    from laneway.metering import Meter
    from laneway.reading.lane_reader import LaneReader
    from laneway.reading.threads import Caller

_BLOCK_BYTES = 16 << 20
"""Target size of a block in memory."""
_BLOCK_ROWS = 1 << 18
"""Maximum rows of a block."""
_MAX_TAKEN_BYTES = 64
"""Rows of a column with at most so many bytes are joined and then put in order: faster, but they are copied twice."""
_MIXED_ROWS = 1 << 10
"""Maximum rows of a block of rows whose columns differ."""
_STEP_ROWS = 64
"""Rows of the first block of a lane that is read as far as rows are in memory."""


class _Part(NamedTuple):
    """Rows of one source, and their places in a block."""

    rows: OpenRows
    places: NDArray[np.int64]


class _Block(NamedTuple):
    """Consecutive rows of a lane, in memory."""

    start: int
    """Its first row, counted in the lane."""
    stop: int
    """One past its last row."""
    rows: OpenRows | None
    """The rows; None: they can't be put in one place, as if a value can't be converted."""
    parts: list[_Part]
    """Then, the rows of each source."""

    def slice(self, start: int, stop: int) -> list[OpenRows]:
        """Return rows [start, stop), counted in the lane."""
        if self.rows is not None:
            numbers, rest, _, _ = self.rows
            return [OpenRows(numbers, rest, start - self.start, stop - self.start)]
        found: list[tuple[int, OpenRows]] = []
        for rows, places in self.parts:
            first, end = np.searchsorted(places, [start - self.start, stop - self.start]).tolist()
            found += [(int(places[index]), rows.slice(index, index + 1)) for index in range(first, end)]
        return [rows for _, rows in sorted(found, key=lambda each: each[0])]


class MixtureReader:
    """Reads rows of the lanes of a mixture.

    For each lane it holds a block, and for each source of it what a `LaneReader` holds.
    """

    def __init__(
        self,
        plan: MixturePlan,
        ends: NDArray[np.int64],
        converter: BatchConverter | None,
        open_source: Callable[[str, Plan], LaneReader],
        threads: Caller,
        *,
        meter: Meter,
    ) -> None:
        """Read lanes of the current cut of `plan`.

        Args:
            plan: The mixture.
            ends: Rows that each lane delivers, shape (num_lanes,): no block is longer.
            converter: Converts the rows of all sources; None: their columns differ, and blocks have those of each.
            open_source: Opens a reader of an epoch of a source, given its name, which reads with `threads`.
            threads: Those that read; they end with `end`.
            meter: Measures how rows are put in order.
        """
        self._plan = plan
        self._ends: list[int] = ends.tolist()
        self._converter = converter
        self._open_source = open_source
        self._meter = meter
        self._stop_threads = weakref.finalize(self, threads.end)
        self._readers: dict[tuple[int, str, int], LaneReader] = {}
        """(cut, source, epoch) -> its reader."""
        self._epochs: dict[tuple[int, str], dict[int, int]] = {}
        """(cut, source) -> lane of the mixture -> the epoch that it has come to."""
        self._mixings: dict[tuple[int, int], LaneMixing] = {}
        self._blocks: dict[int, _Block] = {}
        self._next_rows: dict[int, int] = {}
        """Lane -> rows of its next block. The first ones are small, as a source may have fewer rows than a large one.
        """

    def read(self, wanted: LaneRange) -> list[OpenRows]:
        """Return rows of a lane, as slices of its blocks."""
        lane, start, stop = wanted
        block = self._blocks.get(lane)
        if block is not None and block.start <= start and stop <= block.stop:
            return block.slice(start, stop)
        found = []
        num_rows = stop - start
        while start < stop:
            if block is None or not block.start <= start < block.stop:
                self._blocks.pop(lane, None)
                block = None  # released before the next one is read
                block = self._blocks[lane] = self._read_block(lane, start, num_rows)
            end = min(stop, block.stop)
            found += block.slice(start, end)
            start = end
        return found

    def read_on(self, lane: int, start: int, stop: int) -> OpenRows:
        """Return the first rows of [start, stop) of a lane, as many as are in memory together; at least one."""
        block = self._blocks.get(lane)
        if block is None or not block.start <= start < block.stop:
            self._blocks.pop(lane, None)
            block = None  # released before the next one is read
            block = self._blocks[lane] = self._read_block(lane, start, min(stop - start, _STEP_ROWS))
        return block.slice(start, min(stop, block.stop))[0]

    def _read_block(self, lane: int, start: int, step: int) -> _Block:
        """Return the block that begins at a row of a lane: a number of steps of `step` rows each."""
        num_steps = max(1, self._next_rows.get(lane, 0) // step)
        end = max(start + step, min(start + num_steps * step, self._ends[lane]))
        cut, cut_lane, first, stop = self._plan.part(lane, start, end)
        split = self._mixing(cut, cut_lane).split(first, first + stop - start)
        wanted = [each for source in split for each in self._ranges(cut, cut_lane, source)]
        for reader, each, _ in wanted:
            reader.begin(each.lane, each.start)
        parts: list[_Part] = []
        for reader, each, places in wanted:
            taken = 0
            for rows in reader.read(each):
                parts.append(_Part(rows, places[taken : taken + rows.num_rows]))
                taken += rows.num_rows
        self._leave_epochs(cut, cut_lane, split)
        if self._converter is None:
            self._next_rows[lane] = min(_MIXED_ROWS, 4 * (stop - start))
            return _Block(start, stop, None, parts)
        with self._meter.ordering():
            found = _assemble(parts, stop - start, self._converter)
        if found is None:
            return _Block(start, stop, None, parts)
        num_bytes = sum(values.nbytes for values in found.numbers.values()) + (found.rest.nbytes if found.rest else 0)
        of_bytes = _BLOCK_BYTES * (stop - start) // max(1, num_bytes)
        self._next_rows[lane] = min(_BLOCK_ROWS, of_bytes, 4 * (stop - start))
        return _Block(start, stop, found, [])

    def _mixing(self, cut: int, lane: int) -> LaneMixing:
        if (cut, lane) not in self._mixings:
            self._mixings[cut, lane] = self._plan.mixings[cut].lane(lane)
        return self._mixings[cut, lane]

    def _ranges(self, cut: int, lane: int, source: SourceRows) -> list[tuple[LaneReader, LaneRange, NDArray[np.int64]]]:
        """Return what to read of a source: from which reader, and the places of the rows."""
        index, start, places = source
        name = self._plan.progress.starts[cut].sources[index].name
        found = []
        taken = 0
        for epoch, epoch_lane, first, stop in self._plan.lanes(cut, name).ranges(lane, start, start + len(places)):
            reader = self._reader(cut, name, epoch)
            found.append((reader, LaneRange(epoch_lane, first, stop), places[taken : taken + stop - first]))
            taken += stop - first
        return found

    def _reader(self, cut: int, name: str, epoch: int) -> LaneReader:
        """Return the reader of an epoch of a source."""
        key = (cut, name, epoch)
        if key not in self._readers:
            self._readers[key] = self._open_source(name, self._plan.plan(*key))
        return self._readers[key]

    def _leave_epochs(self, cut: int, lane: int, split: Sequence[SourceRows]) -> None:
        """End the readers of epochs that all lanes have left behind, after these rows of a lane were read."""
        for index, start, places in split:
            name = self._plan.progress.starts[cut].sources[index].name
            last = start + len(places) - 1
            (rows,) = self._plan.lanes(cut, name).ranges(lane, last, last + 1)
            of_lanes = self._epochs.setdefault((cut, name), {})
            before, of_lanes[lane] = of_lanes.get(lane), rows.epoch
            if before != rows.epoch:
                current = {*of_lanes.values()}
                for old in [old for old in self._readers if old[:2] == (cut, name) and old[2] not in current]:
                    self._readers.pop(old).end()

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:
        """Return the source, the data file and the number in it of row `row_index` of these ranges, for a message."""
        index = row_index
        for lane, start, stop in wanted:
            if index < stop - start:
                cut, cut_lane, row, _ = self._plan.part(lane, start + index, start + index + 1)
                (source,) = self._mixing(cut, cut_lane).split(row, row + 1)
                ((reader, of_lane, _),) = self._ranges(cut, cut_lane, source)
                name = self._plan.progress.starts[cut].sources[source.source].name
                return f"{reader.locate([of_lane], 0)} of source {name!r}"
            index -= stop - start
        message = f"row {row_index} is outside {wanted}"
        raise IndexError(message)

    def close(self) -> None:
        """Release blocks and windows and close files; the next read opens them again."""
        self._blocks.clear()
        for reader in self._readers.values():
            reader.close()

    def end(self) -> None:
        """Release everything and end the threads; the reader can't be used any more."""
        self._blocks.clear()
        for reader in self._readers.values():
            reader.end()
        self._readers.clear()
        self._stop_threads()


def _assemble(parts: Sequence[_Part], num_rows: int, converter: BatchConverter) -> OpenRows | None:
    """Put the rows of all parts in their places, or return None if that is not possible."""
    order = np.empty(num_rows, np.int64)
    order[np.concatenate([places for _, places in parts])] = np.arange(num_rows)
    try:
        numbers = {name: _in_order(name, parts, order) for name in converter.vectorized}
    except KeyError:  # a window with a value that can't be converted
        return None
    others = [each for each in converter.schema if each.name not in converter.vectorized]
    if not others:
        return OpenRows(numbers, None, 0, num_rows) if numbers else None
    indices = cast("pa.Int64Array", pa.array(order))
    try:
        arrays = [take_rows([rows.column(each.name) for rows, _ in parts], each.type, indices) for each in others]
    except pa.ArrowException:
        return None
    return OpenRows(numbers, record_batch(arrays, pa.schema(others)), 0, num_rows)


def _in_order(name: str, parts: Sequence[_Part], order: NDArray[np.int64]) -> NDArray[Any]:
    """Return the numbers of a column of all parts in their places.

    Args:
        name: The column.
        parts: The rows.
        order: For each place, the row that belongs there, counted over all parts.
    """
    slices = [numbers[name][start:stop] for (numbers, _, start, stop), _ in parts]
    found = empty_array((len(order), *slices[0].shape[1:]), slices[0].dtype)
    if slices[0][:1].nbytes > _MAX_TAKEN_BYTES:
        for rows, (_, places) in zip(slices, parts, strict=True):
            found[places] = rows
        return found
    # Of hundreds of sources, each has a few rows of a block.
    return np.concatenate(slices).take(order, axis=0, out=found, mode="clip")

"""Reads windows: a few threads read the parts of a window, and the one that finishes last assembles them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import pyarrow as pa

from laneway.convert.arrays import MAX_OFFSET, join, record_batch
from laneway.convert.nested import copy_array
from laneway.convert.open_rows import OpenRows
from laneway.core.cutting import MAX_WINDOW_SHARDS
from laneway.core.lanes import Segment
from laneway.errors import ColumnConversionError
from laneway.reading.assembler import NotVectorizableError, Order, WindowAssembler
from laneway.reading.parts import cut_at_blocks
from laneway.reading.threads import DaemonThreads, NoThreads, cores_of_each, sharing_processes
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from laneway.convert.columns import ToStored
    from laneway.core.plan import FileRange, Plan
    from laneway.metering import Meter
    from laneway.reading.parts import Part
    from laneway.reading.rows import Rows
    from laneway.reading.threads import Call, Caller

REQUEST_BYTES: Final = 32 << 20
"""Maximum bytes to read at once from remote storage: neighbouring small pieces are read together."""
_MAX_THREADS: Final = 4


class ReadAhead(NamedTuple):
    """How much to read ahead in a lane."""

    num_segments: int
    """Segments that are always read ahead."""
    num_bytes: int
    """Further segments are read ahead while all segments that are read ahead have at most this many bytes."""
    max_segments: int
    """Maximum number of segments that are read ahead."""


class SizedSegment(NamedTuple):
    """A segment that is read as a whole."""

    segment: Segment
    """The segment. Without shuffle, it may go on in the windows that follow, if they are neighbours in a file."""
    num_bytes: int
    """Estimated bytes of its decoded blocks; 0 if they don't matter."""

    def joined(self, following: SizedSegment) -> SizedSegment:
        """Return this segment with the one whose rows follow in the file."""
        mine, more = self.segment, following.segment
        longer = Segment(mine.window, mine.start, mine.stop + more.stop - more.start)
        return SizedSegment(longer, self.num_bytes + following.num_bytes)


class _Piece(NamedTuple):
    """Rows of a data file, and their place in a window."""

    start: int
    """First row, counted in the window before shuffling."""
    rows: FileRange
    """The rows."""


@dataclass(frozen=True, slots=True)
class PendingWindow:
    """A segment of a window that is being read."""

    segment: Segment
    """The segment."""
    reads: list[Call[list[OpenRows] | None]]
    """Reads of its parts. The one that finishes last returns all rows, the others None."""

    def result(self) -> list[OpenRows]:
        """Return all rows once they have been read.

        Raises:
            DataFileError: A part can't be read.
            ColumnConversionError: The rows of a column can't be put in order.
            NotVectorizableError: A value can't be converted.
        """
        try:
            (parts,) = [rows for rows in [read.result() for read in self.reads] if rows is not None]
        finally:
            self.cancel()
        return parts

    def cancel(self) -> None:
        """Cancel the reads that have not started."""
        for read in self.reads:
            read.cancel()


def reading_threads(*, is_remote: bool) -> DaemonThreads:
    """Start the threads of a reader.

    Args:
        is_remote: Whether each read is a request to a storage.
    """
    return DaemonThreads(num_window_threads(sharing_processes(), is_remote=is_remote))


def num_window_threads(num_processes: int, *, is_remote: bool) -> int:
    """Return the number of threads of a reader.

    Args:
        num_processes: Number of processes that share the cores.
        is_remote: Whether each read is a request to a storage.
    """
    return _MAX_THREADS if is_remote else min(_MAX_THREADS, cores_of_each(num_processes))


class WindowReader:
    """Reads segments of windows in the order of the requests, each with several threads."""

    def __init__(
        self,
        plan: Plan,
        rows: Rows,
        vectorized: Mapping[str, ToStored],
        meter: Meter,
        threads: Caller | None = None,
    ) -> None:
        """Start the threads, which end with `end`, unless they are given.

        Args:
            plan: The windows.
            rows: Reads the data files.
            vectorized: Columns to convert once per window; see `BatchConverter.vectorized`.
            meter: Measures what is read.
            threads: Those that read, which are shared with other readers; None: threads of its own.
        """
        self._plan = plan
        self._rows = rows
        self._vectorized = vectorized
        self._meter = meter
        is_instant = rows.is_instant and not plan.identity.settings.shuffle
        self._owns_threads = is_instant or threads is None
        self._threads = NoThreads() if is_instant else threads or reading_threads(is_remote=rows.is_remote)

    def read_ahead(self, num_windows: int) -> ReadAhead:
        """Return how much to read ahead for `num_windows` windows.

        Without shuffle, a segment is a few blocks, and may be a small file. As many are read ahead as fit into
        `num_windows` windows on remote storage, where each takes a request, and into as many shards on local storage.
        """
        settings, rows = self._plan.identity.settings, self._rows
        if settings.shuffle or rows.is_instant:
            return ReadAhead(num_windows, 0, num_windows)
        most = settings.window_bytes if rows.is_remote else settings.shard_bytes
        return ReadAhead(num_windows, num_windows * most, num_windows * MAX_WINDOW_SHARDS)

    def split(self, segments: Iterable[Segment]) -> Iterator[SizedSegment]:
        """Yield the segments that are read at once: without shuffle, at most `shard_bytes` of decoded blocks each.

        A shard has about as many bytes of all columns. If few of them are read, neighbouring shards are read together.
        """
        settings = self._plan.identity.settings
        if settings.shuffle:
            yield from (SizedSegment(segment, 0) for segment in segments)
            return
        joins, found, before = not self._rows.is_instant, None, None
        for segment in segments:
            wanted = self._in_file(segment)
            for rows, num_bytes, _ in self._parts(wanted, settings.shard_bytes):
                start = segment.start + rows.start - wanted.start
                each = SizedSegment(Segment(segment.window, start, start + rows.stop - rows.start), num_bytes)
                is_next = joins and before is not None and before.is_followed_by(rows)
                if found is not None and is_next and found.num_bytes + num_bytes <= settings.shard_bytes:
                    each = found.joined(each)
                elif found is not None:
                    yield found
                found, before = each, rows
        if found is not None:
            yield found

    def begin(self, segment: Segment) -> PendingWindow:
        """Start reading a segment of a window."""
        return self._begin(segment, self._vectorized)

    def finish(self, window: PendingWindow) -> list[OpenRows]:
        """Return the rows of a segment once they have been read; in parts if a column is too long for one array.

        Raises:
            DataFileError: A part can't be read; the error of the first such part.
            ColumnConversionError: The rows of a column can't be put in order.
        """
        try:
            return window.result()
        except NotVectorizableError:
            # Only the batch with the bad value should fail, so convert batch by batch.
            return self._begin(window.segment, {}).result()

    def _parts(self, rows: FileRange, max_bytes: int) -> list[Part]:
        files, bits = self._plan.identity.files, self._rows.row_bits(rows.file_index)

        def sizes_of(blocks: slice) -> NDArray[np.int64]:
            of_all = files.block_memory_bytes[blocks]
            return of_all if bits is None else np.minimum(of_all, files.block_rows[blocks].astype(np.int64) * bits // 8)

        return cut_at_blocks(self._plan.identity.selected, rows, max_bytes, sizes_of)

    def _in_file(self, segment: Segment) -> FileRange:
        """Return the rows of a segment without shuffle, where a window is one piece."""
        (rows,) = self._plan.window_files(segment.window)
        return rows._replace(start=rows.start + segment.start, stop=rows.start + segment.stop)

    def _begin(self, segment: Segment, vectorized: Mapping[str, ToStored]) -> PendingWindow:
        if not self._plan.identity.settings.shuffle:
            return PendingWindow(segment, [self._threads.submit(self._open, self._in_file(segment), vectorized)])
        ranges = self._plan.window_files(segment.window)
        pieces = []
        num_rows = 0
        for rows in ranges:
            pieces.append(_Piece(num_rows, rows))
            num_rows += rows.stop - rows.start
        files = _names([self._plan.identity.files.paths[rows.file_index] for rows in ranges])
        assembler = WindowAssembler(vectorized, self._order_of(segment), num_rows, files)
        max_bytes = self._plan.identity.settings.shard_bytes
        if self._rows.is_remote:
            groups, max_bytes = _group_neighbours(pieces), max(max_bytes, REQUEST_BYTES)
        else:
            groups = [[piece] for piece in pieces]
        reads = [
            self._threads.submit(self._assemble, assembler, part, group)
            for group in groups
            for part in self._parts(group[0].rows._replace(stop=group[-1].rows.stop), max_bytes)
        ]
        return PendingWindow(segment, reads)

    def _order_of(self, segment: Segment) -> Order:
        """Return how many rows a segment of a shuffled window has, and what puts them in order."""

        def rows() -> NDArray[np.int64]:
            # There is one, since the window is shuffled.
            order = cast("NDArray[np.int64]", self._plan.window_order(segment.window))
            return order[segment.start : segment.stop]

        return Order(segment.stop - segment.start, rows)

    def _open(self, rows: FileRange, vectorized: Mapping[str, ToStored]) -> list[OpenRows]:
        with self._meter.on_this_thread():
            table = self._rows.read(*rows)
            with self._meter.ordering():
                is_contiguous = all(column.num_chunks == 1 for column in table.columns)
                if is_contiguous or table.get_total_buffer_size() > MAX_OFFSET:
                    batches = table.to_batches()
                else:
                    batches = [_combine(table, self._plan.identity.files.paths[rows.file_index])]
                return [OpenRows.from_batch(batch, vectorized) for batch in batches]

    def _assemble(self, assembler: WindowAssembler, part: Part, pieces: list[_Piece]) -> list[OpenRows] | None:
        """Read a part of neighbouring pieces of a file; return all rows of the window if these are its last ones."""
        with self._meter.on_this_thread():
            table = self._rows.read(*part.rows)
            with self._meter.ordering():
                if not part.is_whole:
                    table = _copied(table)
                is_last = False
                for piece in pieces:
                    start, stop = max(piece.rows.start, part.rows.start), min(piece.rows.stop, part.rows.stop)
                    if start < stop:
                        rows = table.slice(start - part.rows.start, stop - start)
                        is_last |= assembler.put(piece.start + start - piece.rows.start, rows)
                        del rows
                del table  # released before all rows are put in order
                return [assembler.finish()] if is_last else None

    def close(self) -> None:
        """Close the files; the reader can still be used."""
        self._rows.close()

    def end(self) -> None:
        """End the threads, cancel the reads that have not started and close the files."""
        if self._owns_threads:
            self._threads.end()
        self._rows.close()


def _group_neighbours(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Group the pieces of a window that follow each other in a file, and can be read together."""
    groups: list[list[_Piece]] = []
    for piece in sorted(pieces, key=operator.attrgetter("rows")):
        if groups and groups[-1][-1].rows.is_followed_by(piece.rows):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _names(paths: list[str]) -> str:
    num_more = len(set(paths)) - 1
    return paths[0] + (f" and {counted(num_more, 'more file')}" if num_more else "")


def _copied(table: pa.Table) -> pa.Table:
    """Return a slice of a table in memory of its own, so that the rest of its blocks is released."""
    chunks: Any = pa.chunked_array
    columns = [chunks([copy_array(chunk) for chunk in column.chunks], column.type) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema) if columns else table


def _combine(table: pa.Table, path: str) -> pa.RecordBatch:
    """Return the rows of a table as one batch; its columns may be of wider types than the table's."""
    arrays = []
    for field, column in zip(table.schema, table.columns, strict=True):
        try:
            arrays.append(join(column.chunks, field.type))
        except pa.ArrowException as error:
            message = (
                f"column {field.name!r} of type {field.type} of {path} can't be combined to one array: {error}\n"
                f"read without this column"
            )
            raise ColumnConversionError(message) from error
    return record_batch(arrays, table.schema)

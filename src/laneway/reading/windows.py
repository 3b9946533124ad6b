"""Reads windows: a few threads read the pieces of a window, and the one that finishes last assembles them."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laneway.convert.open_rows import OpenRows
from laneway.reading.assembler import NotVectorizableError, WindowAssembler
from laneway.reading.threads import DaemonThreads, NoThreads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from laneway.convert.columns import ToStored
    from laneway.core.lanes import Segment
    from laneway.core.plan import FileRange, Plan
    from laneway.reading.reader import RowReader

    _Piece = tuple[int, FileRange]
    """Index of a piece in its window, and its rows."""

_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class PendingWindow:
    """A segment of a window that is being read."""

    segment: Segment
    """The segment."""
    reads: list[Future[list[OpenRows] | None]]
    """Reads of its pieces. The one that finishes last returns all rows, the others None."""

    def result(self) -> list[OpenRows]:
        """Return all rows once they have been read.

        Raises:
            DataFileError: A piece can't be read.
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


class WindowReader:
    """Reads segments of windows in the order of the requests, each with several threads."""

    def __init__(self, plan: Plan, rows: RowReader, vectorized: Mapping[str, ToStored]) -> None:
        """Start the threads, which end with `end`.

        Args:
            plan: The windows.
            rows: Reads the data files.
            vectorized: Columns to convert once per window; see `BatchConverter.vectorized`.
        """
        self._plan = plan
        self._rows = rows
        self._vectorized = vectorized
        is_instant = rows.is_instant and not plan.identity.settings.shuffle
        num_threads = _MAX_THREADS if rows.is_remote else min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = NoThreads() if is_instant else DaemonThreads(num_threads)

    def num_segments_ahead(self, num_windows: int) -> int:
        """Return how many segments to prefetch for `num_windows` windows.

        Without shuffle, a window is a single piece of a shard. On remote storage, `window_bytes // shard_bytes` pieces
        then count as one window.
        """
        settings = self._plan.identity.settings
        pieces = 1 if settings.shuffle or not self._rows.is_remote else settings.window_bytes // settings.shard_bytes
        return num_windows * max(1, pieces)

    def begin(self, segment: Segment) -> PendingWindow:
        """Start reading a segment of a window."""
        return self._begin(segment, self._vectorized)

    def finish(self, window: PendingWindow) -> list[OpenRows]:
        """Return the rows of a segment once they have been read; in parts if a column is too long for one array.

        Raises:
            DataFileError: A piece can't be read; the error of the first such piece.
        """
        try:
            return window.result()
        except NotVectorizableError:
            # Only the batch with the bad value should fail, so convert batch by batch.
            return self._begin(window.segment, {}).result()

    def _begin(self, segment: Segment, vectorized: Mapping[str, ToStored]) -> PendingWindow:
        pieces, order = self._plan.window_files(segment.window), self._plan.window_order(segment.window)
        if order is None:
            (piece,) = pieces
            wanted = piece._replace(start=piece.start + segment.start, stop=piece.start + segment.stop)
            return PendingWindow(segment, [self._threads.submit(self._open, wanted, vectorized)])
        piece_rows = [piece.stop - piece.start for piece in pieces]
        assembler = WindowAssembler(vectorized, order[segment.start : segment.stop], piece_rows)
        groups = _group_neighbours(pieces) if self._rows.is_remote else [[piece] for piece in enumerate(pieces)]
        return PendingWindow(segment, [self._threads.submit(self._assemble, assembler, group) for group in groups])

    def _open(self, piece: FileRange, vectorized: Mapping[str, ToStored]) -> list[OpenRows]:
        batches = self._rows.read(*piece).combine_chunks().to_batches()
        return [OpenRows.from_batch(batch, vectorized) for batch in batches]

    def _assemble(self, assembler: WindowAssembler, group: list[_Piece]) -> list[OpenRows] | None:
        """Read neighbouring pieces of a file; return all rows of the window if these are its last pieces."""
        (_, (file_index, first, _)), (_, (_, _, last)) = group[0], group[-1]
        table = self._rows.read(file_index, first, last)
        is_last = [assembler.put(i, table.slice(start - first, stop - start)) for i, (_, start, stop) in group]
        del table  # released before all rows are put in order
        return assembler.finish() if any(is_last) else None

    def close(self) -> None:
        """Close the files; the reader can still be used."""
        self._rows.close()

    def end(self) -> None:
        """End the threads, cancel the reads that have not started and close the files."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._rows.close()


def _group_neighbours(pieces: list[FileRange]) -> list[list[_Piece]]:
    """Group the pieces of a window that follow each other in a file: each group is one request to the storage."""
    groups: list[list[_Piece]] = []
    for piece in sorted(enumerate(pieces), key=operator.itemgetter(1)):
        before = groups[-1][-1][1] if groups else None
        if before is not None and (before.file_index, before.stop) == (piece[1].file_index, piece[1].start):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups

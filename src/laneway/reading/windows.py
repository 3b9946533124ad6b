"""Windows: their runs are read by a few threads, the last of which puts them in order."""

from __future__ import annotations

import operator
import os
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from laneway.reading.assembler import NotVectorizableError, OpenRows
from laneway.reading.threads import DaemonThreads, NoThreads

if TYPE_CHECKING:
    from concurrent.futures import Future

    from laneway.convert.batches import BatchConverter
    from laneway.core.lanes import Segment
    from laneway.core.plan import FileRange, Plan
    from laneway.reading.assembler import WindowAssembler
    from laneway.reading.reader import RowReader

    _Run = tuple[int, FileRange]
    """Index of a run in its window, and its rows."""

_MAX_THREADS = 4


class Slice(NamedTuple):
    """Rows [start, stop) of open rows."""

    opened: OpenRows
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """What a lane delivers of a window, in memory."""

    bounds: list[int]
    """Position of the lane at which each part begins, and where the last ends."""
    parts: list[OpenRows]
    """One part, or several where a column is too long for one."""

    def slice(self, start: int, stop: int) -> Slice:
        """Return what one part has of positions [start, stop), beginning with `start`; without a copy."""
        i = bisect_right(self.bounds, start) - 1
        first, last = self.bounds[i], self.bounds[i + 1]
        return Slice(self.parts[i], start - first, min(stop, last) - first)


class WindowReader:
    """Reads windows in the order in which they are asked for, each by several threads; they end with the reader."""

    def __init__(self, plan: Plan, rows: RowReader, converter: BatchConverter) -> None:
        """Read windows of `plan`.

        Args:
            plan: Tells what is in a window.
            rows: Reads the data files.
            converter: Opens what was read.
        """
        self._plan = plan
        self._rows = rows
        self._converter = converter
        is_instant = rows.is_instant and not plan.identity.settings.shuffle
        num_threads = _MAX_THREADS if rows.is_remote else min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = NoThreads() if is_instant else DaemonThreads(num_threads)

    def num_ahead(self, num_windows: int) -> int:
        """Return how many segments are read ahead where so many windows are asked for.

        Without shuffle a window is one piece of a shard. From storage as many are read ahead as make a shuffled window.
        """
        settings = self._plan.identity.settings
        pieces = 1 if settings.shuffle or not self._rows.is_remote else settings.window_bytes // settings.shard_bytes
        return num_windows * max(1, pieces)

    def begin(self, segment: Segment, position: int, *, vectorized: bool = True) -> PendingWindow:
        """Have a segment read, which begins at a position of its lane.

        Args:
            segment: Of a window.
            position: Rows of the lane before it.
            vectorized: Whether numbers are converted once, for all slices together.
        """
        files, order = self._plan.window_files(segment.window), self._plan.window_order(segment.window)
        if order is None:
            (file,) = files
            wanted = file._replace(start=file.start + segment.start, stop=file.start + segment.stop)
            return PendingWindow(self, segment, position, [self._threads.submit(self._open, wanted)])
        run_rows = [file.stop - file.start for file in files]
        gathering = self._converter.gathering(order[segment.start : segment.stop], run_rows, vectorized=vectorized)
        reads = _neighbours(files) if self._rows.is_remote else [[run] for run in enumerate(files)]
        runs = [self._threads.submit(self._gather, gathering, read) for read in reads]
        return PendingWindow(self, segment, position, runs)

    def _open(self, file: FileRange) -> list[OpenRows]:
        batches = self._rows.read(*file).combine_chunks().to_batches()
        return [self._converter.open(batch) for batch in batches]

    def _gather(self, gathering: WindowAssembler, runs: list[_Run]) -> list[OpenRows] | None:
        """Read runs that follow each other in one file; return all rows of the window with its last ones."""
        (_, (file_index, first, _)), (_, (_, _, last)) = runs[0], runs[-1]
        table = self._rows.read(file_index, first, last)
        is_last = [gathering.put(i, table.slice(start - first, stop - start)) for i, (_, start, stop) in runs]
        del table  # not held while all rows are put together
        return gathering.finish() if any(is_last) else None

    def close(self) -> None:
        """Let go of the files; the reader can still be used."""
        self._rows.close()

    def end(self) -> None:
        """End the threads: nothing more will be read, nor what has been asked for and not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._rows.close()


class PendingWindow:
    """A window that is being read."""

    def __init__(
        self, reader: WindowReader, segment: Segment, position: int, runs: list[Future[list[OpenRows] | None]]
    ) -> None:
        """Wait for these runs, one of which returns the rows of all."""
        self._reader = reader
        self._segment = segment
        self._position = position
        self._runs = runs

    def result(self) -> OpenWindow:
        """Return the window when it has been read.

        Raises:
            DataFileError: Of the first run that can't be read.
        """
        try:
            (parts,) = [found for found in [run.result() for run in self._runs] if found is not None]
        except NotVectorizableError:
            return self._reader.begin(self._segment, self._position, vectorized=False).result()
        finally:
            self.cancel()
        bounds = [*accumulate((part.num_rows for part in parts), initial=self._position)]
        return OpenWindow(bounds, parts)

    def cancel(self) -> None:
        """Read no run that hasn't been begun."""
        for run in self._runs:
            run.cancel()


def _neighbours(files: list[FileRange]) -> list[list[_Run]]:
    """Return the runs of a window, those that follow each other in a file together: storage is asked once for them."""
    found: list[list[_Run]] = []
    for run in sorted(enumerate(files), key=operator.itemgetter(1)):
        before = found[-1][-1][1] if found else None
        if before is not None and (before.file_index, before.stop) == (run[1].file_index, run[1].start):
            found[-1].append(run)
        else:
            found.append([run])
    return found

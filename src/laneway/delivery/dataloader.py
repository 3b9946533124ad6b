"""Batches of one rank, read through a DataLoader, each with the progress that it brings from its worker.

A worker tags each batch with its turn and the new positions of its lanes. When the training loop takes the batch, the
main process uses this tag to advance a cursor over all lanes of its rank. So it knows what has been delivered, however
far workers have read ahead and in whichever order batches arrive.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from laneway.core.cursor import Cursor, RowQueue
from laneway.core.order import base_seed
from laneway.core.progress import Progress
from laneway.delivery.buffers import forget_ended_workers
from laneway.delivery.stream import BatchStream, TaggedBatch
from laneway.delivery.workers import worker_place
from laneway.errors import LanewayError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from laneway.core.assignment import Assignment
    from laneway.delivery.definition import Definition

_ROWS_PER_TURN = 256
"""Rows of a turn, and so of a tagged batch, if rows are yielded one by one and turn_rows is not given."""


class _TaggedBatches:
    """The batches of a worker, each with its tag.

    Empty turns are tagged too, so that the loader, which takes batches from its workers in rotation, keeps the order of
    turns for any number of workers.
    """

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[TaggedBatch]:
        return self

    def __next__(self) -> TaggedBatch:
        cursor = self._stream.cursor
        turn = cursor.next_turn
        return TaggedBatch(turn, (), None) if cursor.skip_empty_batch() else self._stream.next_tagged()


class _WorkerDataset(IterableDataset["TaggedBatch"]):
    """The dataset of the DataLoader; the main process chooses where the next pass starts."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._progress = Progress(0)
        # Shared with persistent workers. A late worker may read the epoch of a later pass, but only after the loader
        # has begun that pass and takes no more batches of this one.
        self._fresh_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, progress: Progress, *, is_fresh: bool) -> None:
        """Start the next pass from `progress`; only a fresh epoch reaches persistent workers."""
        self._progress = progress
        self._fresh_epoch[0] = progress.epoch if is_fresh else -1

    def __iter__(self) -> _TaggedBatches:
        fresh_epoch = int(self._fresh_epoch)
        progress = self._progress if fresh_epoch < 0 else Progress(fresh_epoch)
        rank = self._definition.place
        place = worker_place(rank) or rank
        return _TaggedBatches(self._definition.open_batches(self._definition.resolve(progress, place)))


def _unchanged(batch: Any) -> Any:  # noqa: ANN401 - a batch may be anything
    return batch


class BatchSource:
    """Reads the batches of one rank with the workers of a plain DataLoader."""

    def __init__(self, definition: Definition, keywords: Mapping[str, Any]) -> None:
        """Prepare to read.

        Args:
            definition: The dataset to read; if it has no batches, each turn of rows is sent as a batch.
            keywords: Further arguments of DataLoader.
        """
        self.yields_rows = definition.options.batch_size is None
        """Whether items are single rows."""
        if self.yields_rows:
            turn_rows = definition.options.turn_rows or _ROWS_PER_TURN
            definition = replace(
                definition, options=replace(definition.options, turn_rows=turn_rows), collate_fn=_unchanged
            )
        self.definition = definition
        """The definition that the workers read."""
        self.place = replace(definition.place, num_workers=max(1, keywords["num_workers"]))
        """Any worker of the rank."""
        self.in_order = self.place.num_workers == 1 or bool(keywords.get("in_order", True))
        """Whether batches arrive in order."""
        self._dataset = _WorkerDataset(definition)
        # Without its own generator, a DataLoader seeds workers from the global one, and a resumed run would then
        # draw other numbers for the model.
        self._generator = torch.Generator()
        self._keywords = {**keywords, "generator": keywords.get("generator") or self._generator}
        self._loader = self._make_loader()

    def _make_loader(self) -> DataLoader[TaggedBatch]:
        return DataLoader(self._dataset, batch_size=None, collate_fn=_unchanged, **self._keywords)

    def resolve(self, progress: Progress) -> Assignment:
        """Return the assignment of this rank."""
        return self.definition.resolve(progress, self.place)

    def discard_workers(self) -> None:
        """Release persistent workers; the next pass starts new ones."""
        self._loader = self._make_loader()

    def batches(self, assignment: Assignment) -> Iterator[TaggedBatch]:
        """Start the workers on an assignment, and return an iterator over their batches."""
        is_fresh = assignment.is_fresh(self.definition.options)
        if not is_fresh:
            # Only fresh epochs reach persistent workers.
            self.discard_workers()
        self._dataset.begin(assignment.progress, is_fresh=is_fresh)
        seed, epoch = self.definition.identity.settings.seed, assignment.progress.epoch
        self._generator.manual_seed(base_seed(seed=seed, epoch=epoch, rank=self.place.rank))
        # Without workers, a DataLoader would add nothing but its own overhead.
        is_direct = not self._keywords["num_workers"] and not self._keywords.get("pin_memory")
        return iter(self._dataset if is_direct else self._loader)


class DataLoaderPass:
    """A pass of one rank over an epoch, and its progress; after an error, the next call resumes from there."""

    def __init__(self, source: BatchSource, assignment: Assignment) -> None:
        """Begin the pass; the workers start now, unless the epoch is complete."""
        self._source = source
        self._is_over = assignment.is_complete
        self._start(assignment)

    def _start(self, assignment: Assignment) -> None:
        self._assignment = assignment.of_rank()
        self._cursor = Cursor(self._assignment)
        self._queue = RowQueue(self._cursor)
        self._batches = None if self._is_over else self._source.batches(assignment)

    @property
    def epoch(self) -> int:
        """The epoch that is delivered."""
        return self._cursor.epoch

    @property
    def rows(self) -> list[Any]:
        """Single rows that have been received, in reverse order: popping a row delivers it."""
        return self._queue.rows

    @property
    def is_complete(self) -> bool:
        """Whether this rank has delivered all its rows of the epoch."""
        self._queue.count()
        return self._cursor.is_at_end

    def assignment(self) -> Assignment:
        """Return what this rank reads from here on."""
        return replace(self._assignment, progress=self.progress())

    def progress(self) -> Progress:
        """Return the progress of this rank."""
        self._queue.count()
        return self._cursor.progress()

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        """Return the next batch or row, and count it as delivered."""
        if not self._source.yields_rows:
            tagged = self._receive()
            self._cursor.deliver_batch(tagged.turn, tagged.positions)
            return tagged.batch
        if not self._queue.rows:
            self._queue.count()
            # After an error, the next batch comes with a new cursor and queue.
            tagged = self._receive()
            ((lane, _),) = tagged.positions
            self._queue.fill(tagged.turn, lane, tagged.batch)
        return self._queue.rows.pop()

    def _receive(self) -> TaggedBatch:
        """Return the next batch that is not empty."""
        while not self._is_over:
            if self._batches is None:
                self._start(self._source.resolve(self._cursor.progress()))
                continue
            try:
                tagged = next(self._batches)
            except StopIteration:
                if not self._cursor.is_at_end:
                    message = "the workers ended before all rows of the epoch were delivered"
                    raise LanewayError(message) from None
                self._is_over, self._batches = True, None
                forget_ended_workers()
                break
            except BaseException:
                # Prefetched batches are dropped: the next call resumes after the last delivered one.
                self._batches = None
                self._source.discard_workers()
                raise
            if tagged.positions:
                return tagged
        raise StopIteration

"""Batches of one rank, read through a DataLoader, each with the progress that it brings from its worker.

A worker tags each batch with its turn and the new positions of its lanes. When the training loop takes the batch, the
main process uses this tag to advance a cursor over all lanes of its rank. So it knows what has been delivered, however
far workers have read ahead and in whichever order batches arrive.
"""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from laneway.activity import NUM_CELLS
from laneway.core.cursor import Cursor, LaneRange
from laneway.core.job import JobInference
from laneway.core.mixture_assignment import following_cut
from laneway.core.order import base_seed
from laneway.core.progress import LanePosition, Progress, current_cut, rows_in_step
from laneway.delivery.buffers import forget_ended_workers
from laneway.delivery.cells import shared_cells
from laneway.delivery.item_maker import unchanged
from laneway.delivery.parcels import BatchesInTurn, ParcelFormat, Parcels, TaggedBatches
from laneway.delivery.passes import Delivery, Pass, RowsDelivery, Taken
from laneway.delivery.signals import (
    are_forked,
    holding_back_signals,
    ignore_signals_of_the_group,
    release_signals,
    start_fork_server,
)
from laneway.delivery.stacks import offer_stacks
from laneway.delivery.watchdog import Patience, Reading, Watchdog, cells_of
from laneway.delivery.worker_counts import WorkerCounts
from laneway.delivery.workers import (
    end_with_parent,
    end_workers,
    has_no_workers,
    is_timeout,
    note_started,
    num_ready,
    wait_at_most,
    worker_place,
)
from laneway.errors import LanewayError
from laneway.metering import Meter
from laneway.reading.threads import share_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from laneway.core.assignment import Assignment
    from laneway.core.progress import JobTurn
    from laneway.delivery.definition import Definition
    from laneway.delivery.parcels import Parcel
    from laneway.delivery.stream import TaggedBatch

_ROWS_PER_TURN = 256
"""Rows of a turn, and so of a tagged batch, if rows are yielded one by one and turn_rows is not given."""


class _WorkerDataset(IterableDataset["Parcel | TaggedBatch"]):
    """The dataset of the DataLoader; the main process chooses where the next pass starts."""

    def __init__(self, parcel_format: ParcelFormat, cells: torch.Tensor) -> None:
        self._definition = parcel_format.definition
        self._parcel_format = parcel_format
        self._progress = Progress(0)
        self._ends_with_parent = False
        self._cells = cells
        self.meter: Meter | None = None
        """Measures the pass that this process reads itself."""
        # Shared with persistent workers. A late worker may read the epoch of a later pass, but only after the loader
        # has begun that pass and takes no more batches of this one.
        self._fresh_epoch = shared_cells(self, 1)

    def begin(self, progress: Progress, *, is_fresh: bool) -> None:
        """Start the next pass from `progress`; only a fresh epoch reaches persistent workers."""
        self._progress = progress
        # To the kernel, the parent of a worker is the thread that starts it.
        self._ends_with_parent = threading.current_thread() is threading.main_thread()
        self._fresh_epoch[0] = progress.epoch if is_fresh else -1

    def __iter__(self) -> Iterator[Parcel] | Iterator[TaggedBatch]:
        """Return the parcels of a worker; without workers, the batches."""
        fresh_epoch = int(self._fresh_epoch)
        progress = self._progress if fresh_epoch < 0 else Progress(fresh_epoch)
        rank, place = self._definition.place, worker_place(self._definition.place)
        is_worker = place is not None
        if place is None:
            place = rank
        else:
            share_cores(place.num_workers)
            if self._ends_with_parent:
                end_with_parent()
        meter = Meter(cells_of(self._cells, place.worker))
        assignment, parcel_format = self._definition.resolve(progress, place), self._parcel_format
        keeps_open = is_worker and parcel_format.keeps_open
        stream = self._definition.open_batches(assignment, meter, keeps_open=keeps_open)
        self.meter = meter
        return Parcels(stream, place.worker, parcel_format, meter) if is_worker else TaggedBatches(stream)


@dataclass(frozen=True, slots=True)
class _StartWorker:
    """A worker_init_fn that also handles the signals of the worker."""

    init: Callable[[int], None] | None
    is_shielded: bool
    cells: torch.Tensor

    def __call__(self, worker: int) -> None:
        # A full collection would write to each inherited object, so that the pages of the main process are copied:
        # 1.2 s for three million objects.
        gc.freeze()
        if self.is_shielded:
            ignore_signals_of_the_group()
        release_signals(shielded=self.is_shielded)
        offer_stacks(cells_of(self.cells, worker))
        if self.init is not None:
            self.init(worker)


class BatchSource:
    """Reads the batches of one rank with the workers of a plain DataLoader."""

    def __init__(
        self,
        definition: Definition,
        keywords: Mapping[str, Any],
        *,
        shields_workers: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            definition: The dataset to read; if it has no batches, each turn of rows is sent as a batch.
            keywords: Further arguments of DataLoader.
            shields_workers: Whether workers ignore signals that are sent to their process group.
            patience: How long to wait for a batch of the workers; None: as long as it takes.
        """
        self.yields_rows = definition.options.batch_size is None and definition.stages is None
        """Whether items are single rows."""
        if self.yields_rows:
            turn_rows = definition.options.turn_rows or _ROWS_PER_TURN
            definition = replace(
                definition, options=replace(definition.options, turn_rows=turn_rows), collate_fn=unchanged
            )
        self.definition = definition
        """The definition that the workers read."""
        self.place = replace(definition.place, num_workers=max(1, keywords["num_workers"]))
        """Any worker of the rank."""
        self.in_order = self.place.num_workers == 1 or bool(keywords.get("in_order", True))
        """Whether the loader returns batches in the order of their turns."""
        num_workers = self.place.num_workers
        # What each worker is doing.
        self._cells = shared_cells(self, num_workers * NUM_CELLS).view(num_workers, NUM_CELLS)
        self.watchdog = Watchdog(
            replace(patience or Patience(), loader_timeout_s=keywords.get("timeout", 0)), self._cells
        )
        """Watches the batches of the workers."""
        self._parcel_format = ParcelFormat.of(definition, pin_memory=bool(keywords.get("pin_memory")))
        self._dataset = _WorkerDataset(self._parcel_format, self._cells)
        # Without its own generator, a DataLoader seeds workers from the global one, and a resumed run would then
        # draw other numbers for the model.
        self._generator = torch.Generator()
        self._keywords = {**keywords, "generator": keywords.get("generator") or self._generator}
        if keywords["num_workers"]:
            self._keywords["worker_init_fn"] = _StartWorker(
                keywords.get("worker_init_fn"), shields_workers, self._cells
            )
        self._loader = self._make_loader()
        self.running: Iterator[Any] | None = None
        """The iterator of the DataLoader, until its workers are discarded."""
        self._batches: Iterator[TaggedBatch] | None = None
        """What `batches` returned last, until then."""
        self._in_turn: BatchesInTurn | None = None
        """The same, if there are workers."""
        self.counts = WorkerCounts()
        """What the workers have counted."""

    def _make_loader(self) -> DataLoader[Any]:
        return DataLoader(self._dataset, batch_size=None, collate_fn=unchanged, **self._keywords)

    def change(self, definition: Definition) -> None:
        """Read other batches of the same rank, from the next start of the workers on."""
        self.definition = replace(definition, options=self.definition.options, collate_fn=self.definition.collate_fn)
        self._parcel_format = ParcelFormat.of(self.definition, pin_memory=bool(self._keywords.get("pin_memory")))
        self._dataset = _WorkerDataset(self._parcel_format, self._cells)
        self.discard_workers()

    def resolve(self, progress: Progress) -> Assignment:
        """Return the assignment of this rank."""
        return self.definition.resolve(progress, self.place)

    def end(self, batches: Iterator[TaggedBatch]) -> None:
        """Shut down the workers that read `batches`, unless they are persistent or read another pass by now."""
        if batches is self._batches and not self._loader.persistent_workers:
            self.discard_workers()

    def discard_workers(self, *, kill: bool = False) -> None:
        """Shut down all workers, persistent ones too; the next pass starts new ones.

        Args:
            kill: Whether to kill them, since they may not answer.
        """
        running, self.running = self.running, None
        self._batches = self._in_turn = None
        end_workers(running, kill=kill)
        self._loader = self._make_loader()

    def batches(self, assignment: Assignment) -> Iterator[TaggedBatch]:
        """Start the workers on an assignment, and return an iterator over their batches."""
        self.counts.start_again()
        is_fresh = self.definition.is_fresh(assignment)
        if not is_fresh or not self._loader.persistent_workers or has_no_workers(self.running):
            # Only fresh epochs reach persistent workers.
            self.discard_workers()
        self._dataset.begin(assignment.progress, is_fresh=is_fresh)
        seed, epoch = self.definition.identity.settings.seed, assignment.progress.epoch
        self._generator.manual_seed(base_seed(seed=seed, epoch=epoch, rank=self.place.rank))
        # Without workers, a DataLoader would add nothing but its own overhead.
        is_direct = not self._keywords["num_workers"] and not self._keywords.get("pin_memory")
        if self.running is None:
            self.watchdog.forget_workers()
            if self._keywords["num_workers"] and are_forked(self._loader.multiprocessing_context):
                self.definition.plan_ahead(assignment)
        # Persistent workers may take their time to begin.
        wait_at_most(self.running, self._keywords.get("timeout") or inf)
        if self._keywords["num_workers"]:
            start_fork_server(self._loader.multiprocessing_context)
        with holding_back_signals() if self._keywords["num_workers"] else nullcontext():
            items: Iterator[Any] = iter(self._dataset if is_direct else self._loader)
            note_started(items)
            self.running = items
        if self._keywords["num_workers"]:
            self.watchdog.begin(items)
            batches: Iterator[TaggedBatch]
            num_workers, parcel_format = self.place.num_workers, self._parcel_format
            batches = self._in_turn = BatchesInTurn(items, num_workers, parcel_format, in_order=self.in_order)
        else:
            if self._dataset.meter is not None:
                self.counts.receive(0, self._dataset.meter)
            batches = items
        self._batches = batches
        return batches

    @property
    def queue_depth(self) -> int:
        """Number of batches that the workers have read ahead."""
        in_turn = self._in_turn
        return 0 if in_turn is None else in_turn.num_ready(num_ready(self.running))


class DataLoaderPass(Pass):
    """A pass of one rank, read through a DataLoader. Its workers start with the first item."""

    def __init__(self, source: BatchSource, assignment: Assignment) -> None:
        """Prepare to read from `source` what is assigned to the rank."""
        self.source = source
        """Reads the batches."""
        self._first = assignment
        super().__init__(Cursor(assignment.of_rank()))
        self._resume(assignment)
        self._batches: Iterator[TaggedBatch] | None = None

    def assignment(self) -> Assignment:
        """Return what this rank reads from here on."""
        return replace(self._assignment, progress=self.progress())

    def job_turn(self) -> JobTurn | None:
        """Return the progress of the whole job, inferred from that of this rank, or None if that is not possible."""
        return self._inference.job_turn(self.progress(), is_complete=self.is_complete)

    @property
    def is_reading(self) -> bool:
        """Whether its workers have been started and not shut down again."""
        return self._batches is not None

    def go_on(self, progress: Progress) -> None:
        """Read on from other progress of the whole job, after what was delivered until now.

        Batches that were prefetched are dropped.
        """
        assignment, num_delivered = self.source.resolve(progress), self.num_delivered
        self._recover()
        self.delivery = Delivery(taken=1, before=num_delivered - 1)
        # In this order, an interruption leaves the pass where it was, or where it goes on.
        self._first = assignment
        self._cursor = Cursor(assignment.of_rank(), self._cursor.tokens)
        self._resume(assignment)

    def reading(self) -> Reading:
        """Return where the rank is."""
        return Reading(self._assignment, self._cursor)

    def _resume(self, assignment: Assignment) -> None:
        """Take an assignment of the rank."""
        source = self.source
        self._assignment = assignment.of_rank()
        self._inference = JobInference(assignment, yields_rows=source.yields_rows, in_order=source.in_order)
        self._cursor = Cursor(self._assignment, self._cursor.tokens)

    def whole_progress(self) -> Progress | None:
        """Return the progress of the whole job, inferred from that of this rank, or None if that is not possible."""
        progress = self.progress()
        if progress.place is None:
            return progress
        job, cut = self.job_turn(), current_cut(progress)
        if job is None:
            return None
        rows = rows_in_step(cut.num_lanes, cut.turn_rows, progress.sharing, job.next_turn, job.part_rows)
        positions = dict(enumerate(map(LanePosition, rows.tolist())))
        return replace(progress, cut=replace(cut, next_turn=job.next_turn, positions=positions), place=None)

    def start(self) -> None:
        """Start the workers, unless they run already."""
        if self._batches is None and not self._cursor.is_at_end:
            has_moved = self.num_delivered > 0
            assignment = self.source.resolve(self._cursor.progress()) if has_moved else self._first
            self._resume(assignment)
            self._batches = self.source.batches(assignment)

    def release(self) -> None:
        """Shut the workers down, unless they are persistent; the progress stays."""
        batches, self._batches = self._batches, None
        if batches is not None:
            self.source.end(batches)

    def _recover(self, *, kill: bool = False) -> None:
        # Batches that were prefetched are dropped: the next read starts after the last delivered one.
        if kill:
            self.source.discard_workers(kill=True)
        self.release()
        self.source.discard_workers()

    def _read(self, num_delivered: int) -> Taken | None:
        tagged = self._next_batch()
        if tagged is None:
            return None
        if not self.source.yields_rows:
            delivery = Delivery(
                tagged.turn,
                tagged.positions,
                before=num_delivered,
                tokens=tagged.tokens,
                tokens_before=self._cursor.tokens,
            )
            return Taken(delivery, 1, tagged.batch)
        ((lane, (stop, _)),) = tagged.positions
        place = LaneRange(lane, stop - len(tagged.batch), stop)
        errors = self.source.definition.transform.errors
        is_ready = errors is None or not errors.skips
        return self._take_row(RowsDelivery(tagged.turn, place, tagged.batch, before=num_delivered, is_ready=is_ready))

    def _next_batch(self) -> TaggedBatch | None:
        """Return the next batch that is not empty, or None at the end."""
        while True:
            if self._cursor.is_at_end and not self._cursor.is_last:
                self.go_on(following_cut(self._assignment))
            self.start()
            if self._batches is None:
                return None
            try:
                tagged = next(self._batches)
            except StopIteration:
                self._batches = None
                forget_ended_workers()
                if self._cursor.is_at_end:
                    if not self._cursor.is_last:
                        continue
                    return None
                message = "the workers ended before all rows of the epoch were delivered"
                raise LanewayError(message) from None
            except BaseException as error:
                if self._waits_on_after(error):
                    continue
                raise
            if self._received(tagged):
                return tagged

    def _received(self, tagged: TaggedBatch) -> bool:
        """Note what has come with a batch, and return whether there is one."""
        source = self.source
        if source.watchdog.is_alert:
            source.watchdog.received(source.running)
        if tagged.counts is not None:
            source.counts.receive(*tagged.counts)
        return bool(tagged.positions)

    def _waits_on_after(self, error: BaseException) -> bool:
        """Return whether an error is none: the batch is only late. Workers may have been replaced, to read it again.

        Raises:
            WorkerError: Workers were replaced often enough, or one was killed.
            RuntimeError: The time limit of the DataLoader has passed.
        """
        source, is_late = self.source, is_timeout(error)
        try:
            if is_late:
                if source.watchdog.wakes_up(source.running, source.definition, self.reading()):
                    self._recover(kill=True)
                return True
            if isinstance(error, Exception):
                source.watchdog.check_killed(source.running, source.counts.memory_of, source.place.rank, error)
        except BaseException:
            self._recover(kill=is_late)
            raise
        self._recover()
        return False

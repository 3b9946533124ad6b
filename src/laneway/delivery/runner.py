"""Runs the passes of one rank, one after another, and counts the items that the training loop has received."""

from __future__ import annotations

import itertools
import warnings
import weakref
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch.utils.data import Sampler
from tqdm.auto import tqdm

from laneway.delivery.accelerate import AcceleratedPass
from laneway.delivery.callers import (
    check_batch_count,
    check_not_read_ahead,
    check_resumes_with_state,
    is_counted_by_fabric,
    is_looked_at_by_keras,
)
from laneway.delivery.dataloader import DataLoaderPass
from laneway.delivery.iterators import PassIterator
from laneway.delivery.metrics import LoaderMetrics, metrics_of_worker
from laneway.delivery.own_watch import watch
from laneway.delivery.passes import Delivery
from laneway.delivery.reports import LoopTimes
from laneway.errors import CheckpointMismatchError, LanewayError
from laneway.metering import memory_in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.core.assignment import Assignment
    from laneway.core.progress import Progress
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.accelerate import Placement
    from laneway.delivery.dataloader import BatchSource
    from laneway.delivery.definition import Definition
    from laneway.delivery.passes import Taken
    from laneway.delivery.reports import Reports
    from laneway.delivery.schedule import EpochSchedule


class _Counted(NamedTuple):
    """Items of an epoch when a pass began, or went on."""

    before: int
    """Items that had been delivered."""
    delivered: int
    """Those of them that the pass itself had delivered."""
    total: int | None
    """Items of the epoch; None: unknown, or without an end."""


class PassRunner:
    """Runs the passes of one rank."""

    def __init__(
        self,
        source: BatchSource,
        schedule: EpochSchedule,
        reports: Reports,
        *,
        shows_bar: bool = False,
        own_warning_s: float | None = None,
    ) -> None:
        """Prepare to run.

        Args:
            source: Reads the batches of the rank.
            schedule: Determines the epoch of each pass.
            reports: What is told of the passes while they run.
            shows_bar: Whether rank 0 shows a progress bar.
            own_warning_s: Seconds without a batch after which to warn, if this process reads without workers; None:
                never.
        """
        self.source = source
        self.schedule = schedule
        self.last: DataLoaderPass | None = None
        """The last pass."""
        self._prepared: tuple[DataLoaderPass, int] | None = None
        """A pass whose workers were started early, and the version of the schedule at that time."""
        self.reports = reports
        """What is told of the passes while they run."""
        self.times = LoopTimes()
        """How long the training loop has waited."""
        self._counted = _Counted(0, 0, None)
        self._shows_bar = shows_bar
        self.own_warning_s = own_warning_s
        """Seconds without a batch after which to warn, if this process reads without workers; None: never."""
        self.placement: Placement | None = None
        """Where an Accelerator puts the items, if one has prepared the loader."""

    @property
    def place(self) -> WorkerPlace:
        """Any worker of the rank."""
        return self.source.place

    @property
    def described(self) -> DataLoaderPass | None:
        """The last pass, if it is what a state describes."""
        return self.last if self.last is not None and self.last is self.schedule.described else None

    def start_workers(self) -> None:
        """Start the workers of the next pass, unless they run already.

        Raises:
            LanewayError: The last pass is still being read.
        """
        if self.last is not None and self.last.is_reading:
            message = (
                "the workers still read the running pass: iterate to its end, or drop its iterator, and then start"
            )
            raise LanewayError(message)
        running = self.next_pass()
        self._prepared = running, self.schedule.version
        running.start()

    def change(self, definition: Definition) -> None:
        """Read other batches of the same rank: from the next one on, if a pass is running.

        Raises:
            LanewayError: The progress of the whole job can't be inferred from that of this rank.
        """
        running = self.described
        progress = None if running is None or running.is_complete else running.whole_progress()
        if running is not None and not running.is_complete and progress is None:
            raise not_in_lockstep(INTO_NEW_LOADERS)
        self.source.change(definition)
        self.schedule.version += 1
        if running is not None and progress is not None:
            running.go_on(progress)

    def next_pass(self) -> DataLoaderPass:
        """Return the next pass, before it begins."""
        if self._prepared is not None:
            (running, version), self._prepared = self._prepared, None
            if version == self.schedule.version:
                return running
            running.release()
        schedule, place = self.schedule, self.place
        for warning in self.source.definition.warnings_at_start(schedule, place):
            warnings.warn(warning, stacklevel=5)
        return DataLoaderPass(self.source, self.resolve(schedule.next_progress))

    def begin(self, running: DataLoaderPass) -> None:
        """Record that a pass begins. It may be called again for the same pass, if a call was interrupted."""
        if self.last is not None and self.last is not running:
            self.last.release()
        self.last = running
        self.schedule.begin(running, self.place)

    def open_bar(self, running: DataLoaderPass) -> tqdm[Any]:
        """Return the progress bar of a pass, which starts where the epoch resumes; metrics count from there too."""
        assignment = running.assignment()
        num_left = self._num_left(assignment)
        num_received = self._num_received(assignment)
        total = None if num_left is None else num_received + num_left
        self._counted = _Counted(num_received, running.num_delivered, total)
        return tqdm(
            total=total,
            initial=num_received,
            desc=f"epoch {running.epoch}",
            unit="row" if self.source.yields_rows else "batch",
            disable=not self._shows_bar or self.place.rank > 0,
        )

    def metrics(self) -> LoaderMetrics:
        """Return what was delivered and how long it took. Any thread may call it: it only looks."""
        last, counted = self.last, self._counted
        seconds, waited_s = self.times.until(perf_counter(), is_running=last is not None and last.is_reading)
        num_received = counted.before + (0 if last is None else last.num_delivered - counted.delivered)
        return LoaderMetrics(
            epoch=self.schedule.epoch if last is None else last.epoch,
            epoch_batches=num_received,
            epoch_total=counted.total,
            seconds=seconds,
            waited_s=waited_s,
            queue_depth=self.source.queue_depth,
            memory_bytes=memory_in_use(),
            workers=tuple(metrics_of_worker(*each) for each in sorted(self.source.counts.sums().items())),
        )

    def resolve(self, progress: Progress) -> Assignment:
        """Return the assignment of this rank.

        Raises:
            CheckpointMismatchError: The progress is that of a single worker, or of another rank.
        """
        if progress.place is not None and progress.place.num_workers > 1:
            message = (
                f"this is the state of DataLoader worker {progress.place.worker} of {progress.place.num_workers} only: "
                "pass the state of a rank or of the whole job to a SavableLoader"
            )
            raise CheckpointMismatchError(message)
        return self.source.resolve(progress)

    def num_received(self) -> int:
        """Return the number of items of the current epoch that the training loop has received on this rank."""
        if self.described is not None:
            return self._num_received(self.described.assignment())
        progress = self.schedule.next_progress
        return 0 if progress.cut is None else self._num_received(self.resolve(progress))

    def num_left(self, running: DataLoaderPass) -> int | None:
        """Return the number of items of a pass that the training loop has not received yet; None: it has no end."""
        return self._num_left(running.assignment())

    def _num_left(self, assignment: Assignment) -> int | None:
        return self.source.definition.num_left(assignment)

    def _num_received(self, assignment: Assignment) -> int:
        return self.source.definition.num_received(assignment)

    @property
    def num_items(self) -> int | None:
        """Number of items that this rank delivers in a whole epoch, that of the next pass; None: it has no end."""
        return self.num_items_of(self.schedule.epoch)

    def num_items_of(self, epoch: int) -> int | None:
        """Return the number of items that this rank delivers in a whole epoch; None: it has no end."""
        return self.source.definition.num_items(self.place, epoch)


INTO_NEW_LOADERS: Final = "and load the state into loaders with the other weights"
"""What to do with a gathered state instead of changing a loader while it runs."""


def not_in_lockstep(then: str) -> LanewayError:
    """Return the error for a call that needs the progress of the whole job, which this rank doesn't know.

    Args:
        then: What to do with a gathered state.
    """
    message = (
        "ranks are not in lockstep, so this one doesn't know how far the others are (they have taken other numbers of "
        "batches, or pack() or flat_map() make a number of items that depends on the data): call save_state_global() "
        f"on all ranks, {then}"
    )
    return LanewayError(message)


class LoaderIterator(PassIterator):
    """Iterates over a pass of a rank as long as it is the loader's last one."""

    def __init__(self, runner: PassRunner, dataset: object = None) -> None:
        """Prepare a pass.

        Args:
            runner: Runs the passes of the rank.
            dataset: The dataset that the loader reads, by which a trainer's loader is recognised.
        """
        super().__init__(runner.schedule)
        self._runner = runner
        self._dataset = dataset
        self._running: DataLoaderPass | None = None
        self._end_watch: Callable[[], object] = bool
        """Ends the thread that warns of a batch that does not come, if there is one."""
        self._bar: tqdm[Any] | None = None
        """Its progress bar, once the pass has begun."""
        self._accelerated: AcceleratedPass | None = None
        """The pass as Accelerate sees it, if an Accelerator has prepared the loader."""
        self._is_look = False
        """Whether its batches are only looked at, and not counted: they come again in the next pass."""
        self._num_items: int | None = 0
        """Then, the number of items that it delivers."""

    def _take(self) -> Taken | None:
        self.check_process()
        runner = self._runner
        times, began = runner.times, perf_counter()
        if began >= runner.reports.next_s:
            runner.reports.tell(began, runner.metrics)
        if self._bar is None:
            times.leave()
        times.begin_to_wait(began)
        taken = None
        try:
            taken = self._take_next()
        finally:
            times.end_to_wait(perf_counter())
            if taken is None:
                times.leave()
        if taken is None:
            self._end_watch()
            runner.reports.tell_last(runner.metrics)
        return taken

    def _take_next(self) -> Taken | None:
        running, bar = self._running, self._bar
        if running is None or bar is None:
            running, bar = self._begin()
        elif running.is_over:
            return None
        elif self._schedule.last is not running:
            message = "this iterator has ended: another pass over its SavableLoader has begun, or a state was restored"
            raise LanewayError(message)
        accelerated = self._accelerated
        if bar.disable and accelerated is None:
            self._version = self._schedule.version
        elif not bar.disable:
            bar.update(bar.initial + running.num_delivered - bar.n)
        taken = running.take()
        if taken is None:
            bar.close()
        if taken is not None and self._is_look:
            return taken._replace(delivery=Delivery())
        if accelerated is None:
            return taken
        if taken is None:
            accelerated.end()
            return None
        return accelerated.place(taken, is_last=running.num_delivered + 1 == self._num_items)

    def _begin(self) -> tuple[DataLoaderPass, tqdm[Any]]:
        running = self._running
        if running is None:
            if self._schedule.pending is None:
                check_resumes_with_state(self._dataset)
            check_not_read_ahead()
            self._is_look = is_looked_at_by_keras()
            check_batch_count(self._dataset, self._runner.num_received())
            running = self._runner.next_pass()
            weakref.finalize(self, running.release).atexit = False
            warning_s = self._runner.own_warning_s
            if warning_s is not None:
                self._end_watch = watch(running, self._runner.times, warning_s)
                weakref.finalize(self, self._end_watch).atexit = False
            self._running = self._pass = running
        self._runner.begin(running)
        bar = self._runner.open_bar(running)
        if self._runner.placement is not None:
            self._accelerated = AcceleratedPass(self._runner.placement)
            self._accelerated.begin()
            self._num_items = self._runner.num_left(running)
        self._bar = bar
        return running, bar


class EpochSampler(Sampler[None]):
    """Stands where a DataLoader has its sampler, through which frameworks choose the epoch of the next pass."""

    def __init__(self, schedule: EpochSchedule) -> None:
        """Choose epochs of `schedule`."""
        self._schedule = schedule

    def __iter__(self) -> Iterator[None]:
        """Return what the sampler of any DataLoader over an iterable dataset does: it has no indices."""
        return itertools.repeat(None)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, unless it is just Fabric's count of passes since the process started."""
        if not is_counted_by_fabric() and self._schedule.has_epochs:
            self._schedule.set_epoch(epoch)

"""The iterators that users get: over a pass of a dataset; the base of that over a pass of a SavableLoader.

They make the store that delivers an item; see `laneway.delivery.passes`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any, Self

from laneway.delivery.callers import check_resumes_with_state
from laneway.delivery.dataset_state import dataset_state, load_dataset_state, pass_state
from laneway.delivery.late_choice import LateChoice
from laneway.delivery.passes import Delivery
from laneway.delivery.workers import MAX_WORKERS, is_in_worker, worker_place
from laneway.errors import LanewayError
from laneway.reading.threads import share_cores

if TYPE_CHECKING:
    from laneway.delivery.definition import Definition
    from laneway.delivery.passes import Pass, Taken
    from laneway.delivery.schedule import EpochSchedule, Restored
    from laneway.delivery.stream import Stream

_iterators: weakref.WeakSet[PassIterator] = weakref.WeakSet()


class PassIterator:
    """Iterates over a pass, which begins when its first item is requested."""

    def __init__(self, schedule: EpochSchedule) -> None:
        """Prepare a pass of `schedule`."""
        self._schedule = schedule
        self._version = -1
        """Version of the schedule in which the next row may be delivered without further checks."""
        self._pass: Pass | None = None
        self._delivery = Delivery()
        self._pid = os.getpid()
        self._thread = 0
        """The thread that is in `next`, also after a signal has ended that; 0: none."""
        _iterators.add(self)

    def __iter__(self) -> Self:
        """Return self."""
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a user's transform may return anything
        """Return the next item, and count it as delivered. After an error, the next call retries the same item."""
        delivery = self._delivery
        taken = delivery.taken
        if taken < delivery.num_ready and self._version == self._schedule.version and not self._thread:
            row = delivery.rows[taken]
            delivery.taken = taken + 1
            return row
        thread = get_ident()
        if self._thread and self._thread != thread:
            self._refuse_thread()
        self._thread = thread
        try:
            found = self._take()
        except BaseException:
            self._thread = 0
            raise
        self._thread = 0
        if found is None:
            if self._pass is not None:
                self._pass.is_over = True
            raise StopIteration
        delivery, taken, item = found
        self._delivery = delivery
        # Nothing but the return may come after this store: a signal handler may raise wherever a call ends.
        delivery.taken = taken
        return item

    def _refuse_thread(self) -> None:
        message = (
            "another thread is in next() of this iterator, and both would get the same items: take items in one thread "
            "and hand them to the others, through a queue.Queue for example"
        )
        raise LanewayError(message)

    def __reduce__(self) -> Any:  # noqa: ANN401 - see object
        """Refuse to be pickled, or copied, which calls this too: both would deliver the same items."""
        message = (
            f"a {type(self).__name__} can't be copied or pickled: save state_dict() of its dataset or loader, and load "
            "it into another one"
        )
        raise LanewayError(message)

    def _take(self) -> Taken | None:
        """Return the next item, or None at the end; begin the pass first if it has not begun."""
        raise NotImplementedError

    def check_process(self) -> None:
        """Check that this process is not a fork of the one that created the iterator.

        Raises:
            LanewayError: It is; the threads and workers of the iterator are in its parent.
        """
        if self._pid != os.getpid():
            message = (
                f"this iterator belongs to process {self._pid}, of which this process is a fork: its threads and "
                "workers can't be used here; create an iterator in this process"
            )
            raise LanewayError(message)

    def expire(self) -> None:
        """Check everything before the next row is delivered."""
        self._version = -1


def _expire_in_fork() -> None:
    for each in list(_iterators):
        each.expire()


os.register_at_fork(after_in_child=_expire_in_fork)


class DatasetIterator(PassIterator):
    """Iterates over a pass of a dataset. In a DataLoader worker, the pass begins at once.

    It has a state of its own, which StatefulDataLoader saves: other passes over the dataset don't affect it.
    """

    def __init__(self, definition: Definition, schedule: EpochSchedule, dataset: object) -> None:
        """Prepare a pass.

        Args:
            definition: The files, order and conversion of the dataset.
            schedule: The epochs of the dataset.
            dataset: The dataset itself, by which a trainer's loader is recognised.
        """
        super().__init__(schedule)
        self._definition = definition
        self._dataset = dataset
        self._place = worker_place(definition.place) or definition.place
        self._stream: Stream[Any] | None = None
        self._has_begun = False
        self._restored: Restored | None = None
        """The state that was loaded for this pass."""
        self._late_choice: LateChoice | None = None
        if is_in_worker():
            share_cores(self._place.num_workers)
            # The first `next` raises it again, which the loader passes on: what `iter` raises ends a persistent worker.
            with contextlib.suppress(LanewayError, ValueError):
                self._begin()

    def _take(self) -> Taken | None:
        self.check_process()
        stream = self._stream if self._stream is not None and self._has_begun else self._begin()
        self._version = self._schedule.version
        if self._late_choice is not None and (warning := self._late_choice.warning(stream.epoch)):
            self._late_choice = None
            warnings.warn(warning, stacklevel=3)
        return stream.take()

    def _begin(self) -> Stream[Any]:
        place, schedule = self._place, self._schedule
        if place.num_workers > MAX_WORKERS:
            message = f"num_workers is {place.num_workers:,}, but a rank can have at most {MAX_WORKERS:,}"
            raise ValueError(message)
        progress, generation = schedule.next_start()
        stream = self._stream
        if stream is None:
            # A state of this pass, which another pass over the dataset has taken as its own, still applies.
            restored = schedule.pending or (None if schedule.is_chosen else self._restored)
            for warning in self._definition.warnings_at_start(schedule, place):
                warnings.warn(warning, stacklevel=4)
            if restored is None:
                check_resumes_with_state(self._dataset)
            start = restored.start if restored else progress
            stream = self._definition.open(self._definition.resolve(start, place))
            weakref.finalize(self, stream.release).atexit = False
            self._restored, self._stream, self._pass = restored, stream, stream
        schedule.begin(stream, place, generation)
        # One worker warns for all.
        self._late_choice = LateChoice(schedule, generation) if is_in_worker() and not place.worker else None
        self._has_begun = True
        return stream

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this pass."""
        stream = self._stream
        if stream is None or stream is self._schedule.last:
            return dataset_state(self._definition, self._schedule)
        return pass_state(self._definition, stream, self._place)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make this pass resume from a state; a state that is refused changes nothing."""
        schedule = self._schedule
        loaded = self._restored or schedule.pending
        if loaded is None or loaded.saved.original != state_dict:
            load_dataset_state(self._definition, schedule, state_dict)
            loaded = schedule.pending
            self._stream, self._has_begun = None, False
        self._restored = loaded
        if is_in_worker() and self._stream is None:
            self._begin()

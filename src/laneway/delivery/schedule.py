"""EpochSchedule over a dataset: which epoch the next one delivers and from where, and what the last one has delivered.

Every pass is the next epoch, whether or not the one before was read to its end. A state that was loaded is used by
one pass; `set_epoch` says what the next pass is.
"""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laneway.arguments import plain_int
from laneway.core.progress import Progress
from laneway.delivery.clock import MAX_EPOCHS, EpochClock
from laneway.delivery.workers import is_in_worker, loader_number
from laneway.errors import StateFormatError

if TYPE_CHECKING:
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.stream import Stream


@dataclass(frozen=True, slots=True)
class Restored:
    """A state that was loaded; the next pass goes on from it."""

    state: dict[str, Any]
    """The state itself."""
    progress: Progress
    """What it says."""
    generation: int
    """Generation of the clock that it is good in."""
    pid: int
    """The process that loaded it."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that this process began."""

    stream: Stream
    """What it yields."""
    place: WorkerPlace
    """Who reads it."""
    generation: int
    """Generation of the clock, as of this pass."""
    pid: int
    """The process: a fork of it has not begun this pass."""


class EpochSchedule:
    """The passes over one dataset, in the main process and, as copies that share a clock, in its workers."""

    def __init__(self) -> None:
        """Begin before epoch 0."""
        self.clock = EpochClock()
        self.num_changes = 0
        """How often this process began a pass, loaded a state or chose an epoch."""
        self._restored: Restored | None = None
        self._began: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running pass behind: open files stay in the process that opened them."""
        return {**vars(self), "_began": None}

    def copy(self) -> EpochSchedule:
        """Return passes of their own that go on from the same place."""
        other = EpochSchedule()
        other.clock.set(self.next_progress.epoch, asked=False)
        restored = self.pending
        if restored is not None:
            other._restored = replace(restored, generation=other.clock.generation)
        return other

    @property
    def current(self) -> Pass | None:
        """The last pass, where it was this process that began it: it stays so until another one begins."""
        return self._began if is_in_worker() or not self.clock.num_active_workers else None

    @property
    def pending(self) -> Restored | None:
        """The loaded state, where no pass has used it and no other epoch was asked for since."""
        restored = self._restored
        if restored is None or (is_in_worker() and restored.pid == os.getpid()):
            # A loader has its workers load their states right before the pass that they are for.
            return restored
        return restored if self.clock.is_fresh(restored.generation, loader_number()) else None

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or the one that was asked for or loaded since."""
        asked, began, last = self.clock.asked_epoch(), self.current, self.clock.last_epoch
        if asked is not None:
            return asked
        if began is not None:
            return began.stream.cursor.epoch
        return self.clock.set_epoch if last is None else last

    @property
    def next_progress(self) -> Progress:
        """Where the next pass begins."""
        return self.start()[0]

    def start(self) -> tuple[Progress, int]:
        """Return where a pass that begins now begins, and the generation of the clock that it belongs to."""
        restored = self.pending
        if restored is not None:
            return restored.progress, restored.generation
        last, generation = self._began, self.clock.generation
        if last is not None and last.pid == os.getpid() and is_in_worker():
            # A persistent worker: its loader begins each pass in all of its workers, so they count alike.
            epoch = self.clock.next_of_others(loader_number())
            if last.generation == generation:
                epoch = max(epoch, last.stream.cursor.epoch + 1)
            return Progress(epoch), generation
        generation, epoch = self.clock.next(loader_number())
        return Progress(epoch), generation

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one that the next pass delivers; the progress of a loaded state of it is kept."""
        number = plain_int(epoch)
        if number is None or not 0 <= number < MAX_EPOCHS:
            message = f"epoch must be an int in [0, {MAX_EPOCHS}), not {epoch!r}"
            raise ValueError(message)
        epoch = number
        self.num_changes += 1
        restored = self.pending
        self.clock.set(epoch, asked=True)
        is_kept = restored is not None and restored.progress.epoch == epoch
        self._restored = replace(restored, generation=self.clock.generation) if restored and is_kept else None

    def begin(self, stream: Stream, place: WorkerPlace, generation: int) -> None:
        """Say that a pass has begun in this process, in the generation that `start` told."""
        epoch = stream.cursor.epoch
        self.num_changes += 1
        self.clock.hold(place.num_workers if is_in_worker() else 0)
        if is_in_worker():
            is_first = self._began is None or self._began.pid != os.getpid()
            self.clock.begin(place.worker, generation, loader_number() or 0, epoch, is_first=is_first)
        else:
            self.clock.set(epoch + 1, asked=False)
        self._restored = None
        self._began = Pass(stream, place, generation, os.getpid())

    def begin_elsewhere(self, epoch: int, num_workers: int) -> None:
        """Say that a loader of this process has begun a pass, and keeps its progress.

        Args:
            epoch: What the pass delivers.
            num_workers: Number of workers that read it, at least 1.
        """
        self.num_changes += 1
        self.clock.set(epoch, asked=False)
        self.clock.begin(0, self.clock.generation, 0, epoch)
        self.clock.hold(num_workers)
        self._restored = self._began = None

    def restore(self, state: dict[str, Any], progress: Progress) -> None:
        """Make the next pass go on from `progress`, which `state` says."""
        if progress.epoch >= MAX_EPOCHS:
            message = f"this state is damaged: epoch is {progress.epoch}"
            raise StateFormatError(message)
        asked = self.clock.asked_epoch(loader_number())
        # What follows a complete epoch is what a training loop asks for next.
        if asked not in {None, progress.epoch, progress.epoch + 1 if state["complete"] else None}:
            message = (
                f"set_epoch({asked}) was called, but the state that is loaded is of epoch {progress.epoch}, and so is "
                f"the pass; begin the loop over epochs at {progress.epoch}"
            )
            warnings.warn(message, stacklevel=3)
        self.num_changes += 1
        if not is_in_worker():
            self.clock.hold(0)
            self.clock.set(progress.epoch, asked=False)
        self._began = None
        self._restored = Restored(copy.deepcopy(state), progress, self.clock.generation, os.getpid())

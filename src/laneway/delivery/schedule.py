"""The schedule of epochs: the epoch and start of the next pass, and the progress of the last one.

Every pass is the next epoch, whether or not the previous one was read to its end. A loaded state is used by one pass;
`set_epoch` chooses the epoch of the next pass.
"""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laneway.arguments import plain_int
from laneway.core.progress import Progress
from laneway.delivery.clock import MAX_EPOCHS, EpochClock, loader_number
from laneway.delivery.workers import is_in_worker
from laneway.errors import StateFormatError

if TYPE_CHECKING:
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.passes import Pass


@dataclass(frozen=True, slots=True)
class Restored:
    """A state that was loaded; the next pass resumes from it."""

    saved: SavedState
    """The state."""
    progress: Progress
    """Its progress."""
    generation: int
    """Generation of the clock in which it is valid."""
    pid: int
    """The process that loaded it."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A pass that this process began."""

    running: Pass
    """The pass."""
    place: WorkerPlace
    """The worker that reads it."""
    generation: int
    """Generation of the clock at its start."""
    pid: int
    """The process that began it, to distinguish it from its forks."""


class EpochSchedule:
    """The passes over one dataset: in the main process and, as copies that share a clock, in its DataLoader workers."""

    def __init__(self) -> None:
        """Start before epoch 0."""
        self.version = 0
        """Changes whenever this process begins a pass, loads a state or chooses an epoch."""
        self._clock = EpochClock()
        self._restored: Restored | None = None
        self._begun: _Begun | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running pass: open files stay in the process that opened them."""
        return {**vars(self), "_begun": None}

    def copy(self) -> EpochSchedule:
        """Return an independent schedule whose next pass is the same."""
        other = EpochSchedule()
        other.set_next(self.next_progress, self.pending)
        return other

    def set_next(self, progress: Progress, restored: Restored | None = None) -> None:
        """Make the next pass start at the epoch of `progress`, or resume from a loaded state."""
        self._clock.set(progress.epoch, asked=False)
        self._restored = replace(restored, generation=self._clock.generation) if restored else None

    # -- The next pass ------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or the one that was chosen or loaded since."""
        asked, last = self._clock.asked_epoch(), self._clock.last_epoch
        if asked is not None:
            return asked
        if self.current is not None:
            return self.current.epoch
        return self._clock.setting_epoch if last is None else last

    @property
    def pending(self) -> Restored | None:
        """The loaded state, unless a pass has used it or another epoch was chosen since."""
        restored = self._restored
        if restored is None or (is_in_worker() and restored.pid == os.getpid()):
            # A loader has its workers load their states right before the pass that uses them.
            return restored
        return restored if self._clock.is_untouched(restored.generation, loader_number()) else None

    @property
    def next_progress(self) -> Progress:
        """The progress from which the next pass starts."""
        return self.next_start()[0]

    def next_start(self) -> tuple[Progress, int]:
        """Return the progress from which a pass that begins now starts, and the generation of the clock for it."""
        restored = self.pending
        if restored is not None:
            return restored.progress, restored.generation
        last, generation = self._begun, self._clock.generation
        if last is not None and last.pid == os.getpid() and is_in_worker():
            # A persistent worker: its loader starts each pass in all of its workers, so their counts agree.
            epoch = self._clock.next_of_others(loader_number())
            if last.generation == generation:
                epoch = max(epoch, last.running.epoch + 1)
            return Progress(epoch), generation
        generation, epoch = self._clock.next(loader_number())
        return Progress(epoch), generation

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; if a loaded state is of this epoch, its progress is kept."""
        number = plain_int(epoch)
        if number is None or not 0 <= number < MAX_EPOCHS:
            message = f"epoch must be an int in [0, {MAX_EPOCHS}), not {epoch!r}"
            raise ValueError(message)
        self.version += 1
        restored = self.pending
        self._clock.set(number, asked=True)
        is_kept = restored is not None and restored.progress.epoch == number
        self._restored = replace(restored, generation=self._clock.generation) if restored and is_kept else None

    def restore(self, saved: SavedState, progress: Progress) -> None:
        """Make the next pass resume from a state.

        Args:
            saved: The state.
            progress: Its progress.
        """
        if progress.epoch >= MAX_EPOCHS:
            message = f"this state is damaged: epoch is {progress.epoch}"
            raise StateFormatError(message)
        asked = self._clock.asked_epoch(loader_number())
        # After a complete epoch, a training loop sets the next one.
        if asked not in {None, progress.epoch, progress.epoch + 1 if saved.is_complete else None}:
            message = (
                f"set_epoch({asked}) was called, but the loaded state is of epoch {progress.epoch}, which the next "
                f"pass resumes; start the loop over epochs at {progress.epoch}"
            )
            warnings.warn(message, stacklevel=3)
        self.version += 1
        if not is_in_worker():
            self._clock.set_num_active_workers(0)
            self._clock.set(progress.epoch, asked=False)
        self._begun = None
        saved = replace(saved, original=copy.deepcopy(saved.original))
        self._restored = Restored(saved, progress, self._clock.generation, os.getpid())

    # -- The last pass ------------------------------------------------------------------------------------------------

    @property
    def num_active_workers(self) -> int:
        """Number of workers that hold the progress of the last pass, 0 if the main process reads its own data."""
        return self._clock.num_active_workers

    @property
    def current(self) -> Pass | None:
        """The last pass, running or over, if this process began it."""
        is_here = self._begun is not None and (is_in_worker() or not self.num_active_workers)
        return self._begun.running if self._begun and is_here else None

    @property
    def place(self) -> WorkerPlace | None:
        """The worker that reads the last pass of this process."""
        return self._begun.place if self._begun else None

    def begin(self, begun: Pass, place: WorkerPlace, generation: int) -> None:
        """Record that a pass has begun in this process, in the generation that `next_start` returned."""
        self.version += 1
        self._clock.set_num_active_workers(place.num_workers if is_in_worker() else 0)
        if is_in_worker():
            is_first = self._begun is None or self._begun.pid != os.getpid()
            self._clock.begin(place.worker, generation, loader_number() or 0, begun.epoch, is_first=is_first)
        else:
            self._clock.set(begun.epoch + 1, asked=False)
        self._restored = None
        self._begun = _Begun(begun, place, generation, os.getpid())

    def begin_in_loader(self, epoch: int, num_workers: int) -> None:
        """Record that a loader of this process has begun a pass, and keeps the progress of it.

        Args:
            epoch: The epoch that is delivered.
            num_workers: Number of workers that read it, at least 1.
        """
        self.version += 1
        self._clock.set(epoch, asked=False)
        self._clock.begin(0, self._clock.generation, 0, epoch)
        self._clock.set_num_active_workers(num_workers)
        self._restored = self._begun = None

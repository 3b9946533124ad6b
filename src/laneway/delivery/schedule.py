"""The schedule of epochs: the epoch and start of the next pass, and the progress of the last one.

Every pass is the next epoch, whether or not the previous one was read to its end; a pass that delivered nothing doesn't
count. A loaded state is used by one pass; `set_epoch` chooses the epoch of the next pass.
"""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laneway.arguments import plain_int
from laneway.core.progress import Progress, next_epoch
from laneway.delivery.choices import refused_epoch, warning_of_complete, warning_of_dropped
from laneway.delivery.clock import MAX_EPOCHS, EpochClock, Loaded, loader_number
from laneway.delivery.workers import is_in_worker, is_loader_starting_again
from laneway.errors import LanewayError, StateFormatError

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
    loaded: Loaded
    """How far it is; in a worker, how far the least complete state of all workers is."""
    chosen: int | None
    """The epoch that the user chose for the next pass: that of the state, or the one after it if it is complete."""
    generation: int
    """Generation of the clock in which it is valid."""
    pid: int
    """The process that loaded it."""
    goes_on: bool = False
    """Whether the next epoch goes on where this one ends."""

    @property
    def follows(self) -> bool:
        """Whether the next pass delivers the epoch after that of the state, as the user chose."""
        return self.chosen not in {None, self.progress.epoch}

    @property
    def start(self) -> Progress:
        """The progress from which the next pass starts."""
        if not self.follows and (self.loaded is not Loaded.OVER or self.chosen is not None):
            return self.progress
        return next_epoch(self.progress) if self.goes_on else Progress(self.progress.epoch + 1)


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

    def __init__(
        self, dataset: EpochSchedule | None = None, *, is_endless: bool = False, has_epochs: bool = True
    ) -> None:
        """Start before epoch 0.

        Args:
            dataset: For the schedule of a loader: that of its dataset.
            is_endless: Whether there are always further rows, so that the next pass goes on where the last one stopped.
            has_epochs: Whether passes end.
        """
        self.is_endless = is_endless
        """Whether the next pass goes on where the last one stopped."""
        self.has_epochs = has_epochs
        """Whether passes end."""
        self._start = Progress(0)
        """Where the first pass starts, if the next one goes on there."""
        self.version = 0
        """Changes whenever this process begins a pass, loads a state or chooses an epoch."""
        self._dataset = dataset
        self._loaders: weakref.WeakSet[EpochSchedule] = weakref.WeakSet()
        # The workers of a SavableLoader never read its clock.
        self._clock = EpochClock()
        self._restored: Restored | None = None
        self._begun: _Begun | None = None
        self._starts_again = False
        """In a spawned worker: whether its loader starts all workers once more; see `is_loader_starting_again`."""
        self._num_at_choice = 0
        """Number of items that the last pass had delivered when an epoch was chosen."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running pass and the loaders, which stay in their process."""
        left_out = {"_begun": None, "_dataset": None, "_loaders": None}
        begun, start = self._begun, self._start
        if self.is_endless and begun is not None and not is_in_worker() and not self._is_unused(begun):
            # A copy can't see the pass, and goes on where it is now. Workers don't know where that is.
            start = self.next_progress
        return {**vars(self), **left_out, "_start": start, "_starts_again": is_loader_starting_again()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the rest."""
        vars(self).update(state)
        self._loaders = weakref.WeakSet()

    def copy(self) -> EpochSchedule:
        """Return an independent schedule whose next pass is the same."""
        return self._copy_under(None)

    def of_loader(self) -> EpochSchedule:
        """Return the schedule of a loader over this dataset, which counts its own passes.

        Epochs that are chosen and states that are loaded here apply to it too. The passes that it begins count here.
        """
        other = self._copy_under(self)
        self._loaders.add(other)
        return other

    def _copy_under(self, dataset: EpochSchedule | None) -> EpochSchedule:
        other, restored = EpochSchedule(dataset, is_endless=self.is_endless, has_epochs=self.has_epochs), self.pending
        if restored is None:
            start = self.next_start()[0]
            other.set_next(start.epoch)
            other.start_at(start)
        else:
            other.set_next(restored.progress.epoch, restored)
        return other

    def start_at(self, progress: Progress) -> None:
        """Make the first pass start at some progress, if the next one goes on there."""
        self._start = progress

    def set_next(self, epoch: int, restored: Restored | None = None) -> None:
        """Make the next pass start at an epoch, or resume from a loaded state of this epoch."""
        self._clock.set(epoch, is_chosen=False)
        self._restored = replace(restored, generation=self._clock.generation) if restored else None

    # -- The next pass ------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or that of the next one if it was chosen or loaded since: that of a state."""
        chosen, last, restored = self._clock.chosen_epoch(), self._clock.last_epoch, self.pending
        if chosen is not None and self.described is None:
            return chosen
        if restored is not None:
            return restored.start.epoch
        if self.last is not None:
            return self.last.epoch
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
    def is_chosen(self) -> bool:
        """Whether the user chose the epoch of the next pass."""
        return self._clock.chosen_epoch() is not None

    def epoch_chosen_after(self, generation: int) -> int | None:
        """Return the epoch that the user chose since the clock had this generation, if any."""
        return self._clock.chosen_epoch_after(generation)

    def warning_at_start(self, place: WorkerPlace) -> str | None:
        """Return a warning if the next pass, read by the worker at `place`, delivers nothing, which may surprise."""
        restored = self.pending
        # One worker warns for all.
        if restored is None or restored.chosen is not None or restored.loaded is not Loaded.COMPLETE or place.worker:
            return None
        return warning_of_complete(restored.progress.epoch)

    @property
    def next_progress(self) -> Progress:
        """The progress from which the next pass starts."""
        return self.next_start()[0]

    def next_start(self) -> tuple[Progress, int]:
        """Return the progress from which a pass that begins now starts, and the generation of the clock for it."""
        restored = self.pending
        if restored is not None:
            return restored.start, restored.generation
        begun, generation = self._begun, self._clock.generation
        if is_in_worker():
            self._check_goes_on()
            if begun is None or begun.pid != os.getpid():
                generation, epoch = self._clock.next(loader_number())
                return Progress(epoch), generation
            # A persistent worker: its loader starts each pass in all of its workers, so their counts agree.
            epoch = self._clock.next_of_others(loader_number())
            if begun.generation == generation:
                epoch = max(epoch, begun.running.epoch + 1)
            return Progress(epoch), generation
        if begun is not None and begun.pid == os.getpid() and (self.is_endless or self._is_unused(begun)):
            progress, ends_epoch = begun.running.progress(), self.is_endless and begun.running.is_complete
            return next_epoch(progress) if ends_epoch else progress, generation
        return self._start if self.is_endless else Progress(self._clock.next()[1]), generation

    def _is_unused(self, begun: _Begun) -> bool:
        """Return whether a pass has delivered nothing, and nothing was chosen or begun since."""
        is_used = begun.running.num_delivered or begun.running.is_over
        return not is_used and self._clock.is_untouched(begun.generation)

    def _check_goes_on(self) -> None:
        """Check that a worker of a user's own DataLoader need not go on where an earlier pass has stopped."""
        # A persistent worker has begun the earlier pass itself.
        has_begun = self._begun is not None and self._begun.pid == os.getpid()
        if self.is_endless and (has_begun or self._start.cut is not None or self._clock.next(loader_number())[1]):
            message = (
                "another pass over this endless mixture would continue where the last one stopped, but the workers of "
                "a DataLoader don't know what was delivered: keep its iterator, or use a SavableLoader"
            )
            raise LanewayError(message)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; if a loaded state is of this epoch, its progress is kept."""
        number = plain_int(epoch)
        if number is None or not 0 <= number < MAX_EPOCHS:
            message = f"epoch must be an int in [0, {MAX_EPOCHS}), not {epoch!r}"
            raise ValueError(message)
        choosing = [each for each in self._with_loaders() if each.can_choose(number)]
        if not self.has_epochs or not choosing:
            raise refused_epoch(number, self.next_progress.epoch if self.has_epochs else None)
        found = [each.choose(number) for each in choosing]
        for warning in dict.fromkeys(filter(None, found)):
            warnings.warn(warning, stacklevel=3)

    def can_choose(self, epoch: int) -> bool:
        """Return whether the next pass can be of an epoch: of any, unless it goes on where the last one stopped."""
        restored, following = self.pending, self.next_progress.epoch
        is_complete = restored is not None and restored.loaded is Loaded.COMPLETE and restored.chosen is None
        return not self.is_endless or epoch in {following, following + is_complete}

    def _with_loaders(self) -> list[EpochSchedule]:
        """Return this schedule and those of the loaders over this dataset."""
        return [self, *self._loaders]

    def choose(self, epoch: int) -> str | None:
        """Choose the epoch of the next pass here only, and return a warning if a loaded state is dropped."""
        self.version += 1
        restored, warning = self.pending, None
        self._num_at_choice = self.last.num_delivered if self.last else 0
        self._clock.set(epoch, is_chosen=True)
        if restored is not None:
            of_state, is_complete = restored.progress.epoch, restored.loaded is not Loaded.INCOMPLETE
            if epoch == of_state or (is_complete and epoch == of_state + 1):
                restored = replace(restored, chosen=epoch, generation=self._clock.generation)
            else:
                warning, restored = warning_of_dropped(epoch, of_state, is_complete=is_complete), None
        self._restored = restored
        return warning

    def restore(self, saved: SavedState, progress: Progress) -> None:
        """Make the next pass resume from a state.

        Args:
            saved: The state.
            progress: Its progress.

        Raises:
            StateFormatError: The epoch is too large.
        """
        if progress.epoch >= MAX_EPOCHS:
            message = f"this state is damaged: epoch is {progress.epoch}"
            raise StateFormatError(message)
        found = [each.load(saved, progress) for each in self._with_loaders()]
        if self._dataset is not None:
            self._dataset.leave_to_loader()
        for warning in dict.fromkeys(filter(None, found)):
            warnings.warn(warning, stacklevel=3)

    def load(self, saved: SavedState, progress: Progress) -> str | None:
        """Make the next pass here only resume from a state, and return a warning if it overrides a chosen epoch."""
        clock, epoch = self._clock, progress.epoch
        loaded = self._loaded(saved)
        chosen, is_complete = clock.chosen_epoch(loader_number()), loaded is not Loaded.INCOMPLETE
        kept = chosen if chosen == epoch or (is_complete and chosen == epoch + 1) else None
        if loaded is Loaded.OVER and is_in_worker():
            # The workers that the loader starts next begin the next epoch.
            kept = epoch
        self.version += 1
        self._begun = None
        if not is_in_worker():
            clock.set_num_active_workers(0)
            clock.set(epoch if kept is None else kept, is_chosen=kept is not None)
        saved = replace(saved, original=copy.deepcopy(saved.original))
        self._restored = Restored(saved, progress, loaded, kept, clock.generation, os.getpid(), goes_on=self.is_endless)
        if is_in_worker() and loaded is Loaded.OVER and chosen == epoch:
            return (
                f"set_epoch({chosen}) was called, but that epoch has ended, so the next pass of the StatefulDataLoader "
                f"delivers epoch {epoch + 1}; start the loop over epochs at {epoch + 1}"
            )
        if chosen is None or kept is not None:
            return None
        return (
            f"set_epoch({chosen}) was called, but the loaded state is of epoch {epoch}, which the next pass resumes; "
            f"start the loop over epochs at {epoch}"
        )

    def _loaded(self, saved: SavedState) -> Loaded:
        """Return how far a state is; in a worker, how far the least complete one of it and its siblings is."""
        number = loader_number()
        if number is None:
            return Loaded.of(complete=saved.is_complete, over=saved.is_over)
        if self._starts_again or is_loader_starting_again():
            return Loaded.OVER
        # A worker that has delivered all its rows can't tell whether the others have.
        loaded = Loaded.of(complete=saved.is_complete, over=False)
        self._clock.set_loaded(saved.place.worker, number, loaded)
        return self._clock.least_loaded(saved.place.num_workers, number) if saved.is_complete else loaded

    # -- The last pass ------------------------------------------------------------------------------------------------

    @property
    def num_active_workers(self) -> int:
        """Number of workers that hold the progress of the last pass, 0 if it is held here."""
        return self._clock.num_active_workers

    @property
    def last(self) -> Pass | None:
        """The last pass, running or over, if this process holds its progress; None if a state was loaded since."""
        is_here = self._begun is not None and (is_in_worker() or not self.num_active_workers)
        return self._begun.running if self._begun and is_here else None

    @property
    def described(self) -> Pass | None:
        """The last pass, unless an epoch was chosen since it delivered its last item, or it is over."""
        last = self.last
        is_superseded = (
            last is not None
            and (last.is_over or last.num_delivered == self._num_at_choice)
            and not is_in_worker()
            and self._clock.chosen_epoch() is not None
        )
        return None if is_superseded else last

    @property
    def place(self) -> WorkerPlace | None:
        """The worker that reads the last pass of this process."""
        return self._begun.place if self._begun else None

    def begin(self, begun: Pass, place: WorkerPlace, generation: int = 0) -> None:
        """Record that a pass begins in this process; again for the same pass, if a call was interrupted.

        Args:
            begun: The pass.
            place: The worker that reads it.
            generation: In a DataLoader worker, the generation of the clock that `next_start` returned.
        """
        self.version += 1
        if is_in_worker():
            self._clock.set_num_active_workers(place.num_workers)
            is_first = self._begun is None or self._begun.pid != os.getpid()
            self._clock.begin(place.worker, generation, loader_number() or 0, begun.epoch, is_first=is_first)
            self._begun, self._restored = _Begun(begun, place, generation, os.getpid()), None
            return
        # Until the clock is set, a loaded state is still what a state describes.
        self._clock.set_num_active_workers(0)
        self._begun = _Begun(begun, place, self._clock.next_generation, os.getpid())
        self._clock.set(begun.epoch + 1, is_chosen=False)
        self._restored = None
        if self._dataset is not None:
            self._dataset.begin_in_loader(begun.epoch, place.num_workers)

    def begin_in_loader(self, epoch: int, num_workers: int) -> None:
        """Record that a loader over this dataset begins a pass, which counts here too.

        Args:
            epoch: The epoch that it delivers.
            num_workers: Number of workers of the loader, at least 1.
        """
        self.version += 1
        self._clock.set(epoch, is_chosen=False)
        self._clock.begin(0, self._clock.generation, 0, epoch)
        self._restored = self._begun = None
        self.leave_to_loader(num_workers)

    def leave_to_loader(self, num_workers: int = 1) -> None:
        """Record that a loader holds the progress, so that the dataset doesn't know its state.

        Args:
            num_workers: Number of workers of the loader, at least 1.
        """
        self.version += 1
        self._clock.set_num_active_workers(num_workers)

"""Passes over a dataset: which epoch the next one delivers and from where, and what the last one has delivered."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laneway.epoch import MAX_EPOCHS, EpochClock
from laneway.progress import Progress
from laneway.workers import is_in_worker

if TYPE_CHECKING:
    from laneway.stream import Stream
    from laneway.turns import Place


@dataclass(frozen=True, slots=True)
class Restored:
    """A state that was loaded, and is good until its epoch is finished or another one is asked for."""

    state: dict[str, Any] | None
    """The state itself, where there is one."""
    progress: Progress
    """What it says."""
    generation: int
    """Generation of the clock when it was loaded."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that this process began."""

    stream: Stream
    """What it yields."""
    place: Place
    """Who reads it."""
    generation: int
    """Generation of the clock when it began."""


class Passes:
    """The passes over one dataset, in the main process and, as copies that share a clock, in its workers."""

    def __init__(self) -> None:
        """Begin before epoch 0."""
        self.clock = EpochClock()
        self._restored: Restored | None = None
        self._began: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running pass behind: open files stay in the process that opened them."""
        return {**vars(self), "_began": None}

    @property
    def current(self) -> Pass | None:
        """The last pass that this process began, unless another epoch was asked for since."""
        began, clock = self._began, self.clock
        if began is None or is_in_worker() or began.generation == clock.generation:
            return began
        same = clock.set_epoch == began.stream.cursor.epoch and not began.stream.is_finished
        return began if same else None

    @property
    def pending(self) -> Restored | None:
        """The loaded state, unless its epoch is finished or another one was asked for since."""
        restored, clock = self._restored, self.clock
        if restored is None:
            return None
        superseded = restored.generation != clock.generation and clock.set_epoch != restored.progress.epoch
        return None if superseded or clock.num_finished > restored.progress.epoch else restored

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or else the one that the next pass delivers."""
        began = self.current
        if began is not None and not began.stream.is_finished:
            return began.stream.cursor.epoch
        return self.next_progress.epoch

    @property
    def next_progress(self) -> Progress:
        """Where the next pass begins."""
        restored = self.pending
        return Progress(self.clock.next_epoch) if restored is None else restored.progress

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one that the next pass delivers; the progress of a loaded state of it is kept."""
        if not 0 <= epoch < MAX_EPOCHS:
            message = f"epoch must be in [0, {MAX_EPOCHS}), not {epoch}"
            raise ValueError(message)
        restored = self.pending
        self._restored = restored if restored is not None and restored.progress.epoch == epoch else None
        self.clock.set(epoch, asked=True)

    def begin(self, stream: Stream, place: Place) -> None:
        """Say that a pass has begun in this process."""
        self.clock.hold(place.num_workers if is_in_worker() else 0)
        self.clock.begin(place, stream.cursor.epoch)
        self._began = Pass(stream, place, self.clock.generation)
        if stream.cursor.is_at_end:
            self.finish(place, stream.cursor.epoch)

    def finish(self, place: Place, epoch: int) -> None:
        """Say that the worker at `place` has read `epoch` to its end."""
        self._restored = None
        self.clock.finish(place, epoch)

    def restore(self, state: dict[str, Any] | None, progress: Progress, worker: Place | None) -> None:
        """Make the next pass go on from `progress`.

        Args:
            state: The state that says so, if any.
            progress: Where to go on.
            worker: The DataLoader worker that this process is, or None.
        """
        if worker is None:
            self.clock.set(progress.epoch, asked=False)
            self.clock.hold(0)
        else:
            self.clock.restart(worker, progress.epoch)
        self._restored = Restored(copy.deepcopy(state), progress, self.clock.generation)
        self._began = None

"""The epoch clock: which epoch comes next, in memory that the main process shares with its workers.

The main process sets the clock; DataLoader workers, which may be forked, spawned or persistent, read it when they
begin a pass, and mark in it that they have read one to its end. Each cell has one kind of writer and is written
at once, so no lock is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from laneway.turns import Place

MAX_WORKERS = 1024
"""Workers per rank that the clock has room for."""

MAX_EPOCHS = 2**32 - 1
"""Epochs that the clock can count."""

_SET, _BEGUN, _HELD, _SLOTS = 0, 1, 2, 3
_EPOCH_BITS, _WORKERS_BITS = 32, 11


class _Mark(NamedTuple):
    """What a cell holds: one 64-bit value, so that it can't be read half written."""

    generation: int
    """Counts how often the clock was set; a mark of another generation is void."""
    num_workers: int
    """Workers of the pass; in the cell that the main process sets, 1 where a user asked for the epoch."""
    epoch: int
    """An epoch, or in a worker's slot the number of epochs that are finished."""

    @classmethod
    def unpack(cls, bits: int) -> _Mark:
        epochs, workers = 1 << _EPOCH_BITS, 1 << _WORKERS_BITS
        return cls(bits >> (_EPOCH_BITS + _WORKERS_BITS), (bits >> _EPOCH_BITS) % workers, bits % epochs)

    def pack(self) -> int:
        return (((self.generation << _WORKERS_BITS) + self.num_workers) << _EPOCH_BITS) + self.epoch


class EpochClock:
    """Tells the epoch of the next pass, alike in the main process and in each of its workers."""

    def __init__(self) -> None:
        """Start at epoch 0."""
        self._cells = _shared(torch.zeros(_SLOTS + MAX_WORKERS, dtype=torch.int64))

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        """Share the memory again: what plain pickle brings is a copy, only what goes to a worker stays shared."""
        self._cells = _shared(state["_cells"])

    def _read(self, cell: int) -> _Mark:
        return _Mark.unpack(int(self._cells[cell]))

    @property
    def generation(self) -> int:
        """How often the clock has been set."""
        return self._read(_SET).generation

    @property
    def set_epoch(self) -> int:
        """The epoch that the clock was last set to."""
        return self._read(_SET).epoch

    def set(self, epoch: int, *, asked: bool) -> None:
        """Make `epoch` the next, and void all marks. For the main process.

        Args:
            epoch: Zero-based.
            asked: Whether a user asked for this epoch; a state that was loaded did otherwise.
        """
        self._cells[_SET] = _Mark(self.generation + 1, int(asked), epoch).pack()

    @property
    def asked_epoch(self) -> int | None:
        """The epoch that a user asked for and that no pass has begun yet, if any."""
        mark = self._read(_SET)
        return mark.epoch if mark.num_workers and self._read(_BEGUN).generation != mark.generation else None

    @property
    def held_by(self) -> int:
        """Number of workers that the last pass was begun by, 0 where the main process read it."""
        return int(self._cells[_HELD])

    def hold(self, num_workers: int) -> None:
        """Say who holds the progress: this many workers, or 0 for the main process."""
        self._cells[_HELD] = num_workers

    def begin(self, place: Place, epoch: int) -> None:
        """Say that a pass over `epoch` has begun."""
        self._cells[_BEGUN] = _Mark(self.generation, place.num_workers, epoch).pack()

    def finish(self, place: Place, epoch: int) -> None:
        """Say that the worker at `place` has read `epoch` to its end."""
        self._mark(place, epoch + 1)

    def restart(self, place: Place, epoch: int) -> None:
        """Say that the worker at `place` was given the state of `epoch`, which is not at its end."""
        self._mark(place, epoch)

    def _mark(self, place: Place, finished: int) -> None:
        self._cells[_SLOTS + place.worker] = _Mark(self.generation, place.num_workers, finished).pack()

    @property
    def num_finished(self) -> int:
        """Number of epochs that all workers of a pass have read to the end since the clock was set."""
        first = self._read(_SLOTS)
        cells = self._cells[_SLOTS : _SLOTS + max(first.num_workers, 1)]
        marks = map(_Mark.unpack, cells.tolist())
        group = (self.generation, first.num_workers)
        return min(mark.epoch if (mark.generation, mark.num_workers) == group else 0 for mark in marks)

    @property
    def next_epoch(self) -> int:
        """The epoch of a pass that begins now: the first that is not finished."""
        begun = self._read(_BEGUN)
        start = begun.epoch if begun.generation == self.generation else self.set_epoch
        return max(start, self.num_finished)


def _shared(cells: torch.Tensor) -> torch.Tensor:
    return cells if cells.is_shared() else cells.share_memory_()  # type: ignore[no-untyped-call]

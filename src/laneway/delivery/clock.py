"""The epoch clock: which epoch a pass delivers, alike in the main process and in each of its DataLoader workers.

It lives in memory that the main process shares with its workers, be they forked, spawned or persistent. The main
process sets it, and each worker has a cell that it writes when it begins a pass. A cell is 64 bits, written at once,
so no lock is needed. Workers of a pass come to the same epoch, also when one begins late: they know their pass by a
number, the epoch of an older pass tells the next one, and the cell of a fellow worker tells that of their own. For
that, loaders over one dataset have to begin one after another, and not in two threads at the same time.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from laneway.delivery.workers import is_in_worker

MAX_WORKERS = 1024
"""Workers per rank that the clock has room for."""
_EPOCH_BITS, _PASS_BITS, _GENERATION_BITS = 26, 22, 15
MAX_EPOCHS = 2**_EPOCH_BITS - 1
"""Epochs that the clock can count."""

_SET, _HELD, _FIRST, _LAST = 0, 1, 2, 2 + MAX_WORKERS
"""Cells: what is set; who holds the progress; the first and the last pass of each worker, where workers persist."""


class _Mark(NamedTuple):
    """What a worker writes when it begins a pass."""

    generation: int
    """Of the clock, as of the pass; never 0."""
    pass_number: int
    """Larger for a later pass."""
    epoch: int
    """What the pass delivers."""

    @classmethod
    def unpack(cls, bits: int) -> _Mark:
        rest, epoch = divmod(bits, 1 << _EPOCH_BITS)
        return cls(*divmod(rest, 1 << _PASS_BITS), epoch)

    def pack(self) -> int:
        return (((self.generation << _PASS_BITS) + self.pass_number % (1 << _PASS_BITS)) << _EPOCH_BITS) + self.epoch


class _Setting(NamedTuple):
    """What the main process writes when it sets the clock."""

    times: int
    """How often it has been set."""
    asked: bool
    """Whether a user asked for this epoch; a state that was loaded, or a pass that began, did not."""
    epoch: int
    """The epoch of the next pass."""


class EpochClock:
    """Tells the epoch of the next pass."""

    def __init__(self) -> None:
        """Start at epoch 0."""
        self._cells = torch.zeros(_LAST + MAX_WORKERS, dtype=torch.int64)
        self._owner_pid = os.getpid()
        _share(self._cells)

    def __setstate__(self, state: dict[str, object]) -> None:
        """Share the memory again: what plain pickle brings is a copy, only what goes to a worker stays shared."""
        vars(self).update(state)
        _share(self._cells)

    def _own(self) -> None:
        """Leave the memory to whom it belongs, in a process that is neither its owner nor a worker of its."""
        if self._owner_pid == os.getpid() or is_in_worker():
            return
        self._owner_pid = os.getpid()
        epoch = self.next()[1]
        # Marks stay behind: this process numbers its passes anew.
        self._cells = torch.zeros_like(self._cells)
        _share(self._cells)
        self.set(epoch, asked=False)

    @property
    def _setting(self) -> _Setting:
        self._own()
        rest, epoch = divmod(int(self._cells[_SET]), 1 << _EPOCH_BITS)
        times, asked = divmod(rest, 2)
        return _Setting(times, bool(asked), epoch)

    def _marks(self, cell: int = _LAST) -> list[_Mark]:
        bits = self._cells[cell : cell + MAX_WORKERS]
        return [*map(_Mark.unpack, bits[bits != 0].tolist())]

    @property
    def generation(self) -> int:
        """Changes whenever the clock is set; marks of another generation are void."""
        return self._setting.times % ((1 << _GENERATION_BITS) - 1) + 1

    @property
    def set_epoch(self) -> int:
        """The epoch that the clock was set to."""
        return self._setting.epoch

    def set(self, epoch: int, *, asked: bool) -> None:
        """Make `epoch` the next, and void all marks. For the main process.

        Args:
            epoch: Zero-based.
            asked: Whether a user asked for this epoch.
        """
        self._cells[_SET] = ((self._setting.times + 1) * 2 + asked << _EPOCH_BITS) + epoch

    @property
    def num_active_workers(self) -> int:
        """Number of workers that the last pass was begun by, 0 where the main process reads by itself."""
        return int(self._cells[_HELD])

    def hold(self, num_workers: int) -> None:
        """Say who holds the progress: this many workers, or 0 for the main process."""
        self._own()
        self._cells[_HELD] = num_workers

    def begin(self, worker: int, generation: int, pass_number: int, epoch: int, *, is_first: bool = True) -> None:
        """Say that a worker has begun a pass, as `next` told it; a persistent worker begins more than its first."""
        bits = _Mark(generation, pass_number, epoch).pack()
        self._cells[_LAST + worker] = bits
        if is_first:
            self._cells[_FIRST + worker] = bits

    def is_fresh(self, generation: int, pass_number: int | None = None) -> bool:
        """Tell whether the clock is of this generation still, and no pass but `pass_number` has begun in it."""
        is_of_others = any(mark.generation == generation and mark.pass_number != pass_number for mark in self._marks())
        return generation == self.generation and not is_of_others

    def asked_epoch(self, pass_number: int | None = None) -> int | None:
        """Return the epoch that a user asked for and that no pass but `pass_number` has begun yet, if any."""
        return self._setting.epoch if self._setting.asked and self.is_fresh(self.generation, pass_number) else None

    def next(self, pass_number: int | None = None) -> tuple[int, int]:
        """Return generation and epoch of a pass that begins now.

        Args:
            pass_number: The pass that this worker begins with others; None in the main process.
        """
        # A fellow may be in its second pass already, and begin its first in between: neither makes it an older pass.
        generation, marks = self.generation, self._marks()
        fellows = [mark for mark in self._marks(_FIRST) if mark.pass_number == pass_number]
        if fellows:
            # Whatever was set since the first of them began is for the pass after this one.
            return fellows[0].generation, fellows[0].epoch
        older = [mark for mark in marks if mark.generation == generation]
        if pass_number is not None:
            older = [mark for mark in older if mark.pass_number < pass_number]
        return generation, max(older).epoch + 1 if older else self._setting.epoch

    def next_of_others(self, pass_number: int | None) -> int:
        """Return the epoch that comes after those that other loaders' workers have begun since the clock was set."""
        generation, marks = self.generation, self._marks()
        others = [mark for mark in marks if mark.generation == generation and mark.pass_number != pass_number]
        return max(mark.epoch for mark in others) + 1 if others else self._setting.epoch

    @property
    def last_epoch(self) -> int | None:
        """The epoch of the last pass that workers began since the clock was set, if any."""
        generation = self.generation
        marks = [mark for mark in self._marks() if mark.generation == generation]
        return max(marks).epoch if marks else None


def _share(cells: torch.Tensor) -> None:
    if not cells.is_shared():  # type: ignore[no-untyped-call]
        cells.share_memory_()  # type: ignore[no-untyped-call]

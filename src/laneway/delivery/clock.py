"""The epoch clock: every pass of a user's own DataLoader delivers the next epoch, the same in all of its workers.

A DataLoader starts a pass in its workers, forked, spawned or persistent, without notifying the dataset in the main
process. So the clock lives in memory that the main process shares with its workers: the main process sets it, and each
worker writes a cell of its own when it begins a pass. A cell is 64 bits and written in one store, so no lock is needed.

Workers that a loader started together arrive at the same epoch even if one starts late. They share a number, and those
that were started later have a larger one. The cell of a sibling determines the epoch; if there is none yet, the cells
of workers that were started earlier do. So loaders over one dataset must start one after another, not in two threads at
the same time.

`SavableLoader` chooses the epoch of a pass in the main process; its workers never read the clock.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from enum import IntEnum
from multiprocessing.context import get_spawning_popen
from typing import NamedTuple

from torch.utils.data import get_worker_info

from laneway.delivery.cells import shared_cells
from laneway.delivery.workers import MAX_WORKERS, is_in_worker
from laneway.errors import LanewayError

_EPOCH_BITS, _LOADER_BITS, _GENERATION_BITS = 26, 22, 15
MAX_EPOCHS = 2**_EPOCH_BITS - 1
"""Number of epochs that the clock can represent."""

_SET, _ACTIVE, _FIRST, _LAST, _LOADED = 0, 1, 2, 2 + MAX_WORKERS, 2 + 2 * MAX_WORKERS
"""Cells: the setting; the number of active workers; the first and the last pass of each worker; what it has loaded."""
_NUM_CELLS = _LOADED + MAX_WORKERS

_MAX_WAIT_S = 120.0
"""How long a worker waits for the others that its loader started with it."""


class Loaded(IntEnum):
    """How far the state is that a worker has loaded."""

    INCOMPLETE = 1
    """The worker has yet to deliver rows of the epoch."""
    COMPLETE = 2
    """The worker has delivered all its rows of the epoch."""
    OVER = 3
    """It has told its loader so, too: the next pass is the next epoch."""

    @classmethod
    def of(cls, *, complete: bool, over: bool) -> Loaded:
        """Return how far a state is."""
        return cls(1 + complete + over)


def loader_number() -> int | None:
    """Return a number that is the same in all workers that a loader started together, None in a main process.

    A process numbers its children in the order in which it creates them, and a loader creates its workers one after
    another, so workers that were started later have a larger number.
    """
    info = get_worker_info()
    if info is None:
        return None
    number = re.search(r"\d+$", multiprocessing.current_process().name)
    return int(number[0]) - info.id if number else 0


class _Mark(NamedTuple):
    """The cell of a worker that has begun a pass."""

    generation: int
    """Generation of the clock at the start of the pass; never 0."""
    loader: int
    """`loader_number` of the worker: larger if it was started later."""
    epoch: int
    """The epoch that the pass delivers."""

    @classmethod
    def unpack(cls, bits: int) -> _Mark:
        rest, epoch = divmod(bits, 1 << _EPOCH_BITS)
        return cls(*divmod(rest, 1 << _LOADER_BITS), epoch)

    def pack(self) -> int:
        return (((self.generation << _LOADER_BITS) + self.loader % (1 << _LOADER_BITS)) << _EPOCH_BITS) + self.epoch


class _Setting(NamedTuple):
    """The cell that the main process writes."""

    times: int
    """How many times the clock has been set."""
    is_chosen: bool
    """Whether the user chose this epoch; otherwise a loaded state or the start of a pass set it."""
    epoch: int
    """The epoch of the next pass."""


class EpochClock:
    """Determines the epoch of the next pass of any loader over a dataset."""

    def __init__(self) -> None:
        """Start at epoch 0."""
        self._owner_pid = os.getpid()
        self._cells = shared_cells(self, _NUM_CELLS)

    def __getstate__(self) -> dict[str, object]:
        """Share the memory with a worker that is being started; anything else gets a copy."""
        return {**vars(self), "_cells": self._cells if get_spawning_popen() is not None else self._cells.clone()}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Share the copy of the memory with the workers of this process."""
        vars(self).update(state)
        if not self._cells.is_shared():  # type: ignore[no-untyped-call]
            self._cells = shared_cells(self, _NUM_CELLS).copy_(self._cells)

    def _own(self) -> None:
        """Allocate new memory in a forked process that is neither the owner of the memory nor one of its workers."""
        if self._owner_pid == os.getpid() or is_in_worker():
            return
        self._owner_pid = os.getpid()
        epoch = self.next()[1]
        # Marks are not copied: this process numbers its passes from the start.
        self._cells = shared_cells(self, _NUM_CELLS)
        self.set(epoch, is_chosen=False)

    @property
    def _setting(self) -> _Setting:
        self._own()
        rest, epoch = divmod(int(self._cells[_SET]), 1 << _EPOCH_BITS)
        times, is_chosen = divmod(rest, 2)
        return _Setting(times, bool(is_chosen), epoch)

    def _marks(self, cell: int = _LAST) -> list[_Mark]:
        bits = self._cells[cell : cell + MAX_WORKERS]
        return [*map(_Mark.unpack, bits[bits != 0].tolist())]

    @property
    def generation(self) -> int:
        """Changes whenever the clock is set; marks of another generation are void."""
        return _generation(self._setting.times)

    @property
    def next_generation(self) -> int:
        """The generation after the clock is set once more."""
        return _generation(self._setting.times + 1)

    @property
    def setting_epoch(self) -> int:
        """The epoch that the clock was set to."""
        return self._setting.epoch

    def set(self, epoch: int, *, is_chosen: bool) -> None:
        """Set the epoch of the next pass, and invalidate all marks; main process only.

        Args:
            epoch: Zero-based.
            is_chosen: Whether the user chose this epoch.
        """
        self._cells[_SET] = ((self._setting.times + 1) * 2 + is_chosen << _EPOCH_BITS) + epoch

    @property
    def num_active_workers(self) -> int:
        """Number of workers that began the last pass, 0 if the main process reads its own data."""
        return int(self._cells[_ACTIVE])

    def set_num_active_workers(self, num_workers: int) -> None:
        """Record the number of workers that hold the progress, 0 for the main process."""
        self._own()
        self._cells[_ACTIVE] = num_workers

    def begin(self, worker: int, generation: int, loader: int, epoch: int, *, is_first: bool = True) -> None:
        """Record that a worker has begun a pass.

        Args:
            worker: Id of the worker.
            generation: Generation of the clock that `next` returned.
            loader: `loader_number` of the worker; 0 in the main process.
            epoch: The epoch that it delivers.
            is_first: Whether it is the worker's first pass; a persistent worker begins several.
        """
        bits = _Mark(generation, loader, epoch).pack()
        self._cells[_LAST + worker] = bits
        if is_first:
            self._cells[_FIRST + worker] = bits

    def is_untouched(self, generation: int, loader: int | None = None) -> bool:
        """Return whether `generation` is still current, and only workers of `loader` have begun a pass in it."""
        is_of_others = any(mark.generation == generation and mark.loader != loader for mark in self._marks())
        return generation == self.generation and not is_of_others

    def chosen_epoch(self, loader: int | None = None) -> int | None:
        """Return the epoch that the user chose, unless workers other than those of `loader` have begun a pass since."""
        return self._setting.epoch if self._setting.is_chosen and self.is_untouched(self.generation, loader) else None

    def chosen_epoch_after(self, generation: int) -> int | None:
        """Return the epoch that the user chose since the clock had this generation, if any."""
        setting = self._setting
        return setting.epoch if setting.is_chosen and _generation(setting.times) != generation else None

    def next(self, loader: int | None = None) -> tuple[int, int]:
        """Return generation and epoch of a pass that begins now.

        Args:
            loader: `loader_number` of this worker and its siblings; None in the main process.
        """
        # A sibling may already be in its second pass, or begin its first one now: neither is an older pass.
        generation, marks = self.generation, self._marks()
        siblings = [mark for mark in self._marks(_FIRST) if mark.loader == loader]
        if siblings:
            # An epoch that was set after the first sibling began applies to the pass after this one.
            return siblings[0].generation, siblings[0].epoch
        older = [mark for mark in marks if mark.generation == generation]
        if loader is not None:
            older = [mark for mark in older if mark.loader < loader]
        return generation, max(older).epoch + 1 if older else self._setting.epoch

    def next_of_others(self, loader: int | None) -> int:
        """Return the epoch after those that workers of other loaders have begun since the clock was set."""
        generation, marks = self.generation, self._marks()
        others = [mark for mark in marks if mark.generation == generation and mark.loader != loader]
        return max(mark.epoch for mark in others) + 1 if others else self._setting.epoch

    def set_loaded(self, worker: int, loader: int, loaded: Loaded) -> None:
        """Record how far the state is that a worker has loaded."""
        self._cells[_LOADED + worker] = loader * 4 + loaded

    def least_loaded(self, num_workers: int, loader: int) -> Loaded:
        """Wait until all workers of a loader have loaded their states, and return how far the least complete one is.

        Raises:
            LanewayError: One of them doesn't load a state.
        """
        deadline = time.monotonic() + _MAX_WAIT_S
        while True:
            found = self._cells[_LOADED : _LOADED + num_workers].tolist()
            if all(each // 4 == loader for each in found):
                return Loaded(min(found) % 4)
            if time.monotonic() > deadline:
                message = f"not all {num_workers} DataLoader workers have loaded a state after {_MAX_WAIT_S:.0f} s"
                raise LanewayError(message)
            time.sleep(0.001)

    @property
    def last_epoch(self) -> int | None:
        """The epoch of the last pass that workers have begun since the clock was set, if any."""
        generation = self.generation
        marks = [mark for mark in self._marks() if mark.generation == generation]
        return max(marks).epoch if marks else None


def _generation(times_set: int) -> int:
    return times_set % ((1 << _GENERATION_BITS) - 1) + 1

"""What the threads of a reading process are doing at the moment, in memory that its parent process may share.

So the parent can tell what a worker does that answers nothing any more: one that waits in the kernel, or in a function
that keeps Python's lock. Each store is a few bytes, made where a stage begins.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final, NamedTuple, final


class Stage(IntEnum):
    """What a thread does."""

    START = 0
    WAIT = 1
    READ = 2
    DECODE = 3
    ORDER = 4
    CONVERT = 5
    TRANSFORM = 6
    SEND = 7

    @property
    def text(self) -> str:
        """What a worker does in this stage, for messages."""
        return _TEXTS[self][0]

    @property
    def past(self) -> str:
        """What it did, if it has ended since."""
        return _TEXTS[self][1]


_TEXTS: Final = {
    Stage.START: ("is starting", "was starting"),
    Stage.WAIT: ("waits for rows", "waited for rows"),
    Stage.READ: ("reads", "read"),
    Stage.DECODE: ("decodes", "decoded"),
    Stage.ORDER: ("puts rows in order", "put rows in order"),
    Stage.CONVERT: ("converts rows", "converted rows"),
    Stage.TRANSFORM: ("calls functions on rows", "called functions on rows"),
    Stage.SEND: ("sends a batch", "sent a batch"),
}

STAGE, LANE, ROW, STACKS = range(4)
"""Cells of the thread that builds batches: its stage; the lane and row that a function is called on, plus 1, where that
is known (of a batch, the lane is 0, and the row is counted in the batch); and the file for stacks, plus 1."""
_NUM_MAIN: Final = 4
_NUM_SLOTS: Final = 6
_SLOT_CELLS: Final = 32
_TEXT_CELL: Final = 2
_TEXT_BYTES: Final = (_SLOT_CELLS - _TEXT_CELL) * 8
NUM_CELLS: Final = _NUM_MAIN + _NUM_SLOTS * _SLOT_CELLS
"""Number of cells of a process, int64."""


class Doing(NamedTuple):
    """What a thread that reads is doing."""

    seconds: float
    """For how long it has been reading this part of a file."""
    stage: Stage
    place: str
    """The part, such as "row group 3 of part-0.parquet"; "" if it isn't known."""


@final
class Activity:
    """The activity of a process."""

    __slots__ = ("_free", "cells")

    def __init__(self, cells: memoryview | None = None) -> None:
        """Start without any activity.

        Args:
            cells: The memory, int64 of shape (NUM_CELLS,); None: memory of this process.
        """
        if cells is None:
            cells = memoryview(bytearray(8 * NUM_CELLS)).cast("q")
        self.cells = cells
        """The memory; `STAGE`, `LANE` and `ROW` are stored directly, since they change with each batch or row."""
        self._free = list(range(_NUM_MAIN, NUM_CELLS, _SLOT_CELLS))
        for slot in self._free:
            cells[slot] = 0
        cells[STAGE] = cells[LANE] = cells[ROW] = 0

    def take_slot(self) -> int | None:
        """Return a slot for a thread that reads, or None if there is none left."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give_back(self, slot: int | None) -> None:
        """End what a thread does in a slot."""
        if slot is not None:
            self.cells[slot] = 0
            self._free.append(slot)

    def begin_part(self, slot: int | None, place: str) -> None:
        """Show that a thread decodes a part of a file, until it begins another one or gives its slot back."""
        if slot is None:
            return
        text = place.encode()[-_TEXT_BYTES:].ljust(_TEXT_BYTES, b"\0")
        self.cells[slot + _TEXT_CELL : slot + _SLOT_CELLS] = memoryview(text).cast("q")
        self.cells[slot + 1] = Stage.DECODE
        self.cells[slot] = time.monotonic_ns()

    def enter(self, slot: int | None, stage: Stage) -> int | None:
        """Show that a thread is in a stage, and return what `leave` needs."""
        if slot is None:
            return None
        before, self.cells[slot + 1] = self.cells[slot + 1], int(stage)
        return before

    def leave(self, slot: int | None, before: int | None) -> None:
        """Show that a thread is in the stage again that it was in before it entered another one."""
        if slot is not None and before is not None:
            self.cells[slot + 1] = before


def read_activity(cells: memoryview) -> tuple[Stage, list[Doing]]:
    """Return the stage of the thread that builds batches, and what threads that read are doing, the slowest one first.

    Args:
        cells: The memory of an `Activity`, perhaps that of another process.
    """
    now, found = time.monotonic_ns(), []
    for slot in range(_NUM_MAIN, NUM_CELLS, _SLOT_CELLS):
        if since := cells[slot]:
            text = cells[slot + _TEXT_CELL : slot + _SLOT_CELLS].tobytes().rstrip(b"\0").decode(errors="replace")
            found.append(Doing((now - since) / 1e9, Stage(cells[slot + 1]), text))
    return Stage(cells[STAGE]), sorted(found, reverse=True)

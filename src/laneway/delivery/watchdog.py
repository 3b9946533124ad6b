"""A batch that does not come: says what its worker is doing, and has it read again by new workers."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Self, final

from laneway.activity import LANE, ROW, Stage, read_activity
from laneway.arguments import check_seconds
from laneway.delivery.stacks import stacks_of
from laneway.delivery.worker_ends import MemoryBefore, end_of_worker
from laneway.delivery.workers import awaited_worker, check_pinning, killed_workers, wait_at_most
from laneway.errors import WorkerError
from laneway.metering import Meter, memory_in_use
from laneway.storage.deadlines import call_within
from laneway.wording import rounded_size

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from laneway.core.assignment import Assignment
    from laneway.core.cursor import Cursor
    from laneway.delivery.definition import Definition

MAX_STALLS: Final = 3
"""Stalls at the same place, without a batch in between, that are an error; after those before, workers are replaced."""
_CHECK_S: Final = 5.0
"""Seconds between two looks for a worker that has ended: not every one is a child, of which the kernel tells."""
_LOCATE_S: Final = 5.0
"""Seconds to find out which row a worker is at: it may have to read from the storage that doesn't answer."""
_log = logging.getLogger("laneway")


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a batch."""

    warning_s: float | None = None
    """Seconds after which a log says what its worker is doing, and again after twice as long; None: never."""
    timeout_s: float | None = None
    """Seconds after which the workers are replaced; None: never."""
    loader_timeout_s: float = 0
    """Seconds after which a DataLoader raises an error; 0: never."""

    @classmethod
    def of(cls, warning_s: float | None, timeout_s: float | None, num_workers: int) -> Self:
        """Return what the arguments of a loader say.

        Raises:
            ValueError: One is out of its range, or workers are to be replaced and there are none.
        """
        check_seconds("stall_warning_s", warning_s)
        check_seconds("stall_timeout_s", timeout_s)
        if timeout_s is not None and not num_workers:
            message = (
                f"stall_timeout_s={timeout_s!r} replaces worker processes, and with num_workers=0 there are none: pass "
                "num_workers=1 or more, or leave it out (stall_warning_s works without workers too)"
            )
            raise ValueError(message)
        return cls(warning_s, timeout_s)

    def next_s(self, waited_s: float, num_warnings: int) -> float:
        """Return when something is to be done next, in seconds since the wait began."""
        later = [self.timeout_s or inf, self.loader_timeout_s or inf]
        if self.warning_s is not None:
            later.append(self.warning_s * 2**num_warnings)
        return min((each for each in later if each > waited_s), default=inf)


class Reading(NamedTuple):
    """Where a rank is when it waits for a batch."""

    assignment: Assignment
    """What its workers read since they were started."""
    cursor: Cursor
    """How far the training loop has come."""


class _Place(NamedTuple):
    """Where a worker is stuck."""

    text: str
    """What it is doing there, for a message."""
    key: str
    """The file that it reads, or the row; "": neither. Stalls of the same key are counted together."""


@final
class Watchdog:
    """Watches the batches of the workers of one rank."""

    def __init__(self, patience: Patience, cells: torch.Tensor) -> None:
        """Start to watch.

        Args:
            patience: How long to wait.
            cells: The activity of each worker, int64 of shape (num_workers, NUM_CELLS).
        """
        self._patience = patience
        self._cells = cells
        self._since = 0.0
        self._tick_s = 0.0
        """Seconds after which the watchdog is woken up next."""
        self._num_warnings = 0
        self._waits = False
        """Whether the batch that comes next is late."""
        self.is_alert = False
        """Whether it wants to know of the next batch."""
        self._stalls: Counter[str] = Counter()
        self._before = MemoryBefore.now()

    def cells_of(self, worker: int) -> memoryview:
        """Return the activity of a worker."""
        return cells_of(self._cells, worker)

    def forget_workers(self) -> None:
        """Forget what workers were doing, before others start in their places."""
        self._cells.zero_()

    def begin(self, batches: object) -> None:
        """Watch the batches of a DataLoader's iterator."""
        self._before = MemoryBefore.now()
        self._waits, self._num_warnings = False, 0
        self._wait(batches, self._patience.next_s(0, 0))

    def received(self, batches: object) -> None:
        """Record that a batch has come."""
        self.is_alert = self._waits = False
        self._num_warnings = 0
        self._stalls.clear()
        self._wait(batches, self._patience.next_s(0, 0))

    def _wait(self, batches: object, seconds: float) -> None:
        """Be woken up after some time at the latest; inf: never."""
        self._tick_s = seconds if seconds == inf else min(seconds, _CHECK_S)
        wait_at_most(batches, self._tick_s)

    def wakes_up(self, batches: object, definition: Definition, read: Reading) -> bool:
        """Do what is to be done when a time has passed, and return whether the workers must be replaced.

        Args:
            batches: The iterator of the DataLoader.
            definition: What is read.
            read: Where the rank is.

        Raises:
            RuntimeError: The DataLoader's own time limit has passed, or its thread that locks pages has ended.
            WorkerError: Workers have been replaced often enough at this place.
        """
        check_pinning(batches)
        now, patience = time.monotonic(), self._patience
        if not self._waits:
            self.is_alert = self._waits = True
            self._since = now - self._tick_s
        # A timer may fire a little early.
        waited_s = now - self._since + 1e-3
        if patience.loader_timeout_s and waited_s >= patience.loader_timeout_s:
            message = f"DataLoader timed out after {patience.loader_timeout_s} seconds"
            raise RuntimeError(message)
        is_stalled = patience.timeout_s is not None and waited_s >= patience.timeout_s
        is_noted = patience.warning_s is not None and waited_s >= patience.warning_s * 2**self._num_warnings
        if is_stalled or is_noted:
            self._num_warnings += is_noted
            self._report(waited_s, batches, definition, read, is_stalled=is_stalled)
        if not is_stalled:
            self._wait(batches, patience.next_s(waited_s, self._num_warnings) - waited_s)
        return is_stalled

    def check_killed(self, batches: object, memory_of: Callable[[int], int], rank: int, error: Exception) -> None:
        """Check that no worker was killed.

        Args:
            batches: The iterator of the DataLoader.
            memory_of: Returns the memory of a worker when it sent its last batch.
            rank: The rank.
            error: What its end has caused.

        Raises:
            WorkerError: One was.
        """
        for worker, pid, code in killed_workers(batches, error):
            stage, _ = read_activity(self.cells_of(worker))
            message = (
                f"worker {worker} of rank {rank} (pid {pid}) {end_of_worker(code, memory_of(worker), self._before)}. "
                f"When last seen, it {stage.past}. The next next(), or a run that resumes, reads its batch again; "
                "if memory has run out, use fewer workers, or a smaller window_bytes, prefetch_windows, "
                "prefetch_factor or batch_size"
            )
            raise WorkerError(message) from error

    def _report(
        self, waited_s: float, batches: object, definition: Definition, read: Reading, *, is_stalled: bool
    ) -> None:
        """Log what the worker is doing whose batch is awaited, and count if it is to be replaced.

        Raises:
            WorkerError: Workers were replaced often enough at this place.
        """
        worker, pid = awaited_worker(batches)
        cells = self.cells_of(worker)
        place = place_of(cells, definition, read)
        rank = definition.place.rank
        text = (
            f"no batch for {waited_s:,.0f} s: worker {worker} of rank {rank} (pid {pid}, "
            f"{rounded_size(memory_in_use(pid))} of memory{_state_of(pid)}) {place.text}"
        )
        stacks = stacks_of(pid, cells)
        if not is_stalled:
            _log.warning("%s\n%s", text, stacks)
            return
        self._stalls[place.key] += 1
        count = self._stalls[place.key]
        if count < MAX_STALLS:
            text += f"; the workers are replaced, and the batch is read again ({count} of {MAX_STALLS - 1} times here)"
            # The warning before has them.
            _log.warning("%s%s", text, "" if self._num_warnings else f"\n{stacks}")
            return
        self._stalls.clear()
        reason = (
            f"is {place.key} damaged, its storage down, or does a function not return for its rows?"
            if place.key
            else "do they need longer than that to start?"
        )
        message = (
            f"{text}; this has happened {count} times at the same place, with new workers each time: {reason} A state "
            "that is saved now resumes with this batch; stall_timeout_s= is how long one may take"
        )
        error = WorkerError(message)
        if stacks:
            error.add_note(f"stacks of the worker:\n{stacks}")
        raise error


def cells_of(cells: torch.Tensor, worker: int) -> memoryview:
    """Return the memory that shows what a worker is doing.

    Args:
        cells: That of all workers, int64 of shape (num_workers, NUM_CELLS).
        worker: The worker.
    """
    return memoryview(cells[worker].numpy()).cast("B").cast("q")  # type: ignore[arg-type]  # numpy's stubs


def place_of(cells: memoryview, definition: Definition, read: Reading) -> _Place:
    """Return what a worker is doing, and where."""
    stage, threads = read_activity(cells)
    if stage is Stage.WAIT and threads:
        slowest = threads[0]
        others = f", as do {len(threads) - 1} other threads" if len(threads) > 1 else ""
        text = f"{slowest.stage.text} {slowest.place} (for {slowest.seconds:,.0f} s{others})"
        return _Place(text, slowest.place.rpartition(" of ")[2])
    if stage in {Stage.START, Stage.WAIT}:
        return _Place(stage.text, "")
    is_row = cells[ROW] > 0
    row = _row_of(cells, definition, read)
    what = "" if is_row else "the batch that begins with "
    return _Place(f"{stage.text}: {what}{row}", row)


def _row_of(cells: memoryview, definition: Definition, read: Reading) -> str:
    """Return the name of the row that a worker is at, or of the first one of the batch."""

    def find() -> str:
        lane, row = _lane_and_row(cells, read.cursor)
        items = definition.open_items(read.assignment, Meter())
        try:
            return items.name_of_row(lane, row)
        finally:
            items.close()

    try:
        return call_within(find, _LOCATE_S)
    except Exception:  # noqa: BLE001 - a warning about a stall must come, even if it can't name the row
        return "an unknown row"


def _lane_and_row(cells: memoryview, cursor: Cursor) -> tuple[int, int]:
    """Return the lane of the row that a worker is at, and its number in it."""
    lane, row = cells[LANE] - 1, max(cells[ROW] - 1, 0)
    if lane >= 0:
        return lane, row
    batch = cursor.next_batch()
    for of_lane, start, stop in () if batch is None else batch.ranges:
        if row < stop - start:
            return of_lane, start + row
        row -= stop - start
    message = f"the batch has no row {row}"
    raise IndexError(message)


def _state_of(pid: int) -> str:
    """Return what the kernel says of a process that is not just running or asleep, for a message."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:  # noqa: PTH123 - as in memory_in_use
            state = next((line.split(None, 1)[1].strip() for line in file if line.startswith("State:")), "")
    except OSError:
        return ""
    return "" if state[:1] in {"R", "S", ""} else f", {state}"

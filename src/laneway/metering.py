"""Measures the reading of a process: counts, and the seconds that each stage takes.

Each stream has a `Meter`. The thread that builds batches and the one that sends them have counters of their own; the
threads that read share theirs under a lock. Storage and formats find the meter of the thread that calls them, so that
nobody passes it down to them. What is measured never affects what is read.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, final

from laneway.activity import Activity, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_MEMORY_INTERVAL_S: Final = 1.0
"""Seconds for which a measured memory is good enough: asking the kernel takes longer than counting a batch."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_packed: Final = struct.Struct("<6q7d")


class Counts(NamedTuple):
    """What a meter has counted."""

    batches: int = 0
    rows: int = 0
    bytes_read: int = 0
    retries: int = 0
    hidden_rows: int = 0
    memory_bytes: int = 0
    wait_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    order_s: float = 0.0
    convert_s: float = 0.0
    transform_s: float = 0.0
    send_s: float = 0.0

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the counts from the result of `Meter.pack`."""
        return cls(*_packed.unpack(packed))

    def plus(self, other: Counts) -> Counts:
        """Return the sums; the memory is that of `other`."""
        sums: list[Any] = [mine + theirs for mine, theirs in zip(self, other, strict=True)]
        return Counts(*sums)._replace(memory_bytes=other.memory_bytes)


@final
class Meter:
    """Counts what a stream reads."""

    __slots__ = (
        *("batches", "convert_s", "hidden_rows", "rows", "send_s", "transform_s", "wait_s"),
        *("activity", "cells"),
        *("_bytes_read", "_lock", "_memory_at", "_memory_bytes", "_retries", "_seconds"),
    )

    def __init__(self, cells: memoryview | None = None) -> None:
        """Start at zero.

        Args:
            cells: Memory that shows what the threads are doing; see `Activity`.
        """
        self.activity = Activity(cells)
        """What the threads are doing."""
        self.cells = self.activity.cells
        """Its memory."""
        self.batches = 0
        """Batches that were built."""
        self.rows = 0
        """Rows that they consist of."""
        self.hidden_rows = 0
        """Rows that were masked or skipped, because the user's functions failed for them."""
        self.wait_s = 0.0
        """Seconds that the thread which builds batches waited for rows."""
        self.convert_s = 0.0
        """Seconds in which rows were converted from Arrow."""
        self.transform_s = 0.0
        """Seconds in the user's functions, collate_fn included, and in stages."""
        self.send_s = 0.0
        """Seconds in which batches were packed for the main process."""
        # Of the threads that read:
        self._lock = threading.Lock()
        self._bytes_read = self._retries = 0
        self._seconds = {Stage.READ: 0.0, Stage.DECODE: 0.0, Stage.ORDER: 0.0}
        self._memory_bytes, self._memory_at = 0, -_MEMORY_INTERVAL_S

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Measure what this thread reads within the block."""
        before = _here.meter, _here.slot
        _here.meter, _here.slot = self, self.activity.take_slot()
        try:
            yield
        finally:
            self.activity.give_back(_here.slot)
            _here.meter, _here.slot = before

    def decoding(self, place: str) -> AbstractContextManager[None]:
        """Measure a block as decoding.

        Args:
            place: What is decoded, such as "row group 3 of part-0.parquet".
        """
        self.activity.begin_part(_here.slot, place)
        return self._measured(Stage.DECODE)

    def ordering(self) -> AbstractContextManager[None]:
        """Measure a block as putting rows in order."""
        return self._measured(Stage.ORDER)

    def reading(self) -> AbstractContextManager[None]:
        """Measure a block as a read of this thread."""
        return self._measured(Stage.READ)

    def _measured(self, stage: Stage) -> _Measured:
        """Measure the block as a stage, but for the reads within."""
        return _Measured(self, stage)

    def add_seconds(self, stage: Stage, seconds: float) -> None:
        """Count seconds of a thread that reads."""
        with self._lock:
            self._seconds[stage] += seconds

    def count_bytes(self, num_bytes: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self._bytes_read += num_bytes

    def count_retry(self) -> None:
        """Count a request that is repeated."""
        with self._lock:
            self._retries += 1

    def counts(self) -> Counts:
        """Return what was counted up to now."""
        return Counts(*self._numbers())

    def pack(self) -> bytes:
        """Return the counts in few bytes, to send with each batch."""
        return _packed.pack(*self._numbers())

    def _numbers(self) -> tuple[Any, ...]:
        """Return the fields of `Counts`, in their order."""
        now = time.monotonic()
        if now - self._memory_at >= _MEMORY_INTERVAL_S:
            self._memory_bytes, self._memory_at = memory_in_use(), now
        seconds = self._seconds
        return (
            *(self.batches, self.rows, self._bytes_read, self._retries, self.hidden_rows, self._memory_bytes),
            *(self.wait_s, seconds[Stage.READ], seconds[Stage.DECODE], seconds[Stage.ORDER]),
            *(self.convert_s, self.transform_s, self.send_s),
        )


@final
class _Measured:
    """Measures a block as a stage; a class, as it is entered several times for each part that is read."""

    __slots__ = ("_before", "_began", "_meter", "_read_before", "_stage")

    def __init__(self, meter: Meter, stage: Stage) -> None:
        self._meter, self._stage = meter, stage
        self._before: int | None = None
        self._began = self._read_before = 0.0

    def __enter__(self) -> None:
        self._before = self._meter.activity.enter(_here.slot, self._stage)
        self._read_before, self._began = _here.read_s, perf_counter()

    def __exit__(self, *_: object) -> None:
        elapsed = perf_counter() - self._began - (_here.read_s - self._read_before)
        if self._stage is Stage.READ:
            _here.read_s += elapsed
        self._meter.activity.leave(_here.slot, self._before)
        self._meter.add_seconds(self._stage, elapsed)


@final
class _Here(threading.local):
    """What a thread measures."""

    meter: Meter | None = None
    slot: int | None = None
    """Where the activity of the meter shows what this thread does."""
    read_s = 0.0
    """Seconds that the thread has spent reading, for any meter."""


_here = _Here()


def current_meter() -> Meter | None:
    """Return the meter of what this thread reads, if it is measured."""
    return _here.meter


def memory_in_use(pid: int | None = None) -> int:
    """Return the resident memory of a process in bytes, shared memory included; 0 where the kernel doesn't tell.

    Args:
        pid: The process; None: this one.
    """
    try:
        with open(f"/proc/{'self' if pid is None else pid}/statm", "rb") as file:  # noqa: PTH123 - as fast as possible
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0

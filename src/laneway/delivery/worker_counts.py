"""What the workers of a rank have counted, those that have ended included."""

from __future__ import annotations

from typing import final

from laneway.metering import Counts, Meter


@final
class WorkerCounts:
    """Adds up what workers have counted. One thread may change it while others look."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts: tuple[dict[int, Counts], dict[int, bytes | Meter]] = {}, {}
        """Worker -> the sums of those that ran before; and what the running one had counted with its last batch."""

    def receive(self, worker: int, latest: bytes | Meter) -> None:
        """Store what a worker has counted.

        Args:
            worker: The worker.
            latest: The result of `Meter.pack`, or the meter itself if it is of this process.
        """
        self._counts[1][worker] = latest

    def start_again(self) -> None:
        """Add what was counted to the sums, before other workers start at zero."""
        # One store, so that nobody sees the same counts twice, or not at all.
        self._counts = {worker: each._replace(memory_bytes=0) for worker, each in self.sums().items()}, {}

    def sums(self) -> dict[int, Counts]:
        """Return for each worker what it, and those in its place before, had counted with its last batch."""
        before, running = self._counts
        latest = {worker: _unpacked(each) for worker, each in list(running.items())}
        return dict(before) | {worker: before.get(worker, Counts()).plus(each) for worker, each in latest.items()}

    def memory_of(self, worker: int) -> int:
        """Return the resident memory of a worker when it sent its last batch, in bytes; 0 if it has sent none."""
        latest = self._counts[1].get(worker)
        return 0 if latest is None else _unpacked(latest).memory_bytes

    @property
    def own_meter(self) -> Meter | None:
        """The meter of this process, if it reads without workers and has begun to."""
        latest = self._counts[1].get(0)
        return latest if isinstance(latest, Meter) else None


def _unpacked(latest: bytes | Meter) -> Counts:
    if isinstance(latest, Meter):
        # The memory of this process is no worker's.
        return latest.counts()._replace(memory_bytes=0)
    return Counts.unpack(latest)

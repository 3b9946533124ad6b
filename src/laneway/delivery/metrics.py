"""Metrics of a loader: how fast it is, and where its time goes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, final

from laneway.wording import rounded_size

if TYPE_CHECKING:
    from laneway.metering import Counts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds that each stage took. Stages of different threads run at the same time, so the sum may exceed the time.

    Some threads of a worker read, decode and order rows ahead; its main thread waits for them, converts and transforms;
    another thread sends.
    """

    wait: float = 0.0
    """The main thread of the worker waited for rows."""
    read: float = 0.0
    """Bytes were read from storage. Local Parquet files are read while they are decoded, and count there."""
    decode: float = 0.0
    """Row groups or record batches were decoded."""
    order: float = 0.0
    """Rows were put in order: shuffled, combined, or mixed."""
    convert: float = 0.0
    """Rows were converted from Arrow to tensors, arrays or Python values."""
    transform: float = 0.0
    """The user's functions were called, `collate_fn` included, and items were packed."""
    send: float = 0.0
    """Batches were copied for the main process; 0 without workers."""


_STAGES: Final = tuple(each.name for each in fields(StageSeconds))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMetrics:
    """What one worker has counted, up to its last batch that the training loop has taken."""

    worker: int
    """Its number, from 0; without workers, the main process is 0."""
    batches: int
    """Batches that it has made; rows that are delivered one by one are made many at a time."""
    rows: int
    """Rows that these consist of; with `pack`, a group of rows counts once all its packs were made."""
    bytes_read: int
    """Bytes of data files that it has read. Of a memory-mapped file, those of the record batches that it has used."""
    retries: int
    """Requests to a storage that were repeated after a failure."""
    hidden_rows: int
    """Rows that `on_error` has masked or skipped."""
    memory_bytes: int
    """Its resident memory when it made that batch, with what it shares with others; 0 if it is the main process."""
    stages: StageSeconds
    """Where its time went."""


_COUNTS: Final = ("batches", "rows", "bytes_read", "retries", "hidden_rows")
"""What workers add up, apart from the seconds of stages."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderMetrics:
    """What a loader has delivered on this rank, how fast, and where the time went.

    Counts and seconds are sums over all passes of the loader; `since` returns those of an interval.
    """

    epoch: int
    """The epoch of `epoch_batches`."""
    epoch_batches: int
    """Batches of this epoch that the training loop has received, those before a resume included; rows if there are no
    batches."""
    epoch_total: int | None
    """Batches or rows of the whole epoch; None: it has no end, or it depends on the data."""
    seconds: float
    """Seconds from the request of the first batch of each pass to the last one, or to now."""
    waited_s: float
    """Seconds of these in which the training loop waited for a batch."""
    queue_depth: int
    """Batches that are ready: workers have made them, and the training loop has not asked for them yet."""
    memory_bytes: int
    """Resident memory of the main process."""
    workers: tuple[WorkerMetrics, ...]
    """Each worker; without workers, the main process."""

    @property
    def batches(self) -> int:
        """Number of batches that were delivered; rows that are delivered one by one come many at a time."""
        return sum(each.batches for each in self.workers)

    @property
    def rows(self) -> int:
        """Number of rows that these consist of; with `pack`, groups of rows of which all packs were made."""
        return sum(each.rows for each in self.workers)

    @property
    def bytes_read(self) -> int:
        """Bytes of data files that were read."""
        return sum(each.bytes_read for each in self.workers)

    @property
    def retries(self) -> int:
        """Number of requests to a storage that were repeated after a failure."""
        return sum(each.retries for each in self.workers)

    @property
    def hidden_rows(self) -> int:
        """Number of rows that `on_error` has masked or skipped."""
        return sum(each.hidden_rows for each in self.workers)

    @property
    def stages(self) -> StageSeconds:
        """Seconds of each stage, of all workers together."""
        return StageSeconds(**{name: sum(getattr(each.stages, name) for each in self.workers) for name in _STAGES})

    @property
    def progress(self) -> float | None:
        """Share of the epoch that was delivered, from 0 to 1; None if its length is not known."""
        if self.epoch_total is None:
            return None
        return self.epoch_batches / self.epoch_total if self.epoch_total else 1.0

    @property
    def waited_share(self) -> float:
        """Share of the time in which the training loop waited for a batch, from 0 to 1."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    @property
    def rows_per_s(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def batches_per_s(self) -> float:
        """Batches per second."""
        return self.batches / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes of data files per second."""
        return self.bytes_read / self.seconds if self.seconds else 0.0

    def since(self, earlier: LoaderMetrics) -> LoaderMetrics:
        """Return the counts and seconds since earlier metrics of the same loader; all else is as it is now."""
        before = {each.worker: each for each in earlier.workers}
        return replace(
            self,
            seconds=self.seconds - earlier.seconds,
            waited_s=self.waited_s - earlier.waited_s,
            workers=tuple(_since(each, before.get(each.worker)) for each in self.workers),
        )

    def as_dict(self) -> dict[str, float]:
        """Return all numbers by name, for systems that store metrics; those of workers and stages are summed up.

        Without `progress` if it is not known.
        """
        found: dict[str, float] = {name: getattr(self, name) for name in _NUMBERS}
        if (progress := self.progress) is not None:
            found["progress"] = progress
        found["worker_memory_bytes"] = sum(each.memory_bytes for each in self.workers)
        stages = self.stages
        return found | {f"{name}_s": getattr(stages, name) for name in _STAGES}

    def __str__(self) -> str:
        total = "" if self.epoch_total is None else f"/{self.epoch_total:,}"
        share = "" if self.progress is None else f" ({self.progress:.1%})"
        workers = sum(each.memory_bytes for each in self.workers)
        unit = "" if total else " batches"
        parts = [
            f"epoch {self.epoch}: {self.epoch_batches:,}{total}{unit}{share}",
            f"{self.rows_per_s:,.0f} rows/s",
            f"{self.batches_per_s:,.1f} batches/s",
            f"{rounded_size(self.bytes_per_s)}/s read",
            f"waited {self.waited_share:.0%}",
            f"{self.queue_depth} ready",
            f"memory {rounded_size(self.memory_bytes)}" + (f" + {rounded_size(workers)} in workers" if workers else ""),
        ]
        rare = {"retries": self.retries, "rows hidden": self.hidden_rows}
        return ", ".join([*parts, *(f"{number:,} {name}" for name, number in rare.items() if number)])


_NUMBERS: Final = (
    *("epoch", "epoch_batches", "seconds", "waited_s", "waited_share", "queue_depth", "memory_bytes"),
    *(*_COUNTS, "rows_per_s", "batches_per_s", "bytes_per_s"),
)


def metrics_of_worker(worker: int, counts: Counts) -> WorkerMetrics:
    """Return the metrics of a worker."""
    return WorkerMetrics(
        worker=worker,
        memory_bytes=counts.memory_bytes,
        stages=StageSeconds(**{name: getattr(counts, f"{name}_s") for name in _STAGES}),
        **{name: getattr(counts, name) for name in _COUNTS},
    )


def _since(now: WorkerMetrics, before: WorkerMetrics | None) -> WorkerMetrics:
    if before is None:
        return now
    stages = {name: getattr(now.stages, name) - getattr(before.stages, name) for name in _STAGES}
    counts = {name: getattr(now, name) - getattr(before, name) for name in _COUNTS}
    return replace(now, stages=StageSeconds(**stages), **counts)

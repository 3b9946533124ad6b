"""Runs the passes of one rank, one after another, and counts the items that the training loop has received."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from laneway.core.job import JobInference
from laneway.delivery.dataloader import DataLoaderPass
from laneway.errors import CheckpointMismatchError, LanewayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.assignment import Assignment
    from laneway.core.progress import JobTurn, Progress
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.dataloader import BatchSource
    from laneway.delivery.schedule import EpochSchedule


class PassRunner:
    """Runs the passes of one rank."""

    def __init__(self, source: BatchSource, schedule: EpochSchedule, *, shows_progress: bool) -> None:
        """Prepare to run.

        Args:
            source: Reads the batches of the rank.
            schedule: Determines the epoch of each pass.
            shows_progress: Whether rank 0 shows a progress bar.
        """
        self.source = source
        self.schedule = schedule
        self.last: DataLoaderPass | None = None
        """The last pass, unless a state was restored to the loader since."""
        self.version = 0
        """Version of the schedule when it began; if equal, no epoch was chosen and no state loaded since."""
        self.bar: tqdm[Any] = tqdm(disable=True)
        """Its progress bar."""
        self._shows_progress = shows_progress
        self._inference: JobInference | None = None

    @property
    def place(self) -> WorkerPlace:
        """Any worker of the rank."""
        return self.source.place

    @property
    def undisturbed(self) -> DataLoaderPass | None:
        """The last pass, unless an epoch was chosen, a state loaded or another pass begun since."""
        return self.last if self.version == self.schedule.version else None

    @property
    def running(self) -> DataLoaderPass | None:
        """The last pass, unless a state was restored since, to the loader or to its dataset."""
        return self.last if self.schedule.pending is None else self.undisturbed

    def start(self) -> DataLoaderPass:
        """Begin the next pass."""
        warning = self.source.definition.options.warning_for(self.place)
        if warning:
            warnings.warn(warning, stacklevel=3)
        assignment = self.resolve(self.schedule.next_progress)
        self.last = DataLoaderPass(self.source, assignment)
        self.schedule.begin_in_loader(self.last.epoch, self.place.num_workers)
        self.version = self.schedule.version
        yields_rows = self.source.yields_rows
        self._inference = JobInference(assignment, yields_rows=yields_rows, in_order=self.source.in_order)
        num_received, num_left = self._num_received(assignment), self._num_left(assignment)
        self.bar.close()
        self.bar = tqdm(
            total=num_received + num_left,
            initial=num_received,
            desc=f"epoch {self.last.epoch}",
            unit="row" if yields_rows else "batch",
            disable=not self._shows_progress or self.place.rank > 0,
        )
        return self.last

    def drop(self) -> None:
        """Drop the last pass, because a state was restored."""
        self.last = None

    def resolve(self, progress: Progress) -> Assignment:
        """Return the assignment of this rank.

        Raises:
            CheckpointMismatchError: The progress is that of a single worker, or of another rank.
        """
        if progress.place is not None and progress.place.num_workers > 1:
            message = (
                f"this is the state of DataLoader worker {progress.place.worker} of {progress.place.num_workers} only: "
                "pass the state of a rank or of the whole job to a SavableLoader"
            )
            raise CheckpointMismatchError(message)
        return self.source.resolve(progress)

    def job_turn(self, own: Progress, *, is_complete: bool) -> JobTurn | None:
        """Return the progress of the whole job, inferred from that of this rank, or None if that is not possible."""
        return None if self._inference is None else self._inference.job_turn(own, is_complete=is_complete)

    def num_received(self) -> int:
        """Return the number of items of the current epoch that the training loop has received on this rank."""
        if self.undisturbed is not None:
            return self._num_received(self.undisturbed.assignment())
        progress = self.schedule.next_progress
        return 0 if progress.cut is None else self._num_received(self.resolve(progress))

    def _num_received(self, assignment: Assignment) -> int:
        return max(0, len(self) - self._num_left(assignment))

    def _num_left(self, assignment: Assignment) -> int:
        return assignment.num_items_left(self.source.definition.options.batch_size)

    def __len__(self) -> int:
        """Return the number of items that this rank delivers in a whole epoch."""
        return self.source.definition.num_items(self.place)


class LoaderIterator:
    """Iterates over a pass as long as it is the loader's last one; the pass begins when its first item is requested."""

    def __init__(self, runner: PassRunner) -> None:
        """Prepare a pass."""
        self._runner = runner
        self._is_over = self._is_shown = False
        self._pass: DataLoaderPass | None = None
        self._rows: list[Any] = []
        self._bar = runner.bar

    def __iter__(self) -> Iterator[Any]:
        """Return self."""
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        """Return the next item, and count it as delivered."""
        runner, rows = self._runner, self._rows
        # The schedule is queried further only if its version has changed, since each row must be cheap.
        is_last = runner.last is self._pass and runner.version == runner.schedule.version
        if rows and is_last:
            return rows.pop()
        if self._is_over:
            raise StopIteration
        if self._pass is None:
            self._pass, self._bar = runner.start(), runner.bar
            self._is_shown = not self._bar.disable
        elif not is_last and runner.running is not self._pass:
            message = "this iterator has ended: another pass over its SavableLoader has begun, or a state was restored"
            raise LanewayError(message)
        try:
            item = next(self._pass)
        except StopIteration:
            self._is_over = True
            self._bar.close()
            raise
        if self._is_shown:
            self._bar.update()
        else:
            self._rows = self._pass.rows
        return item

"""What rank 0 does for all: it numbers checkpoints, finds those to resume from, and deletes what is not kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from laneway.arguments import check_int
from laneway.checkpoint.layout import INDEX, Checkpoint, number_of
from laneway.checkpoint.lock import WriterLock
from laneway.checkpoint.retention import check_policies, to_delete
from laneway.errors import CheckpointError, LanewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.retention import Policy

LEFT_OVER_S = 3600.0
"""A folder without an index is left over from a job that was killed if nothing was written to it for so long."""
_log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A checkpoint to resume from."""

    checkpoint: Checkpoint | None
    """The checkpoint; None: there is none left."""
    num_damaged: int
    """Number of newer ones that were passed over because they are damaged."""


class SaveReport(NamedTuple):
    """What a rank says before all of them save a checkpoint."""

    wanted: Checkpoint
    """The checkpoint that it wants to write, which has no number yet."""
    is_skipping: bool
    """Whether it skips it."""
    failure: str | None
    """Why the one before could not be written, as far as it knows."""


def wanted_checkpoint(
    step: int, tag: str | None, metrics: Mapping[str, float], world_size: int, parts: tuple[str, ...]
) -> Checkpoint:
    """Check the arguments of a user, and return the checkpoint, which has no number yet.

    Raises:
        TypeError: One of them has the wrong type.
        ValueError: `step` is negative, or `tag` is empty.
    """
    if tag is not None and not isinstance(tag, str):
        message = f"tag must be a string, not {tag!r}"
        raise TypeError(message)
    if tag == "":
        message = "tag must not be empty"
        raise ValueError(message)
    if not isinstance(metrics, Mapping):
        message = f"metrics must be a dict from names to numbers, not {metrics!r}"
        raise TypeError(message)
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            message = f"metrics[{name!r}] must be a number, not {value!r}"
            raise TypeError(message) from error
    step = check_int("step", step, minimum=0)
    return Checkpoint(number=0, step=step, tag=tag, metrics=found, world_size=world_size, parts=parts)


class Housekeeping:
    """Numbers, finds and deletes the checkpoints of a folder."""

    def __init__(self, folder: CheckpointFolder, keep: Sequence[Policy], if_locked: Literal["error", "wait"]) -> None:
        """Prepare; nothing is read or locked before it is needed.

        Args:
            folder: The folder.
            keep: What to keep; empty: everything.
            if_locked: What to do if another job writes there.
        """
        self._folder = folder
        self._keep = check_policies(keep)
        self._if_locked = if_locked
        self._lock: WriterLock | None = None
        self._has_ended = False
        self._newest = 0
        """The highest number in use."""
        self.resumed_from: int | None = None
        """Number of the checkpoint that this job resumed from."""

    def _be_writer(self) -> None:
        if self._has_ended:
            message = f"these Checkpoints of {self._folder!r} were closed: create others to save or resume again"
            raise CheckpointError(message)
        if self._lock is None:
            self._folder.create_root()
            lock = WriterLock(self._folder.storage)
            lock.acquire(self._if_locked)
            self._lock = lock
            self._newest = max(map(number_of, self._folder.names()), default=0)
        self._lock.check()

    def begin(self, reports: Sequence[SaveReport]) -> tuple[Checkpoint | None, str | None]:
        """Return (the checkpoint that all ranks are about to write, why the one before could not be written).

        The checkpoint has its number. It is None if a rank skips it, or if the one before failed.

        Args:
            reports: Those of all ranks, in their order.

        Raises:
            CheckpointError: They want to write different ones, or another job writes to the folder.
        """
        wanted = reports[0].wanted
        for rank, (other, _, _) in enumerate(reports):
            for name in ("step", "tag", "parts"):
                if getattr(other, name) != getattr(wanted, name):
                    message = (
                        f"all ranks must save the same checkpoint: {name} is {getattr(wanted, name)!r} on rank 0 and "
                        f"{getattr(other, name)!r} on rank {rank}"
                    )
                    raise CheckpointError(message)
        failure = next((each.failure for each in reports if each.failure is not None), None)
        if failure is not None or any(each.is_skipping for each in reports):
            return None, failure
        self._be_writer()
        self._newest += 1
        return replace(wanted, number=self._newest), None

    def candidate(self, before: int | None) -> Candidate:
        """Return the newest checkpoint that can be resumed from as far as its sizes tell; lock the folder.

        Args:
            before: Only those with a lower number; None: all.
        """
        self._be_writer()
        num_damaged = 0
        for name in self._folder.names():
            if before is not None and number_of(name) >= before:
                continue
            try:
                checkpoint = self._folder.read_index(name)
                problem = "it was not completed" if checkpoint is None else self._folder.problem(checkpoint)
                num_damaged += checkpoint is not None and problem is not None
            except CheckpointError as error:
                checkpoint, problem = None, str(error)
                num_damaged += 1
            if problem is None:
                return Candidate(checkpoint, num_damaged)
            _log.warning("%s is passed over: %s", name, problem)
        return Candidate(None, num_damaged)

    def clear_out(self) -> None:
        """Delete what is not kept, and what killed jobs have left; what can't be deleted is tried again next time."""
        try:
            names = self._folder.names()
            complete = [*self._folder.complete(names)]
            doomed = [each.name for each in to_delete(complete, self._keep, self.resumed_from)]
            doomed += self._left_over(names, {each.name for each in complete})
        except LanewayError as error:
            _log.warning("old checkpoints in %r are not deleted for now: %s", self._folder, error)
            return
        for name in doomed:
            try:
                self._folder.delete(name)
            except LanewayError as error:
                _log.warning("%s could not be deleted, which will be tried again: %s", name, error)

    def _left_over(self, names: Sequence[str], complete: set[str]) -> list[str]:
        newest = next((name for name in names if name in complete), None)
        if newest is None:
            return []
        clock = self._folder.path(newest, INDEX)
        others = [name for name in names if name not in complete and name < newest]
        return [name for name in others if self._folder.age_s(name, clock) > LEFT_OVER_S]

    def end(self) -> None:
        """Let others write to the folder."""
        self._has_ended = True
        if self._lock is not None:
            self._lock.release()
            self._lock = None

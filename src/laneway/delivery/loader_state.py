"""States of a SavableLoader: of its rank, and of the whole job as far as this rank can infer it."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from laneway.core.apart import is_apart, state_of_rank
from laneway.core.cursor import Cursor
from laneway.core.schema import parse_state, unwrap_state
from laneway.core.state import write_job_state, write_state
from laneway.core.turns import WorkerPlace
from laneway.delivery.dataset_state import log_remarks
from laneway.errors import CheckpointMismatchError, LanewayError
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from laneway.core.progress import Progress
    from laneway.core.schema import SavedState
    from laneway.delivery.runner import PassRunner


_MAX_NAMED: Final = 4
"""Arguments that an error names."""


def job_state(runner: PassRunner) -> dict[str, Any]:
    """Return the state of the whole job, or that of the rank if the job's can't be inferred."""
    running, restored = runner.described, runner.schedule.pending
    if running is not None:
        own, job = running.progress(), running.job_turn()
        if job is None:
            return _write(runner, own, complete=running.is_complete, over=running.is_over)
        identity = runner.source.definition.identity
        return write_job_state(identity, own, _job_place(runner), job, over=running.is_over)
    if restored is not None and not restored.follows:
        return copy.deepcopy(restored.saved.original)
    return _write(runner, runner.schedule.next_progress, complete=False)


def rank_state(runner: PassRunner) -> dict[str, Any]:
    """Return the state of the rank."""
    running, restored = runner.described, runner.schedule.pending
    if running is not None:
        return _write(runner, running.progress(), complete=running.is_complete, over=running.is_over)
    if restored is None or restored.follows:
        assignment, is_over = runner.resolve(runner.schedule.next_progress), False
    elif restored.progress.place is not None:
        return copy.deepcopy(restored.saved.original)
    else:
        assignment, is_over = runner.resolve(restored.progress), restored.saved.is_over
    if assignment.is_complete:
        return _write(runner, assignment.progress, complete=True, over=is_over)
    cursor = Cursor(assignment.of_rank())
    return _write(runner, cursor.progress(), complete=cursor.is_at_end)


def digest_of(state: Mapping[str, Any]) -> str:
    """Return a digest by which ranks compare states."""
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_same_arguments(ranks: Sequence[Mapping[str, str]]) -> None:
    """Check that all ranks have the same arguments.

    Args:
        ranks: For each rank, `Definition.common_arguments` or `ResumePoint.common_arguments`.

    Raises:
        LanewayError: They differ.
    """
    first = ranks[0] if ranks else {}
    for rank, own in enumerate(ranks):
        if own == first:
            continue
        differing = [name for name in {**first, **own} if first.get(name) != own.get(name)][:_MAX_NAMED]
        shown = [", ".join(f"{name}={each.get(name, 'none')}" for name in differing) for each in (first, own)]
        message = (
            f"ranks have different arguments: rank 0 has {shown[0]}, and rank {rank} has {shown[1]}: create the "
            "dataset and its loader with the same arguments on all ranks, num_workers included, or rows would be "
            "repeated or lost"
        )
        raise LanewayError(message)


def check_same_state(ranks: Sequence[tuple[Mapping[str, str], str]]) -> None:
    """Check that all ranks were given the same state to restore, and resume from it with the same arguments.

    Args:
        ranks: For each rank, its arguments, and the digest of its state.

    Raises:
        LanewayError: Arguments differ.
        CheckpointMismatchError: States differ.
    """
    check_same_arguments([arguments for arguments, _ in ranks])
    digests = [digest for _, digest in ranks]
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        message = (
            f"rank {others[0]} was given another state than rank 0: pass the state of the same save on all ranks, or "
            "on one rank, with its src_rank= on all of them"
        )
        raise CheckpointMismatchError(message)


def check_lockstep(given: Sequence[tuple[Mapping[str, str], str, int, int]]) -> None:
    """Check that all ranks have the same state of the whole job.

    Args:
        given: For each rank, its arguments, the digest of its state, its epoch, and how many batches of it were
            delivered.

    Raises:
        LanewayError: Arguments differ, or states, as ranks have taken different numbers of batches.
    """
    check_same_arguments([arguments for arguments, *_ in given])
    ranks = [others for _, *others in given]
    for rank, (digest, epoch, num_batches) in enumerate(ranks):
        if digest != ranks[0][0] and [epoch, num_batches] == ranks[0][1:]:
            message = (
                f"no rank knows the state of the job, although all have taken {num_batches:,} batches of epoch "
                f"{epoch}: rank {rank} has another state than rank 0, as where flat_map() or pack() make items of "
                "rows; call save_state_global() on all ranks instead of state_dict()"
            )
            raise LanewayError(message)
        if digest != ranks[0][0]:
            message = (
                f"ranks are not in lockstep: rank 0 is at batch {ranks[0][2]:,} of epoch {ranks[0][1]}, rank {rank} at "
                f"batch {num_batches:,} of epoch {epoch}, so no rank knows the state of the job: call "
                "save_state_global() on all ranks instead of state_dict()"
            )
            raise LanewayError(message)


def _write(runner: PassRunner, progress: Progress, *, complete: bool, over: bool = False) -> dict[str, Any]:
    # The state of the whole job is identical on every rank.
    place = _job_place(runner) if progress.place is None else runner.place.of_rank()
    return write_state(runner.source.definition.identity, progress, place, complete=complete, over=over)


def _job_place(runner: PassRunner) -> WorkerPlace:
    return WorkerPlace(0, runner.place.world_size)


class JobState(NamedTuple):
    """A state of the whole job, as a rank resumes from it."""

    saved: SavedState
    """What this rank resumes from: all of it, or if ranks were in different epochs, its own part."""
    whole: dict[str, Any]
    """All of it."""


def parse_job_state(state: object, place: WorkerPlace) -> JobState:
    """Parse a state that must be that of the whole job.

    Raises:
        StateFormatError: The value is not a state, or it is damaged.
        CheckpointMismatchError: It is the state of a single rank, or of another number of ranks in different epochs.
    """
    saved, whole = parse_state(state_of_rank(state, place)), unwrap_state(state)
    if isinstance(whole, dict) and is_apart(whole):
        return JobState(saved, whole)
    if not saved.is_global:
        message = (
            f"this is the state of rank {saved.place.rank} of {saved.place.world_size} only: call "
            "restore_state_rank() on that rank, or load merge_states() of the states of all ranks"
        )
        raise CheckpointMismatchError(message)
    return JobState(saved, saved.original)


def parse_rank_state(state: object, place: WorkerPlace) -> SavedState:
    """Parse a state that must be that of a rank, or of a job with a single one.

    Raises:
        StateFormatError: The value is not a state, or it is damaged.
        CheckpointMismatchError: It is the state of a job of several ranks.
    """
    saved = parse_state(state)
    is_shared = place.world_size > 1 and saved.fields["lanes"] is not None and not saved.is_complete
    if saved.is_global and (saved.place.world_size != place.world_size or is_shared):
        message = (
            f"this is the state of a whole job of {counted(saved.place.world_size, 'rank')}, not of rank {place.rank} "
            f"of {place.world_size}: call restore_state_global() or load_state_dict()"
        )
        raise CheckpointMismatchError(message)
    return saved


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A state that fits the dataset of a rank, from which its next pass can resume."""

    runner: PassRunner
    """Runs the passes."""
    saved: SavedState
    """The state."""
    progress: Progress
    """Where the next pass would begin."""

    def restore(self) -> None:
        """Resume the next pass from it."""
        self.runner.schedule.restore(self.saved, self.progress)

    def common_arguments(self) -> dict[str, str]:
        """Return what all ranks that resume from a state must have in common: name -> value, as errors show it.

        Each rank cuts the epoch into lanes by itself, so ranks with different arguments would repeat or lose rows.
        """
        definition = self.runner.source.definition
        options = definition.lane_options
        found = definition.common_arguments() | {
            "batch_size": f"{options.batch_size}",
            "turn_rows": f"{options.default_turn_rows}",
            "lanes": f"{options.num_lanes(self.runner.place)}",
        }
        if self.progress.place is None:
            resolved = self.runner.resolve(self.progress)
            cut, number = resolved.cut, len(resolved.progress.earlier) + 1
            found["lanes now"] = f"{cut.num_lanes} with turns of {cut.turn_rows}, in cut {number}"
        return found


def resume_point(runner: PassRunner, saved: SavedState) -> ResumePoint:
    """Compare a state with the dataset, and return where the next pass would resume.

    Raises:
        StateFormatError: Its positions contradict its lanes.
        CheckpointMismatchError: The state belongs to another dataset, order or rank, or the present
            workers can't share its lanes.
        ValueError: A source was removed while its rows are in items that are half delivered.
    """
    definition = runner.source.definition
    progress = definition.read_progress(saved, runner.place.of_rank(), is_worker=False)
    if progress.place is not None or saved.has_offsets:
        # The lanes of a single rank, or with half-delivered rows, can't be cut again: the present workers must share
        # them.
        runner.resolve(progress)
    log_remarks(definition, saved, progress)
    return ResumePoint(runner, saved, progress)

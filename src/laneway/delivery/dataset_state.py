"""States of a dataset, as this process knows it: of its last pass, or of the next one if none has begun."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from laneway.core.schema import parse_state
from laneway.core.state import write_state
from laneway.delivery.workers import worker_place

if TYPE_CHECKING:
    from laneway.core.progress import Progress
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.definition import Definition
    from laneway.delivery.passes import Pass
    from laneway.delivery.schedule import EpochSchedule

_log = logging.getLogger("laneway")


def pass_state(definition: Definition, running: Pass, place: WorkerPlace) -> dict[str, Any]:
    """Return the state of a pass that the worker at `place` reads."""
    return write_state(
        definition.identity, running.progress(), place, complete=running.is_complete, over=running.is_over
    )


def dataset_state(definition: Definition, schedule: EpochSchedule) -> dict[str, Any]:
    """Return the state of the last pass, or of the start of the next one."""
    described, restored = schedule.described, schedule.pending
    if described is not None and schedule.place is not None:
        return pass_state(definition, described, schedule.place)
    if restored is not None and not restored.follows:
        return copy.deepcopy(restored.saved.original)
    place = worker_place(definition.place) or definition.place
    return write_state(definition.identity, schedule.next_progress, place, complete=False, over=False)


def load_dataset_state(definition: Definition, schedule: EpochSchedule, state: object) -> None:
    """Make the next pass resume from a state; a state that is refused changes nothing.

    Raises:
        StateFormatError: The value is not a state, or it is damaged.
        CheckpointMismatchError: The state belongs to other files, another order or another rank.
    """
    saved, worker = parse_state(state), worker_place(definition.place)
    progress = definition.read_progress(saved, worker or definition.place, is_worker=worker is not None)
    if progress.place is not None and worker is None and progress.place.num_workers == 1:
        # If not even a single worker could read the lanes of the rank, every pass would refuse the state.
        definition.resolve(progress, progress.place)
    log_remarks(definition, saved, progress)
    schedule.restore(saved, progress)


def log_remarks(definition: Definition, saved: SavedState, progress: Progress) -> None:
    """Log what has changed since a state was saved."""
    for remark in definition.remarks(saved, progress):
        _log.info("%s", remark)

"""States: writes identity and progress as plain JSON values, and reads the progress back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.core.assignment import assign_whole_job
from laneway.core.differences import file_differences, identity_differences, mismatch_message, place_differences
from laneway.core.progress import CutProgress, LanePosition, Progress
from laneway.core.schema import (
    FORMAT,
    FORMAT_VERSION,
    Role,
    decode_positions,
    encode_positions,
    names_of,
    positions_of,
    require,
    scope_of,
)
from laneway.errors import CheckpointMismatchError, StateFormatError

if TYPE_CHECKING:
    from laneway.core.plan import Identity
    from laneway.core.progress import JobTurn
    from laneway.core.schema import SavedState, Scope
    from laneway.core.turns import WorkerPlace


def write_state(
    identity: Identity, progress: Progress, place: WorkerPlace, *, complete: bool, over: bool = False
) -> dict[str, Any]:
    """Return the state for `progress`, as plain JSON values in new containers.

    Args:
        identity: The files and settings.
        progress: Progress of a worker, a rank or the whole job.
        place: The worker that saves the state.
        complete: Whether that worker, rank or job has delivered all its rows of the epoch.
        over: Whether the training loop has been told so, and the next pass is the next epoch.
    """
    positions = progress.cut.positions if progress.cut else {}
    lanes = range(len(positions)) if progress.place is None else sorted(positions)
    state = _header(identity, progress, place, scope_of(progress.place), complete=complete, over=over)
    state["lane_indices"] = None if progress.place is None else lanes
    state["positions"], state["offsets"] = encode_positions([positions[lane] for lane in lanes])
    return state


def write_job_state(
    identity: Identity, progress: Progress, place: WorkerPlace, job: JobTurn, *, over: bool = False
) -> dict[str, Any]:
    """Return the state of a whole job whose lanes are all in step; it needs no positions.

    Args:
        identity: The files and settings.
        progress: Progress of any of the ranks.
        place: The rank that saves the state. Pass rank 0 on every rank, so that the state is the same on all of them.
        job: Progress of the whole job.
        over: Whether the training loop has been told that the epoch has ended.
    """
    state = _header(identity, progress, place, "global", complete=job.is_complete, over=over and job.is_complete)
    state["next_turn"], state["part_rows"] = job.next_turn, job.part_rows
    return state


def _header(
    identity: Identity, progress: Progress, place: WorkerPlace, scope: Scope, *, complete: bool, over: bool
) -> dict[str, Any]:
    cut = progress.cut
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **identity.fields,
        "scope": scope,
        "rank": place.rank,
        "world_size": place.world_size,
        "worker": place.worker,
        "num_workers": place.num_workers,
        "epoch": progress.epoch,
        "complete": complete,
        "over": over,
        "lanes": cut.num_lanes if cut else None,
        "turn_rows": cut.turn_rows if cut else None,
        "lane_remainder": progress.remainder if cut else None,
        "next_turn": cut.next_turn if cut else 0,
        "part_rows": 0,
        "lane_indices": None,
        "positions": None,
        "offsets": None,
        "earlier_cuts": [encode_positions(earlier) for earlier in progress.earlier],
    }


def read_progress(saved: SavedState, identity: Identity, place: WorkerPlace, *, is_worker: bool) -> Progress:
    """Compare a state with a dataset, and return its progress.

    Args:
        saved: The state.
        identity: The files and settings of the dataset that loads it.
        place: The worker or rank that loads it.
        is_worker: Whether `place` is a worker. Otherwise the state may be that of any worker of the rank: the main
            process does not know yet which workers will read.

    Returns:
        The progress, checked against the lanes.

    Raises:
        StateFormatError: The positions contradict the lanes, or the file table is damaged.
        CheckpointMismatchError: The state is of another dataset, order or rank; the message lists all differences.
    """
    fields = saved.fields
    lines = identity_differences(_COMPARED, fields, identity.fields)
    if fields["fingerprint"] != identity.fields["fingerprint"]:
        lines.append(file_differences(fields["files"], identity.files))
    if not is_worker:
        place = replace(place, worker=saved.place.worker, num_workers=saved.place.num_workers)
    if saved.is_global:
        place = replace(place, rank=saved.place.rank, world_size=saved.place.world_size)
    place_lines = place_differences(saved.place, place)
    if lines or place_lines:
        raise CheckpointMismatchError(mismatch_message(lines, place_lines, is_of_rank=fields["scope"] == "rank"))
    if saved.has_offsets:
        message = (
            "this checkpoint belongs to a dataset with a stage that turns rows into several items, and stopped "
            "mid-row; this dataset has no such stage: resume with the dataset that saved it"
        )
        raise CheckpointMismatchError(message)
    if fields["lanes"] is None:
        return Progress(fields["epoch"])
    return _locate(saved, identity)


_COMPARED = [name for name in names_of(Role.IDENTITY) if name != "fingerprint"]


def _locate(saved: SavedState, identity: Identity) -> Progress:
    """Return the progress of a state that has lanes, after checking its positions against them."""
    fields = saved.fields
    lanes = range(fields["lanes"]) if saved.is_global else fields["lane_indices"]
    is_in_lockstep = fields["positions"] is None
    positions = {} if is_in_lockstep else dict(zip(lanes, positions_of(fields), strict=True))
    cut = CutProgress(fields["lanes"], fields["turn_rows"], fields["next_turn"], positions)
    progress = Progress(
        epoch=fields["epoch"],
        remainder=fields["lane_remainder"],
        cut=cut,
        earlier=tuple(tuple(decode_positions(*each)) for each in fields["earlier_cuts"]),
        place=None if saved.is_global else saved.place,
    )
    found = assign_whole_job(identity, progress)
    if is_in_lockstep:
        rows = found.rows_at(cut.next_turn)
        if fields["part_rows"]:
            rows[(cut.next_turn + np.arange(fields["world_size"])) % cut.num_lanes] += fields["part_rows"]
        positions = dict(enumerate(map(LanePosition, rows.tolist())))
        found = replace(found, progress=replace(progress, cut=replace(cut, positions=positions)))
    lane_rows = [*(each.rows for each in found.plan.lanes_before), found.plan.lanes.rows]
    for delivered, rows in zip([*found.plan.rows_before, found.cut.rows()], lane_rows, strict=True):
        # A padded lane delivers one more row than it has.
        too_far = np.flatnonzero(delivered > rows + 1)
        for lane in too_far[:1].tolist():
            message = (
                f"this state is damaged: lane {lane} is at position {delivered[lane]:,}, but has {rows[lane]:,} rows"
            )
            raise StateFormatError(message)
    require(fields["complete"] == found.is_complete, f"complete={fields['complete']} contradicts its positions")
    return found.progress

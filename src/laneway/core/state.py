"""States: writes identity and progress as plain JSON values, and reads the progress back."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from laneway.core.assignment import assign_whole_job
from laneway.core.closing import check_undelivered
from laneway.core.consistency import require, scope_of
from laneway.core.differences import file_differences, identity_differences, mismatch_message, place_differences
from laneway.core.gaps import gap_difference, gaps_in
from laneway.core.mixture_identity import MixtureIdentity, not_a_mixture
from laneway.core.order import ORDER_VERSIONS
from laneway.core.progress import (
    CutProgress,
    LanePosition,
    Progress,
    current_cut,
    ends_follow,
    lanes_of_next_turns,
    rows_in_step,
)
from laneway.core.saved_files import decode_files, names_files
from laneway.core.schema import (
    FORMAT,
    FORMAT_VERSION,
    Role,
    decode_cut,
    digest_with,
    encode_cut,
    encode_positions,
    names_of,
    positions_of,
    seal_of,
    without_defaults,
)
from laneway.core.turns import turns_taken
from laneway.errors import CheckpointMismatchError, StateFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from laneway.core.assignment import Assignment
    from laneway.core.consistency import Scope
    from laneway.core.gaps import Gap
    from laneway.core.plan import Identity
    from laneway.core.progress import EarlierCut, JobTurn
    from laneway.core.schema import SavedState
    from laneway.core.sealing import Seal
    from laneway.core.turns import WorkerPlace

    AnyIdentity = Identity | MixtureIdentity


class _Listed(NamedTuple):
    """The fields of a state that list positions; all None if they follow from the next turn."""

    lane_indices: list[int] | None = None
    positions: list[int] | None = None
    offsets: list[int] | None = None


_IN_STEP = _Listed()


class _IdentityPart(NamedTuple):
    """The fields of an identity in a state, and their part of the digest."""

    fields: dict[str, Any]
    seal: Seal


def identity_fields(identity: AnyIdentity, order_version: int) -> dict[str, Any]:
    """Return the fields of the identity in a state, without its file table."""
    return {"fingerprint": identity.fingerprint_in(order_version), **asdict(identity.settings)}


def _identity_part(identity: AnyIdentity, order_version: int, *, is_worker: bool) -> _IdentityPart:
    """Return the fields of the identity, which are the same in all states of a rank or of a worker."""

    def compute() -> _IdentityPart:
        # A StatefulDataLoader keeps a state for each worker, and they would all hold the same table.
        files = "" if is_worker else identity.encoded_files
        fields = without_defaults({"files": files, **identity_fields(identity, order_version)})
        return _IdentityPart(fields, seal_of(fields))

    return identity.derived(("state", order_version, is_worker), compute)


def write_state(
    identity: AnyIdentity, progress: Progress, place: WorkerPlace, *, complete: bool, over: bool = False
) -> dict[str, Any]:
    """Return the state for `progress`, as plain JSON values in new containers.

    Args:
        identity: The files and settings, of a dataset or of all sources of a mixture.
        progress: Progress of a worker, a rank or the whole job.
        place: The worker that saves the state.
        complete: Whether that worker, rank or job has delivered all its rows of the epoch.
        over: Whether the training loop has been told so, and the next pass is the next epoch.
    """
    next_turn, part_rows, listed = 0, 0, _IN_STEP
    if progress.cut is not None:
        next_turn, in_step = progress.cut.next_turn, _part_in_step(progress)
        part_rows = in_step or 0
        follows = identity.counts_items and identity.settings.epoch_batches is None
        is_job_complete = complete and progress.place is None and ends_follow(progress.order_version) and follows
        if in_step is None and not is_job_complete:
            positions = progress.cut.positions
            lanes = sorted(positions)
            rows, offsets = encode_positions([positions[lane] for lane in lanes])
            listed = _Listed(None if progress.place is None else lanes, rows, offsets)
    return _write(
        identity,
        progress,
        place,
        scope_of(progress.place),
        complete=complete,
        over=over,
        next_turn=next_turn,
        part_rows=part_rows,
        listed=listed,
    )


def _part_in_step(progress: Progress) -> int | None:
    """Return how many rows were taken of the next turns, if lanes and positions follow from the turn, else None."""
    cut, place = current_cut(progress), progress.place
    if place is None:
        is_known = len(cut.positions) == cut.num_lanes
    else:
        turns_per_batch = progress.sharing.turns_per_batch
        first, stride = place.first_turn(cut.next_turn, turns_per_batch), place.stride(turns_per_batch)
        is_known = (
            place.world_size == progress.sharing.world_size
            and cut.num_lanes % stride == 0
            and len(cut.positions) * stride == cut.num_lanes * turns_per_batch
            and all((lane - first) % stride < turns_per_batch for lane in cut.positions)
        )
    return cut.part_in_step(lanes_of_next_turns(progress)) if is_known else None


def write_job_state(
    identity: AnyIdentity, progress: Progress, place: WorkerPlace, job: JobTurn, *, over: bool = False
) -> dict[str, Any]:
    """Return the state of a whole job whose lanes are all in step; it needs no positions.

    Args:
        identity: The files and settings.
        progress: Progress of any of the ranks.
        place: The rank that saves the state. Pass rank 0 on every rank, so that the state is the same on all of them.
        job: Progress of the whole job.
        over: Whether the training loop has been told that the epoch has ended.
    """
    next_turn, part_rows, complete = job
    if isinstance(identity, MixtureIdentity) and (not complete or identity.settings.epoch_batches is not None):
        progress = identity.without_finished_cuts(progress, next_turn, part_rows)
    return _write(
        identity,
        progress,
        place,
        "global",
        complete=complete,
        over=over and complete,
        next_turn=next_turn,
        part_rows=part_rows,
    )


def _write(
    identity: AnyIdentity,
    progress: Progress,
    place: WorkerPlace,
    scope: Scope,
    *,
    complete: bool,
    over: bool,
    next_turn: int,
    part_rows: int,
    listed: _Listed = _IN_STEP,
) -> dict[str, Any]:
    """Return a state with a digest."""
    cut = progress.cut
    world_size, turns_per_batch, remainder = progress.sharing if cut else (None, None, None)
    fields, seal = _identity_part(identity, progress.order_version, is_worker=place.num_workers > 1)
    state = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **fields,
        "order_version": progress.order_version,
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
        "lane_world_size": world_size,
        "lane_batch_turns": turns_per_batch,
        "lane_remainder": remainder,
        "next_turn": next_turn,
        "part_rows": part_rows,
        **listed._asdict(),
        "earlier_cuts": [encode_cut(earlier) for earlier in progress.earlier],
    }
    if isinstance(identity, MixtureIdentity):
        state |= {
            "mixture": identity.encode(progress),
            **without_defaults({"tokens": identity.encode_tokens(progress)}),
        }
    state["digest"] = digest_with(seal, state)
    return state


def read_progress(saved: SavedState, identity: Identity, place: WorkerPlace, *, is_worker: bool) -> Progress:
    """Compare a state with a dataset, and return its progress.

    A complete state is also accepted if files were added since, because the next epoch has no progress to lose; see
    `num_added_files`.

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
    version, has_new_files = fields["order_version"], False
    present = identity_fields(identity, version)
    if fields["mixture"]:
        raise not_a_mixture(fields["mixture"])
    lines = _setting_differences(saved, identity, place, present)
    if version not in ORDER_VERSIONS:
        known = " and ".join(map(str, ORDER_VERSIONS))
        lines.append(f"order_version: saved {version}, this release reads {known}")
    elif fields["fingerprint"] != present["fingerprint"]:
        has_new_files = num_added_files(saved, identity) > 0
        if not has_new_files and (fields["selection"] == present["selection"] or not _has_same_files(saved, identity)):
            lines.append(_file_differences(saved, identity))
    place_lines = place_differences(saved.place, saved.place_to_compare(place, is_worker=is_worker))
    if lines or place_lines:
        raise CheckpointMismatchError(mismatch_message(lines, place_lines, is_of_rank=fields["scope"] == "rank"))
    if saved.has_offsets and identity.counts_items:
        message = (
            "this checkpoint belongs to a dataset with a stage that turns rows into several items, and stopped "
            "mid-row; this dataset has no such stage: resume with the dataset that saved it"
        )
        raise CheckpointMismatchError(message)
    if fields["lanes"] is None:
        return Progress(fields["epoch"], order_version=version)
    return _completed(saved, identity) if has_new_files else locate(saved, identity)


def _setting_differences(
    saved: SavedState, identity: Identity, place: WorkerPlace, present: Mapping[str, Any]
) -> list[str]:
    """Return how the settings of a state, other than its files, differ from those `present`."""
    fields = saved.fields
    if _handles_remainder_alike(saved, identity, place):
        present = {**present, "remainder": fields["remainder"]}
    lines = identity_differences(_SETTINGS, fields, present)
    of_gaps = gap_difference(fields["without"], present["without"], fields["epoch"], complete=saved.is_complete)
    return lines if of_gaps is None else [*lines, f"without: {of_gaps}"]


def _handles_remainder_alike(saved: SavedState, identity: Identity, place: WorkerPlace) -> bool:
    """Return whether both settings of the remainder, given or by default, mean the same on both numbers of ranks."""
    present = identity.settings
    before = replace(present, remainder=saved.fields["remainder"])
    world_sizes = saved.place.world_size, place.world_size
    return all(before.remainder_for(size) == present.remainder_for(size) for size in world_sizes)


_SETTINGS = [name for name in names_of(Role.IDENTITY) if name not in {"fingerprint", "without"}]


def _has_same_files(saved: SavedState, identity: Identity) -> bool:
    return bool(saved.fields["files"] == identity.files.encoded)


def _file_differences(saved: SavedState, identity: Identity) -> str:
    if identity.selection is not None and _has_same_files(saved, identity):
        return (
            "rows: the same steps select other rows of the same files than when this state was saved: if a function of "
            "a filter has changed, tell its versions apart with version="
        )
    if saved.fields["files"]:
        return file_differences(saved.fields["files"], identity.files)
    prints = (saved.fields["fingerprint"][:8], identity.fingerprint_in(saved.fields["order_version"])[:8])
    return f"files: saved those with fingerprint {prints[0]}, this run has {prints[1]} (a worker's state has no names)"


def num_added_files(saved: SavedState, identity: Identity) -> int:
    """Return how many files were added since a complete state was saved; 0 if a file is gone or was changed.

    Args:
        saved: The state.
        identity: The files and settings of the dataset that loads it.

    Raises:
        StateFormatError: The file table of the state is damaged.
    """
    fields, files = saved.fields, identity.files
    if not saved.is_complete or fields["fingerprint"] == identity.fingerprint_in(fields["order_version"]):
        return 0
    if not fields["files"] or not names_files(fields["files"]):
        # Digests of parts don't tell a file that was added from one that was changed.
        return 0
    before = decode_files(fields["files"])
    facts = zip(files.sizes.tolist(), files.rows.tolist(), files.digests, strict=True)
    present = dict(zip(files.paths, facts, strict=True))
    is_kept = all(present.get(path) == (each.size, each.rows, each.digest) for path, each in before.items())
    return len(present) - len(before) if before and is_kept else 0


def _completed(saved: SavedState, identity: Identity) -> Progress:
    """Return the progress of an epoch that is complete, whatever files were added since."""
    place = None if saved.is_global else saved.place
    num_lanes, lane = (place.world_size, place.rank) if place else (1, 0)
    cut = CutProgress(num_lanes, saved.fields["turn_rows"], 0, {})
    progress = Progress(saved.fields["epoch"], identity.sharing(num_lanes, 1), cut, place=place)
    ends = assign_whole_job(identity, progress).ends
    next_turn = int((-(-ends // cut.turn_rows)).max()) * num_lanes
    done = replace(cut, next_turn=next_turn, positions={lane: LanePosition(int(ends[lane]))})
    return replace(progress, cut=done)


def locate(saved: SavedState, identity: Identity) -> Progress:
    """Return the progress of a state that has lanes, after checking its positions against them."""
    fields = saved.fields
    is_job_in_step = saved.is_global and fields["positions"] is None
    positions = {} if is_job_in_step else positions_of(saved)
    cut = CutProgress(fields["lanes"], fields["turn_rows"], fields["next_turn"], positions)
    epoch = fields["epoch"]
    known = gaps_in(fields["without"], epoch)
    new_gaps = [gap for gap in identity.gaps(epoch) if gap not in known]
    progress = Progress(
        epoch=epoch,
        sharing=saved.sharing,
        cut=cut,
        earlier=tuple(_with_known_gaps(fields["earlier_cuts"], known if new_gaps else None)),
        place=None if saved.is_global else saved.place,
        order_version=fields["order_version"],
    )
    found = assign_whole_job(identity, progress)
    if is_job_in_step:
        rows = rows_in_step(cut.num_lanes, cut.turn_rows, saved.sharing, cut.next_turn, fields["part_rows"])
        # After its last turn, a lane stays at its end.
        whole = rows_in_step(cut.num_lanes, cut.turn_rows, saved.sharing, cut.next_turn, 0)
        rows += np.minimum(whole, found.ends) - whole
        positions = dict(enumerate(map(LanePosition, rows.tolist())))
        found = replace(found, progress=replace(progress, cut=replace(cut, positions=positions)))
    plan = identity.plan(progress)
    lane_rows = [*(each.rows for each in plan.lanes_before), plan.lanes.rows]
    for delivered, rows in zip([*plan.rows_before, found.cut.rows()], lane_rows, strict=True):
        # A padded lane delivers one more row than it has.
        too_far = np.flatnonzero(delivered > rows + 1)
        for lane in too_far[:1].tolist():
            message = (
                f"this state is damaged: lane {lane} is at position {delivered[lane]:,}, but has {rows[lane]:,} rows"
            )
            raise StateFormatError(message)
    check_undelivered(new_gaps, plan.gaps, plan.division, found.cut.rows())
    # Nothing may be left of the epoch without the rows of new gaps.
    is_shortened = bool(new_gaps) and found.is_complete
    require(
        is_shortened or fields["complete"] == found.is_complete,
        f"complete={fields['complete']} contradicts its positions",
    )
    if not is_job_in_step and identity.counts_items:
        _check_next_turn(found, fields["scope"])
    return found.progress


def _with_known_gaps(encoded: Iterable[list[Any]], known: tuple[Gap, ...] | None) -> Iterator[EarlierCut]:
    """Yield the earlier cuts of a state; `known`: the gaps that they have, if more are known now."""
    for cut in map(decode_cut, encoded):
        yield cut if known is None or cut.gaps is not None else replace(cut, gaps=known)


def _check_next_turn(found: Assignment, scope: Scope) -> None:
    """Check that positions don't contradict the next turn.

    No lane is ahead of it. A lane may be behind it, in a rank whose batches arrived out of order, but not all are.
    """
    cut = found.cut
    lanes = np.array([*cut.positions], np.int64)
    rows = cut.rows()[lanes]
    whole = turns_taken(cut.next_turn, lanes, cut.num_lanes) * cut.turn_rows
    taking = np.isin(lanes, [*lanes_of_next_turns(found.progress)])
    is_ahead = rows > whole + np.where(taking, cut.turn_rows - 1, 0)
    is_behind = rows < np.minimum(whole, found.ends[lanes])
    is_wrong = is_ahead.any() or (is_behind.any() if scope == "worker" else is_behind.all())
    wrong = np.flatnonzero(is_ahead | is_behind)[:1]
    for i in wrong.tolist() if is_wrong else ():
        position = f"lane {lanes[i]} is at position {rows[i]:,}"
        require(False, f"next_turn is {cut.next_turn:,}, but {position}")  # noqa: FBT003 - it reads as a sentence

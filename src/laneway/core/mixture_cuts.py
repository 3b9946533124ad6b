"""Whether a mixture is resumed in its current cut, or cut again: for other workers, weights, sources or files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.division import Sharing
from laneway.core.mixtures import MixturePlan
from laneway.core.progress import CutStart, Progress, SourceStart, current_cut, rows_in_step
from laneway.core.turns import has_one_owner_per_lane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from laneway.core.mixtures import Source
    from laneway.core.options import LaneOptions
    from laneway.core.turns import WorkerPlace


def begin_mixture(
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    place: WorkerPlace,
    options: LaneOptions,
    *,
    group_rows: int = 1,
    epoch: int = 0,
    first_epochs: Mapping[str, int] | None = None,
    counts_tokens: bool = False,
) -> Progress:
    """Return the progress of a mixture that begins.

    Args:
        sources: Name -> source.
        weights: Name -> weight of each source.
        place: Any of the workers.
        options: Lanes and turns of the cut.
        group_rows: Rows from which the last stage builds items at a time; 1 without a stage.
        epoch: Number of times that the mixture has ended.
        first_epochs: Name -> epoch with which a source begins, unless with its first.
        counts_tokens: Whether tokens are counted as they are delivered.
    """
    first = first_epochs or {}
    starts = (
        SourceStart(name, weight, first.get(name, 0), files=sources[name].files) for name, weight in weights.items()
    )
    sharing = _sharing(place, options, options.default_turn_rows)
    tokens = dict.fromkeys(weights, 0) if counts_tokens else {}
    return Progress(
        epoch, sharing, options.fresh_cut(place), starts=(CutStart(tuple(starts), group_rows),), tokens=tokens
    )


def resume_mixture(
    sources: Mapping[str, Source],
    progress: Progress,
    weights: Mapping[str, float],
    place: WorkerPlace,
    options: LaneOptions,
    *,
    group_rows: int = 1,
    weights_in_cut: Mapping[str, float] | None,
    has_stages: bool = False,
    counts_batches: bool = False,
    ends_of: Callable[[Progress], NDArray[np.int64]] | None = None,
) -> Progress:
    """Return the progress of a mixture as the workers of the job resume it. All of them arrive at the same.

    It stays in its cut if these workers can share its lanes, and nothing else has changed. A new cut begins with the
    new weights at the next row.

    Args:
        sources: Name -> source. If files were added to one since the cut began, a new cut begins.
        progress: Progress of the whole job.
        weights: Name -> weight of each source from now on.
        place: Any of the workers.
        options: Lanes and turns of a new cut, and the batch size.
        group_rows: Rows from which the last stage builds items at a time; 1 without a stage.
        weights_in_cut: Name -> weight of each source until the cut ends; None: the mixture can't stay in it.
        has_stages: Whether stages make items of the rows.
        counts_batches: Whether a number of batches makes an epoch.
        ends_of: Returns where the lanes of a current cut end, which may be within groups; None: never, or nobody knows.

    Raises:
        ValueError: See `MixturePlan.cut_again`.
    """
    start, ends = progress.starts[-1], None if ends_of is None else ends_of(progress)
    before = [(source.name, source.weight, source.files) for source in start.sources]
    wanted = [(name, weight, sources[name].files) for name, weight in (weights_in_cut or {}).items()]
    if before == wanted and start.group_rows == group_rows:
        if ends is not None and not has_stages and bool((current_cut(progress).rows() >= ends).all()):
            # It is complete, on any ranks and workers.
            return progress
        resumed = _in_same_cut(progress, place, options, ends_of, has_stages=has_stages)
        if resumed is not None:
            if not counts_batches or resumed.sharing.job_turns == progress.sharing.job_turns:
                return resumed
            # The same turns are other numbers of batches.
            taken = batches_taken(progress) - current_cut(progress).next_turn // resumed.sharing.job_turns
            return replace(resumed, starts=(*resumed.starts[:-1], replace(start, batches_before=taken)))
    sharing = _sharing(place, options, options.default_turn_rows)
    plan = MixturePlan(sources, progress)
    batches_before = batches_taken(progress) if counts_batches else 0
    return plan.cut_again(
        weights,
        options.fresh_cut(place),
        sharing,
        group_rows=group_rows,
        batches_before=batches_before,
        ends=ends if group_rows > 1 else None,
    )


def batches_taken(progress: Progress) -> int:
    """Return the batches of a mixture that each rank has taken, if a number of them makes an epoch."""
    return progress.starts[-1].batches_before + current_cut(progress).next_turn // progress.sharing.job_turns


def _sharing(place: WorkerPlace, options: LaneOptions, turn_rows: int) -> Sharing:
    return Sharing(place.world_size, options.turns_per_batch(turn_rows) or 1)


def _in_same_cut(
    progress: Progress,
    place: WorkerPlace,
    options: LaneOptions,
    ends_of: Callable[[Progress], NDArray[np.int64]] | None,
    *,
    has_stages: bool,
) -> Progress | None:
    """Return a mixture in its current cut as the workers of the job share it, or None if they can't resume in it."""
    cut = current_cut(progress)
    turns_per_batch = options.turns_per_batch(cut.turn_rows)
    if turns_per_batch is None or not has_one_owner_per_lane(cut.num_lanes, place, turns_per_batch):
        return None
    sharing = Sharing(place.world_size, turns_per_batch)
    if cut.next_turn % sharing.job_turns:
        return None
    if not has_stages:
        # Rows are taken in turns. With a stage, the lanes advance by items, and each at its own pace.
        rows = cut.rows()
        in_step = rows_in_step(cut.num_lanes, cut.turn_rows, sharing, cut.next_turn, 0)
        lane = cut.next_turn % cut.num_lanes
        part_rows = int(rows[lane] - in_step[lane])
        if options.batch_size is None and 0 < part_rows < cut.turn_rows:
            # Single rows: each rank may have taken a part of its turn.
            in_step = rows_in_step(cut.num_lanes, cut.turn_rows, sharing, cut.next_turn, part_rows)
        if ends_of is not None:
            ends = ends_of(replace(progress, sharing=sharing))
            if sharing[:2] == progress.sharing[:2]:
                # Lanes may end after different numbers of turns.
                in_step = np.minimum(in_step, ends)
            elif (rows > ends).any():
                # Lanes that were to end later with other ranks have delivered more than these ranks would.
                return None
        if not np.array_equal(rows, in_step):
            return None
    return replace(progress, sharing=sharing)

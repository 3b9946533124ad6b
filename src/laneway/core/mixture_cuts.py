"""Whether a mixture is resumed in its current cut, or cut again: for other workers, weights, sources or files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.division import Sharing
from laneway.core.mixtures import CutStart, MixturePlan, MixtureProgress, SourceStart
from laneway.core.progress import Progress, current_cut, rows_in_step
from laneway.core.turns import has_one_owner_per_lane

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from laneway.core.mixtures import Source
    from laneway.core.options import LaneOptions
    from laneway.core.turns import WorkerPlace


def begin_mixture(
    weights: Mapping[str, float], place: WorkerPlace, options: LaneOptions, *, group_rows: int = 1
) -> MixtureProgress:
    """Return the progress of a mixture that begins.

    Args:
        weights: Name -> weight of each source.
        place: Any of the workers.
        options: Lanes and turns of the cut.
        group_rows: Rows from which the last stage builds items at a time; 1 without a stage.
    """
    sources = tuple(SourceStart(name, weight) for name, weight in weights.items())
    progress = Progress(0, _sharing(place, options, options.default_turn_rows), options.fresh_cut(place))
    return MixtureProgress(progress, (CutStart(sources, group_rows),))


def resume_mixture(
    sources: Mapping[str, Source],
    mixture: MixtureProgress,
    weights: Mapping[str, float],
    place: WorkerPlace,
    options: LaneOptions,
    *,
    group_rows: int = 1,
    extended: Collection[str] = (),
) -> MixtureProgress:
    """Return the progress of a mixture as the workers of the job resume it. All of them arrive at the same.

    It stays in its cut if these workers can share its lanes, and nothing else has changed. A new cut begins with the
    new weights at the next row.

    Args:
        sources: Name -> source, of all that were mixed and all that are mixed now. Those in `extended` still have the
            files of before; `Source.extended` adds the others from `next_epoch` of the new cut on.
        mixture: Progress of the whole job.
        weights: Name -> weight of each source from now on.
        place: Any of the workers.
        options: Lanes and turns of a new cut, and the batch size.
        group_rows: Rows from which the last stage builds items at a time; 1 without a stage.
        extended: Sources to which files have been added.

    Raises:
        ValueError: See `MixturePlan.cut_again`.
    """
    start = mixture.starts[-1]
    before = {source.name: source.weight for source in start.sources}
    is_same_mixture = [*before.items()] == [*weights.items()] and start.group_rows == group_rows
    if is_same_mixture and not extended:
        resumed = _in_same_cut(mixture, place, options)
        if resumed is not None:
            return resumed
    sharing = _sharing(place, options, options.default_turn_rows)
    plan = MixturePlan(sources, mixture)
    return plan.cut_again(weights, options.fresh_cut(place), sharing, group_rows=group_rows)


def _sharing(place: WorkerPlace, options: LaneOptions, turn_rows: int) -> Sharing:
    return Sharing(place.world_size, options.turns_per_batch(turn_rows) or 1)


def _in_same_cut(mixture: MixtureProgress, place: WorkerPlace, options: LaneOptions) -> MixtureProgress | None:
    """Return a mixture in its current cut as the workers of the job share it, or None if they can't resume in it."""
    progress, cut = mixture.progress, current_cut(mixture.progress)
    turns_per_batch = options.turns_per_batch(cut.turn_rows)
    if turns_per_batch is None or not has_one_owner_per_lane(cut.num_lanes, place, turns_per_batch):
        return None
    sharing = Sharing(place.world_size, turns_per_batch)
    if cut.next_turn % sharing.job_turns:
        return None
    if mixture.starts[-1].group_rows == 1 and all(position.offset == 0 for position in cut.positions.values()):
        # Rows are taken in turns. With a stage, the lanes advance by items, and each at its own pace.
        in_step = rows_in_step(cut.num_lanes, cut.turn_rows, sharing, cut.next_turn, 0)
        if not np.array_equal(cut.rows(), in_step):
            return None
    return replace(mixture, progress=replace(progress, sharing=sharing))

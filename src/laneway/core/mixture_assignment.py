"""Assignments of mixtures: the lanes that a worker reads, in the current cut or in a new one, and how far they go."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from laneway.core.assignment import Assignment, check_is_own, not_shared
from laneway.core.division import TurnDivision
from laneway.core.mixture_cuts import begin_mixture, resume_mixture
from laneway.core.mixtures import MixturePlan
from laneway.core.options import LaneOptions
from laneway.core.progress import LanePosition, current_cut, fresh_cut, rows_in_mixture
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from laneway.core.lanes import Remainder
    from laneway.core.mixtures import Source
    from laneway.core.progress import Progress
    from laneway.core.weighting import Weighting

ENDLESS: Final = 2**40
"""Rows of a lane that doesn't end."""


class Mixed(NamedTuple):
    """What is mixed, and how: all that decides the rows of a mixture but the workers that read them."""

    sources: Mapping[str, Source]
    """Name -> source."""
    weighting: Weighting
    """Their weights."""
    options: LaneOptions
    """Lanes and turns of a new cut, and the batch size."""
    drop_last: bool = False
    """Whether the last global batch is dropped if it is incomplete."""
    stage_rows: int | None = None
    """Rows from which the last stage makes items at a time; None: lanes count what is delivered."""
    epoch_batches: int | None = None
    """Batches of each rank that make an epoch; None: there are no epochs, or they end with the sources."""
    counts_tokens: bool = False
    """Whether tokens are counted as they are delivered: of packs whose lengths are not known."""

    @property
    def num_rows(self) -> int | None:
        """About how many rows are mixed until the end; None: there is none."""
        return self.weighting.rows_in_all(self._source_rows)

    @property
    def _source_rows(self) -> dict[str, int]:
        return {name: source.identity.num_items(0) for name, source in self.sources.items()}

    def first_epochs(self, epoch: int) -> dict[str, int]:
        """Return name -> epoch with which a source begins after the mixture has ended `epoch` times.

        They are others each time.
        """
        if not epoch:
            return dict.fromkeys(self.sources, 0)
        total, rows = self.num_rows or 0, self._source_rows
        shares = self.weighting.largest_shares
        read = {name: max(1, -int(-total * share // max(1, rows[name]))) for name, share in shares.items()}
        if len(read) > 1:
            # Later epochs may have fewer rows than the first.
            varying = (name for name, source in self.sources.items() if source.identity.epochs_vary)
            read |= {name: read[name] + read[name] // 4 + 1 for name in varying}
        return {name: epoch * num_epochs for name, num_epochs in read.items()}


def resolve_mixture(mixed: Mixed, progress: Progress, place: WorkerPlace) -> Assignment:
    """Return the assignment of the worker at `place`: in the current cut of a mixture, or in a new one.

    All workers of all ranks arrive at the same cut.

    Args:
        mixed: What is mixed.
        progress: Progress of the whole job; or of a single rank or worker, which is then the only one that can resume.
        place: The worker.

    Raises:
        CheckpointMismatchError: The progress is that of one worker, and the worker at `place` can't resume from it.
        ValueError: A source with a weight has no rows.
    """
    sources, weighting, options, _, stage_rows, epoch_batches, counts_tokens = mixed
    group_rows = stage_rows or 1
    if progress.cut is None:
        epoch, weights = progress.epoch, weighting.weights_at(0)
        first_epochs = mixed.first_epochs(epoch)
        progress = begin_mixture(
            sources,
            weights,
            place,
            options,
            group_rows=group_rows,
            epoch=epoch,
            first_epochs=first_epochs,
            counts_tokens=counts_tokens,
        )
    elif progress.place is None:
        rows, rows_before = rows_in_mixture(progress), progress.starts[-1].rows_before
        # Of a source that was removed, nobody knows where its rows end.
        is_known = all(source.name in sources for source in progress.starts[-1].sources)
        if is_known and weighting.stop is not None:
            progress = settled(mixed, progress)
        stays = weighting.change_after(rows) == weighting.change_after(rows_before)
        stays = stays or (is_known and _is_before_change(mixed, progress, place))
        progress = resume_mixture(
            sources,
            progress,
            weighting.weights_at(rows),
            place,
            options,
            group_rows=group_rows,
            weights_in_cut=weighting.weights_at(rows_before) if stays else None,
            has_stages=stage_rows is not None,
            counts_batches=epoch_batches is not None,
            ends_of=(lambda found: lane_ends(mixed, found)[0])
            if is_known and (group_rows > 1 or weighting.stop is not None)
            else None,
        )
    else:
        progress = _of_worker(mixed, progress, place)
    _check_sources(sources, progress)
    ends, is_last = lane_ends(mixed, progress)
    is_endless = weighting.stop is None
    has_stages = stage_rows is not None
    turn_end = None
    if epoch_batches is not None:
        left = (progress.epoch + 1) * epoch_batches - progress.starts[-1].batches_before
        turn_end = left * progress.sharing.job_turns
    sharing = progress.sharing
    return Assignment(progress, ends, sharing.turns_per_batch, place, is_last, is_endless, has_stages, turn_end)


def _is_before_change(mixed: Mixed, progress: Progress, place: WorkerPlace) -> bool:
    """Return whether a cut goes on although as many rows have come as the schedule gives for a change of its weights.

    The weights change after whole global batches, in each lane by itself, and never if the mixture ends before that.
    """
    cut, sharing = current_cut(progress), progress.sharing
    if (place.world_size, mixed.options.turns_per_batch(cut.turn_rows)) != sharing[:2]:
        return False
    ends, is_last = lane_ends(mixed, progress)
    rows = cut.rows()
    return bool((rows <= ends).all() and (is_last or (rows < ends).any()))


def _of_worker(mixed: Mixed, progress: Progress, place: WorkerPlace) -> Progress:
    """Return the progress of a worker or rank as the worker at `place` resumes it, which can't cut lanes again."""
    cut = current_cut(progress)
    if progress.place is not None:
        check_is_own(cut, progress.place, place, mixed.options)
    turns_per_batch = mixed.options.turns_per_batch(cut.turn_rows)
    if turns_per_batch is None:
        raise not_shared(cut, place)
    start = progress.starts[-1]
    weights = mixed.weighting.weights_at(start.rows_before)
    wanted = {name: (weight, mixed.sources[name].files) for name, weight in weights.items()}
    found = {source.name: (source.weight, source.files) for source in start.sources}
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        message = (
            f"this is the state of one worker or rank, and source {name!r} has another weight or other files in it: "
            "other weights, sources and files need the state of the whole job, as SavableLoader saves it"
        )
        raise CheckpointMismatchError(message)
    return progress


def _check_sources(sources: Mapping[str, Source], progress: Progress) -> None:
    """Check that each source with a weight has rows in the lanes of the current cut."""
    plan = MixturePlan(sources, progress)
    for source in progress.starts[-1].sources:
        if source.weight and plan.lanes(plan.current, source.name).has_end:
            identity = sources[source.name].identity
            num_rows, unit = identity.num_items(0), "rows" if identity.packs is None else "packs"
            reason = f', and remainder="drop" leaves none of them in {plan.cuts[-1].num_lanes} lanes' * (num_rows > 0)
            message = (
                f"source {source.name!r} has {num_rows:,} {unit}{reason}: give it a weight of 0, or leave it out of "
                "the mixture"
            )
            raise ValueError(message)


def lane_ends(mixed: Mixed, progress: Progress) -> tuple[NDArray[np.int64], bool]:
    """Return the rows that each lane delivers in the current cut, and whether the mixture ends with them."""
    cut, sharing, start, weighting = current_cut(progress), progress.sharing, progress.starts[-1], mixed.weighting
    # Groups that earlier cuts left come first in their lanes, whatever is left after them.
    lanes = np.arange(len(progress.carried)) % cut.num_lanes
    carried = np.bincount(lanes, minlength=cut.num_lanes).astype(np.int64) * start.group_rows
    before = start.rows_before + sum(group.num_rows or start.group_rows for group in progress.carried)

    def divided(num_rows: int) -> TurnDivision:
        return TurnDivision(num_rows, cut.num_lanes, cut.turn_rows, sharing.world_size, sharing.turns_per_batch)

    if weighting.stop is None:
        ends = np.full(cut.num_lanes, ENDLESS, np.int64)
    elif isinstance(weighting.stop, int):
        remainder: Remainder = "keep" if sharing.world_size == 1 else "pad"
        left = max(0, weighting.stop - before)
        ends = carried + divided(left).ends(remainder, drop_last=mixed.drop_last)
    else:
        ends = carried + _exhausted(mixed, progress)
    change = weighting.change_after(start.rows_before)
    if change is None:
        return ends, True
    # The weights change after whole global batches.
    batch_rows = sharing.job_turns * cut.turn_rows
    left = -(min(0, before - change) // batch_rows) * batch_rows
    until_change = carried + divided(left).settled_rows
    is_last = bool((until_change > ends).any())
    return (ends if is_last else until_change), is_last


def _exhausted(mixed: Mixed, progress: Progress) -> NDArray[np.int64]:
    """Return the rows that each lane delivers until its first source, or its last one, is exhausted."""
    plan, num_epochs = MixturePlan(mixed.sources, progress), mixed.weighting.num_epochs
    is_first = mixed.weighting.stop == "first_exhausted"
    first_epochs = mixed.first_epochs(progress.epoch)
    cut, sharing, sources = current_cut(progress), progress.sharing, progress.starts[-1].sources
    rows = {
        index: plan.lanes(plan.current, source.name).rows_before(first_epochs[source.name] + num_epochs).tolist()
        for index, source in enumerate(sources)
        if source.weight
    }
    found = []
    for lane in range(cut.num_lanes):
        mixing = plan.mixings[-1].lane(lane)
        if is_first:
            found.append(min(mixing.row_of(index, of_lanes[lane]) for index, of_lanes in rows.items()))
        else:
            lasts = (mixing.row_of(index, n[lane] - 1) + 1 for index, n in rows.items() if n[lane])
            found.append(max(lasts, default=0))
    ends = np.array(found, np.int64)
    if sharing.world_size > 1:
        # All ranks deliver equally many batches.
        ends[:] = ends.min() if is_first else ends.max()
    if mixed.drop_last:
        whole = ends.reshape(-1, sharing.turns_per_batch).min(axis=1) // cut.turn_rows * cut.turn_rows
        ends = np.repeat(whole, sharing.turns_per_batch)
    return ends


def following_cut(assignment: Assignment) -> Progress:
    """Return the progress of the whole job at the end of a cut that another one follows."""
    return _at_ends(assignment.progress, assignment.ends)


def _at_ends(progress: Progress, ends: NDArray[np.int64]) -> Progress:
    cut = current_cut(progress)
    positions = dict(enumerate(map(LanePosition, ends.tolist())))
    # The cut consists of whole global batches.
    done = replace(cut, next_turn=int(ends.sum()) // cut.turn_rows, positions=positions)
    return replace(progress, cut=done, place=None)


def settled(mixed: Mixed, progress: Progress) -> Progress:
    """Return progress of the whole job in which no lane is behind its end.

    A state of lanes in step says how many turns there were, and at the end of a mixture some lanes have none left.
    """
    if mixed.stage_rows is not None:
        return progress
    cut, ends = current_cut(progress), lane_ends(mixed, progress)[0].tolist()
    positions = {lane: LanePosition(min(position.rows, ends[lane])) for lane, position in cut.positions.items()}
    return replace(progress, cut=replace(cut, positions=positions))


def begun_like(mixed: Mixed, epoch: int, like: Progress) -> Progress:
    """Return the progress of a mixture that begins, in as many lanes as another one has, and in turns as long.

    Args:
        mixed: What is mixed.
        epoch: Number of times that it has ended.
        like: The other progress.
    """
    first = begin_mixture(
        mixed.sources,
        mixed.weighting.weights_at(0),
        WorkerPlace(),
        LaneOptions(None, None, None),
        group_rows=mixed.stage_rows or 1,
        epoch=epoch,
        first_epochs=mixed.first_epochs(epoch),
    )
    cut = current_cut(like)
    return replace(first, cut=fresh_cut(cut.num_lanes, cut.turn_rows), sharing=like.sharing)


def scheduled_cuts(mixed: Mixed, progress: Progress, like: Progress) -> Iterator[tuple[Progress, Progress]]:
    """Yield (end of a cut, start of the next one) wherever a schedule of weights has a run make a new one.

    Args:
        mixed: What is mixed.
        progress: Progress of the whole job, which goes on to the end of its cut.
        like: Progress of the same run later: its cuts have as many lanes, and turns as long.
    """
    ends, is_last = lane_ends(mixed, progress)
    while not is_last:
        ended = _at_ends(progress, ends)
        progress = cut_like(mixed, ended, like)
        yield ended, progress
        ends, is_last = lane_ends(mixed, progress)


def cut_like(mixed: Mixed, progress: Progress, like: Progress) -> Progress:
    """Return the progress of a new cut of what is left, in as many lanes as another one has, and in turns as long."""
    cut, group_rows = current_cut(like), mixed.stage_rows or 1
    return MixturePlan(mixed.sources, progress).cut_again(
        mixed.weighting.weights_at(rows_in_mixture(progress)),
        fresh_cut(cut.num_lanes, cut.turn_rows),
        like.sharing,
        group_rows=group_rows,
        ends=lane_ends(mixed, progress)[0] if group_rows > 1 else None,
    )

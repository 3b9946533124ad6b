"""Samples of an epoch's plan, few enough to be drawn: what its lanes consist of, and how well its batches are mixed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from laneway.core.places import rows_of_lanes
from laneway.plans.epoch_plan import cuts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from laneway.core.cursor import LaneRange
    from laneway.core.lanes import Lanes
    from laneway.core.plan import Plan
    from laneway.core.stretches import Stretch
    from laneway.plans.costs import StartUp
    from laneway.plans.epoch_plan import EpochPlan, PlannedCut

_MAX_RANGES: Final = 8_000
"""Ranges of lanes that samples of batches consist of: each takes about 0.1 ms."""


def evenly(number: int, most: int) -> list[int]:
    """Return all of range(number), or `most` of it at even distances, the first and the last one included."""
    if number <= most:
        return [*range(number)]
    return [index * (number - 1) // max(most - 1, 1) for index in range(most)]


class SampledWindow(NamedTuple):
    """Rows of a window that a lane delivers one after another."""

    window: int
    """The window of the epoch."""
    start: int
    """The first row, counted from the first one that the lane delivers in its stretch."""
    stop: int
    """One past the last row."""


class SampledLane(NamedTuple):
    """What a lane delivers in a stretch."""

    lane: int
    """The lane."""
    num_rows: int
    """The rows that it delivers."""
    windows: tuple[SampledWindow, ...]
    """The windows from which they come; none if there are too many to be drawn."""


class SampledStretch(NamedTuple):
    """What the lanes of a cut deliver, of what was delivered before or of what is ahead."""

    first_step: int
    """The first step."""
    num_steps: int
    """Number of steps."""
    num_rows: int
    """Rows of all lanes."""
    longest: int
    """Rows of the lane that delivers most."""
    num_lanes: int
    """Lanes of the cut."""
    world_size: int
    """Ranks that share them."""
    is_delivered: bool
    """Whether this was delivered before."""
    lanes: tuple[SampledLane, ...]
    """Some of the lanes, or all."""


def sample_lanes(plan: EpochPlan, max_lanes: int, max_windows: int) -> list[SampledStretch]:
    """Return what the lanes of each cut deliver, as far as it has rows.

    Args:
        plan: The plan of a dataset.
        max_lanes: Lanes of a cut that are returned.
        max_windows: Windows of a lane in all of its stretches; those of lanes with more are not returned.

    Raises:
        ValueError: The plan is that of a mixture.
    """
    found = []
    for cut in cuts_of(plan):
        of_cut, stretch = _plan_of(cut), cut.stretch
        rows = stretch.ends - stretch.starts
        if not rows.sum():
            continue
        chosen = evenly(stretch.num_lanes, max_lanes)
        lanes = tuple(_sampled_lane(of_cut.lanes, stretch, lane, max_windows) for lane in chosen)
        found.append(
            SampledStretch(
                cut.first_step,
                stretch.num_steps,
                int(rows.sum()),
                int(rows.max()),
                stretch.num_lanes,
                stretch.sharing.world_size,
                cut.is_delivered,
                lanes,
            )
        )
    return found


def _sampled_lane(lanes: Lanes, stretch: Stretch, lane: int, max_windows: int) -> SampledLane:
    start, stop = int(stretch.starts[lane]), int(stretch.ends[lane])
    segments = [*islice(lanes.segments(lane, start, stop), max_windows + 1)]
    windows, row = [], 0
    for segment in segments if len(segments) <= max_windows else ():
        end = row + segment.stop - segment.start
        windows.append(SampledWindow(segment.window, row, end))
        row = end
    return SampledLane(lane, stop - start, tuple(windows))


def _plan_of(cut: PlannedCut) -> Plan:
    plan = cut.rows.plan
    if plan is None:
        message = "this plan is that of a mixture, and only those of single datasets can be drawn"
        raise ValueError(message)
    return plan


def start_up(plan: EpochPlan) -> list[StartUp]:
    """Return what each rank reads for the first window of each of its lanes, from the next step on; none at the end."""
    cut = next((cut for cut in cuts_of(plan) if not cut.is_delivered), None)
    if cut is None or cut.costs is None or not cut.stretch.num_steps:
        return []
    return cut.costs.start_up(cut.stretch.starts, cut.stretch.ends, cut.stretch.sharing)


@dataclass(frozen=True, eq=False)
class SampledBatch:
    """A batch of a rank."""

    step: int
    """The step of the epoch."""
    rank: int
    """The rank."""
    places: NDArray[np.int64]
    """The number of each row, counted over the selected rows of all files, in the order of the batch, shape (rows,). Of
    packs, each row that has tokens in them, once."""
    shards: int
    """From how many shards its rows come."""
    files: int
    """From how many files its rows come."""
    expected_shards: float
    """From how many shards the rows of such a batch would come if all rows were shuffled perfectly."""
    adjacent: float
    """The share of its rows of which a neighbour in the file is in the same batch, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class SampledBatches:
    """Batches of an epoch, at even distances."""

    batches: tuple[SampledBatch, ...]
    """The batches, by step and rank."""
    num_rows: int
    """Selected rows of all files."""
    num_steps: int
    """Steps of the epoch."""
    num_ranks: int
    """Ranks of which there are batches at each step, at most."""

    @property
    def mixing(self) -> float | None:
        """Shards in a batch, as a share of those that a perfect shuffle has on average; None: there are no batches."""
        expected = sum(each.expected_shards for each in self.batches)
        return sum(each.shards for each in self.batches) / expected if expected else None

    @property
    def adjacent(self) -> float | None:
        """The share of rows of which a neighbour in the file is in the same batch; None: there are no batches."""
        rows = sum(len(each.places) for each in self.batches)
        return sum(each.adjacent * len(each.places) for each in self.batches) / rows if rows else None


def sample_batches(plan: EpochPlan, max_steps: int, max_ranks: int) -> SampledBatches:
    """Return some of the batches of an epoch.

    Args:
        plan: The plan of a dataset.
        max_steps: Steps of which batches are returned; fewer if they consist of many turns.
        max_ranks: Ranks of which batches are returned.

    Raises:
        ValueError: The plan is that of a mixture.
    """
    cuts = [(cut, _plan_of(cut)) for cut in cuts_of(plan) if cut.stretch.num_steps]
    num_steps = plan.num_steps or 0
    turns = max((cut.stretch.sharing.turns_per_batch for cut, _ in cuts), default=1)
    most_ranks = max((cut.stretch.sharing.world_size for cut, _ in cuts), default=1)
    ranks = max(1, min(max_ranks, most_ranks, _MAX_RANGES // turns))
    most = max(2, min(max_steps, _MAX_RANGES // (turns * ranks)))
    # Middles of equal parts: among few steps, the last one with its short batch would count too much.
    steps = range(num_steps) if num_steps <= most else [(2 * i + 1) * num_steps // (2 * most) for i in range(most)]
    files, found, expected = None, [], {0: 0.0}
    # The windows of all cuts are the same.
    in_files = next((of_cut.rows_in_files() for _, of_cut in cuts if of_cut.line is not None), None)
    for step in steps:
        for cut, of_cut in cuts:
            own = step - cut.first_step
            if not 0 <= own < cut.stretch.num_steps:
                continue
            files = files or _Starts.of(of_cut)
            for rank in evenly(cut.stretch.sharing.world_size, ranks):
                places = _places(of_cut, cut.stretch.ranges(own, rank), files, in_files)
                count = len(places)
                if not count:
                    continue
                if count not in expected:
                    expected[count] = files.expected_shards(count)
                found.append(
                    SampledBatch(
                        step,
                        rank,
                        places,
                        len(np.unique(np.searchsorted(files.shards, places, side="right"))),
                        len(np.unique(np.searchsorted(files.files, places, side="right"))),
                        expected[count],
                        _adjacent(places),
                    )
                )
            break
    return SampledBatches(tuple(found), 0 if files is None else files.num_rows, num_steps, ranks)


class _Starts(NamedTuple):
    """Where files and shards begin, counted over the selected rows of all files."""

    files: NDArray[np.int64]
    shards: NDArray[np.int64]
    num_rows: int

    @classmethod
    def of(cls, plan: Plan) -> _Starts:
        selected = plan.identity.selected
        return cls(selected.row_starts[:-1], plan.shard_starts, selected.num_rows)

    def expected_shards(self, count: int) -> float:
        """Return from how many shards `count` rows come on average, if they are drawn from all rows."""
        lengths = np.diff(np.append(self.shards, self.num_rows))
        # None of them is of a shard with about this probability: the batch misses the shard, or the shard the batch.
        missed = np.minimum((1 - lengths / self.num_rows) ** count, (1 - count / self.num_rows) ** lengths)
        return float((1 - missed).sum())


def _places(
    plan: Plan, ranges: Sequence[LaneRange], starts: _Starts, in_files: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return the number of each row of some ranges of lanes, counted over all files.

    Args:
        plan: The plan of the lanes.
        ranges: The ranges.
        starts: Where files begin.
        in_files: If lanes count packs, the number of each row of the line of documents.
    """
    if plan.line is None or in_files is None:
        rows = rows_of_lanes(plan, ranges)
        return starts.files[rows.file_index] + rows.row
    packs = (each for lane in ranges for each in plan.lanes.segments(*lane))
    documents = [plan.line.documents(each.start, each.stop).document for each in packs]
    rows_of_line = np.concatenate([np.zeros(0, np.int64), *documents])
    firsts = np.sort(np.unique(rows_of_line, return_index=True)[1])
    found: NDArray[np.int64] = in_files[rows_of_line[firsts]]
    return found


def _adjacent(places: NDArray[np.int64]) -> float:
    """Return the share of rows of which the row before or behind is among them."""
    ordered = np.sort(places)
    is_next = np.diff(ordered) == 1
    has_neighbour = np.zeros(len(ordered), bool)
    has_neighbour[1:] |= is_next
    has_neighbour[:-1] |= is_next
    return float(has_neighbour.mean())

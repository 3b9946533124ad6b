"""Progress: values that describe how much of an epoch has been delivered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.division import Sharing
from laneway.core.order import ORDER_VERSION
from laneway.core.turns import turns_taken

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from laneway.core.gaps import Gap
    from laneway.core.turns import WorkerPlace


class LanePosition(NamedTuple):
    """How much of a lane the training loop has received."""

    rows: int = 0
    """Number of finished rows: every item built from them has been delivered."""
    offset: int = 0
    """How much has been delivered of what a stage makes of the rows after those, as it counts that; 0: nothing."""


LanePositions = tuple[LanePosition, ...]
"""The positions of lanes 0, 1, 2, ... of a cut."""

Tokens = Mapping[str, int]
"""Source -> number of tokens."""


def rows_in_step(num_lanes: int, turn_rows: int, sharing: Sharing, next_turn: int, part_rows: int) -> NDArray[np.int64]:
    """Return the rows delivered from each lane if all turns before `next_turn` were whole, shape (num_lanes,).

    Args:
        num_lanes: Number of lanes.
        turn_rows: Rows of a turn.
        sharing: How ranks share the lanes.
        next_turn: The job's next turn.
        part_rows: Rows that each rank has taken of its next turn, if rows are delivered one by one.
    """
    rows = turns_taken(next_turn, np.arange(num_lanes, dtype=np.int64), num_lanes) * turn_rows
    if part_rows:
        rows[(next_turn + np.arange(sharing.world_size) * sharing.turns_per_batch) % num_lanes] += part_rows
    return rows


@dataclass(frozen=True, slots=True)
class CutProgress:
    """Progress of the lanes in the current cut of an epoch."""

    num_lanes: int
    """Number of lanes of the cut."""
    turn_rows: int
    """Rows of a turn."""
    next_turn: int
    """Next turn of the job; if only some lanes are known, the next turn as seen by the workers that read them."""
    positions: Mapping[int, LanePosition]
    """Lane -> position, for the lanes that are known."""

    def rows(self) -> NDArray[np.int64]:
        """Return the number of rows delivered from each lane, 0 for unknown lanes, shape (num_lanes,)."""
        rows = np.zeros(self.num_lanes, np.int64)
        rows[[*self.positions]] = [position.rows for position in self.positions.values()]
        return rows

    def all_positions(self) -> LanePositions:
        """Return the position of every lane; unknown lanes are at their start."""
        return tuple(self.positions.get(lane, LanePosition()) for lane in range(self.num_lanes))

    def part_in_step(self, taking: Collection[int]) -> int | None:
        """Return how many rows were taken of the next turns, if all known lanes are in step, else None.

        They are in step if they have taken all turns before the next one, an equal part of each next turn, and no more.

        Args:
            taking: The lanes of the next turns, as `lanes_of_next_turns` returns them.
        """
        next_turn, num_lanes, turn_rows, positions = self.next_turn, self.num_lanes, self.turn_rows, self.positions
        part_rows = None
        for lane in taking:
            if lane not in positions:
                return None
            part_rows = positions[lane].rows - turns_taken(next_turn, lane, num_lanes) * turn_rows
            break
        if part_rows is None or not 0 <= part_rows < turn_rows:
            return None
        for lane, position in positions.items():
            rows = turns_taken(next_turn, lane, num_lanes) * turn_rows
            if position != (rows + part_rows if lane in taking else rows, 0):
                return None
        return part_rows


@dataclass(frozen=True, slots=True)
class EarlierCut:
    """A cut of an epoch that was cut again: what is needed to replay it."""

    num_lanes: int
    """Number of its lanes."""
    turn_rows: int = 1
    """Rows of a turn. This and `sharing` have no effect in order version 1."""
    sharing: Sharing = field(default_factory=Sharing)
    """How ranks shared it."""
    next_turn: int = 0
    """The job's next turn when it ended, if all lanes were in step then, else 0."""
    part_rows: int = 0
    """Rows that each rank had taken of its next turn, if rows were delivered one by one and lanes were in step."""
    positions: LanePositions | None = None
    """Last position of each lane; None: all lanes were in step."""
    gaps: tuple[Gap, ...] | None = None
    """The gaps of the epoch that were known then; None: all."""

    def rows(self) -> NDArray[np.int64]:
        """Return the number of rows delivered from each lane, shape (num_lanes,)."""
        if self.positions is not None:
            return np.array([position.rows for position in self.positions], np.int64)
        return rows_in_step(self.num_lanes, self.turn_rows, self.sharing, self.next_turn, self.part_rows)


class Rest(NamedTuple):
    """What is left of an epoch of a source that had begun before a cut."""

    epoch: int
    """Zero-based."""
    num_rows: int
    """Rows that had not been delivered, >= 1."""
    order_version: int = ORDER_VERSION
    """The order in which the epoch began, and is finished."""
    files: str = ""
    """The files and settings with which it began; see `Source.files`."""


class SourceStart(NamedTuple):
    """A source when a cut of a mixture begins."""

    name: str
    """Its name in the mixture."""
    weight: float
    """Its weight in this cut."""
    next_epoch: int = 0
    """Its first epoch that has not begun."""
    rests: tuple[Rest, ...] = ()
    """What is left of the epochs before, oldest first."""
    files: str = ""
    """The files and settings with which epochs begin; see `Source.files`."""
    rows: int = 0
    """Rows that were delivered in the cuts before, padding included; 0 if this is an earlier cut."""


class Group(NamedTuple):
    """Consecutive rows of a lane from which a stage builds items, of which some had been delivered when a cut ended."""

    cut: int
    """Index of the cut; -1: all its items have been delivered since."""
    lane: int
    """Lane of that cut."""
    row: int
    """First row of the group in that lane."""
    offset: int
    """Number of its items that had been delivered."""
    num_rows: int = 0
    """Number of its rows, if the lane ended within it; 0: it has all."""


@dataclass(frozen=True, slots=True)
class CutStart:
    """How a cut of a mixture begins."""

    sources: tuple[SourceStart, ...]
    """The sources, in the order that breaks ties between equal weights."""
    group_rows: int = 1
    """Rows from which the last stage builds items at a time; 1 without a stage."""
    num_carried: int = 0
    """Number of groups that earlier cuts left half delivered: the first rows of the lanes."""
    order_version: int = ORDER_VERSION
    """The order in which epochs of sources begin."""
    rows_before: int = 0
    """Rows of the mixture that were delivered before this cut."""
    batches_before: int = 0
    """If a number of batches makes an epoch: those that each rank has taken, less those that follow from the turns."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of an epoch."""

    epoch: int
    """Zero-based."""
    sharing: Sharing = field(default_factory=Sharing)
    """How ranks share the current cut."""
    cut: CutProgress | None = None
    """Progress of the current cut; None if the epoch has not been cut yet."""
    earlier: tuple[EarlierCut, ...] = ()
    """The earlier cuts of this epoch, oldest first."""
    place: WorkerPlace | None = None
    """The worker (or the rank, if it has a single worker) whose lanes are known; None: all lanes are known."""
    order_version: int = ORDER_VERSION
    """The order in which the epoch began, and is finished."""
    starts: tuple[CutStart, ...] = ()
    """Of a mixture, how each cut begins: those in `earlier`, and then the current one."""
    carried: tuple[Group, ...] = ()
    """The groups that the current cut was left: group `i` is in lane `i % num_lanes`, before all other rows."""
    tokens: Tokens = field(default_factory=dict)
    """Of a mixture whose packs have unknown lengths: tokens that were delivered since it began. If not all lanes are
    known, those that the worker or rank has counted; of the whole job, they are the sum of all. Empty: not counted."""


def next_epoch(progress: Progress) -> Progress:
    """Return the progress of the next epoch of a mixture, which goes on where this one ends."""
    return replace(progress, epoch=progress.epoch + 1)


def ends_follow(order_version: int) -> bool:
    """Return whether the lanes of a complete job are exactly at the ends that follow from how ranks share them.

    In order version 1, an epoch could be shared in other ways until its end.
    """
    return order_version > 1


def rows_in_mixture(progress: Progress) -> int:
    """Return the rows of a mixture that the whole job has delivered, all of whose lanes are known."""
    if progress.cut is None or not progress.starts:
        return 0
    start, num_lanes, positions = progress.starts[-1], progress.cut.num_lanes, progress.cut.all_positions()
    # A group whose lane had ended within it counts as if it had all its rows.
    missing = sum(
        start.group_rows - group.num_rows
        for index, group in enumerate(progress.carried)
        if group.num_rows and index // num_lanes < positions[index % num_lanes].rows // start.group_rows
    )
    return start.rows_before + sum(position.rows for position in positions) - missing


def tokens_of_place(progress: Progress, place: WorkerPlace) -> Tokens:
    """Return the tokens from which a worker or rank counts on.

    They are those of the progress for the first of the workers and ranks that resume from it, and 0 for the others, so
    that the sum over all of them is right.
    """
    saved = progress.place
    is_first = place.worker == saved.worker if saved is not None else place.rank == place.worker == 0
    return progress.tokens if is_first else dict.fromkeys(progress.tokens, 0)


def added_tokens(tokens: Tokens, others: Tokens) -> Tokens:
    """Return tokens, with others of some of the same sources added."""
    # A batch has tokens of few of hundreds of sources.
    return {**tokens, **{name: tokens[name] + number for name, number in others.items()}}


class JobTurn(NamedTuple):
    """Progress of a whole job whose lanes are all in step."""

    next_turn: int
    """All turns before this one have been taken, and no others."""
    part_rows: int
    """Number of rows that each rank has taken of its next turn, if rows are delivered one by one."""
    is_complete: bool
    """Whether the job has delivered the whole epoch."""


def fresh_cut(num_lanes: int, turn_rows: int) -> CutProgress:
    """Return the progress of a cut from which nothing has been delivered."""
    return CutProgress(num_lanes, turn_rows, 0, dict.fromkeys(range(num_lanes), LanePosition()))


def current_cut(progress: Progress) -> CutProgress:
    """Return the progress of the current cut of an epoch.

    Raises:
        ValueError: The epoch has not been cut.
    """
    if progress.cut is None:
        message = f"epoch {progress.epoch} has not been cut into lanes yet"
        raise ValueError(message)
    return progress.cut


def ended_cut(progress: Progress) -> EarlierCut:
    """Return the current cut of an epoch as one that ends here."""
    cut = current_cut(progress)
    # What was delivered doesn't depend on the remainder.
    sharing = progress.sharing._replace(remainder="keep")
    is_known = len(cut.positions) == cut.num_lanes
    part_rows = cut.part_in_step(lanes_of_next_turns(progress)) if is_known else None
    if part_rows is None:
        return EarlierCut(cut.num_lanes, cut.turn_rows, sharing, positions=cut.all_positions())
    return EarlierCut(cut.num_lanes, cut.turn_rows, sharing, cut.next_turn, part_rows)


def lanes_of_next_turns(progress: Progress) -> Collection[int]:
    """Return the lanes of the next turns: that of the worker or rank whose lanes are known, or one for every rank."""
    cut, place, (world_size, turns_per_batch, _) = current_cut(progress), progress.place, progress.sharing
    if place is not None:
        return (place.first_turn(cut.next_turn, turns_per_batch) % cut.num_lanes,)
    return {(cut.next_turn + rank * turns_per_batch) % cut.num_lanes for rank in range(world_size)}

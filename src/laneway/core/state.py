"""States: progress and identity as plain JSON values, and the checks before one is believed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from laneway.core.files import FileFacts, decode_files
from laneway.core.lanes import MAX_LANES, Remainder
from laneway.core.order import ORDER_VERSION
from laneway.core.plan import Identity, is_complete, positions_at, replay
from laneway.core.progress import CutProgress, LaneProgress, Progress, present_cut
from laneway.core.turns import WorkerPlace, place_differences
from laneway.errors import CheckpointMismatchError, StateFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.core.files import FileTable

FORMAT = "laneway.state"
"""What a state calls itself."""
FORMAT_VERSION = 1
"""Version of the layout below."""

_MAX_NAMED = 3
_REMAINDERS = get_args(Remainder)
_MAX_COUNT = 2**48
"""More rows, turns or epochs than any dataset has; below it numpy's int64 can't overflow."""


@dataclass(frozen=True, slots=True)
class StateWriter:
    """Writes the states of one dataset. What never changes is made once: states are taken after every batch."""

    constants: dict[str, Any]
    """The identity part of every state."""

    @classmethod
    def of(cls, identity: Identity) -> StateWriter:
        """Return the writer for a dataset."""
        return cls(
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "order_version": ORDER_VERSION,
                "fingerprint": identity.files.fingerprint,
                "files": identity.files.encoded,
                **asdict(identity.settings),
            }
        )

    def state(self, progress: Progress, place: WorkerPlace, *, complete: bool) -> dict[str, Any]:
        """Return the state that stands for `progress`: fresh containers, plain JSON values.

        Args:
            progress: What has been delivered.
            place: The worker that says so.
            complete: Whether that is all it delivers in this epoch.
        """
        rows = progress.cut.lanes.rows if progress.cut else {}
        lanes = range(len(rows)) if progress.place is None else sorted(rows)
        return {
            **self._about(progress, place, _scope(progress.place), complete=complete),
            "lane_indices": None if progress.place is None else lanes,
            "positions": [rows[lane] for lane in lanes],
        }

    def state_in_step(
        self, progress: Progress, place: WorkerPlace, next_turn: int, part_rows: int, *, complete: bool
    ) -> dict[str, Any]:
        """Return the state of a whole job all of whose lanes are in step: it needs no position.

        Args:
            progress: What any of the ranks has delivered.
            place: Where `rank` is 0, the state is the same whichever rank says so.
            next_turn: All turns before this one have been taken.
            part_rows: Rows that each rank has taken of its next turn.
            complete: Whether the epoch is complete.
        """
        return {
            **self._about(progress, place, "global", complete=complete),
            "next_turn": next_turn,
            "part_rows": part_rows,
        }

    def _about(self, progress: Progress, place: WorkerPlace, scope: str, *, complete: bool) -> dict[str, Any]:
        cut = progress.cut
        return {
            **self.constants,
            "scope": scope,
            "rank": place.rank,
            "world_size": place.world_size,
            "worker": place.worker,
            "num_workers": place.num_workers,
            "epoch": progress.epoch,
            "complete": complete,
            "lanes": cut.num_lanes if cut else None,
            "turn_rows": cut.turn_rows if cut else None,
            "lane_remainder": progress.remainder if cut else None,
            "next_turn": cut.next_turn if cut else 0,
            "part_rows": 0,
            "lane_indices": None,
            "positions": None,
            "earlier_cuts": [list(earlier.rows.values()) for earlier in progress.earlier],
        }


def read_state(
    state: object, identity: Identity, *, rank: int, world_size: int, worker: WorkerPlace | None
) -> Progress:
    """Parse a state, check everything in it against the dataset, and return its progress.

    Args:
        state: What `StateWriter.state` returned, perhaps by way of JSON or torch.save.
        identity: Of the dataset that it is to be loaded into.
        rank: Data-parallel rank that loads it.
        world_size: Number of ranks.
        worker: The DataLoader worker that loads it; None in the main process, which can't know yet who will read.

    Raises:
        StateFormatError: It is no state, or a damaged one.
        CheckpointMismatchError: It is the state of another dataset, order or rank. All differences are listed.
    """
    fields = parse_state(state)
    saved = _place(fields)
    lines = _identity_differences(fields, identity)
    # Without a worker, who will read isn't known yet; with one, a loader restores exactly the workers it saved.
    present = worker or WorkerPlace(rank, world_size, saved.worker, saved.num_workers)
    if fields["scope"] == "global":
        present = replace(present, rank=saved.rank, world_size=saved.world_size)
    problems = place_differences(saved, present)
    if lines or problems:
        raise CheckpointMismatchError(_mismatch(lines, problems, fields["scope"]))
    progress = _progress(fields)
    if progress.cut is not None and fields["positions"] is None:
        progress = _in_step(progress, progress.cut, identity, fields)
    if progress.cut is not None:
        _check_positions(progress, identity, complete=fields["complete"])
    return progress


def parse_progress(state: object) -> Progress:
    """Return what a state says has been delivered, not checked against a dataset.

    Raises:
        StateFormatError: It is no state, or a damaged one.
    """
    return _progress(parse_state(state))


_TYPES: dict[str, tuple[type, ...]] = {
    "order_version": (int,),
    "fingerprint": (str,),
    "files": (str,),
    "seed": (int,),
    "shuffle": (bool,),
    "shard_bytes": (int,),
    "shard_rows": (int, type(None)),
    "window_bytes": (int,),
    "remainder": (str, type(None)),
    "drop_last": (bool,),
    "scope": (str,),
    "rank": (int,),
    "world_size": (int,),
    "worker": (int,),
    "num_workers": (int,),
    "epoch": (int,),
    "complete": (bool,),
    "lanes": (int, type(None)),
    "turn_rows": (int, type(None)),
    "lane_remainder": (str, type(None)),
    "next_turn": (int,),
    "part_rows": (int,),
    "lane_indices": (list, type(None)),
    "positions": (list, type(None)),
    "earlier_cuts": (list,),
}


_KEY = "laneway"


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state under one key, as one value that torch.distributed.checkpoint does not take apart."""
    return {_KEY: [state]}


def unwrapped(state: object) -> object:
    """Return the state in what `wrapped` returned, or what was given where it is something else."""
    inner = state.get(_KEY) if isinstance(state, dict) and len(state) == 1 else None
    return inner[0] if isinstance(inner, list) and len(inner) == 1 else state


def parse_state(state: object) -> Mapping[str, Any]:
    """Return the fields of a state, which are of the right types and don't contradict each other.

    Raises:
        StateFormatError: It is no state, or a damaged one.
    """
    state = unwrapped(state)
    if not isinstance(state, dict):
        message = f"a state is the dict that state_dict() returned, not {type(state).__name__}"
        raise StateFormatError(message)
    if state.get("format") != FORMAT:
        keys = ", ".join(map(repr, list(state)[:5])) or "none"
        hint = ""
        if "_snapshot" in state or "_iterator_finished" in state:
            hint = "; it is a state of StatefulDataLoader: give it to the loader's load_state_dict()"
        message = f"this dict is no state of a laneway dataset: 'format' is missing, its keys are {keys}{hint}"
        raise StateFormatError(message)
    if state.get("version") != FORMAT_VERSION:
        message = (
            f"this state has format version {state.get('version')!r}, this release of laneway reads version "
            f"{FORMAT_VERSION}: load it with the release that saved it, or a later one"
        )
        raise StateFormatError(message)
    missing = [name for name in _TYPES if name not in state]
    if missing:
        message = f"this state is truncated: {', '.join(missing)} missing"
        raise StateFormatError(message)
    for name, types in _TYPES.items():
        value = state[name]
        if type(value) not in types:
            message = f"this state is damaged: {name} is {value!r}, not {' or '.join(t.__name__ for t in types)}"
            raise StateFormatError(message)
    for name in ("epoch", "next_turn"):
        _require(0 <= state[name] < _MAX_COUNT, f"{name} is {state[name]}")
    for index, count in (("rank", "world_size"), ("worker", "num_workers")):
        _require(0 <= state[index] < state[count], f"{index} is {state[index]} of {count} {state[count]}")
    _check_lanes(state)
    return {name: state[name] for name in ("format", "version", *_TYPES)}


def _check_lanes(fields: Mapping[str, Any]) -> None:
    is_whole = fields["scope"] == "global"
    num_lanes, known, positions = fields["lanes"], fields["lane_indices"], fields["positions"]
    if num_lanes is None:
        _require(is_whole, f"scope is {fields['scope']!r}, but it has no lanes")
        _require(not positions and not fields["earlier_cuts"], "it has positions, but no lanes")
        _require(not fields["complete"], "it is complete, but has no lanes")
        return
    _require(0 < num_lanes <= MAX_LANES, f"lanes is {num_lanes:,}")
    _require(0 < (fields["turn_rows"] or 0) < _MAX_COUNT, f"turn_rows is {fields['turn_rows']!r}")
    remainder = fields["lane_remainder"]
    _require(remainder in _REMAINDERS, f"lane_remainder is {remainder!r}")
    scope = "global" if known is None else _scope(_place(fields))
    _require(fields["scope"] == scope, f"scope is {fields['scope']!r} with lane_indices {known!r}")
    part_rows, is_in_step = fields["part_rows"], is_whole and positions is None
    _require(0 <= part_rows < (fields["turn_rows"] if is_in_step else 1), f"part_rows is {part_rows}")
    known = list(range(num_lanes)) if is_whole else known
    is_known = (
        positions is not None
        and _are_counts([*known, *positions])
        and len(known) == len(positions) == len({*known})
        and max(known, default=0) < num_lanes
    )
    if not (is_in_step or is_known):
        message = f"this state is damaged: positions {positions!r} don't fit lanes {known!r} of {num_lanes:,}"
        raise StateFormatError(message)
    for cut in fields["earlier_cuts"]:
        _require(isinstance(cut, list) and bool(cut) and _are_counts(cut), f"an earlier cut is {cut!r}")


def _place(fields: Mapping[str, Any]) -> WorkerPlace:
    return WorkerPlace(fields["rank"], fields["world_size"], fields["worker"], fields["num_workers"])


def _identity_differences(fields: Mapping[str, Any], identity: Identity) -> list[str]:
    lines = []
    if fields["order_version"] != ORDER_VERSION:
        lines.append(f"order_version: saved {fields['order_version']}, this release of laneway has {ORDER_VERSION}")
    lines += [
        f"{name}: saved {fields[name]!r}, this run has {value!r}"
        for name, value in asdict(identity.settings).items()
        if fields[name] != value
    ]
    if fields["fingerprint"] != identity.files.fingerprint:
        lines.append("files: " + "; ".join(_file_differences(decode_files(fields["files"]), identity.files)))
    return lines


def _file_differences(saved: Mapping[str, FileFacts], files: FileTable) -> list[str]:
    present = {
        path: FileFacts(int(size), int(rows), digest)
        for path, size, rows, digest in zip(files.paths, files.sizes, files.rows, files.digests, strict=True)
    }
    lines = [f"{path} {_change(saved[path], present[path])}" for path in present if path in saved]
    lines = [line for line in lines if not line.endswith(" ")]
    gone, new = [path for path in saved if path not in present], [path for path in present if path not in saved]
    for path in gone:
        renamed = next((name for name in new if present[name] == saved[path]), None)
        if renamed:
            new.remove(renamed)
        lines.append(f"{path} is now {renamed}" if renamed else f"{path} is gone")
    lines += [f"{path} is new" for path in new]
    if not lines:
        return ["the same files hold other row groups, or other columns, than when this was saved"]
    if len(lines) > _MAX_NAMED:
        lines[_MAX_NAMED:] = [f"and {len(lines) - _MAX_NAMED:,} more differences"]
    return lines


def _change(saved: FileFacts, present: FileFacts) -> str:
    if saved.rows != present.rows:
        return f"had {saved.rows:,} rows, now {present.rows:,}"
    if saved.size != present.size:
        return f"had {saved.size:,} bytes, now {present.size:,}"
    return "" if saved == present else f"was rewritten with the same size ({saved.size:,} bytes)"


def _mismatch(lines: list[str], place_lines: list[str], scope: str) -> str:
    names = list(dict.fromkeys(line.split(":", 1)[0] for line in lines))
    ways_out = [f"give the same {', '.join(names)}, or start an epoch afresh with a new dataset and set_epoch()"]
    if not lines:
        ways_out = []
    if place_lines and scope == "rank":
        ways_out.append(
            "this state knows the lanes of one rank alone; for any number of ranks save the whole job's with "
            "SavableLoader.save_state_global(), or load merge_states() of the states of all ranks"
        )
    return "\n".join(
        [
            f"this checkpoint does not belong to this {'dataset' if lines else 'worker'}",
            *(f"  {line}" for line in (*lines, *place_lines)),
            *ways_out,
        ]
    )


def _scope(place: WorkerPlace | None) -> str:
    """Return whose lanes a state knows: "global", "rank" or "worker"."""
    if place is None:
        return "global"
    return "rank" if place.num_workers == 1 else "worker"


def _progress(fields: Mapping[str, Any]) -> Progress:
    if fields["lanes"] is None:
        return Progress(fields["epoch"])
    is_whole = fields["scope"] == "global"
    known = range(fields["lanes"]) if is_whole else fields["lane_indices"]
    lanes = LaneProgress(dict(zip(known, fields["positions"] or (), strict=fields["positions"] is not None)))
    return Progress(
        epoch=fields["epoch"],
        remainder=fields["lane_remainder"],
        cut=CutProgress(fields["lanes"], fields["turn_rows"], fields["next_turn"], lanes),
        earlier=tuple(map(LaneProgress.of, fields["earlier_cuts"])),
        place=None if is_whole else _place(fields),
    )


def _in_step(progress: Progress, cut: CutProgress, identity: Identity, fields: Mapping[str, Any]) -> Progress:
    """Return the progress of a whole job whose state says only which turn is next."""
    plan = replay(identity, progress)
    positions = positions_at(plan, progress, cut.next_turn)
    if fields["part_rows"]:
        positions[(cut.next_turn + np.arange(fields["world_size"])) % cut.num_lanes] += fields["part_rows"]
    return replace(progress, cut=replace(cut, lanes=LaneProgress.of(positions.tolist())))


def _check_positions(progress: Progress, identity: Identity, *, complete: bool) -> None:
    """Check what can only be checked against the lanes."""
    plan = replay(identity, progress)
    longest = [*(lanes.rows for lanes in plan.lanes_before), plan.lanes.rows]
    for lanes, rows in zip((*progress.earlier, present_cut(progress).lanes), longest, strict=True):
        # A lane that is padded delivers one row more than it has.
        too_far = np.flatnonzero(lanes.positions(len(rows)) > rows + 1)
        for lane in too_far[:1].tolist():
            message = (
                f"this state is damaged: lane {lane} is at position {lanes.rows[lane]:,}, but has {rows[lane]:,} rows"
            )
            raise StateFormatError(message)
    _require(complete == is_complete(plan, progress), f"complete={complete} contradicts its positions")


def _are_counts(numbers: list[Any]) -> bool:
    return {*map(type, numbers)} <= {int} and 0 <= min(numbers, default=0) <= max(numbers, default=0) < _MAX_COUNT


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 - it reads as a sentence
    if not condition:
        message = f"this state is damaged: {problem}"
        raise StateFormatError(message)

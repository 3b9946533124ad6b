"""Merges the states of all ranks into one state of the whole job."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from laneway.core.differences import shorten
from laneway.core.progress import LanePosition
from laneway.core.schema import Role, names_of, parse_state, position_fields, positions_of
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the states that all ranks saved at the same step into one that any number of ranks can load.

    Args:
        states: One state per rank, in any order: the result of `SavableLoader.save_state_rank`, or of `state_dict` of a
            dataset that is read without workers.

    Returns:
        The state of the whole job, for `restore_state_global` or `load_state_dict`.

    Raises:
        StateFormatError: One of the values is not a state.
        CheckpointMismatchError: The states are of different runs or steps, or a rank is missing or occurs twice.

    Example:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import StatefulShardedDataset
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(12)}), f"{folder}/part-0.parquet")
        >>> ranks = [StatefulShardedDataset(folder, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
        >>> [next(iter(rank))["x"].tolist() for rank in ranks]
        [[0, 1], [6, 7]]
        >>> single = StatefulShardedDataset(folder, batch_size=2, rank=0, world_size=1)
        >>> single.load_state_dict(merge_states([rank.state_dict() for rank in ranks]))
        >>> [batch["x"].tolist() for batch in single]
        [[2, 3], [8, 9], [4, 5], [10, 11]]
    """
    if not states:
        message = "there is nothing to merge: pass the states of all ranks"
        raise CheckpointMismatchError(message)
    return merge_ranks(states, same_step=True)


def merge_ranks(states: Sequence[Mapping[str, Any]], *, same_step: bool) -> dict[str, Any]:
    """Merge the states of all ranks; see `merge_states`.

    Args:
        states: One state per rank, in any order.
        same_step: Whether to refuse states of different steps. States that all ranks took at the same time are
            consistent at any steps.
    """
    parsed = [parse_state(state).fields for state in states]
    first = parsed[0]
    # States of the whole job all carry rank 0, so they are named by their index.
    names = [f"rank {state['rank'] if state['scope'] == 'rank' else index}" for index, state in enumerate(parsed)]
    problems = [
        f"{field}: {names[0]} has {shorten(first[field])}, {name} has {shorten(state[field])}"
        for field in names_of(Role.IDENTITY, Role.JOB)
        for name, state in zip(names[1:], parsed[1:], strict=True)
        if state[field] != first[field]
    ]
    problems = problems or _rank_problems(parsed) or (_step_problems(parsed) if same_step else [])
    if problems:
        way_out = "pass the states that all ranks saved at the same step, or call save_state_global() on all ranks"
        message = "\n  ".join(["these are not the states of all ranks of one job at one step", *problems, way_out])
        raise CheckpointMismatchError(message)
    if first["scope"] == "global":
        return dict(first)
    complete = all(state["complete"] for state in parsed)
    positions = dict(
        chain.from_iterable(zip(state["lane_indices"], positions_of(state), strict=True) for state in parsed)
    )
    if not complete and not first["earlier_cuts"] and {*positions.values()} <= {LanePosition()}:
        # Nothing was delivered, so the run that resumes can choose the cut.
        uncut = dict.fromkeys(("lanes", "turn_rows", "lane_remainder", "lane_indices"))
        uncut |= {"scope": "global", "rank": 0, "complete": False, "over": False, "next_turn": 0, **position_fields([])}
        return {**first, **uncut}
    return {
        **first,
        "scope": "global",
        "rank": 0,
        "complete": complete,
        "over": complete and all(state["over"] for state in parsed),
        "next_turn": max(state["next_turn"] for state in parsed),
        "lane_indices": None,
        **position_fields([positions[lane] for lane in range(first["lanes"])]),
    }


def _rank_problems(states: Sequence[Mapping[str, Any]]) -> list[str]:
    scopes = {state["scope"] for state in states}
    if "worker" in scopes:
        return ["scope: these are states of DataLoader workers, not of ranks"]
    if scopes == {"global"}:
        facts = ("positions", "offsets", "next_turn", "part_rows")
        same = all(state[name] == states[0][name] for state in states for name in facts)
        return [] if same else ["positions: each of these is the state of the whole job, and they differ"]
    if scopes != {"rank"}:
        return ["scope: some of these are the state of a rank, others that of the whole job"]
    counts = Counter(state["rank"] for state in states)
    problems = [f"rank {rank} is missing" for rank in range(states[0]["world_size"]) if rank not in counts]
    problems += [f"rank {rank} occurs more than once" for rank, count in sorted(counts.items()) if count > 1]
    if not problems:
        known = sorted(lane for state in states for lane in state["lane_indices"])
        if known != list(range(states[0]["lanes"])):
            problems = [f"lanes: together they hold lanes {known}, not each of {states[0]['lanes']} once"]
    return problems


def _step_problems(states: Sequence[Mapping[str, Any]]) -> list[str]:
    if states[0]["scope"] == "global":
        return []
    problems = _row_problems(states)
    if problems:
        return problems
    # A rank that has reached its end stays at its last turn while others continue.
    going = [state for state in states if not state["complete"]]
    return [
        f"step: rank {one['rank']} is at turn {one['next_turn']}, rank {other['rank']} at {other['next_turn']}"
        for one, other in pairwise(going)
        # At the end of an epoch that keeps its remainder, ranks skip different empty turns.
        if one["next_turn"] != other["next_turn"] and _num_taken(one) != _num_taken(other)
    ]


def _row_problems(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each rank that has delivered too many or too few rows to be at the same step.

    Lanes have equal lengths if the remainder is padded or dropped; if it is kept, they differ by at most one row.
    """
    first = states[0]
    rows = [sum(state["positions"]) for state in states]
    most = 0 if first["lane_remainder"] != "keep" else first["lanes"] // first["world_size"]
    return [
        f"step: rank {first['rank']} has delivered {rows[0]:,} rows, rank {state['rank']} has delivered {count:,}"
        for state, count in zip(states[1:], rows[1:], strict=True)
        if abs(count - rows[0]) > most
    ]


def _num_taken(state: Mapping[str, Any]) -> int:
    """Return the number of turns that a rank has taken in the current cut, without skipped empty turns."""
    return sum(-(-rows // state["turn_rows"]) for rows in state["positions"])

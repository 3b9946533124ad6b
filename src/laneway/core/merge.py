"""Merges the states of all ranks into one state of the whole job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from laneway.core.differences import shorten
from laneway.core.progress import CutProgress, LanePosition, Progress, ends_follow, lanes_of_next_turns
from laneway.core.schema import Role, encode_positions, names_of, parse_state, positions_of, sealed
from laneway.errors import CheckpointMismatchError
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laneway.core.schema import SavedState

MAX_PROBLEMS = 10
"""Number of problems that an error lists."""


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the states that all ranks saved at the same step into one that any number of ranks can load.

    Args:
        states: One state per rank, in any order: the result of `SavableLoader.save_state_rank`, or of `state_dict` of a
            dataset that is read without workers.

    Returns:
        The state of the whole job, for `restore_state_global` or `load_state_dict`.

    Raises:
        TypeError: `states` is not a sequence.
        StateFormatError: One of the values is not a state.
        CheckpointMismatchError: The states are of different runs or steps, or a rank is missing or occurs twice.

    Examples:
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
    if isinstance(states, (str, bytes)) or not isinstance(states, Sequence):
        message = f"states must be a list of the states of all ranks, not {type(states).__name__}"
        raise TypeError(message)
    if not states:
        message = "there is nothing to merge: pass the states of all ranks"
        raise CheckpointMismatchError(message)
    return merge_ranks([*map(parse_state, states)], same_step=True)


def merge_ranks(saved: Sequence[SavedState], *, same_step: bool) -> dict[str, Any]:
    """Merge the states of all ranks; see `merge_states`.

    Args:
        saved: One state per rank, in any order.
        same_step: Whether to refuse states of different steps. States that all ranks took at the same time are
            consistent at any steps.
    """
    parsed = [state.fields for state in saved]
    first = parsed[0]
    problems = _few(differing_fields(parsed, names_of(Role.IDENTITY, Role.JOB)))
    positions: dict[int, LanePosition] = {}
    if not problems:
        problems = _few(rank_problems(parsed))
    if not problems and first["scope"] == "rank":
        of_ranks = [positions_of(state) for state in saved]
        problems = _few(_lane_problems(first["lanes"], of_ranks)) or (
            _few(_step_problems(parsed, of_ranks)) if same_step else []
        )
        positions = {lane: position for each in of_ranks for lane, position in each.items()}
    refuse_to_merge(problems)
    if first["scope"] == "global":
        return sealed(first)
    complete = all(state["complete"] for state in parsed)
    is_over = complete and all(state["over"] for state in parsed)
    merged = {**first, "scope": "global", "rank": 0, "complete": complete, "over": is_over}
    merged |= dict.fromkeys(("lane_indices", "positions", "offsets")) | {"part_rows": 0}
    is_untouched = not complete and not first["earlier_cuts"] and {*positions.values()} <= {LanePosition()}
    if is_untouched and not first["mixture"]:
        # Nothing was delivered, so the run that resumes can choose the cut. A mixture holds how its cut began.
        uncut = dict.fromkeys(("lanes", "turn_rows", "lane_world_size", "lane_batch_turns", "lane_remainder"))
        return sealed({**merged, **uncut, "next_turn": 0})
    merged["tokens"] = _sums([state["tokens"] for state in parsed])
    next_turn = max(state["next_turn"] for state in parsed)
    cut = CutProgress(first["lanes"], first["turn_rows"], next_turn, positions)
    progress = Progress(first["epoch"], saved[0].sharing, cut)
    part_rows = cut.part_in_step(lanes_of_next_turns(progress))
    do_ends_follow = ends_follow(first["order_version"]) and first["stages"] is None and first["epoch_batches"] is None
    if part_rows is None and not (complete and do_ends_follow):
        merged["positions"], merged["offsets"] = encode_positions(cut.all_positions())
    return sealed({**merged, "next_turn": next_turn, "part_rows": part_rows or 0})


def _sums(of_ranks: Sequence[list[int]]) -> list[int]:
    """Return the tokens of each source, added up; nothing if a rank has not counted them."""
    return [sum(of_source) for of_source in zip(*of_ranks, strict=False)]


def refuse_to_merge(problems: Iterable[str]) -> None:
    """Raise an error if there are problems.

    Raises:
        CheckpointMismatchError: There are.
    """
    found = _few(problems)
    if found:
        way_out = "pass the states that all ranks saved at the same step, or call save_state_global() on all ranks"
        message = "\n  ".join(["these are not the states of all ranks of one job at one step", *found, way_out])
        raise CheckpointMismatchError(message)


def _few(problems: Iterable[str]) -> list[str]:
    """Return the first problems and the number of others: there may be a line for each of thousands of ranks."""
    found = [*islice(problems, MAX_PROBLEMS + 1)]
    return [*found[:MAX_PROBLEMS], "and more"] if len(found) > MAX_PROBLEMS else found


def differing_fields(states: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterable[str]:
    """Return in which of these fields states differ."""
    first = states[0]
    # States of the whole job all carry rank 0, so they are named by their index.
    ranks = [f"rank {state['rank'] if state['scope'] == 'rank' else index}" for index, state in enumerate(states)]
    for field in names:
        for rank, state in zip(ranks, states, strict=True):
            if state[field] != first[field]:
                yield f"{field}: {ranks[0]} has {shorten(first[field])}, {rank} has {shorten(state[field])}"


def rank_problems(states: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Return which ranks are missing, or occur twice, and other states than those of ranks."""
    scopes = {state["scope"] for state in states}
    if "worker" in scopes:
        yield "scope: these are states of DataLoader workers, not of ranks"
    elif scopes == {"global"}:
        facts = ("positions", "offsets", "next_turn", "part_rows", "complete", "tokens")
        if any(state[name] != states[0][name] for state in states for name in facts):
            yield "positions: each of these is the state of the whole job, and they differ"
    elif scopes != {"rank"}:
        yield "scope: some of these are the state of a rank, others that of the whole job"
    else:
        counts = Counter(state["rank"] for state in states)
        missing = (rank for rank in range(states[0]["world_size"]) if rank not in counts)
        yield from (f"rank {rank} is missing" for rank in missing)
        yield from (f"rank {rank} occurs more than once" for rank, count in sorted(counts.items()) if count > 1)


def _lane_problems(num_lanes: int, of_ranks: Sequence[Mapping[int, LanePosition]]) -> Iterable[str]:
    counts = Counter(lane for positions in of_ranks for lane in positions)
    problems = {0: "is in none of them", 2: "is in more than one of them"}
    yield from (
        f"lanes: lane {lane} of {num_lanes:,} {problems[min(counts[lane], 2)]}"
        for lane in range(num_lanes)
        if counts[lane] != 1
    )


def _step_problems(
    states: Sequence[Mapping[str, Any]], of_ranks: Sequence[Mapping[int, LanePosition]]
) -> Iterable[str]:
    first, turn_rows = states[0], states[0]["turn_rows"]
    if first["stages"] is not None:
        # How many rows become a batch depends on the data.
        for state in states[1:]:
            if state["next_turn"] != first["next_turn"] and not (state["complete"] or first["complete"]):
                turns = (first["next_turn"], state["next_turn"])
                yield f"step: rank {first['rank']} is at turn {turns[0]}, rank {state['rank']} at {turns[1]}"
        return
    rows = [sum(position.rows for position in positions.values()) for positions in of_ranks]
    # Ranks deliver the same number of rows if the remainder is padded or dropped. If it is kept, they differ by at most
    # one row, or in order version 1 by one in each lane.
    most = 0
    if first["lane_remainder"] == "keep":
        most = first["lanes"] // first["world_size"] if first["order_version"] == 1 else 1
    apart = [
        f"step: rank {first['rank']} has delivered {counted(rows[0], 'row')}, "
        f"rank {state['rank']} has delivered {count:,}"
        for state, count in zip(states[1:], rows[1:], strict=True)
        if abs(count - rows[0]) > most
    ]
    yield from apart
    if apart:
        return
    taken = [sum(-(-position.rows // turn_rows) for position in positions.values()) for positions in of_ranks]
    # A rank that has reached its end stays at its last turn while others continue.
    going = [(state, count) for state, count in zip(states, taken, strict=True) if not state["complete"]]
    for (one, count), (other, other_count) in pairwise(going):
        # At the end of an epoch that keeps its remainder, ranks skip different empty turns.
        if one["next_turn"] != other["next_turn"] and count != other_count:
            turns = (one["next_turn"], other["next_turn"])
            yield f"step: rank {one['rank']} is at turn {turns[0]}, rank {other['rank']} at {turns[1]}"

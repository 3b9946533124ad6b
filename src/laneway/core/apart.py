"""Ranks that are in different epochs, or cuts: their states in one value, of which each rank takes its own.

The state of a job has one epoch: its lanes are cut again within an epoch, never across two. It has one cut, too; but
where a schedule changes the weights of a mixture, ranks whose batches depend on the data begin the next cut apart. So
these states resume on as many ranks as they were saved on. The value has the keys of a state, because
torch.distributed.checkpoint loads by key.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from laneway.core.consistency import require
from laneway.core.differences import shorten
from laneway.core.merge import differing_fields, merge_ranks, rank_problems, refuse_to_merge
from laneway.core.schema import (
    FIELDS,
    FORMAT_VERSION,
    REQUIRED,
    SCOPE_APART,
    Role,
    names_of,
    parse_state,
    sealed,
    unwrap_state,
)
from laneway.errors import CheckpointMismatchError
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from laneway.core.turns import WorkerPlace

    State = dict[str, Any]


_OF_CUTS = ("earlier_cuts", "mixture")
"""Fields that say where the cuts of a mixture began."""


def merge_gathered(states: Sequence[State]) -> State:
    """Merge the states that all ranks took at the same time, in the order of ranks, into one of the whole job.

    If the ranks are in different epochs or cuts, its positions are the states of all ranks, as strings.

    Raises:
        StateFormatError: One of the values is not a state.
        CheckpointMismatchError: The states are of different jobs, or a rank is missing or occurs twice.
    """
    saved = [*map(parse_state, states)]
    fields = [each.fields for each in saved]
    epochs = {each["epoch"] for each in fields}
    if len(epochs) == 1 and not _are_in_different_cuts(fields):
        return merge_ranks(saved, same_step=False)
    refuse_to_merge(_problems(fields))
    of_job = dict.fromkeys(("lanes", "turn_rows", "lane_world_size", "lane_batch_turns", "lane_remainder"))
    of_job |= dict.fromkeys(("lane_indices", "offsets")) | {"next_turn": 0, "part_rows": 0, "earlier_cuts": []}
    of_job |= {"scope": SCOPE_APART, "rank": 0, "epoch": min(epochs), "complete": False, "over": False}
    # The file table is the same for all ranks, and need not be in each of the strings.
    own = [json.dumps(sealed({**state, "files": ""})) for state in states]
    return sealed({**states[0], **of_job, "positions": own})


def is_apart(state: object) -> bool:
    """Return whether an unwrapped value holds the states of ranks in different epochs or cuts."""
    return isinstance(state, dict) and state.get("scope") == SCOPE_APART


def state_of_rank(state: object, place: WorkerPlace) -> object:
    """Return the state of a rank, if `state` holds those of ranks in different epochs or cuts; else `state`, unwrapped.

    Args:
        state: Any value that a user loads.
        place: The rank that loads it.

    Raises:
        StateFormatError: The states are damaged.
        CheckpointMismatchError: They are those of another number of ranks.
    """
    state = unwrap_state(state)
    if not isinstance(state, dict) or not is_apart(state):
        return state
    states = states_of_ranks(state)
    epochs = [each["epoch"] for each in states]
    if len(states) != place.world_size:
        num_ranks = counted(len(states), "rank")
        behind, ahead = epochs.index(min(epochs)), epochs.index(max(epochs))
        when = (
            f"ranks were in different epochs (rank {behind} in epoch {epochs[behind]}, rank {ahead} in epoch "
            f"{epochs[ahead]})"
        )
        until = "are in the same epoch"
        if behind == ahead:
            when = "some ranks had passed a scheduled change of the weights, and others had not"
            until = "have passed it"
        message = (
            f"this state was saved while {when}, so it resumes on {num_ranks} only, and this job has "
            f"{place.world_size}: resume on {num_ranks}, and save again when all of them {until}"
        )
        raise CheckpointMismatchError(message)
    return sealed({**states[place.rank], "files": state["files"]})


def states_of_ranks(state: State) -> list[State]:
    """Return the states of all ranks, in their order, checked to be those of one job."""
    missing = [each.name for each in FIELDS if each.name not in state and each.default is REQUIRED]
    require(not missing, f"{', '.join(missing)} missing")
    version = state.get("version")
    is_known = type(version) is int and version <= FORMAT_VERSION
    require(is_known, f"version is {shorten(version)}, and this release reads versions up to {FORMAT_VERSION}")
    states: list[State] = []
    try:
        is_whole = sealed(state)["digest"] == state["digest"]
        states += [json.loads(each) for each in state["positions"]]
    except (RecursionError, TypeError, ValueError):
        is_whole = False
    require(is_whole, "its digest is not that of its fields, so a field was changed")
    fields = [parse_state(each).fields for each in states]
    for problem in _problems(fields):
        require(False, problem)  # noqa: FBT003 - it reads as a sentence
    require([each["rank"] for each in fields] == [*range(len(fields))], "its ranks are not in their order")
    return states


def _are_in_different_cuts(fields: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a schedule has changed the weights for some ranks, and not yet for others."""
    names = [name for name in names_of(Role.JOB) if name not in _OF_CUTS]
    is_same_job = not [*differing_fields(fields, names)]
    if not is_same_job or any(not each["mixture"] or each["stages"] is None for each in fields):
        return False
    names_and_files = fields[0]["mixture"][:2]
    if any(each["mixture"][:2] != names_and_files for each in fields):
        return False
    return any(each[name] != fields[0][name] for each in fields for name in _OF_CUTS)


def _problems(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why these are not the states of all ranks of one job."""
    if not fields:
        return ["it holds no rank"]
    names = names_of(Role.IDENTITY)
    if len({each["order_version"] for each in fields}) > 1:
        # An epoch that began in an older order has another fingerprint of the same files.
        names.remove("fingerprint")
    return [*differing_fields(fields, [*names, "world_size"]), *rank_problems(fields)]

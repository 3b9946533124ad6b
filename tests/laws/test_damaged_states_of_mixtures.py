"""Law: a damaged state of a mixture is refused, or delivers what it says, whatever was changed and sealed again."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laneway.core.cursor import Cursor
from laneway.core.mixture_assignment import Mixed, resolve_mixture
from laneway.core.mixture_identity import MixtureIdentity
from laneway.core.mixture_progress import read_mixture
from laneway.core.mixtures import MixturePlan, Source
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut, rows_in_step
from laneway.core.schema import parse_state, sealed
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from laneway.core.weighting import Phase, Weighting
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.fuzzing import num_cases
from tests.laws.simulation import PLAIN, file_table, rows_of
from tests.laws.test_damaged_states import check_is_short, damage, damaged_value

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES = {
    name: Source(Identity(file_table(blocks), replace(PLAIN, seed=seed, shuffle=True, window_bytes=60)))
    for seed, (name, blocks) in enumerate({"a": [[9, 4], [7]], "b": [[3, 3], [5]]}.items())
}
IDENTITY = MixtureIdentity(SOURCES, PLAIN)


def mixed(batch_size: int, weights: Mapping[str, float]) -> Mixed:
    return Mixed(SOURCES, Weighting((Phase(0, weights),)), LaneOptions(None, None, batch_size))


def states() -> list[dict[str, Any]]:
    """Return the states of a mixture that was cut three times, in step and not."""
    progress, found = Progress(0), [write_state(IDENTITY, Progress(0), WorkerPlace(), complete=False)]
    for world_size, batch_size, turns, weights in ((2, 2, 6, {"a": 1, "b": 1}), (3, 4, 3, {"a": 5, "b": 1})):
        progress = resolve_mixture(mixed(batch_size, weights), progress, WorkerPlace(0, world_size)).progress
        cut = current_cut(progress)
        rows = rows_in_step(cut.num_lanes, cut.turn_rows, progress.sharing, turns, 0)
        positions = dict(enumerate(map(LanePosition, rows.tolist())))
        progress = replace(progress, cut=replace(cut, next_turn=turns, positions=positions))
        found.append(write_state(IDENTITY, progress, WorkerPlace(0, world_size), complete=False))
    positions[0] = LanePosition(positions[0].rows - 1)
    uneven = replace(progress, cut=replace(current_cut(progress), positions=positions))
    return [*found, write_state(IDENTITY, uneven, WorkerPlace(0, 3), complete=False)]


def damaged_mixture(state: dict[str, Any], rng: random.Random) -> Any:
    """Change something within the field of mixtures, or anywhere."""
    if rng.random() < 0.2:
        return damage(state, rng)
    state = copy.deepcopy(state)
    value = state["mixture"]
    while isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        if not isinstance(value[index], list) or rng.random() < 0.1:
            value[index] = damaged_value(value[index], rng)
            return state
        value = value[index]
    value.append(0) if isinstance(value, list) else None
    return state


def load(state: Any) -> None:
    """Load a state, and read the first rows of every worker."""
    saved = parse_state(state)
    progress = read_mixture(saved, IDENTITY, saved.place, is_worker=False)
    for rank in range(2):
        found = resolve_mixture(mixed(3, {"a": 2, "b": 1}), progress, WorkerPlace(rank, 2))
        plan, cursor = MixturePlan(SOURCES, found.progress), Cursor(found)
        batch = cursor.next_batch()
        for lane, start, stop in batch.ranges if batch else ():
            num_rows = 0
            for name, (epoch, epoch_lane, first, end) in plan.ranges(plan.group(lane, start), stop - start):
                num_rows += len(rows_of(plan.plan(plan.current, name, epoch), epoch_lane, first, end))
            assert num_rows == stop - start


STATES = states()


@pytest.mark.parametrize("seed", range(num_cases(300)))
def test_a_state_that_was_sealed_after_it_was_damaged_is_refused_or_delivers_rows(seed: int) -> None:
    rng = random.Random(seed)
    damaged = damaged_mixture(rng.choice(STATES), rng)
    try:
        damaged = sealed(damaged)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        # What can't be sealed is refused as well.
        with pytest.raises((StateFormatError, CheckpointMismatchError)):
            parse_state(damaged)
        return
    try:
        load(damaged)
    except (StateFormatError, CheckpointMismatchError) as error:
        check_is_short(error)


@pytest.mark.parametrize("index", range(len(STATES)))
def test_valid_states_load(index: int) -> None:
    load(json.loads(json.dumps(STATES[index])))

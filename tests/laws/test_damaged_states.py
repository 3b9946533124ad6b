"""Law: a damaged state is refused with an error of ours, or delivers exactly what it says.

States of all format versions and scopes are damaged in seeded random ways. Those of versions 1 and 2 have no digest, so
some of their mutations are other valid states; those of version 3 are all refused, unless what was changed has no
meaning.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from laneway.core.assignment import resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.merge import merge_states
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut
from laneway.core.schema import parse_state, sealed, wrap_state
from laneway.core.state import read_progress, write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError, StateFormatError
from tests.fuzzing import num_cases
from tests.laws.simulation import PLAIN, Job, deliver, file_table, rows_of
from tests.unit.core.test_schema import as_version_1, as_version_2

IDENTITY = Identity(file_table([[7, 6], [], [9], [20], [11, 4]]), replace(PLAIN, shuffle=True))
NUM_ROWS = IDENTITY.files.num_rows
NUMBERS: list[Any] = [0, 1, 2, 3, 7, -1, 57, 2**31, 2**47, 2**48, 2**53, 2**63, 2**64, 10**30, 10**5000]
OTHERS: list[Any] = [None, True, False, 0.5, 1e300, float("nan"), "", "global", "rank", "worker", "pad", "keep", b"x"]
LARGE: list[Any] = ["x" * 100_000, "\ud800", [None] * 50, [0] * 50_000]
CONTAINERS: list[Any] = [[], [[]], [0], [1, 2], {}, {"a": 1}, (1,), {1, 2}]
VALUES = [*NUMBERS, *OTHERS, *LARGE, *CONTAINERS]


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def states() -> list[dict[str, Any]]:
    """Return valid states of both orders, all versions and scopes, in step and not, and cut again."""
    found = []
    for order_version in (1, 2):
        progress = Progress(2, order_version=order_version)
        found.append(write_state(IDENTITY, progress, WorkerPlace(), complete=False))
        for world_size, num_workers, batch_size, steps in ((2, 1, 2, 3), (1, 3, 4, 2), (3, 1, 2, 1), (1, 1, 3, 30)):
            options = LaneOptions(None, None, batch_size)
            job = Job(IDENTITY, world_size, num_workers, options, progress)
            job.run(steps)
            for (rank, worker), cursor in job.cursors.items():
                place = WorkerPlace(rank, world_size, worker, num_workers)
                found.append(write_state(IDENTITY, cursor.progress(), place, complete=cursor.is_at_end))
            progress = job.whole_progress()
            complete = job.is_at_end
            found.append(write_state(IDENTITY, progress, WorkerPlace(0, world_size), complete=complete))
            # As if a batch had arrived out of order.
            cut = current_cut(progress)
            behind = replace(progress, cut=replace(cut, next_turn=cut.next_turn + cut.num_lanes))
            if not complete and world_size == 3:
                positions = {**cut.positions, 0: LanePosition(cut.positions[0].rows + batch_size)}
                behind = replace(behind, cut=replace(current_cut(behind), positions=positions))
                found.append(write_state(IDENTITY, behind, WorkerPlace(0, 3), complete=False))
    old = [state for state in found if state["order_version"] == 1]
    return [*found, *map(as_version_1, old), *map(as_version_2, old)]


def damage(state: dict[str, Any], rng: random.Random) -> Any:
    """Change something in a state."""
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(list(state))
        kind = rng.randrange(6)
        if kind == 0 and len(state) > 1:
            del state[name]
        elif kind == 1:
            state[name] = state[rng.choice(list(state))]
        elif kind == 2:
            state[rng.choice(["next_turn", "complete", "lanes", "turn_rows"])] = rng.choice(VALUES)
        else:
            state[name] = damaged_value(state[name], rng)
    return wrap_state(state) if rng.random() < 0.1 else state


def damaged_value(value: Any, rng: random.Random) -> Any:
    """Return another value, often a similar one."""
    kind = rng.randrange(4)
    if kind == 0 or value is None or value in ("", []):
        return rng.choice([*VALUES, nested(900), nested(5000)])
    if type(value) is int:
        return value + rng.choice([-1, 1, 2, 6, 64, 2**20, 2**40])
    if isinstance(value, str):
        index = rng.randrange(len(value))
        return value[:index] + rng.choice("0aZ~\n") + value[index + 1 :]
    if isinstance(value, list):
        index = rng.randrange(len(value))
        others = [value[:-1], value * 2, value[::-1]]
        inner = [*value[:index], damaged_value(value[index], rng), *value[index + 1 :]]
        return rng.choice(others) if kind == 1 else inner
    return not value


def unwrapped(state: Any) -> Any:
    return state["laneway"][0] if "laneway" in state else state


def check_is_short(error: Exception) -> None:
    assert len(str(error)) < 4096


def deliver_all(progress: Progress, place: WorkerPlace) -> tuple[list[int], list[int]]:
    """Return the rows that a worker delivers from here on, and those that its positions say are left."""
    cut = progress.cut
    turns_per_batch = progress.sharing.turns_per_batch
    options = LaneOptions(None, None, cut.turn_rows * turns_per_batch if cut else 2)
    found = resolve_cut(IDENTITY, progress, place, options)
    plan = IDENTITY.plan(found.progress)
    cursor, rows, left = Cursor(found), list[int](), list[int]()
    for lane in found.own_lanes:
        position, end = found.cut.positions[lane].rows, int(found.ends[lane])
        if position < end:
            left += rows_of(plan, lane, position, end)
    while batch := cursor.next_batch():
        rows += [row for lanes in batch.ranges for row in rows_of(plan, *lanes)]
        deliver(cursor, batch)
    return rows, left


def load_damaged(state: Any) -> bool:
    """Load a damaged state; return whether it was refused."""
    try:
        saved = parse_state(state)
        place = replace(saved.place) if not saved.is_global else WorkerPlace()
        progress = read_progress(saved, IDENTITY, place, is_worker=saved.fields["scope"] == "worker")
    except (StateFormatError, CheckpointMismatchError) as error:
        check_is_short(error)
        return True
    if progress.cut is not None and progress.cut.num_lanes > 10_000:
        return False
    try:
        rows, left = deliver_all(progress, place)
    except CheckpointMismatchError as error:
        # Lanes of a rank that its workers can't share.
        check_is_short(error)
        return True
    assert Counter(rows) == Counter(left)
    assert max(Counter(rows).values(), default=1) <= 2, "only padding may repeat a row"
    return False


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_state_is_refused_or_delivers_what_it_says(seed: int) -> None:
    rng, valid = random.Random(seed), states()
    for _ in range(num_cases(400) // 10):
        state = rng.choice(valid)
        damaged = damage(state, rng)
        start = time.perf_counter()
        refused = load_damaged(damaged)
        assert time.perf_counter() - start < 5
        if state["version"] == 3 and unwrapped(damaged) != state:
            assert refused, "a state with a digest was changed"


@pytest.mark.parametrize("seed", range(10))
def test_even_a_state_that_was_sealed_after_it_was_damaged_delivers_what_it_says(seed: int) -> None:
    rng, valid = random.Random(seed), [state for state in states() if state["version"] == 3]
    for _ in range(num_cases(400) // 10):
        damaged = unwrapped(damage(rng.choice(valid), rng))
        try:
            damaged = sealed(damaged)
        except (KeyError, TypeError, ValueError, RecursionError):
            # What can't be sealed is refused as well.
            assert load_damaged(damaged)
            continue
        start = time.perf_counter()
        load_damaged(damaged)
        assert time.perf_counter() - start < 5


@pytest.mark.parametrize("seed", range(10))
def test_damaged_states_are_merged_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    job = Job(IDENTITY, 3, 1, LaneOptions(None, None, 2), Progress(0))
    job.run(4)
    ranks = [
        write_state(IDENTITY, job.cursors[rank, 0].progress(), WorkerPlace(rank, 3), complete=False)
        for rank in range(3)
    ]
    for _ in range(num_cases(400) // 10):
        given = list(ranks)
        index = rng.randrange(3)
        given[index] = damage(given[index], rng)
        try:
            merged = merge_states(given)
        except (StateFormatError, CheckpointMismatchError) as error:
            check_is_short(error)
            continue
        assert merged == merge_states(ranks)


def test_every_valid_state_loads_and_survives_a_round_trip() -> None:
    for state in states():
        assert not load_damaged(json.loads(json.dumps(state)))

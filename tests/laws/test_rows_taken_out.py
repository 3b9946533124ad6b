"""Law: rows that are taken out of an epoch by number are never delivered, all others are, and in the same order."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.gaps import EpochGap, gaps_in, parse_gaps, text_of
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import Progress, current_cut
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import Job, identities, load

runs = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 6))


def without(identity: Identity, *gaps: EpochGap) -> Identity:
    """Return an identity with more gaps."""
    text = text_of([*parse_gaps(identity.settings.without), *gaps])
    return Identity(identity.files, replace(identity.settings, without=text))


def flat(steps: list[list[int]]) -> list[int]:
    return [row for step in steps for row in step]


def draw_gaps(data: st.DataObject, num_rows: int, turn_rows: int) -> list[tuple[int, int]]:
    """Draw disjoint places of whole turns, or up to the end, which are not all rows."""
    edges = [*range(0, num_rows, turn_rows), num_rows]
    found = sorted(data.draw(st.lists(st.sampled_from(edges), min_size=min(2, len(edges)), max_size=6, unique=True)))
    gaps = list(zip(found[::2], found[1::2], strict=False))
    return gaps if sum(stop - start for start, stop in gaps) < num_rows else []


def kept(rows: list[int], gaps: list[tuple[int, int]]) -> list[int]:
    return [row for i, row in enumerate(rows) if not any(start <= i < stop for start, stop in gaps)]


@given(identities(remainder="keep"), st.integers(1, 4), st.integers(1, 2), st.data())
@settings(max_examples=300)
def test_the_order_of_the_rest_is_kept_on_every_topology(
    identity: Identity, turn_rows: int, turns: int, data: st.DataObject
) -> None:
    options = LaneOptions(12, turn_rows, turn_rows * turns)
    order = flat(Job(identity, 1, 1, options, Progress(3)).run())
    gaps = draw_gaps(data, len(order), turn_rows)
    changed = without(identity, *(EpochGap(3, *gap) for gap in gaps), EpochGap(4, 0, 1))
    assert changed.num_rows(3) == len(kept(order, gaps))
    for world_size, num_workers in ((1, 1), (1, 3), (2, 1), (3, 2)):
        if 12 % (world_size * num_workers * turns) == 0:
            job = Job(changed, world_size, num_workers, options, Progress(3))
            steps = job.run()
            assert flat(steps) == kept(order, gaps)
            assert {len(step) for step in steps[:-1]} <= {world_size * turn_rows * turns}
            for rank in range(world_size):
                place, cursor = WorkerPlace(rank, world_size), job.cursors[rank, 0]
                expected = options.num_items(changed.num_rows(3), place, changed.settings)
                assert sum(-(-len(step) // (turn_rows * turns)) > rank for step in steps[:-1]) <= expected <= len(steps)
                assert cursor.is_at_end


@given(identities(remainder="keep"), st.lists(runs, min_size=1, max_size=5), st.data())
@settings(max_examples=300)
def test_gaps_ahead_of_a_state_are_left_out_while_the_world_changes_size(
    identity: Identity, chain: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    progress, delivered, taken_out = Progress(3), Counter[int](), Counter[int]()
    num_rows, num_done = identity.files.num_rows, 0
    for world_size, num_workers, batch_size, steps in chain:
        job = Job(identity, world_size, num_workers, LaneOptions(None, None, batch_size), progress)
        rows = flat(job.run(steps))
        delivered.update(rows)
        num_done += len(rows)
        progress, turn_rows = job.whole_progress(), current_cut(job.whole_progress()).turn_rows
        state = write_state(identity, progress, WorkerPlace(), complete=job.is_at_end)
        # What the same job would deliver next, and the numbers of these rows.
        ahead = flat(Job(identity, world_size, num_workers, LaneOptions(None, None, batch_size), progress).run())
        known = {number for gap in gaps_in(identity.settings.without, 3) for number in range(*gap)}
        numbers = [number for number in range(num_rows) if number not in known][num_done:]
        assert len(ahead) == len(numbers)
        if steps and num_done % turn_rows == 0:
            for start, stop in draw_gaps(data, len(ahead), turn_rows):
                # A gap does not contain another one.
                if numbers[stop - 1] - numbers[start] == stop - 1 - start:
                    identity = without(identity, EpochGap(3, numbers[start], numbers[stop - 1] + 1))
                    taken_out.update(ahead[start:stop])
        progress = load(json.loads(json.dumps(state)), identity)
    delivered.update(flat(Job(identity, 1, 1, LaneOptions(None, None, 5), progress).run()))
    assert delivered + taken_out == Counter(range(num_rows))
    assert delivered.total() == identity.num_rows(3)

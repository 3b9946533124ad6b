"""Law: a mixture is resumed by any workers, in the same global batches if they can share its lanes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.cursor import LaneRange
from laneway.core.mixture_cuts import begin_mixture, resume_mixture
from laneway.core.mixtures import MixturePlan, Source
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity
from laneway.core.progress import LanePosition, Progress, current_cut
from laneway.core.turns import WorkerPlace
from tests.laws.simulation import PLAIN, file_table, rows_of

Row = tuple[str, int, int]
SOURCES = {
    name: Source(Identity(file_table(blocks), replace(PLAIN, seed=seed, shuffle=True, window_bytes=60)))
    for seed, (name, blocks) in enumerate({"a": [[9, 4], [7]], "b": [[3, 3], [0], [5]], "c": [[40]]}.items())
}
weightings = st.fixed_dictionaries(dict.fromkeys(SOURCES, st.sampled_from([0, 1, 0.3, 7]))).filter(
    lambda weights: any(weights.values())
)
topologies = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 9))


def train(mixture: Progress, place: WorkerPlace, options: LaneOptions, steps: int) -> tuple[Progress, list[list[Row]]]:
    """Take global batches: each rank takes its batch from the worker whose turn it is."""
    plan, cut = MixturePlan(SOURCES, mixture), current_cut(mixture)
    turns_per_batch = options.turns_per_batch(cut.turn_rows) or 1
    rows, next_turn, batches = cut.rows().tolist(), cut.next_turn, []
    workers = [
        [WorkerPlace(rank, place.world_size, worker, place.num_workers) for worker in range(place.num_workers)]
        for rank in range(place.world_size)
    ]
    own = {
        each: each.own_lanes(cut.next_turn, cut.num_lanes, turns_per_batch) for of_rank in workers for each in of_rank
    }
    for step in range(steps):
        batch = []
        for rank in range(place.world_size):
            for i in range(turns_per_batch):
                lane = (next_turn + rank * turns_per_batch + i) % cut.num_lanes
                assert lane in own[workers[rank][step % place.num_workers]]
                wanted = LaneRange(lane, rows[lane], rows[lane] + cut.turn_rows)
                batch += rows_in(plan, wanted)
                rows[lane] = wanted.stop
        next_turn += place.world_size * turns_per_batch
        batches.append(batch)
    done = replace(cut, next_turn=next_turn, positions=dict(enumerate(map(LanePosition, rows))))
    return replace(mixture, cut=done), batches


def rows_in(plan: MixturePlan, wanted: LaneRange) -> list[Row]:
    group = plan.group(wanted.lane, wanted.start)
    return [
        (name, epoch, row)
        for name, (epoch, lane, start, stop) in plan.ranges(group, wanted.stop - wanted.start)
        for row in rows_of(plan.plan(group.cut, name, epoch), lane, start, stop)
    ]


@given(weightings, st.lists(st.tuples(topologies, st.none() | weightings), min_size=1, max_size=5))
@settings(max_examples=40)
def test_each_row_comes_once_in_each_epoch_of_its_source(
    weights: dict[str, float], chain: list[tuple[tuple[int, int, int, int], dict[str, float] | None]]
) -> None:
    mixture, delivered = None, Counter[Row]()
    for (world_size, num_workers, batch_size, steps), changed in chain:
        place, options = WorkerPlace(0, world_size, 0, num_workers), LaneOptions(None, None, batch_size)
        weights = changed or weights
        if mixture is None:
            mixture = begin_mixture(SOURCES, weights, place, options)
        else:
            mixture = resume_mixture(SOURCES, mixture, weights, place, options, weights_in_cut=weights)
        mixture, batches = train(mixture, place, options, steps)
        delivered.update(row for batch in batches for row in batch)
    assert max(delivered.values(), default=1) == 1
    assert mixture is not None
    plan = MixturePlan(SOURCES, mixture)
    for name, source in SOURCES.items():
        begun, next_epoch = plan.begun(plan.current, name)
        left = Counter({each.rest.epoch: each.rows_left for each in begun})
        for epoch in range(next_epoch):
            taken = sum(1 for row in delivered if row[:2] == (name, epoch))
            assert taken + left[epoch] == source.identity.files.num_rows


@given(weightings, st.lists(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3), (3, 2), (6, 2)]), min_size=1, max_size=4))
@settings(max_examples=40)
def test_global_batches_are_the_same_on_every_topology_that_shares_the_lanes(
    weights: dict[str, float], chain: list[tuple[int, int]]
) -> None:
    single = LaneOptions(12, 2, 24)
    [*expected] = train(begin_mixture(SOURCES, weights, WorkerPlace(), single), WorkerPlace(), single, 3 * len(chain))[
        1
    ]
    mixture, found = None, []
    for world_size, num_workers in chain:
        place, options = WorkerPlace(0, world_size, 0, num_workers), LaneOptions(12, 2, 24 // world_size)
        if place.stride(12 // world_size) > 12:
            options = replace(options, batch_size=2)
        if mixture is None:
            mixture = begin_mixture(SOURCES, weights, place, options)
        else:
            mixture = resume_mixture(SOURCES, mixture, weights, place, options, weights_in_cut=weights)
        assert len(mixture.starts) == 1
        turns = 12 // (place.world_size * (options.turns_per_batch(2) or 1))
        mixture, batches = train(mixture, place, options, 3 * turns)
        found += [[row for batch in batches[i : i + turns] for row in batch] for i in range(0, len(batches), turns)]
    assert found == expected


def test_other_weights_begin_at_the_next_row() -> None:
    place, options = WorkerPlace(0, 2), LaneOptions(None, None, 10)
    mixture, _ = train(begin_mixture(SOURCES, {"a": 1, "b": 1, "c": 0}, place, options), place, options, 3)
    weights = {"a": 0, "b": 0, "c": 1}
    mixture = resume_mixture(SOURCES, mixture, weights, place, options, weights_in_cut=weights)
    _, [batch] = train(mixture, place, options, 1)
    assert {name for name, _, _ in batch} == {"c"}

"""Law: whatever happens to a mixture, each row of each begun epoch of each source is delivered exactly once."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laneway.core.division import Sharing
from laneway.core.mixture_state import decode_mixture, encode_mixture
from laneway.core.mixtures import MixturePlan, Source
from laneway.core.pack_line import KnownPacks
from laneway.core.plan import Identity
from laneway.core.progress import (
    CutProgress,
    CutStart,
    LanePosition,
    Progress,
    SourceStart,
    current_cut,
    fresh_cut,
    rows_in_step,
)
from laneway.stages.packs import PackOptions
from tests.laws.simulation import PLAIN, file_table, rows_of

if TYPE_CHECKING:
    from laneway.core.lanes import Remainder
    from laneway.core.progress import Group

WEIGHTS = [0, 1, 3, 0.2, 1.006, 1e-4]


class Row(NamedTuple):
    """A delivered row, or an item built from it."""

    source: str
    epoch: int
    row: int
    item: int = 0


class MixtureJob:
    """All lanes of a mixture, which are read in lockstep or each at its own pace, and interrupted at will."""

    def __init__(
        self,
        remainder: Remainder | None,
        *,
        group_rows: int = 1,
        num_items: int | None = None,
        packing: PackOptions | None = None,
    ) -> None:
        self.remainder = remainder
        self.packing = packing
        """How documents of known lengths are packed: then rows are these packs, and epochs have other numbers of them.
        """
        self.group_rows = group_rows
        self.num_items = num_items
        """None: without a stage. Else rows become up to so many items, which a stage puts in another order."""
        self.sources: dict[str, Source] = {}
        self.began: dict[tuple[str, int], Identity] = {}
        """(source, epoch) -> the files with which it began."""
        self.added = Counter[str]()
        self.delivered = Counter[Row]()
        self.mixture: Progress | None = None

    def identity(self, blocks: list[list[int]], seed: int) -> Identity:
        table = file_table(blocks)
        settings = replace(PLAIN, seed=seed, shuffle=bool(seed % 2), window_bytes=50, remainder=self.remainder)
        if self.packing is None:
            return Identity(table, settings)
        lengths = np.random.default_rng(seed).integers(1, 9, table.num_rows).astype(np.int32)
        return Identity(table, settings, packs=KnownPacks(lengths, self.packing))

    def cut(self, weights: dict[str, float], num_lanes: int, turn_rows: int) -> None:
        """Begin a new cut with these weights: the first one, or one of what is left."""
        fresh, sharing = fresh_cut(num_lanes, turn_rows), Sharing()
        if self.mixture is None:
            start = CutStart(
                tuple(SourceStart(name, weight, files=self.sources[name].files) for name, weight in weights.items()),
                self.group_rows,
            )
            self.mixture = Progress(0, sharing, fresh, starts=(start,))
        else:
            self.mixture = self.plan.cut_again(weights, fresh, sharing, group_rows=self.group_rows)

    @property
    def plan(self) -> MixturePlan:
        assert self.mixture is not None
        # A new one each time, from what a state holds, as in a process that resumes.
        encoded = json.loads(json.dumps(encode_mixture(self.mixture)))
        assert decode_mixture(encoded, replace(self.mixture, starts=(), carried=())) == self.mixture
        return MixturePlan(self.sources, self.mixture)

    def step(self, turns: int) -> None:
        """Take turns in lockstep, as a mixture without a stage does."""
        assert self.mixture is not None
        plan, cut = self.plan, current_cut(self.mixture)
        next_turn = cut.next_turn + turns
        before, after = cut.rows(), rows_in_step(cut.num_lanes, cut.turn_rows, Sharing(), next_turn, 0)
        for lane, (start, stop) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
            self.delivered.update(self.rows(plan, plan.group(lane, start), stop - start))
        self._move(next_turn, dict(enumerate(map(LanePosition, after.tolist()))))

    def build(self, items_of_lanes: list[int]) -> None:
        """Take a number of items from each lane, as a stage does whose rows become any number of items."""
        assert self.mixture is not None
        plan, cut = self.plan, current_cut(self.mixture)
        positions = {}
        for lane, (position, number) in enumerate(zip(cut.all_positions(), items_of_lanes, strict=False)):
            rows, offset, wanted = *position, number
            while wanted:
                group = plan.group(lane, rows)
                items = self.items(plan, group)[group.offset + offset :]
                self.delivered.update(row for item in items[:wanted] for row in item)
                if wanted < len(items):
                    offset += wanted
                    break
                wanted -= len(items)
                rows, offset = rows + self.group_rows, 0
            positions[lane] = LanePosition(rows, offset)
        self._move(cut.next_turn, {**cut.positions, **positions})

    def _move(self, next_turn: int, positions: dict[int, LanePosition]) -> None:
        assert self.mixture is not None
        cut = replace(current_cut(self.mixture), next_turn=next_turn, positions=positions)
        self.mixture = replace(self.mixture, cut=cut)

    def rows(self, plan: MixturePlan, group: Group, num_rows: int) -> list[Row]:
        """Return rows of a lane, source by source."""
        found = []
        for name, (epoch, lane, start, stop) in plan.ranges(group, num_rows):
            of_epoch = plan.plan(group.cut, name, epoch)
            self.began[self.key(name), epoch] = of_epoch.identity
            found += [Row(self.key(name), epoch, row) for row in rows_of(of_epoch, lane, start, stop)]
        return found

    def key(self, name: str) -> str:
        """Return a name that is not used again for a source that is removed and added again."""
        return f"{name}/{self.added[name]}"

    def items(self, plan: MixturePlan, group: Group) -> list[list[Row]]:
        """Return what a stage builds from a group: a pure function of its rows."""
        rows = sorted(self.rows(plan, group, self.group_rows), key=lambda row: (row.row * 7 % 5, row))
        parts = self.parts(rows)
        return [parts[i : i + 3] for i in range(0, len(parts), 3)]

    def parts(self, rows: list[Row]) -> list[Row]:
        """Return the items of rows: none, one or several of each."""
        if self.num_items is None:
            return rows
        return [
            row._replace(item=i)
            for row in rows
            for i in range((row.row * 13 + row.epoch * 40503 // 1024) % (self.num_items + 1))
        ]

    def left(self) -> Counter[Row]:
        """Return what is left of all begun epochs, after a cut."""
        assert self.mixture is not None
        plan, found = self.plan, Counter[Row]()
        for source in self.mixture.starts[-1].sources:
            for rest in source.rests:
                of_epoch = plan.plan(plan.current, source.name, rest.epoch)
                for lane, num_rows in enumerate(of_epoch.lanes.rows.tolist()):
                    rows = rows_of(of_epoch, lane, 0, num_rows)
                    found.update(self.parts([Row(self.key(source.name), rest.epoch, row) for row in rows]))
        for group in self.mixture.carried:
            found.update(row for item in self.items(plan, group)[group.offset :] for row in item)
        return found

    def all_rows(self) -> Counter[Row]:
        """Return all rows of the epochs that have begun, of all sources that were not removed."""
        assert self.mixture is not None
        found = Counter[Row]()
        for source in self.mixture.starts[-1].sources:
            for epoch in range(source.next_epoch):
                began = self.began.get((self.key(source.name), epoch))
                if began is None:
                    # All rows of it are left: lanes that have none of its rows went on to the next epoch.
                    (files,) = [rest.files for rest in source.rests if rest.epoch == epoch]
                    began = self.sources[source.name].identity_of(files)
                num_rows = began.num_items(epoch)
                found.update(self.parts([Row(self.key(source.name), epoch, row) for row in range(num_rows)]))
        return found


blocks = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=4).filter(lambda b: any(map(sum, b)))


def run_chain(job: MixtureJob, data: st.DataObject, steps: int, *, may_remove: bool) -> None:
    """Start a mixture, and interrupt it: other lanes, turns, weights, sources and files."""
    weights: dict[str, float] = {}
    for _ in range(steps):
        for name in "abc":
            if name not in weights and (not weights or data.draw(st.integers(0, 2)) == 0):
                job.sources[name] = Source(job.identity(data.draw(blocks), data.draw(st.integers(0, 9))))
                job.added[name] += 1
                weights[name] = data.draw(st.sampled_from(WEIGHTS[1:]))
            elif may_remove and len(weights) > 1 and data.draw(st.integers(0, 4)) == 0:
                weights.pop(name, None)
        if data.draw(st.booleans()):
            weights = {name: data.draw(st.sampled_from(WEIGHTS)) for name in weights}
        if not any(weights.values()):
            weights[min(weights)] = 1
        job.cut(dict(weights), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5)))
        extend(job, data)
        for _ in range(data.draw(st.integers(0, 2))):
            if job.num_items is None:
                job.step(data.draw(st.integers(0, 30)))
            else:
                job.build(data.draw(st.lists(st.integers(0, 9), max_size=6)))
    job.cut(weights, data.draw(st.integers(1, 6)), 1)


def extend(job: MixtureJob, data: st.DataObject) -> None:
    """Perhaps add files to one of the sources, for its next epochs."""
    assert job.mixture is not None
    source = data.draw(st.sampled_from(job.mixture.starts[-1].sources))
    if data.draw(st.integers(0, 3)) == 0:
        identity = job.identity([[3], [1], *data.draw(blocks)], data.draw(st.integers(0, 9)))
        job.sources[source.name] = job.sources[source.name].extended(identity)


packings = st.builds(
    partial(PackOptions, length=9, column="ids", separator=None, overflow="split", mask=None, pad_value=0),
    strategy=st.sampled_from(["best_fit", "chunk"]),
    group_rows=st.integers(1, 4),
)


@given(st.data(), st.none() | packings)
@settings(max_examples=200)
def test_each_row_of_each_begun_epoch_is_delivered_once(data: st.DataObject, packing: PackOptions | None) -> None:
    job = MixtureJob("keep", packing=packing)
    run_chain(job, data, data.draw(st.integers(1, 5)), may_remove=True)
    delivered, left = job.delivered, job.left()
    assert max([*delivered.values(), *left.values()], default=1) == 1
    assert not delivered.keys() & left.keys()
    assert (delivered | left) >= job.all_rows()


@given(st.data(), st.integers(1, 7), st.integers(1, 3))
@settings(max_examples=200)
def test_each_item_of_a_stage_is_delivered_once(data: st.DataObject, group_rows: int, num_items: int) -> None:
    job = MixtureJob("keep", group_rows=group_rows, num_items=num_items)
    run_chain(job, data, data.draw(st.integers(1, 5)), may_remove=False)
    assert job.delivered + job.left() == job.all_rows()


@given(st.data(), st.sampled_from(["pad", "drop"]), st.none() | packings)
def test_padded_lanes_lose_no_row_and_short_ones_repeat_none(
    data: st.DataObject, remainder: Remainder, packing: PackOptions | None
) -> None:
    job = MixtureJob(remainder, packing=packing)
    try:
        run_chain(job, data, data.draw(st.integers(1, 4)), may_remove=False)
    except ValueError as error:
        # Sources smaller than the lanes may have no rows.
        assert re.search(r"has none to deliver|has no rows to deliver", str(error))  # noqa: PT017
        return
    if remainder == "pad":
        assert job.delivered.keys() | job.left().keys() == job.all_rows().keys()
    else:
        assert max([*job.delivered.values()], default=1) == 1


def test_the_cuts_before_are_forgotten_when_nothing_is_left_of_them() -> None:
    job = MixtureJob("keep")
    for name, num_rows in [("small", 50), ("large", 2000)]:
        job.sources[name] = Source(job.identity([[num_rows]], 1))
    weights: dict[str, float] = {"small": 1, "large": 1}
    sizes = []
    for cut in range(40):
        job.cut(weights | {"small": 1 + cut % 3}, 4 + cut % 2, 2)
        job.step(150)
        assert job.mixture is not None
        sizes.append(len(job.plan.without_finished_cuts().starts))
    # An epoch of the large source takes up to 14 cuts.
    assert max(sizes) < 20
    assert min(sizes[20:]) < 5


def test_a_source_with_a_weight_of_zero_keeps_its_place_and_no_more_cuts_than_it_needs() -> None:
    job = MixtureJob("keep")
    job.sources = {"paused": Source(job.identity([[100]], 1)), "small": Source(job.identity([[9]], 2))}
    job.cut({"paused": 1, "small": 1}, 4, 1)
    job.step(50)
    for cut in range(10):
        job.cut({"paused": 0, "small": 1}, 2 + cut % 3, 1)
        job.step(30)
    assert job.mixture is not None
    assert len(job.plan.without_finished_cuts().starts) <= 3
    job.cut({"paused": 1, "small": 0}, 3, 1)
    job.step(90)
    job.cut({"paused": 1}, 1, 1)
    assert {row.row for row in job.delivered if row[:2] == ("paused/0", 0)} == {*range(100)}


def test_a_source_that_was_removed_begins_anew_if_it_is_added_again() -> None:
    job = MixtureJob("keep")
    job.sources = {"a": Source(job.identity([[60]], 1)), "b": Source(job.identity([[60]], 2))}
    job.added["b"] = 1
    job.cut({"a": 1, "b": 1}, 2, 1)
    job.step(50)
    job.cut({"a": 1}, 2, 1)
    job.step(10)
    job.added["b"] = 2
    job.cut({"a": 1, "b": 1}, 3, 1)
    job.step(20)
    # The cut in which the first b was delivered is still needed for a.
    assert len(job.plan.cuts) == 3
    job.cut({"a": 1, "b": 1}, 2, 1)
    assert job.delivered.keys().isdisjoint(job.left())
    assert job.delivered + job.left() >= job.all_rows()


def test_a_half_delivered_group_keeps_the_cuts_that_its_rows_went_through() -> None:
    job = MixtureJob("keep", group_rows=6, num_items=3)
    job.sources = {"a": Source(job.identity([[12]], 1))}
    job.cut({"a": 1}, 2, 1)
    # One of two groups, whole; then a part of the other, so that nothing but this group is left of the epoch.
    job.build([len(job.items(job.plan, job.plan.group(0, 0))), 0])
    job.cut({"a": 1}, 1, 1)
    job.build([1])
    for num_lanes in (3, 2):
        job.cut({"a": 1}, num_lanes, 1)
        assert job.mixture is not None
        assert not job.mixture.starts[-1].sources[0].rests
        assert job.delivered + job.left() == job.all_rows()
        assert len(job.plan.cuts) == 3


def test_a_source_is_not_removed_while_its_rows_are_in_half_delivered_items() -> None:
    job = MixtureJob("keep", group_rows=9, num_items=3)
    job.sources = {name: Source(job.identity([[30]], 1)) for name in "ab"}
    job.cut({"a": 1, "b": 1}, 1, 1)
    job.build([1])
    with pytest.raises(ValueError, match="source 'b' can't be removed yet"):
        job.cut({"a": 1}, 1, 1)
    job.cut({"a": 1, "b": 0}, 1, 1)
    job.build([100])
    job.cut({"a": 1}, 1, 1)
    assert [source.name for source in job.mixture.starts[-1].sources] == ["a"] if job.mixture else False


def test_progress_that_continues_in_the_same_cut_is_that_of_one_run() -> None:
    def rows(steps: list[int]) -> Counter[Row]:
        job = MixtureJob("keep")
        job.sources = {"a": Source(job.identity([[30]], 1)), "b": Source(job.identity([[7, 4]], 3))}
        job.cut({"a": 0.7, "b": 0.3}, 3, 2)
        for turns in steps:
            job.step(turns)
        return job.delivered

    assert rows([50]) == rows([1] * 50) == rows([20, 0, 30])


def test_the_position_of_a_lane_may_be_unknown_to_a_rank() -> None:
    job = MixtureJob("keep")
    job.sources = {"a": Source(job.identity([[30]], 1))}
    job.cut({"a": 1}, 4, 2)
    assert job.mixture is not None
    progress = replace(job.mixture, cut=CutProgress(4, 2, 0, {1: LanePosition(4)}))
    plan = MixturePlan(job.sources, progress)
    assert len(job.rows(plan, plan.group(1, 4), 2)) == 2

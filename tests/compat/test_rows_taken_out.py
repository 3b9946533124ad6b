"""Rows that are taken out of an epoch: a run goes back to a checkpoint, and passes over what spoilt it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import CheckpointMismatchError, LanewayError, SavableLoader, merge_states
from tests.compat.loaders import flat, ids, run_with_states, saved
from tests.compat.savable import WAYS, Way, make_dataset, make_savable
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path

NUM_ROWS = 48


def steps_of(ranks: list[SavableLoader], num_steps: int | None = None) -> list[list[int]]:
    """Return the rows that all ranks deliver at each step."""
    return [flat(step) for step in zip(*(ids(islice(rank, num_steps)) for rank in ranks), strict=True)]


def ranks_of(path: Path, gaps: list[Any], world_size: int = 2, **options: Any) -> list[SavableLoader]:
    """Return the loaders of all ranks, which deliver each row once."""
    arguments = {"batch_size": 3, "remainder": "keep", "world_size": world_size, "without": gaps}
    return [SavableLoader(make_dataset(path, rank=rank, **arguments), **options) for rank in range(world_size)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_goes_back_to_a_checkpoint_and_skips_what_spoilt_it(tmp_path: Path, num_workers: int) -> None:
    write_corpus(tmp_path)
    uninterrupted = steps_of(ranks_of(tmp_path, [], num_workers=num_workers))
    assert [len(step) for step in uninterrupted] == [6] * 8
    first = ranks_of(tmp_path, [], num_workers=num_workers)
    assert steps_of(first, 2) == uninterrupted[:2]
    state = saved(first[0].state_dict())
    # Steps 3 and 4 spoilt it.
    resumed = ranks_of(tmp_path, [(0, 3 * 6, 5 * 6)], num_workers=num_workers)
    for rank in resumed:
        rank.load_state_dict(state)
        assert rank.batches_delivered == 2
        assert len(rank) == 6
    assert steps_of(resumed) == [uninterrupted[2], *uninterrupted[5:]]
    # The next epoch has all rows again.
    assert len(flat(steps_of(resumed))) == NUM_ROWS
    assert len(resumed[0]) == 8


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_loading_resumes_at_any_batch_around_a_gap(tmp_path: Path, way: Way) -> None:
    write_corpus(tmp_path)

    def loader() -> SavableLoader:
        arguments: dict[str, Any] = {"lanes": 2, "turn_rows": 3, "without": [(0, 12, 24)]}
        return make_savable(tmp_path, way, dataset=arguments)

    items, states = [], []
    first = loader()
    for item in first:
        items.append(item)
        states.append(saved(first.state_dict()))
    assert len(items) == len(first)
    for done, state in enumerate(states, start=1):
        resumed = loader()
        resumed.load_state_dict(state)
        assert ids_of(resumed) == ids_of(items[done:])


def ids_of(items: Any) -> list[Any]:
    return [item["id"] if isinstance(item["id"], int) else item["id"].tolist() for item in items]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_dataloader_leaves_them_out_too(tmp_path: Path, num_workers: int) -> None:
    write_corpus(tmp_path)

    def loader(*gaps: Any) -> Any:
        dataset = make_dataset(tmp_path, batch_size=3, lanes=2, without=gaps)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)

    uninterrupted, states = run_with_states(loader())
    resumed = loader((0, 18, 30))
    resumed.load_state_dict(states[4])
    assert ids(resumed) == [*uninterrupted[4:6], *uninterrupted[10:]]


def test_other_numbers_of_ranks_resume_before_and_behind_a_gap(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    uninterrupted = steps_of(ranks_of(tmp_path, []))
    spoilt = sorted(flat(uninterrupted[3:5]))
    gaps = [(0, 18, 30)]
    received: list[int] = []
    state: Any = None
    for world_size, num_steps in ((2, 1), (3, 1), (1, 2), (2, 9)):
        ranks = ranks_of(tmp_path, [] if state is None else gaps, world_size)
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
        received += flat(flat(ids(islice(rank, num_steps))) for rank in ranks)
        state = merge_states([rank.save_state_rank() for rank in ranks])
    assert state["complete"]
    assert sorted(received + spoilt) == [*range(NUM_ROWS)]
    # A second gap, by the numbers that the rows have without the first one.
    ranks = ranks_of(tmp_path, [])
    steps_of(ranks, 2)
    again = ranks_of(tmp_path, [*gaps, (0, 36, 42)])
    for rank in again:
        rank.load_state_dict(ranks[0].state_dict())
    assert steps_of(again) == [uninterrupted[2], uninterrupted[5], uninterrupted[7]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_nothing_may_be_left_of_the_epoch(tmp_path: Path, world_size: int) -> None:
    write_corpus(tmp_path)
    first = ranks_of(tmp_path, [], world_size)
    delivered = flat(steps_of(first, 2))
    resumed = ranks_of(tmp_path, [(0, len(delivered), NUM_ROWS)], world_size)
    for rank in resumed:
        rank.load_state_dict(first[0].state_dict())
    assert steps_of(resumed) == []
    assert sorted(flat(steps_of(resumed))) == list(range(NUM_ROWS))
    assert [rank.epoch for rank in resumed] == [1] * world_size


def test_a_checkpoint_behind_the_rows_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    uninterrupted = steps_of(ranks_of(tmp_path, []))
    first = ranks_of(tmp_path, [])
    steps_of(first, 4)
    resumed = ranks_of(tmp_path, [(0, 18, 30)])
    with pytest.raises(CheckpointMismatchError, match=r"without rows 18 to 30 of its epoch: .* load an earlier one"):
        resumed[0].load_state_dict(first[0].state_dict())
    assert steps_of(resumed) == [*uninterrupted[:3], *uninterrupted[5:]]


def test_what_can_not_be_taken_out_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    dataset = make_dataset(tmp_path, batch_size=3)
    wrong: Any
    for wrong in ([(0, 1)], [(0, 1, "2")], [0, 3, 6], 3, "rows", {"epoch": 0}, [(0, 3.0, 6)], [(True, 3, 6)], [None]):
        with pytest.raises(TypeError, match=r"rows must be a list of \(epoch, start, stop\)"):
            dataset.without(wrong)
    for wrong in ([(-1, 0, 3)], [(10**30, 0, 3)], [(0, 6, 3)], [(0, 3, 3)], [(0, -3, 3)], [(0, 45, 51)]):
        with pytest.raises(ValueError, match="there are no rows"):
            dataset.without(wrong)
    with pytest.raises(ValueError, match="rows 0 to 6 of epoch 0 and rows 3 to 9 of epoch 0 overlap"):
        dataset.without([(0, 3, 9)]).without([(0, 0, 6)])
    with pytest.raises(ValueError, match="no row of epoch 2 would be left"):
        dataset.without([(2, 0, 24), (2, 24, 48)])
    assert len(dataset.without(np.array([[0, 3, 6], [0, 6, 9]]))) == 14
    assert dataset.without([]).definition.identity.settings.without is None
    left_out = dataset.without([(0, 3, 6)]).without([(4, 6, 48)])
    assert "without rows 3 to 6 of epoch 0, rows 6 to 48 of epoch 4" in repr(left_out)
    assert [len(left_out), len(left_out.map(dict))] == [15, 15]
    left_out.set_epoch(4)
    assert [len(left_out), len(ids(left_out))] == [2, 2]
    change: Any
    for change in (
        lambda: left_out.shuffle(3),
        lambda: left_out.filter(pc.field("id") > 3),
        lambda: left_out.take(3),
        lambda: left_out.split({"a": 1.0}),
    ):
        with pytest.raises(LanewayError, match="call it last"):
            change()
    turns = make_dataset(tmp_path, batch_size=3).without([(0, 4, 5)])
    with pytest.raises(ValueError, match=r"rows 4 to 5 of epoch 0 can't .* start 1 row earlier, and stop 1 row later$"):
        next(iter(turns))


def test_rows_of_a_later_epoch_are_checked_now(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    uninterrupted, states = run_with_states(ranks_of(tmp_path, [], 1)[0])
    wrong = ranks_of(tmp_path, [(2, 6, 10)], 1)[0]
    with pytest.raises(ValueError, match=r"rows 6 to 10 of epoch 2 can't be taken out: a turn has 3 rows, .* later$"):
        wrong.start()
    for state in states:
        with pytest.raises(ValueError, match="stop 2 rows later"):
            wrong.load_state_dict(state)
    # What began in turns of another size may have been left out, and stays in the list.
    (small,) = ranks_of(tmp_path, [(0, 6, 9)], 1)
    small.load_state_dict(states[1])
    batches = iter(small)
    delivered = [*uninterrupted[:1], next(batches)["id"].tolist()]
    larger = SavableLoader(make_dataset(tmp_path, batch_size=4, without=[(0, 6, 9)]))
    larger.load_state_dict(small.state_dict())
    assert sorted(flat([*delivered, *ids(larger)])) == sorted(flat([*uninterrupted[:2], *uninterrupted[3:]]))

"""States of real loaders: described, compared, audited, redistributed to ranks that restore one by one."""

from __future__ import annotations

import json
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    Manifest,
    Mixture,
    SavableLoader,
    StateFormatError,
    StatefulShardedDataset,
    audit,
    compare_states,
    describe_state,
    merge_states,
    redistribute,
)
from tests.compat.savable import make_dataset, row_ids
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def loaders_of(path: Path, world_size: int, num_workers: int = 0, **arguments: Any) -> list[SavableLoader]:
    datasets = [
        make_dataset(path, **{"batch_size": 3, **arguments}, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    return [SavableLoader(dataset, num_workers=num_workers) for dataset in datasets]


def take(loaders: list[SavableLoader], num_steps: int | None = None) -> list[int]:
    """Return the rows of the next steps of all ranks, in the order of the job."""
    passes, found = [iter(loader) for loader in loaders], list[int]()
    while num_steps is None or num_steps > 0:
        step = [batch for each in passes if (batch := next(each, None)) is not None]
        if not step:
            break
        found += [row for batch in row_ids(step) for row in batch]
        num_steps = None if num_steps is None else num_steps - 1
    return found


def test_the_checkpoints_of_a_run_on_changing_ranks_and_workers_prove_each_row_once(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    states: list[Any] = []
    rows: list[int] = []
    for world_size, num_workers, steps in ((2, 1, 3), (3, 0, 2), (1, 2, 2), (2, 0, None)):
        loaders = loaders_of(tmp_path, world_size, num_workers, remainder="keep")
        for loader in loaders if states else ():
            loader.load_state_dict(states[-1])
        rows += take(loaders, steps)
        states.append(loaders[0].state_dict())
    assert sorted(rows) == [*range(num_rows)]
    dataset = make_dataset(tmp_path, batch_size=3, remainder="keep")
    for source in (None, dataset, Manifest.scan(tmp_path), tmp_path, str(tmp_path)):
        report = audit(states, source)
        assert report.is_exact
        assert [(each.num_delivered, each.num_left) for each in report.epochs] == [(num_rows, 0)]
    without_one = audit([states[0], *states[2:]], dataset)
    assert {each.kind for each in without_one.findings} == {"not delivered"}
    assert sum(each.num_rows for each in without_one.findings) == 2 * 3 * 3


def test_a_state_is_found_wherever_it_was_saved(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (loader,) = loaders_of(tmp_path, 1)
    take([loader], 2)
    state = loader.state_dict()
    expected = describe_state(state)
    assert (expected.num_delivered, expected.num_rows, expected.epoch, expected.num_steps) == (6, 48, 0, 2)
    assert expected.share == 6 / 48
    for form in (state["laneway"][0], {"trainer": {"loaders": [state]}}, json.loads(json.dumps([{"x": 1}, state]))):
        assert describe_state(form) == expected
        assert not compare_states(state, form)
    with pytest.raises(StateFormatError, match=r"holds no state of laneway \(it is \{'a': 1\}\)"):
        describe_state({"a": 1})
    other = loaders_of(tmp_path, 1, seed=6)[0].state_dict()
    with pytest.raises(StateFormatError, match="2 loaders, under train, val: say which one with key="):
        describe_state({"train": state, "val": other})
    assert describe_state({"train": state, "val": other}, key="train") == expected


def test_the_complete_state_of_selected_rows_does_not_say_how_many_there_were(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (loader,) = loaders_of(tmp_path, 1, filter=[("id", "<", 20)])
    assert len(take([loader])) == 20
    summary = describe_state(loader.state_dict())
    assert (summary.is_complete, summary.num_delivered, summary.share, summary.positions) == (True, None, None, ())
    assert "epoch 0: complete" in repr(summary)
    assert "delivered" not in repr(summary)
    (loader,) = loaders_of(tmp_path, 1, filter=[("id", "<", 20)])
    take([loader], 2)
    assert describe_state(loader.state_dict()).num_delivered == 6


def test_the_states_of_workers_are_one_checkpoint(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    loader = StatefulDataLoader(make_dataset(tmp_path, batch_size=3), batch_size=None, num_workers=2)
    batches = iter(loader)
    taken = [row for batch in row_ids([next(batches), next(batches), next(batches)]) for row in batch]
    report = audit([loader.state_dict()], make_dataset(tmp_path))
    assert report.is_exact
    assert report.epochs[0].num_delivered == len(taken)
    assert describe_state(loader.state_dict()).scope == "worker"


def test_a_rank_that_is_ahead_with_several_workers_is_named_once(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    states = []
    for rank in (0, 1):
        dataset = make_dataset(tmp_path, batch_size=3, rank=rank, world_size=2)
        loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)
        if rank == 1:
            assert len([*loader]) > 0
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        states.append(loader.state_dict())
    assert describe_state(states).ahead == ((1, 1),)


def test_states_are_compared_in_settings_and_progress(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    first, second = (loaders_of(tmp_path, 1)[0] for _ in range(2))
    take([first], 2)
    found = compare_states(first.state_dict(), second.state_dict())
    assert found
    assert found.is_same_order
    assert ("num_delivered", 6, 0) in found.progress
    assert "num_delivered: 6 and 0" in repr(found)
    write_corpus(tmp_path, files=((2,),), names=("other",))
    other = loaders_of(tmp_path, 1, seed=7)[0].state_dict()
    found = compare_states(first.state_dict(), other)
    assert not found.is_same_order
    assert ("seed", 5, 7) in found.settings
    assert found.files == "files: other.parquet is new"


def test_a_state_within_a_row_says_that_some_of_its_items_were_delivered(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    for num_items, has_parts in ((2, False), (3, True)):
        items = StatefulShardedDataset(tmp_path).flat_map(lambda row: [row, row])
        taken = iter(items)
        for _ in range(num_items):
            next(taken)
        found = describe_state(items.state_dict())
        assert found.num_delivered == 1
        assert ("delivered in full: " in repr(found)) == has_parts


def test_all_settings_of_stages_are_shown(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    packs = make_dataset(tmp_path).map(tokens_of).pack(8, group_rows=7)
    next(iter(packs))
    assert "overflow='split', group_rows=7)" in repr(describe_state(packs.state_dict()))


def test_the_sources_of_a_mixture_are_described(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    mixture = Mixture({"a": make_dataset(tmp_path), "b": make_dataset(tmp_path, seed=1)}, {"a": 3, "b": 1}).batch(4)
    next(iter(mixture))
    found = describe_state(mixture.state_dict())
    assert [(each.name, each.share) for each in found.sources] == [("a", 0.75), ("b", 0.25)]
    assert found.num_delivered == 4
    with pytest.raises(ValueError, match="of a mixture of a, b: pass the Mixture as source"):
        audit([mixture.state_dict()])


def test_the_checkpoints_of_a_mixture_prove_each_row_of_each_epoch_once(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)

    def mixture_of(weights: Any, **arguments: Any) -> Mixture:
        sources = {name: make_dataset(tmp_path, seed=seed) for seed, name in enumerate("ab")}
        return Mixture(sources, weights, **arguments).batch(3)

    states: list[Any] = []
    delivered: list[int] = []
    changes = [(0, {"a": 3, "b": 1}), (40, {"a": 1, "b": 1})]
    for world_size, num_workers, steps in ((2, 1, 3), (3, 0, 9), (1, 2, 5)):
        loaders = [
            SavableLoader(mixture_of(changes, rank=rank, world_size=world_size), num_workers=num_workers)
            for rank in range(world_size)
        ]
        for loader in loaders if states else ():
            loader.load_state_dict(states[-1])
        delivered += take(loaders, steps)
        states.append(loaders[0].state_dict())
    mixture = mixture_of(changes)
    report = audit(states, mixture)
    assert report.is_exact
    assert sum(each.num_delivered for each in report.epochs) == len(delivered) == 3 * (2 * 3 + 3 * 9 + 5)
    whole = [each for each in report.epochs if not each.num_left]
    assert [(each.source, each.epoch, each.num_rows) for each in whole] == [("a", 0, num_rows)]
    assert "source 'a', epoch 0: 48 of 48 rows delivered exactly once" in repr(report)
    # Where weights changed follows from the schedule, and is unknown without it.
    assert {each.kind for each in audit(states, mixture_of({"a": 1, "b": 1})).findings} == {"not delivered"}
    (finding,) = audit([make_dataset(tmp_path).state_dict(), states[0]], make_dataset(tmp_path)).findings
    assert (finding.kind, finding.reason[:18]) == ("other run", "it is of a mixture")
    other = audit(states[1:], mixture).findings
    assert ({each.kind for each in other}, {each.source for each in other}) == ({"unknown"}, {"a", "b"})
    with pytest.raises(ValueError, match="of a single dataset"):
        audit([make_dataset(tmp_path).state_dict()], mixture)


def chain_of(
    make: Callable[..., Mixture], steps: Sequence[tuple[int, int]], state: dict[str, Any] | None = None
) -> list[Any]:
    """Return the state after each run of (ranks, batches of each rank), each of which resumes from the one before."""
    states = []
    for world_size, num_batches in steps:
        loaders = [SavableLoader(make(rank=rank, world_size=world_size)) for rank in range(world_size)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            batches = chain.from_iterable(repeat(loader))
            for _ in range(num_batches):
                next(batches)
        is_known = make(rank=0, world_size=1).definition.stages is None
        state = loaders[0].state_dict() if is_known else merge_states([each.save_state_rank() for each in loaders])
        states.append(state)
    return states


def test_an_audit_follows_a_mixture_that_went_back_to_where_an_epoch_was_still_read(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)

    def make(**arguments: Any) -> Mixture:
        return Mixture({"a": make_dataset(tmp_path)}, {"a": 1}, **arguments).batch(3)

    states = chain_of(make, [(2, 3), (3, 2), (3, 9)])
    assert audit(states, make()).is_exact
    report = audit([states[0], states[2], states[1]], make())
    assert {each.kind for each in report.findings} == {"delivered twice"}
    assert sum(each.num_rows for each in report.findings) == 3 * 3 * 9
    assert report.epochs[0].num_delivered == 2 * 3 * 3 + 3 * 3 * 2 < num_rows


def test_items_of_a_group_that_a_missing_checkpoint_had_begun_were_not_delivered_twice(tmp_path: Path) -> None:
    write_corpus(tmp_path)

    def make(**arguments: Any) -> Mixture:
        mixture = Mixture({"a": make_dataset(tmp_path), "b": make_dataset(tmp_path, seed=2)}, {"a": 3, "b": 1})
        return mixture.shard(arguments["world_size"], arguments["rank"]).map(tokens_of).pack(8, group_rows=7).batch(1)

    states = chain_of(make, [(1, 5), (3, 8), (2, 3)])
    whole = make(rank=0, world_size=1)
    assert audit(states, whole).is_exact
    report = audit([states[0], states[2]], whole)
    assert {each.kind for each in report.findings} == {"not delivered"}
    assert any("some of the items" in each.reason for each in report.findings)
    assert {each.kind for each in audit(states[1:], whole).findings} == {"unknown"}
    back = chain_of(make, [(2, 6)], states[0])
    report = audit([*states[:2], *back], whole)
    assert {each.kind for each in report.findings} == {"delivered twice"}


def tokens_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [row["id"]] * (1 + row["id"] % 5)}


def test_rows_before_the_first_checkpoint_of_a_mixture_with_epochs_of_batches_are_unknown(tmp_path: Path) -> None:
    write_corpus(tmp_path)

    def make(**arguments: Any) -> Mixture:
        return Mixture({"a": make_dataset(tmp_path)}, {"a": 1}, epoch_batches=4, **arguments).batch(3)

    states = chain_of(make, [(2, 12), (3, 12)])
    assert audit(states, make()).is_exact
    report = audit(states[1:], make())
    assert {each.kind for each in report.findings} == {"unknown"}
    assert sum(each.num_rows for each in report.findings) == 2 * 3 * 3 * 4


def test_rows_that_came_twice_name_the_checkpoint_of_this_run_that_has_them(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (foreign,) = loaders_of(tmp_path, 1, seed=9)
    (first,) = loaders_of(tmp_path, 1)
    take([first], 2)
    again = loaders_of(tmp_path, 2)
    take(again, 1)
    report = audit([first.state_dict(), foreign.state_dict(), again[0].state_dict()], make_dataset(tmp_path))
    assert [each.reason[:20] for each in report.findings if each.kind == "delivered twice"] == ["checkpoint 0 has the"]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 2), (4, 1)])
@pytest.mark.parametrize("remainder", ["keep", "pad"])
def test_ranks_restore_one_by_one_what_was_redistributed(
    tmp_path: Path, world_size: int, num_workers: int, remainder: str
) -> None:
    num_rows = write_corpus(tmp_path)
    before = loaders_of(tmp_path, 2, 1, remainder=remainder)
    rows = take(before, 3)
    state = before[0].state_dict()
    states = redistribute([each.save_state_rank() for each in before], world_size, num_workers)
    assert states == redistribute(state, world_size, num_workers)
    at_once, one_by_one = (loaders_of(tmp_path, world_size, num_workers, remainder=remainder) for _ in range(2))
    for loader, own in zip(one_by_one, json.loads(json.dumps(states)), strict=True):
        loader.restore_state_rank(own)
    for loader in at_once:
        loader.load_state_dict(state)
    rest = take(one_by_one)
    assert rest == take(at_once)
    assert {*rows, *rest} == {*range(num_rows)}
    assert audit([state, one_by_one[0].state_dict()], StatefulShardedDataset(tmp_path)).findings


def test_what_can_not_be_redistributed_says_why(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    loaders = loaders_of(tmp_path, 2)
    take(loaders, 1)
    with pytest.raises(CheckpointMismatchError, match="1 of the 2 ranks"):
        redistribute(loaders[0].save_state_rank(), 3)
    with pytest.raises(ValueError, match="batch_size must be an int of at most"):
        redistribute(loaders[0].state_dict(), 2, batch_size=2**70)
    for world_size in (0, 2**40):
        with pytest.raises(ValueError, match="world_size must be an int of at"):
            redistribute(loaders[0].state_dict(), world_size)
    selected = SavableLoader(make_dataset(tmp_path, batch_size=3).filter([("id", "<", 30)]))
    take([selected], 2)
    with pytest.raises(ValueError, match="pass the dataset as source"):
        redistribute(selected.state_dict(), 2)
    dataset = make_dataset(tmp_path, batch_size=3).filter([("id", "<", 30)])
    assert len(redistribute(selected.state_dict(), 2, source=dataset)) == 2
    mixture = Mixture({"a": make_dataset(tmp_path)}, {"a": 1}).batch(4)
    next(iter(mixture))
    with pytest.raises(ValueError, match="of a mixture of a: pass the Mixture as source"):
        redistribute(mixture.state_dict(), 2, source=dataset)
    with pytest.raises(ValueError, match="of a single dataset"):
        redistribute(selected.state_dict(), 2, source=mixture)
    other = Mixture({"a": make_dataset(tmp_path, seed=9)}, {"a": 1}).batch(4)
    with pytest.raises(CheckpointMismatchError, match="source 'a': saved with the files and settings"):
        redistribute(mixture.state_dict(), 2, source=other)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 2)])
@pytest.mark.parametrize("stop", [None, 100])
def test_ranks_restore_one_by_one_a_mixture_that_was_redistributed(
    tmp_path: Path, world_size: int, num_workers: int, stop: int | None
) -> None:
    write_corpus(tmp_path)

    def mixture_of(rank: int, world_size: int) -> Mixture:
        sources = {name: make_dataset(tmp_path, seed=seed) for seed, name in enumerate("ab")}
        return Mixture(sources, {"a": 3, "b": 1}, stop=stop, rank=rank, world_size=world_size).batch(3)

    def loaders(world_size: int, num_workers: int = 0) -> list[SavableLoader]:
        return [SavableLoader(mixture_of(rank, world_size), num_workers=num_workers) for rank in range(world_size)]

    before = loaders(2)
    take(before, 4)
    state = before[0].state_dict()
    source = mixture_of(rank=0, world_size=1)
    states = redistribute(state, world_size, num_workers, source=source)
    at_once, one_by_one = loaders(world_size, num_workers), loaders(world_size, num_workers)
    for loader, own in zip(one_by_one, json.loads(json.dumps(states)), strict=True):
        loader.restore_state_rank(own)
    for loader in at_once:
        loader.load_state_dict(state)
    assert take(one_by_one, 12) == take(at_once, 12)


def test_rows_that_are_taken_out_of_a_running_epoch_are_no_finding(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    states: list[Any] = []
    gaps: list[tuple[int, int, int]] = []
    rows: list[int] = []
    for world_size, steps, gap in ((2, 2, (0, 18, 24)), (1, 3, (0, 36, 42)), (2, None, None)):
        loaders = loaders_of(tmp_path, world_size, remainder="keep", without=list(gaps))
        for loader in loaders if states else ():
            loader.load_state_dict(states[-1])
        rows += take(loaders, steps)
        states.append(loaders[0].state_dict())
        gaps += [] if gap is None else [gap]
    assert len(rows) == len({*rows}) == num_rows - 12
    report = audit(states, make_dataset(tmp_path, remainder="keep", without=gaps))
    assert report.is_exact
    (epoch,) = report.epochs
    assert (epoch.num_delivered, epoch.num_left, epoch.num_left_out) == (num_rows - 12, 0, 12)

"""Mixtures in every loader: resumed at every batch, on other topologies, with other weights, sources and files."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import (
    CheckpointMismatchError,
    LanewayError,
    Manifest,
    Mixture,
    SavableLoader,
    SchemaMismatchError,
    StatefulShardedDataset,
    audit,
)
from laneway.errors import NullInColumnError
from laneway.testing import assert_resumes_exactly

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"web": 60, "code": 23, "rare": 3}
WEIGHTS = {"web": 0.7, "code": 0.29, "rare": 0.01}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    start = 0
    for name, num_rows in SIZES.items():
        table = pa.table({"id": range(start, start + num_rows), "text": [f"{name} {i}" for i in range(num_rows)]})
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part-0.parquet", row_group_size=5)
        start += 1000
    return tmp_path


def sources_of(corpus: Path, **options: Any) -> dict[str, StatefulShardedDataset]:
    arguments = {"shuffle": True, "seed": 3, "shard_rows": 7, "window_bytes": 300, **options}
    return {name: StatefulShardedDataset(corpus / name, **arguments) for name in SIZES}


def mixture_of(corpus: Path, weights: Any = None, *, batch_size: int | None = 4, **options: Any) -> Mixture:
    mixture = Mixture(sources_of(corpus), weights or WEIGHTS, **options)
    return mixture if batch_size is None else mixture.batch(batch_size)


def ids(batches: Any, count: int | None = None) -> list[list[int]]:
    return [batch["id"].tolist() for batch in islice(batches, count)]


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


# -- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_savable_loader_resumes_at_every_batch(corpus: Path, num_workers: int) -> None:
    expected = ids(SavableLoader(mixture_of(corpus), num_workers=num_workers), 24)
    loader = SavableLoader(mixture_of(corpus), num_workers=num_workers)
    batches = iter(loader)
    states = [through_json(loader.state_dict())]
    for _ in range(10):
        next(batches)
        states.append(through_json(loader.state_dict()))
    for done in (0, 1, 4, 10):
        resumed = SavableLoader(mixture_of(corpus), num_workers=num_workers)
        resumed.load_state_dict(states[done])
        assert resumed.batches_delivered == done
        assert ids(resumed, 24 - done) == expected[done:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_data_loader_resumes(corpus: Path, num_workers: int) -> None:
    expected = ids(StatefulDataLoader(mixture_of(corpus), batch_size=None, num_workers=num_workers), 20)
    loader = StatefulDataLoader(mixture_of(corpus), batch_size=None, num_workers=num_workers)
    assert ids(loader, 7) == expected[:7]
    loader = StatefulDataLoader(mixture_of(corpus), batch_size=None, num_workers=num_workers)
    batches = iter(loader)
    ids(batches, 7)
    state = through_json(loader.state_dict())
    resumed = StatefulDataLoader(mixture_of(corpus), batch_size=None, num_workers=num_workers)
    resumed.load_state_dict(state)
    assert ids(resumed, 13) == expected[7:]


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_mixture_resumes_without_a_loader(corpus: Path, batch_size: int | None) -> None:
    def rows(items: Any, count: int) -> list[Any]:
        return [item["id"] if batch_size is None else item["id"].tolist() for item in islice(items, count)]

    expected = rows(mixture_of(corpus, batch_size=batch_size), 20)
    mixture = mixture_of(corpus, batch_size=batch_size)
    assert rows(mixture, 7) == expected[:7]
    resumed = mixture_of(corpus, batch_size=batch_size)
    resumed.load_state_dict(through_json(mixture.state_dict()))
    assert rows(resumed, 13) == expected[7:]


@pytest.mark.parametrize(("num_workers", "world_size", "stops"), [(0, 1, [1, 4, 11]), (0, 2, [1, 4, 11]), (2, 1, [4])])
def test_single_rows_of_a_loader_resume_within_a_turn(
    corpus: Path, num_workers: int, world_size: int, stops: list[int]
) -> None:
    def loader(rank: int) -> SavableLoader:
        place = {"rank": rank, "world_size": world_size}
        mixture = mixture_of(corpus, batch_size=None, lanes=4, turn_rows=3, **place)
        return SavableLoader(mixture, num_workers=num_workers)

    def rows(items: Any, count: int) -> list[int]:
        return [row["id"] for row in islice(items, count)]

    expected = [rows(loader(rank), 40) for rank in range(world_size)]
    for stop in stops:
        loaders = [loader(rank) for rank in range(world_size)]
        assert [rows(each, stop) for each in loaders] == [each[:stop] for each in expected]
        state = through_json(loaders[-1].state_dict())
        for rank in range(world_size):
            resumed = loader(rank)
            resumed.load_state_dict(state)
            assert rows(resumed, 40 - stop) == expected[rank][stop:]


def test_an_endless_mixture_goes_on_where_the_last_pass_stopped(corpus: Path) -> None:
    expected = ids(mixture_of(corpus), 12)
    mixture, loader = mixture_of(corpus), SavableLoader(mixture_of(corpus))
    for each in (mixture, loader):
        assert [*ids(each, 5), *ids(each, 3), *ids(each, 4)] == expected
    begun = mixture_of(corpus)
    assert [*ids(begun, 5), *ids(begun.map(lambda batch: batch), 3)] == expected[:8]
    assert ids(SavableLoader(begun), 3) == expected[5:8]


def test_a_copy_of_an_endless_mixture_goes_on_where_its_pass_is(corpus: Path) -> None:
    expected = ids(mixture_of(corpus), 12)
    mixture = mixture_of(corpus)
    batches = iter(mixture)
    assert ids(batches, 5) == expected[:5]
    copies = [copy.copy(mixture), copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))]
    copies += [copy.deepcopy(copies[-1]), SavableLoader(copy.deepcopy(mixture))]
    for each in copies:
        assert ids(each, 7) == expected[5:]
    assert ids(batches, 7) == expected[5:]


def copying_its_dataset(row: dict[str, Any]) -> dict[str, Any]:
    worker = get_worker_info()
    assert worker is not None
    copy.deepcopy(worker.dataset)
    return row


def test_a_worker_can_copy_its_dataset_in_an_endless_pass(corpus: Path) -> None:
    mixture = mixture_of(corpus).map(copying_its_dataset)
    assert ids(DataLoader(mixture, batch_size=None, num_workers=1), 3) == ids(mixture_of(corpus), 3)


def test_workers_of_a_plain_data_loader_refuse_a_second_endless_pass(corpus: Path) -> None:
    # One worker: after an error at its start, torch waits 5 s for each.
    loader = DataLoader(mixture_of(corpus), batch_size=None, num_workers=1)
    ids(loader, 3)
    with pytest.raises(LanewayError, match="keep its iterator, or use a SavableLoader"):
        next(iter(loader))


def test_other_ranks_workers_and_batches_deliver_each_row_once(corpus: Path) -> None:
    state, delivered = None, Counter[int]()
    for num_workers, batch_size, count in ((0, 4, 3), (2, 5, 4), (3, 2, 1), (0, 6, 2)):
        loader = SavableLoader(mixture_of(corpus, batch_size=batch_size), num_workers=num_workers)
        if state is not None:
            loader.load_state_dict(state)
        delivered.update(row for batch in ids(loader, count) for row in batch)
        state = through_json(loader.state_dict())
    # The rows of web and code are still in their first epoch.
    assert max(count for row, count in delivered.items() if row < 2000) == 1
    assert loader.sources["web"].rows == sum(1 for row in delivered if row < 1000)


def test_a_batch_whose_function_fails_comes_again(corpus: Path) -> None:
    expected, fails = ids(mixture_of(corpus), 8), [True]

    def spoil(batch: Any) -> Any:
        if fails[0] and batch["id"].tolist() == expected[4]:
            batch["id"][:] = -1
            fails[0] = False
            message = "once"
            raise RuntimeError(message)
        return batch

    batches = iter(SavableLoader(mixture_of(corpus).map(spoil)))
    assert ids(batches, 4) == expected[:4]
    with pytest.raises(RuntimeError, match="once") as raised:
        next(batches)
    assert "the first one is row" in raised.value.__notes__[0]
    assert "of source" in raised.value.__notes__[0]
    assert ids(batches, 4) == expected[4:]


def test_a_state_does_not_grow_with_cuts_and_epochs(corpus: Path) -> None:
    state, sizes = None, []
    for leg in range(12):
        loader = SavableLoader(mixture_of(corpus, batch_size=2 + leg % 3, rank=0, world_size=1), num_workers=0)
        if state is not None:
            loader.load_state_dict(state)
        ids(loader, 60)
        state = loader.state_dict()
        sizes.append(len(json.dumps(state)))
    assert max(sizes[6:]) <= max(sizes[:6]) + 20
    assert loader.sources["code"].epoch > 10


# -- Ends -------------------------------------------------------------------------------------------------------------


def test_a_mixture_ends_after_a_number_of_rows_and_begins_again_with_other_epochs(corpus: Path) -> None:
    loader = SavableLoader(mixture_of(corpus, stop=50), num_workers=2)
    assert len(loader) == 13
    first, second = ids(loader), ids(loader)
    assert [sum(map(len, each)) for each in (first, second)] == [50, 50]
    assert len(first) == 13
    assert first != second
    resumed = SavableLoader(mixture_of(corpus, stop=50), num_workers=2)
    resumed.set_epoch(1)
    assert ids(resumed) == second
    resumed.load_state_dict(loader.state_dict())
    assert ids(resumed) != first


def test_a_finite_mixture_resumes_near_its_end(corpus: Path) -> None:
    expected = ids(SavableLoader(mixture_of(corpus, stop=50)))
    for done in (11, 12, 13):
        loader = SavableLoader(mixture_of(corpus, stop=50))
        ids(loader, done)
        resumed = SavableLoader(mixture_of(corpus, stop=50))
        resumed.load_state_dict(through_json(loader.state_dict()))
        assert ids(resumed) == expected[done:]


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted", 50])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_finite_mixture_resumes_where_some_of_its_lanes_have_ended(
    corpus: Path, stop: Any, batch_size: int | None
) -> None:
    weights = {"web": 2, "code": 1, "rare": 0.1}
    options = {"batch_size": batch_size, "lanes": 6, "turn_rows": 2}
    expected = assert_resumes_exactly(lambda: SavableLoader(mixture_of(corpus, weights, stop=stop, **options)))
    assert expected > 10


def test_the_first_source_that_is_exhausted_ends_it(corpus: Path) -> None:
    mixture = Mixture(sources_of(corpus), {"web": 1, "code": 1, "rare": 0}, stop="first_exhausted").batch(4)
    rows = [row for batch in ids(mixture) for row in batch]
    assert sum(1000 <= row < 2000 for row in rows) == 23
    assert 22 <= sum(row < 1000 for row in rows) <= 25


def test_the_last_source_that_is_exhausted_ends_it(corpus: Path) -> None:
    mixture = Mixture(sources_of(corpus), {"web": 1, "code": 1, "rare": 0}, stop="all_exhausted").batch(4)
    rows = Counter(row for batch in ids(mixture) for row in batch)
    assert {row for row in rows if row < 1000} == {*range(60)}
    assert all(rows[row] >= 2 for row in range(1000, 1023))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_a_mixture_with_a_schedule_knows_its_length_and_resumes_exactly_until_a_source_is_exhausted(
    corpus: Path, stop: Any, batch_size: int | None, world_size: int
) -> None:
    schedule = [(0, {"web": 1, "code": 1, "rare": 0}), (10, {"web": 5, "code": 1, "rare": 0})]
    options = {"stop": stop, "lanes": 4, "batch_size": batch_size, "world_size": world_size}
    for rank in range(world_size):
        loader = SavableLoader(mixture_of(corpus, schedule, rank=rank, **options))
        items, states = [], []
        for item in loader:
            items.append(item)
            states.append(loader.state_dict())
        assert len(loader) == len(items)
        for step in range(11, len(items), 29):
            resumed = SavableLoader(mixture_of(corpus, schedule, rank=rank, **options))
            resumed.load_state_dict(states[step - 1])
            assert [str(item) for item in resumed] == [str(item) for item in items[step:]]
            assert resumed.metrics().epoch_total == len(items)


def test_a_repeated_dataset_delivers_each_row_as_often(corpus: Path) -> None:
    dataset = sources_of(corpus)["code"]
    for repeated in (dataset.repeat(3), SavableLoader(dataset.repeat(3), num_workers=2)):
        assert Counter(row["id"] for row in repeated) == dict.fromkeys(range(1000, 1023), 3)
    endless = islice(dataset.repeat(), 60)
    assert {*Counter(row["id"] for row in endless).values()} == {2, 3}
    with pytest.raises(TypeError, match="without an end has no length"):
        len(dataset.repeat())


def test_a_mixture_without_end_has_no_epochs_and_no_length(corpus: Path) -> None:
    mixture = mixture_of(corpus)
    loader = SavableLoader(mixture)
    for each in (mixture, loader):
        with pytest.raises(LanewayError, match="it has no epochs, and continues"):
            each.set_epoch(1)
        with pytest.raises(TypeError, match="without an end has no length"):
            len(each)
    loader.sampler.set_epoch(1)
    assert len(ids(loader, 3)) == 3
    assert "3 delivered" in repr(loader)


# -- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_set_weights_changes_the_shares_from_the_next_batch_on(corpus: Path, num_workers: int) -> None:
    loader = SavableLoader(mixture_of(corpus), num_workers=num_workers)
    batches = iter(loader)
    before = ids(batches, 5)
    loader.set_weights({"web": 0, "code": 1, "rare": 0})
    after = ids(batches, 3)
    assert all(1000 <= row < 2000 for batch in after for row in batch)
    assert loader.batches_delivered == 8
    sources = loader.sources
    assert sources["code"].target_share == sources["code"].actual_share == 1
    assert sources["code"].rows == sum(1000 <= row < 2000 for batch in [*before, *after] for row in batch)
    state = through_json(loader.state_dict())
    resumed = SavableLoader(mixture_of(corpus, {"web": 0, "code": 1, "rare": 0}), num_workers=num_workers)
    resumed.load_state_dict(state)
    assert ids(resumed, 3) == ids(batches, 3)


def test_a_state_with_other_weights_goes_on_with_those_of_the_run(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = SavableLoader(mixture_of(corpus))
    before = ids(loader, 5)
    resumed = SavableLoader(mixture_of(corpus, {"web": 0, "code": 3, "rare": 0}))
    with caplog.at_level(logging.INFO, "laneway"):
        resumed.load_state_dict(loader.state_dict())
    assert "after 20 rows, the mixture continues with web 0, code 3, rare 0, not with web 0.7" in caplog.text
    after = ids(resumed, 3)
    assert all(1000 <= row < 2000 for batch in after for row in batch)
    assert max(Counter(row for batch in before + after for row in batch).values()) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_schedule_changes_weights_after_so_many_rows(corpus: Path, num_workers: int) -> None:
    only = [{name: float(name == other) for name in SIZES} for other in ("web", "code")]
    schedule = [(0, only[0]), (16, only[1]), (30, only[0])]
    loader = SavableLoader(mixture_of(corpus, schedule), num_workers=num_workers)
    expected = ids(loader, 12)
    kinds = ["code" if batch[0] >= 1000 else "web" for batch in expected]
    # With two workers, weights change after whole rounds of neither: batches of one rank follow each other.
    assert kinds == ["web"] * 4 + ["code"] * 4 + ["web"] * 4
    assert ids(mixture_of(corpus, schedule), 12) == expected or num_workers
    for done in (3, 4, 5, 8):
        resumed = SavableLoader(mixture_of(corpus, schedule), num_workers=num_workers)
        ids(resumed, done)
        again = SavableLoader(mixture_of(corpus, schedule), num_workers=num_workers)
        again.load_state_dict(through_json(resumed.state_dict()))
        assert ids(again, 12 - done) == expected[done:]


def test_sources_are_added_and_extended_in_a_resumed_run(corpus: Path) -> None:
    begun_with = {name: Manifest.scan(corpus / name) for name in SIZES}
    weights = {"web": 1, "rare": 1}

    def open_source(name: str, source: Any) -> StatefulShardedDataset:
        del name
        return StatefulShardedDataset(source, shuffle=True, seed=3)

    small = {name: open_source(name, begun_with[name]) for name in weights}
    loader = SavableLoader(Mixture(small, weights).batch(4))
    ids(loader, 2)
    state = through_json(loader.state_dict())
    pq.write_table(pa.table({"id": [2003, 2004], "text": ["a", "b"]}), corpus / "rare" / "part-1.parquet")
    grown = {**small, "rare": small["rare"].extend(open_source("rare", corpus / "rare"))}
    mixture = (
        Mixture(grown, weights).batch(4).add({"code": open_source("code", corpus / "code")}, {**weights, "code": 2})
    )
    resumed = SavableLoader(mixture)
    resumed.load_state_dict(state)
    rows = [row for batch in ids(resumed, 20) for row in batch]
    assert {*rows} > {2003, 2004}
    assert sum(1000 <= row < 2000 for row in rows) in range(38, 43)
    with pytest.raises(ValueError, match="there is a source 'web' already"):
        mixture.add(small, weights)


# -- Functions --------------------------------------------------------------------------------------------------------


def test_each_source_has_its_own_functions(corpus: Path) -> None:
    sources = sources_of(corpus)
    sources["web"] = sources["web"].map(lambda row: {**row, "text": row["text"].upper()})
    sources["code"] = sources["code"].map(lambda row, context: {**row, "text": context.source}, with_context=True)
    mixture = Mixture(sources, {"web": 2, "code": 1, "rare": 1}).batch(8)
    batch = next(iter(mixture))
    assert Counter(text.split()[0] for text in batch["text"]) == {"WEB": 4, "code": 2, "rare": 2}
    assert batch["id"].shape == (8,)
    sized = mixture.map(lambda found: len(found["text"]))
    assert [*islice(sized, 2)] == [8, 8]


def test_a_function_of_the_mixture_learns_where_rows_come_from(corpus: Path) -> None:
    found: list[Any] = []

    def note(batch: Any, context: Any) -> Any:
        found.append(context)
        return batch

    mixture = mixture_of(corpus, {"web": 2, "code": 1, "rare": 1}).map(note, with_context=True)
    batches = ids(mixture, 3)
    context = found[0]
    names = ["web" if row < 1000 else "code" if row < 2000 else "rare" for row in batches[0]]
    assert context.sources == names
    assert context.rows.tolist() == [row % 1000 for row in batches[0]]
    assert context.paths == ["part-0.parquet"] * 4
    assert found[2].epochs.max() >= 0
    row, row_context = next(iter(mixture_of(corpus, batch_size=None).map(lambda *both: both, with_context=True)))
    assert (row_context.source, row_context.row) == ("web", row["id"])


def test_sources_whose_functions_deliver_other_columns_are_refused(corpus: Path) -> None:
    sources = sources_of(corpus)
    sources["code"] = sources["code"].map(lambda row: {"id": row["id"], "tokens": 1})
    with pytest.raises(SchemaMismatchError, match="source 'code' delivers column 'tokens', and source 'web' does not"):
        ids(Mixture(sources, {"web": 1, "code": 1, "rare": 0}).batch(8), 1)


@pytest.fixture
def unlike(corpus: Path) -> dict[str, StatefulShardedDataset]:
    """Return sources that agree in their columns only after their own functions."""
    (corpus / "unlike").mkdir()
    table = pa.table({"id": [f"{row}" for row in range(3000, 3017)], "size": pa.array([1, None] * 8 + [3], pa.int16())})
    pq.write_table(table, corpus / "unlike" / "part-0.parquet", row_group_size=4)
    other = StatefulShardedDataset(corpus / "unlike", shuffle=True).map(as_numbers)
    narrow = StatefulShardedDataset(corpus / "code", columns=["text", "id"], shuffle=True).map(as_before)
    return {"web": sources_of(corpus)["web"], "unlike": other, "code": narrow}


def as_numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": int(row["id"]), "text": f"{row['size']}"}


def as_before(row: dict[str, Any]) -> dict[str, Any]:
    return row


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sources_that_agree_after_their_own_functions_are_mixed(
    unlike: dict[str, StatefulShardedDataset], num_workers: int
) -> None:
    def make() -> SavableLoader:
        mixture = Mixture(unlike, {"web": 2, "unlike": 1, "code": 1})
        return SavableLoader(mixture.batch(8), num_workers=num_workers)

    assert assert_resumes_exactly(make, max_items=14, stops=(1, 6, 13)) == 14
    batches = [*islice(make(), 14)]
    for batch in batches:
        assert Counter(row // 1000 for row in batch["id"].tolist()) == {0: 4, 1: 2, 3: 2}
    rows = [pair for batch in batches for pair in zip(batch["id"].tolist(), batch["text"], strict=True)]
    texts = {"1", "None", "3"}
    assert all((text in texts) == (row >= 3000) for row, text in rows)
    found = Counter(row for row, _ in rows if row >= 3000)
    assert {*found} == {*range(3000, 3017)}
    assert max(found.values()) - min(found.values()) <= 1


def test_items_and_packs_are_made_of_sources_that_agree_after_their_own_functions(
    unlike: dict[str, StatefulShardedDataset],
) -> None:
    mixture = Mixture(unlike, {"web": 1, "unlike": 1, "code": 1})
    single = [row["id"] for row in islice(mixture, 30)]
    assert [*islice(mixture.flat_map(lambda row: [row["id"], -1]), 60)][::2] == single
    packs = mixture.map(lambda row: {"input_ids": [row["id"]] * 3}).pack(6)
    assert {*next(iter(packs))["input_ids"].tolist()} <= {*single}
    assert mixture.schema.names == ["id", "text"]


@pytest.mark.parametrize("first", ["web", "unlike"])
def test_a_source_whose_function_disagrees_is_named_at_its_first_row(
    unlike: dict[str, StatefulShardedDataset], first: str
) -> None:
    wrong = {**unlike, "unlike": unlike["unlike"].map(lambda row: {**row, "more": 1})}
    order = {name: wrong[name] for name in (first, *(name for name in wrong if name != first))}
    message = "source 'unlike' delivers column 'more', and source 'web' does not"
    mixture = Mixture(order, {"web": 0, "unlike": 1, "code": 0})
    with pytest.raises(SchemaMismatchError, match=message):
        # No row of another source comes.
        next(iter(mixture))
    with pytest.raises(SchemaMismatchError, match=message):
        next(iter(Mixture(order, {"web": 1, "unlike": 1, "code": 1}).batch(3)))


def test_a_null_of_a_source_with_other_columns_is_named(
    corpus: Path, unlike: dict[str, StatefulShardedDataset]
) -> None:
    tensors = {
        "web": StatefulShardedDataset(corpus / "web", output="numpy"),
        "unlike": StatefulShardedDataset(corpus / "unlike", output="numpy").map(as_numbers),
    }
    with pytest.raises(
        NullInColumnError, match=r"column 'size' of type int16 has a null in row 1 of part-0.parquet of"
    ):
        next(iter(Mixture(tensors, {"web": 1, "unlike": 1}).batch(6)))
    late = Mixture({"web": sources_of(corpus)["web"]}, {"web": 1}).batch(2)
    with pytest.raises(TypeError, match="create the mixture of all of them before batch"):
        next(iter(late.add({"unlike": unlike["unlike"]}, {"web": 1, "unlike": 1})))


def failing(row: dict[str, Any]) -> dict[str, Any]:
    if row["id"] % 3 == 0:
        raise ValueError(row["id"])
    return {"id": torch.tensor(row["id"])}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_rows_of_all_sources_are_masked_with_one_filler(corpus: Path, num_workers: int) -> None:
    def mixture(**code: Any) -> Mixture:
        options: dict[str, Any] = {"on_error": "mask", "filler": {"id": torch.tensor(-1)}, "transform": failing}
        sources = {
            "web": StatefulShardedDataset(corpus / "web", **options),
            "code": StatefulShardedDataset(corpus / "code", **{**options, "filler": {"id": torch.tensor(-1)}, **code}),
        }
        return Mixture(sources, {"web": 2, "code": 1})

    loader = SavableLoader(mixture().batch(6), num_workers=num_workers)
    batches = [*islice(loader, 5)]
    for batch in batches:
        assert len(batch["id"]) == 6
        assert batch["_valid"].equal(batch["id"] != -1)
    rows = [row for batch in batches for row in batch["id"].tolist() if row != -1]
    assert all(row % 3 for row in rows)
    assert min(rows) < 1000 <= max(rows)
    for filler in ({"id": -1}, {"id": torch.tensor(-2)}, {"id": torch.tensor(-1.0)}, {"text": ""}, None):
        with pytest.raises(ValueError, match="sources 'web' and 'code' have different fillers"):
            mixture(filler=filler)


@pytest.mark.parametrize("on_error", ["mask", "skip"])
def test_other_columns_of_a_source_are_no_bad_rows(corpus: Path, on_error: Any) -> None:
    filler = {"id": -1} if on_error == "mask" else None
    sources = {
        name: StatefulShardedDataset(corpus / name, on_error=on_error, filler=filler).map(function)
        for name, function in (("web", lambda row: {"id": row["id"]}), ("code", lambda row: {"ids": row["id"]}))
    }
    mixture = Mixture(sources, {"web": 1, "code": 1})
    for each in (mixture, mixture.flat_map(lambda row: [row]) if on_error == "skip" else mixture.batch(2)):
        with pytest.raises(SchemaMismatchError, match="and source 'code' does not"):
            [*islice(each, 4)]


def test_a_mixture_in_which_every_row_is_skipped_is_ended_by_an_error(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laneway.delivery.passes._MAX_SKIPPED", 50)
    dataset = StatefulShardedDataset(corpus / "web", on_error="skip", transform=lambda row: row["nothing"])
    with pytest.raises(LanewayError, match="the last 50 items in a row were skipped"):
        next(iter(dataset.repeat()))


# -- Mismatches and bad input -----------------------------------------------------------------------------------------


def test_a_source_that_has_changed_is_named(corpus: Path) -> None:
    mixture = mixture_of(corpus)
    ids(mixture, 3)
    state = mixture.state_dict()
    sources = sources_of(corpus)
    sources["code"] = StatefulShardedDataset(corpus / "code", shuffle=True, seed=4)
    with pytest.raises(CheckpointMismatchError, match="source 'code': saved with the files and settings"):
        Mixture(sources, WEIGHTS).batch(4).load_state_dict(state)
    with pytest.raises(CheckpointMismatchError, match="of a mixture of web, code, rare, not of a single dataset"):
        sources["web"].load_state_dict(state)
    dataset = sources["web"]
    next(iter(dataset))
    with pytest.raises(CheckpointMismatchError, match="of a single dataset, not of a mixture"):
        mixture.load_state_dict(dataset.state_dict())


def test_the_state_of_one_rank_goes_on_with_the_same_weights_only(corpus: Path) -> None:
    loader = SavableLoader(mixture_of(corpus, rank=0, world_size=2))
    expected = ids(loader, 6)
    loader = SavableLoader(mixture_of(corpus, rank=0, world_size=2))
    ids(loader, 2)
    state = through_json(loader.save_state_rank())
    resumed = SavableLoader(mixture_of(corpus, rank=0, world_size=2))
    resumed.restore_state_rank(state)
    assert ids(resumed, 4) == expected[2:]
    other = SavableLoader(mixture_of(corpus, {"web": 1, "code": 1, "rare": 1}, rank=0, world_size=2))
    with pytest.raises(CheckpointMismatchError, match="source 'web' has another weight or other files"):
        other.restore_state_rank(state)


def test_a_loaded_state_tells_of_the_sources_that_the_next_pass_has(corpus: Path) -> None:
    loader = SavableLoader(Mixture(sources_of(corpus), WEIGHTS).batch(8))
    ids(loader, 5)
    before, state = loader.sources, loader.state_dict()
    resumed = SavableLoader(Mixture(sources_of(corpus), {"web": 3, "code": 1, "rare": 0}).batch(8))
    resumed.load_state_dict(state)
    assert {name: (source.rows, source.target_share) for name, source in resumed.sources.items()} == {
        name: (before[name].rows, asked) for name, asked in (("web", 0.75), ("code", 0.25), ("rare", 0))
    }
    kept = {name: source for name, source in sources_of(corpus).items() if name != "rare"}
    without = SavableLoader(Mixture(kept, {"web": 1, "code": 1}).batch(8))
    without.load_state_dict(state)
    assert {name: source.rows for name, source in without.sources.items()} == {
        name: before[name].rows for name in ("web", "code")
    }


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_of_half_delivered_packs_is_not_removed_before_they_are_delivered(
    corpus: Path, num_workers: int
) -> None:
    def loader(*names: str, **weights: float) -> SavableLoader:
        sources = {name: source for name, source in sources_of(corpus).items() if name in names}
        mixture = Mixture(sources, weights).map(lambda row: {"input_ids": [row["id"]] * 3})
        return SavableLoader(mixture.pack(8, group_rows=30).batch(1), num_workers=num_workers)

    first = loader("web", "code", web=1, code=1)
    next(iter(first))
    removed = loader("web", web=1)
    with pytest.raises(ValueError, match="source 'code' can't be removed yet"):
        removed.load_state_dict(first.state_dict())
    idle = loader("web", "code", web=1, code=0)
    idle.load_state_dict(first.state_dict())
    for _ in islice(idle, 20):
        pass
    removed = loader("web", web=1)
    removed.load_state_dict(idle.state_dict())
    next(iter(removed))


def test_a_state_is_small(corpus: Path) -> None:
    many = {f"s{index}": StatefulShardedDataset(corpus / "web", seed=index) for index in range(200)}
    mixture = Mixture(many, {name: 1 + index / 7 for index, name in enumerate(many)}).batch(8)
    loader = SavableLoader(mixture)
    ids(loader, 3)
    state = loader.state_dict()["laneway"][0]
    names = len(json.dumps(state["mixture"][0]))
    assert len(json.dumps(state)) - names < 1024 + 30 * len(many)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": {"web": 1, "code": 1}}, ValueError, "'rare' has no weight: the sources are 'web', 'code'"),
        ({"weights": {**WEIGHTS, "more": 1}}, ValueError, "'more' is not a source"),
        ({"weights": {"web": 1, "code": 1, "rar": 1}}, ValueError, "'rare' has no weight and 'rar' is not a source"),
        ({"weights": {**WEIGHTS, "web": -1}}, ValueError, "'web' must be a finite number >= 0, not -1"),
        ({"weights": {**WEIGHTS, "web": float("nan")}}, ValueError, "'web' must be a finite number >= 0, not nan"),
        ({"weights": {**WEIGHTS, "web": 10**400}}, ValueError, "'web' must be a finite number >= 0, not 1000"),
        ({"weights": {**WEIGHTS, "web": True}}, TypeError, "the weight of source 'web' must be a number, not True"),
        ({"weights": {**WEIGHTS, "web": "1"}}, TypeError, "the weight of source 'web' must be a number"),
        ({"weights": dict.fromkeys(WEIGHTS, 0)}, ValueError, "at least one source must have a weight above 0"),
        ({"weights": [(1, WEIGHTS)]}, ValueError, "weights must start at row 0"),
        (
            {"weights": [(0, WEIGHTS), (2**70, WEIGHTS)]},
            ValueError,
            "the row at which weights change must be an int of",
        ),
        ({"weights": [(0, WEIGHTS), (0, WEIGHTS)]}, ValueError, "at later rows from there on, not at 0"),
        ({"weights": 3}, TypeError, "weights must be a mapping"),
        ({"weights": [WEIGHTS]}, TypeError, r"weights must be a mapping .* an item of this sequence is \{'web'"),
        ({"weights": [0.5, 0.5]}, TypeError, r"weights must be a mapping .* an item of this sequence is 0\.5"),
        ({"stop": 0}, ValueError, "stop must be a number of rows"),
        ({"stop": "never"}, ValueError, "stop must be a number of rows"),
        (
            {"weights": [(0, WEIGHTS), (9, {**WEIGHTS, "web": 0})], "stop": "all_exhausted"},
            ValueError,
            "the weight of source 'web' becomes 0, so it is never exhausted",
        ),
        ({"sources": {}}, TypeError, "sources must be a mapping"),
        ({"sources": {"web": 3}}, TypeError, "source 'web' must be a StatefulShardedDataset"),
    ],
)
def test_bad_arguments_are_refused(corpus: Path, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"sources": sources_of(corpus), "weights": WEIGHTS, **change}
    with pytest.raises(error, match=message):
        Mixture(**arguments)


def test_weights_may_be_numbers_of_numpy(corpus: Path) -> None:
    plain: dict[str, float] = dict(zip(WEIGHTS, (0.5, 3, 0.25), strict=True))
    of_numpy: dict[str, Any] = dict(zip(WEIGHTS, (np.float32(0.5), np.int64(3), np.float64(0.25)), strict=True))
    loaders = [SavableLoader(Mixture(sources_of(corpus), weights).batch(8)) for weights in (plain, of_numpy)]
    assert ids(loaders[0], 5) == ids(loaders[1], 5)
    states = [loader.state_dict() for loader in loaders]
    assert json.dumps(states[0]) == json.dumps(states[1])


def test_bad_sources_are_refused(corpus: Path) -> None:
    sources = sources_of(corpus)
    for other, error, message in (
        ({"batch_size": 3}, ValueError, "source 'code' yields batches of 3 rows"),
        ({"on_error": "skip"}, ValueError, "'web' has on_error='raise', and source 'code' on_error='skip'"),
        ({"columns": ["id"]}, SchemaMismatchError, "source 'web' delivers column 'text', and source 'code' does not"),
        ({"columns": ["text", "id"]}, SchemaMismatchError, "deliver their columns in another order"),
        ({"output": "numpy"}, ValueError, "source 'web' has output=None, and source 'code' output='numpy'"),
        ({"fill_null": 0}, SchemaMismatchError, "fill_null is None in source 'web', and 0 in source 'code'"),
        ({"rank": 1, "world_size": 2}, ValueError, "'web' is of rank 0 of 1, and source 'code' of rank 1 of 2"),
        ({"filter": pa.compute.field("id") < 0}, ValueError, "source 'code' has no rows"),
    ):
        with pytest.raises(error, match=message):
            Mixture({**sources, "code": StatefulShardedDataset(corpus / "code", **other)}, WEIGHTS)
    narrow = pq.read_schema(corpus / "code" / "part-0.parquet").set(0, pa.field("id", pa.int32()))
    typed = StatefulShardedDataset(corpus / "code", schema=narrow)
    with pytest.raises(SchemaMismatchError, match="'id' is of type int64 in source 'web', and of type int32"):
        Mixture({**sources, "code": typed}, WEIGHTS)
    dropping = StatefulShardedDataset(corpus / "rare", remainder="drop")
    mixture = Mixture({**sources, "rare": dropping}, WEIGHTS, lanes=8)
    with pytest.raises(ValueError, match="source 'rare' has 3 rows, and remainder=\"drop\" leaves none"):
        next(iter(mixture))


def test_empty_and_unread_sources_may_have_a_weight_of_zero(corpus: Path) -> None:
    empty = StatefulShardedDataset(corpus / "code", filter=pa.compute.field("id") < 0)
    mixture = Mixture({**sources_of(corpus), "code": empty}, {"web": 1, "code": 0, "rare": 1}).batch(4)
    assert all(row not in range(1000, 2000) for batch in ids(mixture, 9) for row in batch)


def test_a_rank_whose_items_depend_on_the_data_does_not_know_the_sources_of_the_job(corpus: Path) -> None:
    mixture = Mixture(sources_of(corpus), WEIGHTS, rank=0, world_size=2).flat_map(lambda row: [row]).batch(4)
    loader = SavableLoader(mixture)
    next(iter(loader))
    with pytest.raises(LanewayError, match=r"flat_map\(\) make .* on all ranks, and describe_state\(\) of the result"):
        _ = loader.sources


def test_weights_of_one_dataset_can_not_be_set(corpus: Path) -> None:
    loader = SavableLoader(sources_of(corpus)["web"])
    with pytest.raises(LanewayError, match="set_weights is for a loader over a Mixture"):
        loader.set_weights({"web": 1})
    with pytest.raises(ValueError, match="'code' has no weight"):
        SavableLoader(mixture_of(corpus)).set_weights({"web": 1})


def test_batch_is_what_batch_size_is(corpus: Path) -> None:
    whole = StatefulShardedDataset(corpus / "web", batch_size=8, drop_last=True)
    batched = StatefulShardedDataset(corpus / "web").batch(8, drop_last=True)
    assert len(whole) == len(batched) == 7
    assert ids(whole) == ids(batched)
    batched.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="already yields batches of 8 rows"):
        batched.batch(2)
    rows = StatefulShardedDataset(corpus / "web").map(lambda row: {"twice": 2 * row["id"]}).batch(4)
    assert next(iter(rows.map(lambda batch: batch["twice"].tolist()))) == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="with_context=True is not possible"):
        rows.map(print, with_context=True)


def test_a_mixture_with_an_end_goes_on_where_lanes_have_delivered_more_than_fewer_ranks_would(
    tmp_path: Path,
) -> None:
    pq.write_table(pa.table({"x": range(3)}), tmp_path / "part-0.parquet")

    def make(rank: int, world_size: int) -> SavableLoader:
        rows = StatefulShardedDataset(tmp_path, rank=rank, world_size=world_size)
        return SavableLoader(Mixture({"a": rows}, {"a": 1}, stop="all_exhausted", lanes=4).batch(1))

    ranks = [make(rank, 2) for rank in range(2)]
    found = [next(iter(loader))["x"].item() for loader in ranks]
    resumed = make(0, 1)
    resumed.load_state_dict(ranks[0].state_dict())
    found += [batch["x"].item() for batch in resumed]
    assert {*found} == {0, 1, 2}


def test_lanes_that_end_within_a_turn_are_cut_again_where_they_ended(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(20)}), tmp_path / "part-0.parquet")

    def make(rank: int, world_size: int) -> Mixture:
        rows = StatefulShardedDataset(tmp_path, rank=rank, world_size=world_size, remainder="keep")
        return Mixture({"a": rows}, {"a": 1}, stop="first_exhausted", lanes=12).batch(2)

    ranks = [SavableLoader(make(rank, 3)) for rank in range(3)]
    found = [row for loader in ranks for batch in islice(loader, 3) for row in batch["x"].tolist()]
    assert len(found) == 9
    mixture = make(0, 2)
    resumed = SavableLoader(mixture)
    resumed.load_state_dict(ranks[0].state_dict())
    _ = [*resumed]
    report = audit([ranks[0].state_dict(), resumed.state_dict()], mixture)
    assert report.is_exact
    assert sum(each.num_delivered for each in report.epochs) == 9

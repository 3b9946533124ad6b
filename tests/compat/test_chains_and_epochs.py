"""Repeated saving and restoring, also at the start and end of epochs, and the epochs that follow."""

from __future__ import annotations

import pickle
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.data import DataLoader, get_worker_info

from laneway import SavableLoader, StatefulShardedDataset, StateUnavailableError
from laneway.core.schema import unwrap_state
from tests.compat.loaders import FORKSERVER, flat, ids, loader_raises, make_loader, run_with_states, saved
from tests.corpora import write_corpus
from tests.fuzzing import thorough
from tests.waiting import CountedTransform

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = [0, 1, 2]
WAYS: list[Any] = [
    {"num_workers": 0},
    thorough({"num_workers": 1}),
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
]


LATE_CHOICE = pytest.mark.filterwarnings("ignore:set_epoch.* applies to the next pass")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def loader(corpus: Path, **options: Any) -> Any:
    return make_loader(corpus, dataset={"shuffle": True}, **options)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("rows", [False, True])
def test_ten_restores_with_one_batch_each_lose_nothing(corpus: Path, options: dict[str, Any], rows: bool) -> None:
    uninterrupted = ids(loader(corpus, rows=rows, **options))
    current, received = loader(corpus, rows=rows, **options), []
    for _ in range(10):
        received += ids(islice(current, 1))
        state = saved(current.state_dict())
        current = loader(corpus, rows=rows, **options)
        current.load_state_dict(state)
    assert received + ids(current) == uninterrupted


@pytest.mark.parametrize("options", WAYS)
def test_the_same_state_can_be_restored_twice(corpus: Path, options: dict[str, Any]) -> None:
    uninterrupted, states = run_with_states(loader(corpus, **options))
    again = loader(corpus, **options)
    for _ in range(2):
        again.load_state_dict(states[3])
        assert uninterrupted[:3] + ids(again) == uninterrupted


@pytest.mark.parametrize("options", WAYS)
def test_a_state_saved_right_after_a_restore_resumes_exactly(corpus: Path, options: dict[str, Any]) -> None:
    uninterrupted, states = run_with_states(loader(corpus, **options))
    for done in (0, 4, len(uninterrupted)):
        restored = loader(corpus, **options)
        restored.load_state_dict(states[done])
        resaved = saved(restored.state_dict())
        last = loader(corpus, **options)
        last.load_state_dict(resaved)
        assert uninterrupted[:done] + ids(last) == uninterrupted
        assert uninterrupted[:done] + ids(restored) == uninterrupted


@pytest.mark.parametrize("options", WAYS)
def test_a_state_of_the_last_batch_delivers_nothing_once_and_then_whole_epochs(
    corpus: Path, options: dict[str, Any]
) -> None:
    whole = loader(corpus, **options)
    first, states = run_with_states(whole)
    second, third = ids(whole), ids(whole)
    restored = loader(corpus, **options)
    restored.load_state_dict(states[-1])
    assert ids(restored) == []
    assert [ids(restored), ids(restored)] == [second, third]
    assert sorted(flat(first)) == sorted(flat(second)) == sorted(flat(third)) == list(range(48))
    assert first != second != third


@pytest.mark.parametrize("options", WAYS)
def test_a_state_saved_between_epochs_continues_with_the_next_two(corpus: Path, options: dict[str, Any]) -> None:
    whole = loader(corpus, **options)
    ids(whole)
    between = saved(whole.state_dict())
    second, third = ids(whole), ids(whole)
    restored = loader(corpus, **options)
    restored.load_state_dict(between)
    assert [ids(restored), ids(restored)] == [second, third]


@pytest.mark.parametrize("options", WAYS)
def test_a_resumed_epoch_is_followed_by_the_next(corpus: Path, options: dict[str, Any]) -> None:
    whole = loader(corpus, **options)
    first, states = run_with_states(whole)
    second, third = ids(whole), ids(whole)
    restored = loader(corpus, **options)
    restored.load_state_dict(states[6])
    assert [first[:6] + ids(restored), ids(restored), ids(restored)] == [first, second, third]


@pytest.mark.parametrize("options", WAYS)
def test_every_pass_of_a_plain_dataloader_is_the_next_epoch(corpus: Path, options: dict[str, Any]) -> None:
    dataset = StatefulShardedDataset(corpus, shuffle=True, batch_size=4, shard_rows=4)
    plain = DataLoader(dataset, batch_size=None, **options)
    epochs: list[list[list[int]]] = []
    for epoch in range(3):
        epochs.append([])
        for batch in plain:
            epochs[-1].append(batch["id"].tolist())
            assert dataset.epoch == epoch
    assert len({str(order) for order in epochs}) == 3
    again = StatefulShardedDataset(corpus, shuffle=True, batch_size=4, shard_rows=4)
    again.set_epoch(1)
    assert ids(DataLoader(again, batch_size=None, **options)) == epochs[1]


@pytest.mark.parametrize(
    "options",
    [
        *WAYS,
        {"num_workers": 1, "multiprocessing_context": FORKSERVER},
        {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    ],
)
def test_set_epoch_reaches_the_workers(corpus: Path, options: dict[str, Any]) -> None:
    whole = loader(corpus, **options)
    orders = []
    for epoch in (2, 0, 2):
        whole.dataset.set_epoch(epoch)
        orders.append(ids(whole))
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("options", WAYS)
def test_set_epoch_for_the_restored_epoch_keeps_its_progress(corpus: Path, options: dict[str, Any]) -> None:
    whole = loader(corpus, **options)
    whole.dataset.set_epoch(4)
    uninterrupted, states = run_with_states(whole)
    restored = loader(corpus, **options)
    restored.load_state_dict(states[5])
    restored.dataset.set_epoch(4)
    assert uninterrupted[:5] + ids(restored) == uninterrupted
    restored.dataset.set_epoch(4)
    assert ids(restored) == uninterrupted, "the progress applies to one pass: set again, the epoch is whole"


def test_set_epoch_for_another_epoch_starts_that_one(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    epochs = [ids(dataset), ids(dataset)]
    dataset.set_epoch(0)
    batches = iter(dataset)
    next(batches)
    state = dataset.state_dict()
    restored = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    restored.load_state_dict(state)
    assert restored.epoch == 0
    with pytest.warns(UserWarning, match=r"set_epoch\(1\) drops the loaded state, which is of the middle of epoch 0"):
        restored.set_epoch(1)
    assert restored.state_dict()["epoch"] == 1
    assert ids(restored) == epochs[1]


@pytest.mark.parametrize("num_workers", WORKERS)
def test_a_state_of_a_later_epoch_overrides_set_epoch_with_a_warning(corpus: Path, num_workers: int) -> None:
    whole = StatefulShardedDataset(corpus, batch_size=4)
    whole.set_epoch(3)
    next(iter(whole))
    restored = StatefulShardedDataset(corpus, batch_size=4)
    restored.set_epoch(0)
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) was called, but the loaded state is of epoch 3"):
        restored.load_state_dict(whole.state_dict())
    assert restored.epoch == 3
    rest = ids(DataLoader(restored, batch_size=None, num_workers=num_workers))
    assert sorted(flat(rest)) == list(range(4, 48))


def test_two_loaders_over_one_dataset_deliver_consecutive_epochs(corpus: Path) -> None:
    arguments: dict[str, Any] = {"shuffle": True, "batch_size": 4, "shard_rows": 4}
    dataset = StatefulShardedDataset(corpus, **arguments)
    first, second = (DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True) for _ in range(2))
    found = [ids(loader) for loader in (first, second, first, second, first)]
    single = DataLoader(StatefulShardedDataset(corpus, **arguments), batch_size=None, num_workers=2)
    assert found == [ids(single) for _ in range(5)]


@LATE_CHOICE
@pytest.mark.parametrize("options", WAYS)
def test_set_epoch_before_a_save_does_not_change_the_saved_progress(corpus: Path, options: dict[str, Any]) -> None:
    whole = loader(corpus, **options)
    epochs = [ids(whole), ids(whole)]
    for done in (4, len(epochs[0])):
        current = loader(corpus, **options)
        batches = iter(current)
        received = [next(batches)["id"].tolist() for _ in range(2)]
        current.dataset.set_epoch(1)
        received += [next(batches)["id"].tolist() for _ in range(done - 2)]
        resumed = loader(corpus, **options)
        resumed.load_state_dict(saved(current.state_dict()))
        assert received + ids(resumed) == epochs[0]
        assert ids(resumed) == epochs[1]


@pytest.mark.parametrize("options", WAYS)
def test_a_training_loop_that_sets_every_epoch_resumes_between_epochs(corpus: Path, options: dict[str, Any]) -> None:
    def epochs(loop: Any, start: int) -> list[list[list[int]]]:
        found = []
        for epoch in range(start, 4):
            loop.dataset.set_epoch(epoch)
            found.append(ids(loop))
        return found

    uninterrupted = epochs(loader(corpus, **options), 0)
    first = loader(corpus, **options)
    first.dataset.set_epoch(0)
    assert ids(first) == uninterrupted[0]
    resumed = loader(corpus, **options)
    resumed.load_state_dict(saved(first.state_dict()))
    assert epochs(resumed, 1) == uninterrupted[1:]


SLOW_WAYS: list[dict[str, Any]] = [
    {"num_workers": 2, "prefetch_factor": 8},
    {"num_workers": 2, "prefetch_factor": 8, "persistent_workers": True},
]


def num_read_ahead(num_workers: int, prefetch_factor: int = 2, **_: Any) -> int:
    """Return the number of batches that workers have read once one is delivered and the prefetch queue is full."""
    return 1 + num_workers * prefetch_factor


def slow_worker(batch: dict[str, Any]) -> dict[str, Any]:
    info = get_worker_info()
    if info is not None and info.id == 1:
        time.sleep(0.03)
    return batch


@pytest.mark.parametrize("is_read_ahead", [False, True])
@pytest.mark.parametrize("options", [*WAYS, *SLOW_WAYS])
def test_a_pass_after_a_break_is_the_whole_next_epoch_however_far_workers_have_read_ahead(
    corpus: Path, options: dict[str, Any], is_read_ahead: bool
) -> None:
    arguments: dict[str, Any] = {"shuffle": True, "batch_size": 2, "shard_rows": 4}
    epochs = StatefulShardedDataset(corpus, **arguments, transform=slow_worker)
    plain = DataLoader(epochs, batch_size=None, **options)
    expected = [ids(plain) for _ in range(3)]
    read = CountedTransform(corpus / "_calls", slow_worker)
    dataset = StatefulShardedDataset(corpus, **arguments, transform=read)
    broken = DataLoader(dataset, batch_size=None, **options)
    batches = iter(broken)
    assert next(batches)["id"].tolist() == expected[0][0]
    if is_read_ahead:
        read.wait_for(num_read_ahead(**options))
    del batches
    assert [ids(broken), ids(broken)] == expected[1:]
    assert dataset.epoch == 2


@pytest.mark.parametrize("options", [*WAYS, *SLOW_WAYS])
def test_set_epoch_during_a_pass_applies_to_the_next(corpus: Path, options: dict[str, Any]) -> None:
    read = CountedTransform(corpus / "_calls", slow_worker)
    dataset = StatefulShardedDataset(corpus, shuffle=True, batch_size=2, shard_rows=4, transform=read)
    plain = DataLoader(dataset, batch_size=None, **options)
    expected = ids(plain)
    dataset.set_epoch(0)
    batches = iter(plain)
    found = [next(batches)["id"].tolist()]
    dataset.set_epoch(0)
    read.wait_for(len(expected) + num_read_ahead(**options))
    assert found + ids(batches) == expected
    assert ids(plain) == expected
    assert ids(plain) != expected


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_an_epoch_chosen_during_a_pass_is_the_epoch_once_the_pass_has_ended(
    corpus: Path, num_workers: int | None
) -> None:
    dataset = StatefulShardedDataset(corpus, shuffle=True, batch_size=2, shard_rows=4)
    source = dataset if num_workers is None else SavableLoader(dataset, num_workers=num_workers)

    def epochs() -> tuple[int, int]:
        state = unwrap_state(source.state_dict())
        assert isinstance(state, dict)
        return source.epoch, state["epoch"]

    batches = iter(source)
    next(batches)
    source.set_epoch(5)
    assert epochs() == (5, 5)
    next(batches)
    assert epochs() == (0, 0), "the pass goes on"
    for _ in batches:
        assert epochs() == (0, 0)
    assert epochs() == (5, 5)
    next(iter(source))
    assert epochs() == (5, 5)


@pytest.mark.parametrize("epoch", [0, 5])
@pytest.mark.parametrize("options", WAYS)
@LATE_CHOICE
def test_set_epoch_after_a_state_was_taken_before_the_first_batch(
    corpus: Path, options: dict[str, Any], epoch: int
) -> None:
    delivered = 0 if options["num_workers"] else epoch
    expected, late = loader(corpus, **options), loader(corpus, **options)
    expected.dataset.set_epoch(delivered)
    late.state_dict()
    late.dataset.set_epoch(epoch)
    assert ids(late) == ids(expected)


@pytest.mark.parametrize("options", WAYS[1:])
def test_set_epoch_after_workers_have_begun_a_pass_gives_a_warning(corpus: Path, options: dict[str, Any]) -> None:
    late = loader(corpus, **options)
    late.state_dict()
    late.dataset.set_epoch(5)
    with loader_raises(UserWarning, match=r"set_epoch\(5\) applies to the next pass, .* this one, over epoch 0"):
        ids(late)


@pytest.mark.parametrize("options", WAYS)
def test_a_loaded_state_is_used_by_one_pass(corpus: Path, options: dict[str, Any]) -> None:
    whole = loader(corpus, **options)
    first, states = run_with_states(whole)
    second = ids(whole)
    restored = loader(corpus, **options)
    restored.load_state_dict(states[4])
    assert ids(islice(restored, 2)) == first[4:6]
    assert ids(restored) == second
    for epoch in (3, 0):
        restored.dataset.set_epoch(epoch)
        passed = ids(restored)
    assert passed == first


def test_a_state_loaded_while_an_earlier_pass_still_runs_is_not_lost(corpus: Path) -> None:
    whole = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    whole.set_epoch(5)
    batches = iter(whole)
    first = next(batches)["id"].tolist()
    state = whole.state_dict()
    rest = ids(batches)
    dataset = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    old = iter(dataset)
    next(old)
    dataset.load_state_dict(state)
    list(old)
    assert dataset.state_dict() == state
    assert [first, *ids(dataset)] == [first, *rest]
    assert dataset.epoch == 5
    assert dataset.state_dict()["complete"]


def test_a_mapped_copy_resumes_where_the_original_would(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=4)
    next(iter(dataset))
    restored = StatefulShardedDataset(corpus, batch_size=4)
    restored.load_state_dict(dataset.state_dict())
    assert flat([batch.tolist() for batch in restored.map(keep_ids)]) == list(range(4, 48))
    with pytest.warns(UserWarning, match=r"set_epoch\(3\) drops the loaded state"):
        restored.set_epoch(3)
    assert restored.map(keep_ids).epoch == 3


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_state_of_the_dataset_resumes_in_workers(corpus: Path, num_workers: int) -> None:
    whole = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    batches = iter(whole)
    done = flat(ids(islice(batches, 5)))
    restored = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    restored.load_state_dict(whole.state_dict())
    plain = DataLoader(restored, batch_size=None, num_workers=num_workers)
    assert sorted(done + flat(ids(plain))) == list(range(48))
    ids(whole)
    assert sorted(flat(ids(plain))) == list(range(48)), "the next epoch is whole"
    assert restored.epoch == 1


def test_a_complete_state_delivers_nothing_once_in_workers_too(corpus: Path) -> None:
    whole = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    ids(islice(whole, 12))
    second = StatefulShardedDataset(corpus, shuffle=True, batch_size=4)
    second.load_state_dict(whole.state_dict())
    second.set_epoch(0)
    plain = DataLoader(second, batch_size=None, num_workers=2)
    assert ids(plain) == []
    assert sorted(flat(ids(plain))) == list(range(48))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_while_workers_hold_the_progress_the_error_of_the_dataset_names_the_loader(
    corpus: Path, num_workers: int
) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=4)
    plain = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    fresh = dataset.state_dict()
    next(iter(plain))
    with pytest.raises(StateUnavailableError, match="StatefulDataLoader"):
        dataset.state_dict()
    with pytest.raises(StateUnavailableError):
        dataset.completed_shards()
    dataset.load_state_dict(fresh)
    assert dataset.state_dict() == fresh


def test_a_state_shares_no_values_with_the_dataset(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=4, lanes=2)
    batches = iter(dataset)
    next(batches)
    state = dataset.state_dict()
    copy = pickle.dumps(state)
    next(batches)
    assert pickle.dumps(state) == copy
    restored = StatefulShardedDataset(corpus, batch_size=4, lanes=2)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    state["earlier_cuts"].append([])
    assert pickle.loads(copy) == restored.state_dict()


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [{"batch_size": 4}, {"batch_size": 4, "drop_last": True}, {"batch_size": 4, "lanes": 12, "turn_rows": 2}, {}],
)
def test_the_length_of_a_loader_is_the_number_of_items_it_delivers(
    corpus: Path, num_workers: int, arguments: dict[str, Any]
) -> None:
    dataset = StatefulShardedDataset(corpus, **arguments)
    plain = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    expected = len(plain)
    assert len(list(plain)) == expected
    assert len(dataset) == expected


def test_changed_copies_leave_the_original_unchanged(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=7)
    shuffled = dataset.shuffle(seed=3)
    half = shuffled.shard(num_shards=2, index=1).map(keep_ids).map(len)
    assert ids(dataset) == [list(range(start, min(start + 7, 48))) for start in range(0, 48, 7)]
    assert ids(shuffled) == ids(StatefulShardedDataset(corpus, batch_size=7, shuffle=True, seed=3))
    assert list(half) == [7, 7, 7, 3]
    assert list(DataLoader(half, batch_size=None, num_workers=1, multiprocessing_context="spawn")) == [7, 7, 7, 3]


def keep_ids(batch: dict[str, Any]) -> Any:
    return batch["id"]

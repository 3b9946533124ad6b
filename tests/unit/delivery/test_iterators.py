"""Iterators over passes: one thread at a time, and no copies."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import LanewayError, SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUM_ROWS = 60
KINDS: dict[str, Callable[[Path, Any], Any]] = {
    "dataset of rows": lambda path, fn: StatefulShardedDataset(path, transform=fn),
    "dataset of batches": lambda path, fn: StatefulShardedDataset(path, batch_size=1, transform=fn),
    "loader": lambda path, fn: SavableLoader(StatefulShardedDataset(path, batch_size=1, transform=fn)),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": range(NUM_ROWS)}), tmp_path / "part-0.parquet", row_group_size=20)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_thread_in_next_is_an_error_and_the_first_one_loses_nothing(corpus: Path, kind: str) -> None:
    is_reading, is_refused = threading.Event(), threading.Event()

    def wait_for_the_other(item: dict[str, Any]) -> dict[str, Any]:
        if int(item["id"]) == 7:
            is_reading.set()
            assert is_refused.wait(30)
        return item

    items = iter(KINDS[kind](corpus, wait_for_the_other))
    received: list[int] = []
    first = threading.Thread(target=lambda: received.extend(int(item["id"]) for item in items))
    first.start()
    assert is_reading.wait(30)
    try:
        for _ in range(2):
            with pytest.raises(LanewayError, match=r"another thread is in next\(\) of this iterator"):
                next(items)
    finally:
        is_refused.set()
        first.join()
    assert received == list(range(NUM_ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_may_take_turns_also_after_an_error(corpus: Path, kind: str) -> None:
    failures = iter([True])

    def fail_once(item: dict[str, Any]) -> dict[str, Any]:
        if int(item["id"]) == 7 and next(failures, False):
            message = "on purpose"
            raise ValueError(message)
        return item

    items = iter(KINDS[kind](corpus, fail_once))
    received = [int(next(items)["id"]) for _ in range(7)]
    with pytest.raises(ValueError, match="on purpose"):
        next(items)
    other = threading.Thread(target=lambda: received.extend(int(item["id"]) for item in items))
    other.start()
    other.join()
    assert received == list(range(NUM_ROWS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_iterator_is_not_copied(corpus: Path, kind: str, copy_of: Callable[[Any], Any]) -> None:
    items = iter(KINDS[kind](corpus, dict))
    next(items)
    with pytest.raises(LanewayError, match="can't be copied or pickled: save state_dict"):
        copy_of(items)
    assert Counter(int(item["id"]) for item in items) == Counter(range(1, NUM_ROWS))


def test_a_copy_of_a_dataset_has_passes_of_its_own(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=10)
    items = iter(dataset)
    next(items)
    copied = copy.copy(dataset)
    state = dataset.state_dict()
    assert len(list(copied)) == 6
    assert dataset.state_dict() == state
    assert len(list(items)) == 5

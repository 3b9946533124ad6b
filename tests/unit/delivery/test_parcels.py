"""Batches that cross from workers in parcels: in the order of turns, each with its own tag, errors after what came."""

from __future__ import annotations

import pickle
import random
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from laneway import DataFileError, Mixture, NullInColumnError, SavableLoader, StatefulShardedDataset
from laneway.delivery import sending
from laneway.delivery.parcels import MAX_BATCHES, BatchesInTurn, Parcel, ParcelFormat, Tag, num_batches
from laneway.delivery.sending import SentItems, to_send
from laneway.metering import Meter
from tests.compat.loaders import flat, ids, loader_raises, saved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_ROWS = 3_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 3,000 rows of numbers, times, fixed-size lists, strings and ragged lists."""
    path = tmp_path_factory.mktemp("corpus")
    for part in range(3):
        rows = range(part * 1_000, (part + 1) * 1_000)
        table = pa.table(
            {
                "id": rows,
                "x": pa.array([row / 7 for row in rows], pa.float32()),
                "is_odd": [row % 2 == 1 for row in rows],
                "when": pa.array(rows, pa.timestamp("ms")),
                "four": pa.array([[row] * 4 for row in rows], pa.list_(pa.int16(), 4)),
                "text": [None if row % 5 == 0 else f"row {row} " * (row % 9) for row in rows],
                "raw": pa.array([bytes([row % 256]) * (row % 3) for row in rows], pa.large_binary()),
            }
        )
        pq.write_table(table, path / f"part-{part}.parquet", row_group_size=130)
    return path


def dataset_of(corpus: Path, **arguments: Any) -> StatefulShardedDataset:
    return StatefulShardedDataset(corpus, **{"batch_size": 7, "shuffle": True, "window_bytes": 20_000, **arguments})


def plain(item: Any) -> Any:
    """Return an item as values that can be compared, with their types."""
    if isinstance(item, (torch.Tensor, np.ndarray)):
        return (type(item), item.dtype, item.tolist())
    if isinstance(item, pa.RecordBatch):
        return item.to_pydict()
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    return [plain(value) for value in item] if isinstance(item, list) else item


def test_parcels_grow_from_one_batch_to_the_most() -> None:
    assert [num_batches(index, 12) for index in range(6)] == [1, 2, 4, 8, 12, 12]
    assert num_batches(10**9, MAX_BATCHES) == MAX_BATCHES


def identity(item: Any) -> Any:
    return item


def test_parcels_are_of_single_batches_where_functions_of_the_user_are_called(corpus: Path) -> None:
    def most(dataset: StatefulShardedDataset) -> tuple[int, bool]:
        parcel_format = ParcelFormat.of(dataset.definition, pin_memory=False)
        return parcel_format.max_batches, parcel_format.keeps_open

    assert most(dataset_of(corpus)) == (MAX_BATCHES, True)
    assert most(dataset_of(corpus, output="arrow")) == (MAX_BATCHES, False)
    assert most(dataset_of(corpus, batch_size=100_000)) == (1, True)
    assert most(dataset_of(corpus, transform=identity)) == (1, False)
    assert most(dataset_of(corpus).map(identity)) == (1, False)
    rows = dataset_of(corpus, batch_size=None, columns=["id", "text"])
    assert most(rows)[1]
    assert most(rows.flat_map(lambda row: [row])) == (1, False)


@pytest.mark.parametrize("has_accelerator", [False, True])
def test_rows_are_converted_by_the_worker_if_an_accelerator_pins_them(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, *, has_accelerator: bool
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    parcel_format = ParcelFormat.of(dataset_of(corpus).definition, pin_memory=True)
    assert parcel_format.keeps_open != has_accelerator


@pytest.mark.skipif(torch.accelerator.is_available(), reason="memory is pinned where there is an accelerator")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_an_accelerator_pin_memory_does_nothing_but_warn(corpus: Path, num_workers: int) -> None:
    expected = [plain(item) for item in SavableLoader(dataset_of(corpus))]
    loader = SavableLoader(dataset_of(corpus), num_workers=num_workers, pin_memory=True)
    with pytest.warns(UserWarning, match="no accelerator is found"):
        assert [plain(item) for item in loader] == expected


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lanes": 12},
        {"output": "numpy"},
        {"output": "arrow"},
        {"output": "python"},
        {"output": "python", "columns": ["text", "id"]},
        {"batch_size": None, "columns": ["id", "text"]},
        {"batch_size": None},
        {"shuffle": False, "columns": ["id"]},
        {"fill_null": {"x": 3}, "drop_last": True},
    ],
    ids=str,
)
def test_batches_are_the_same_as_without_workers(corpus: Path, arguments: dict[str, Any], num_workers: int) -> None:
    arguments = {"lanes": 6, **arguments}
    expected = [plain(item) for item in SavableLoader(dataset_of(corpus, **arguments))]
    loader = SavableLoader(dataset_of(corpus, **arguments), num_workers=num_workers)
    assert [plain(item) for item in loader] == expected


def test_batches_arrive_even_if_there_is_no_shared_memory(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        message = "no room"
        raise OSError(message)

    expected = [plain(item) for item in SavableLoader(dataset_of(corpus, batch_size=600))]
    monkeypatch.setattr(sending, "lend", full)
    loader = SavableLoader(dataset_of(corpus, batch_size=600), num_workers=1, multiprocessing_context="fork")
    assert [plain(item) for item in loader] == expected


def test_a_state_within_a_parcel_resumes_after_its_batch(corpus: Path) -> None:
    def make() -> SavableLoader:
        return SavableLoader(dataset_of(corpus), num_workers=2)

    expected = ids(make())
    stopped = make()
    received = []
    batches = iter(stopped)
    for count in range(1, 120):
        received.append(next(batches)["id"].tolist())
        assert stopped.metrics().batches == count
        assert stopped.metrics().rows == sum(map(len, received))
        if count in {4, 40, 119}:
            resumed = make()
            resumed.load_state_dict(saved(stopped.state_dict()))
            assert received + ids(resumed) == expected


def test_batches_before_an_error_come_first_and_it_is_raised_again_until_its_cause_is_gone(tmp_path: Path) -> None:
    numbers = [None if row == 777 else row for row in range(1_000)]
    pq.write_table(pa.table({"id": range(1_000), "x": numbers}), tmp_path / "part.parquet")
    loader = SavableLoader(StatefulShardedDataset(tmp_path, batch_size=10), num_workers=2)
    batches = iter(loader)
    found: list[int] = []
    others = StatefulShardedDataset(tmp_path, batch_size=10, columns=["id"])
    in_order = ids(SavableLoader(others, num_workers=2))
    received = flat(in_order[: next(number for number, rows in enumerate(in_order) if 777 in rows)])
    for _ in range(2):
        with loader_raises(NullInColumnError, r"row 777 of part\.parquet"):
            for batch in batches:
                found += batch["id"].tolist()
        assert found == received
        assert loader.metrics().batches == len(found) // 10


def test_bytes_that_are_no_string_are_an_error_of_their_batch(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(),
        100,
        [None, pa.py_buffer(np.arange(101, dtype=np.int32).tobytes()), pa.py_buffer(b"a" * 70 + b"\xff" + b"a" * 29)],
    )
    pq.write_table(pa.table({"id": range(100), "text": bad}), tmp_path / "part.parquet")
    loader = SavableLoader(StatefulShardedDataset(tmp_path, batch_size=10), num_workers=1)
    found: list[int] = []
    with loader_raises(Exception, "'text' of type string can't be converted"):
        for batch in loader:
            found += batch["id"].tolist()
    assert found == list(range(70))


def test_a_mixture_is_the_same_as_without_workers(corpus: Path) -> None:
    def batches(num_workers: int) -> list[Any]:
        columns = ["id", "text"]
        sources = {
            name: dataset_of(corpus, batch_size=None, seed=seed, columns=columns) for seed, name in enumerate("ab")
        }
        mixture = Mixture(sources, weights={"a": 2, "b": 1}, lanes=4, stop="first_exhausted").batch(8)
        return [plain(batch) for batch in SavableLoader(mixture, num_workers=num_workers)]

    assert batches(2) == batches(0)


def test_packs_are_the_same_as_without_workers(tmp_path: Path) -> None:
    lists = [list(range(row, row + row % 40)) for row in range(600)]
    pq.write_table(pa.table({"input_ids": lists}), tmp_path / "part.parquet", row_group_size=50)

    def batches(num_workers: int) -> list[Any]:
        dataset = StatefulShardedDataset(tmp_path, lanes=4).pack(32, strategy="chunk").batch(4)
        return [plain(batch) for batch in SavableLoader(dataset, num_workers=num_workers)]

    assert batches(2) == batches(0)


class Worker:
    """The parcels of a worker that delivers some batches, all of which it names."""

    def __init__(self, number: int, num_workers: int, num_items: int, most: int) -> None:
        """Have `num_items` batches."""
        self._number = number
        turns = range(number, number + num_items * num_workers, num_workers)
        self._turns = iter(turns)
        self._most = most
        self._index = 0

    def next(self) -> Parcel | None:
        """Return the next parcel, or None at the end."""
        size = num_batches(self._index, self._most)
        self._index += 1
        turns = [*islice(self._turns, size)]
        if not turns:
            return None
        tags = [Tag(turn, (), None) for turn in turns]
        return Parcel(self._number, len(turns) < size, tags, [f"batch {turn}" for turn in turns])


def rotated(workers: list[Worker]) -> Iterator[Parcel]:
    """Yield parcels as a DataLoader does: of each worker in turn that has not ended."""
    running = list(workers)
    while running:
        for worker in list(running):
            parcel = worker.next()
            if parcel is None:
                running.remove(worker)
            else:
                yield parcel


class Packed:
    """A format for batches that need no conversion."""

    def __init__(self, max_batches: int) -> None:
        """Have at most so many batches in a parcel."""
        self.max_batches = max_batches

    def received(self, item: Any) -> Any:
        """Return a batch that was sent."""
        return item


def test_turns_come_in_order_wherever_workers_end() -> None:
    rng = random.Random(3)
    for _ in range(300):
        num_workers, most = rng.randrange(1, 6), rng.choice([1, 2, 3, 8])
        # In a round of turns, those of any worker may be the last: its lanes have ended.
        counts = [rng.randrange(40) for _ in range(num_workers)]
        workers = [Worker(number, num_workers, count, most) for number, count in enumerate(counts)]
        parcel_format: Any = Packed(most)
        found = BatchesInTurn(rotated(workers), num_workers, parcel_format, in_order=True)
        expected = sorted(
            number + round_ * num_workers for number, count in enumerate(counts) for round_ in range(count)
        )
        assert [(batch.turn, batch.batch) for batch in found] == [(turn, f"batch {turn}") for turn in expected]
        assert found.num_ready(0) == 0


def test_parcels_in_any_order_are_unpacked_as_they_come() -> None:
    came = [(1, [1, 3]), (0, [0]), (1, [5])]
    parcels = [
        Parcel(worker, is_last=False, tags=[Tag(turn, (), None) for turn in turns], items=turns)
        for worker, turns in came
    ]
    parcel_format: Any = Packed(2)
    found = BatchesInTurn(iter(parcels), 2, parcel_format, in_order=False)
    assert [batch.turn for batch in found] == [1, 3, 0, 5]


def test_a_file_that_cannot_be_read_fails_where_its_rows_come(corpus: Path, tmp_path: Path) -> None:
    for path in corpus.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = dataset_of(tmp_path, shuffle=False, batch_size=10)
    damaged = tmp_path / "part-2.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"x" * len(whole))
    batches = iter(SavableLoader(dataset, num_workers=1))
    found: list[int] = []
    with loader_raises(DataFileError, r"part-2\.parquet"):
        for batch in batches:
            found += batch["id"].tolist()
    damaged.write_bytes(whole)
    assert found + flat(ids(batches)) == list(range(NUM_ROWS))


def test_an_item_that_cannot_be_pickled_is_an_error_and_the_others_arrive() -> None:
    items = [to_send({"x": torch.arange(9)}), lambda: None, "text"]
    received = pickle.loads(bytes(ForkingPickler.dumps(SentItems(items, Meter()))))
    assert received[0]["x"].tolist() == list(range(9))
    assert received[2] == "text"
    with pytest.raises(Exception, match="can't be sent from a DataLoader worker"):
        received[1].reraise()

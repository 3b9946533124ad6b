"""Batches that are sent to another process as one buffer arrive unchanged."""

from __future__ import annotations

import copy
import gc
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, default_convert

from laneway import SavableLoader, StatefulShardedDataset
from laneway.delivery import buffers, sending
from laneway.delivery.sending import SentBatch, to_send

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]


def sent(batch: dict[Any, Any]) -> dict[Any, Any]:
    """Return a worker's batch as the main process receives it."""
    received: dict[Any, Any] = pickle.loads(bytes(ForkingPickler.dumps(SentBatch(batch))))
    assert type(received) is dict
    assert list(received) == list(batch)
    return received


@pytest.mark.parametrize("num_rows", [0, 1, 7, 40_000])
def test_columns_of_every_kind_survive_together(num_rows: int) -> None:
    columns = {str(dtype): torch.arange(num_rows).to(dtype) for dtype in DTYPES}
    batch: dict[Any, Any] = {
        **columns,
        "two-dimensional": torch.arange(num_rows * 3, dtype=torch.int32).view(num_rows, 3),
        "every other": torch.arange(num_rows * 2)[::2],
        "text": [f"row {i}" for i in range(num_rows)],
        "ragged": [torch.arange(i % 5) for i in range(min(num_rows, 20))],
        "array": np.arange(num_rows, dtype=np.float32),
        "backwards": np.arange(num_rows)[::-1],
        "times": np.arange(num_rows).astype("M8[s]"),
        "long": np.arange(num_rows, dtype=np.longdouble),
        "objects": np.array(["a", None], dtype=object),
        7: None,
    }
    received = sent(batch)
    for key, value in batch.items():
        assert type(received[key]) is type(value)
        if isinstance(value, torch.Tensor):
            assert received[key].dtype == value.dtype
            assert torch.equal(received[key], value)
        elif isinstance(value, np.ndarray):
            assert received[key].dtype == value.dtype
            assert received[key].tolist() == value.tolist()
    assert received["text"] == batch["text"]
    assert all(map(torch.equal, received["ragged"], batch["ragged"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_numbers_survive_beside_columns(dtype: torch.dtype) -> None:
    batch: dict[Any, Any] = {"tensor": torch.ones((), dtype=dtype), "x": torch.arange(50_000), "array": np.array(7)}
    received = sent(batch)
    assert received["tensor"].dtype == dtype
    assert received["tensor"].shape == ()
    assert torch.equal(received["tensor"], batch["tensor"])
    assert torch.equal(received["x"], batch["x"])
    assert type(received["array"]) is np.ndarray
    assert received["array"] == 7


def test_other_tensors_are_sent_as_pytorch_sends_them() -> None:
    batch = {"leaf": torch.ones(3, requires_grad=True), "meta": torch.ones(3, device="meta"), "plain": torch.ones(3)}
    received = sent(batch)
    assert received["leaf"].requires_grad
    assert received["meta"].is_meta
    assert received["plain"].tolist() == [1, 1, 1]


def test_received_tensors_can_be_changed_in_place_and_trained_on() -> None:
    received = sent({"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.zeros(4, dtype=torch.int64)})
    received["a"] += 1
    assert received["b"].tolist() == [0] * 4
    received["b"].requires_grad_()
    with torch.no_grad():
        received["b"].add_(2)
    torch.autograd.backward([(received["a"] * received["b"]).sum()])
    assert received["b"].grad is not None
    assert received["b"].tolist() == [2] * 4


def test_copies_of_a_sent_batch_are_sent_batches() -> None:
    batch = to_send({"x": torch.zeros(2), "y": np.zeros(2)})
    assert type(copy.copy(batch)) is SentBatch
    assert type(default_convert(batch)) is SentBatch  # type: ignore[no-untyped-call]
    assert to_send([1, 2]) == [1, 2]


class Batches(IterableDataset[Any]):
    """Yields sent batches of two sizes."""

    def __iter__(self) -> Any:
        for num_rows in (3, 100_000, 0):
            yield to_send({"x": torch.arange(num_rows), "y": torch.arange(num_rows) * 2, "text": ["a"]})


@pytest.mark.parametrize("collate_fn", [None, dict])
def test_a_plain_loader_receives_plain_dicts(collate_fn: Any) -> None:
    batches = list(DataLoader(Batches(), batch_size=None, num_workers=1, collate_fn=collate_fn))
    assert [type(batch) for batch in batches] == [dict] * 3
    assert [len(batch["y"]) for batch in batches] == [3, 100_000, 0]
    assert batches[1]["y"][-1] == 199_998


def _swapped(batch: dict[str, Any]) -> dict[str, Any]:
    a, b = batch.pop("a"), batch.pop("b")
    batch["a"], batch["b"] = b, a
    return batch


def _widened(batch: dict[str, Any]) -> dict[str, Any]:
    batch["a"].unsqueeze_(1)
    batch["b"].data = batch["b"].float() / 2
    return batch


def _renamed(batch: dict[str, Any]) -> dict[str, Any]:
    batch["c"], batch["b"] = batch.pop("a"), batch.pop("b")
    return batch


@pytest.mark.parametrize("change", [_swapped, _widened, _renamed])
def test_changes_to_a_batch_in_the_worker_arrive(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    pq.write_table(pa.table({"a": range(20_000), "b": range(50_000, 70_000)}), tmp_path / "part.parquet")
    expected = change({"a": torch.arange(5_000), "b": torch.arange(50_000, 55_000)})
    dataset = StatefulShardedDataset(tmp_path, batch_size=5_000)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=change)  # type: ignore[arg-type]  # of items
    received = next(iter(loader))
    assert list(received) == list(expected)
    for name, column in expected.items():
        assert received[name].dtype == column.dtype
        assert torch.equal(received[name], column)


def test_times_arrive_as_datetime64(tmp_path: Path) -> None:
    pq.write_table(pa.table({"t": pa.array(range(9), pa.timestamp("ms")), "x": range(9)}), tmp_path / "part.parquet")
    loader = SavableLoader(StatefulShardedDataset(tmp_path, batch_size=9, output="numpy"), num_workers=1)
    assert next(iter(loader))["t"].tolist() == np.arange(9).astype("M8[ms]").tolist()


@pytest.mark.parametrize("num_rows", [1_000, 20_000])
def test_small_columns_do_not_keep_the_rest_of_their_batch(num_rows: int) -> None:
    batch = {"label": torch.arange(num_rows), "tokens": torch.zeros(num_rows, 64), "half": torch.ones(9).bfloat16()}
    leases = set(buffers._leases)
    received = sent(batch)
    assert received["label"].untyped_storage().nbytes() == 8 * num_rows
    assert received["half"].untyped_storage().nbytes() == 18
    assert set(buffers._leases) > leases
    kept = received.pop("label")
    received.clear()
    gc.collect()
    assert set(buffers._leases) <= leases
    assert kept.tolist() == list(range(num_rows))


def test_a_batch_arrives_even_if_shared_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> None:
        message = "no room"
        raise RuntimeError(message)

    monkeypatch.setattr(sending, "lend", full)
    column = torch.arange(50_000)
    assert torch.equal(sent({"x": column, "text": ["a"]})["x"], column)

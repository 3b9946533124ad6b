"""Shared memory is reused only when no view of its content is left."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import LanewayError, SavableLoader, StatefulShardedDataset
from laneway.delivery import buffers
from laneway.delivery.sending import SentBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_BYTES = 40_000


def filled(value: int, num_bytes: int = NUM_BYTES) -> buffers.Ticket:
    memory, ticket = buffers.lend(num_bytes)
    memory.fill(value)
    return ticket


@pytest.fixture(autouse=True)
def own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test as a process that has sent and received nothing."""
    monkeypatch.setattr(buffers, "_outbox", None)
    monkeypatch.setattr(buffers, "_known", {})


def test_a_buffer_is_reused_when_all_views_of_it_are_gone() -> None:
    first = filled(1)
    assert first.memory is not None
    received = buffers.receive(first)
    view = received[100:200].reshape(10, 10)[3:]
    del received
    other = filled(2)
    assert other.key != first.key
    assert (view == 1).all()
    del view
    again = filled(3)
    assert again == buffers.Ticket(first.key, None, None)
    assert (buffers.receive(again)[:NUM_BYTES] == 3).all()


def test_any_number_of_kept_batches_is_never_overwritten() -> None:
    kept = [buffers.receive(filled(i)) for i in range(40)]
    assert len(buffers._known) == 16
    assert all((memory[:NUM_BYTES] == i).all() for i, memory in enumerate(kept))


def test_a_larger_batch_gets_a_buffer_of_its_own_and_a_smaller_one_fits() -> None:
    small = filled(1, 1_000)
    key = small.key
    buffers.receive(small)
    for num_bytes, is_same in [(1_000_000, False), (900, True), (1_024, True)]:
        ticket = filled(5, num_bytes)
        assert buffers.receive(ticket).size >= num_bytes
        assert (ticket.key == key) == is_same


def test_a_view_that_a_forked_child_inherits_keeps_its_content() -> None:
    received = buffers.receive(filled(1))
    pipe, childs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(pipe, 1)
        os._exit(0 if (received[:NUM_BYTES] == 1).all() else 1)
    del received
    gc.collect()
    tickets = [filled(7) for _ in range(20)]
    os.write(childs, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert len({ticket.key for ticket in tickets if ticket.key}) == 16
    os.close(pipe)
    os.close(childs)


def test_a_child_that_exits_frees_no_buffer_of_its_parent() -> None:
    received = buffers.receive(filled(1))
    pid = os.fork()
    if pid == 0:
        del received
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert filled(2).memory is not None
    assert (received[:NUM_BYTES] == 1).all()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no anonymous shared memory")
def test_buffers_take_no_room_in_dev_shm() -> None:
    kept = [buffers.receive(filled(number)) for number in range(3)]
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:laneway-buffer" in line]
    assert len(mapped) >= len(kept)


def test_receiving_a_buffer_of_another_process_is_an_error() -> None:
    filled(1)
    ticket = buffers.Ticket(buffers.Key(os.getpid(), 0, 0), None, None)
    with pytest.raises(LanewayError, match="was received by a process other than its loader's"):
        buffers.receive(ticket)


def _send(queue: Any) -> None:
    queue.put(SentBatch({"x": torch.full((50_000,), 7)}))
    signal.pause()


def test_buffers_of_an_ended_worker_are_released_when_another_one_starts() -> None:
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        queue = context.Queue()
        worker = context.Process(target=_send, args=(queue,), daemon=True)
        worker.start()
        assert queue.get(timeout=60)["x"].tolist() == [7] * 50_000
        assert [key.pid for key in buffers._known] == [worker.pid]
        worker.kill()
        worker.join()


def test_a_sent_batch_is_pickled_and_copied_as_a_plain_dict() -> None:
    batch = SentBatch({"x": torch.arange(50_000), "y": ["a"]})
    for made in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert type(made) is dict
        assert torch.equal(made["x"], batch["x"])
    assert buffers._outbox is None
    assert pickle.loads(bytes(ForkingPickler.dumps(batch)))["y"] == ["a"]


class _Numbers(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from (SentBatch({"x": torch.full((20_000,), i)}) for i in range(30))


def test_a_batch_is_sent_with_its_changes() -> None:
    loader = DataLoader(_Numbers(), batch_size=None, num_workers=1, collate_fn=_with_more)  # type: ignore[arg-type]  # batch_size=None: called on each item
    for i, batch in enumerate(loader):
        assert (batch["x"] == i + 100).all()
        assert (batch["y"] == i).all()


def _with_more(batch: dict[str, Any]) -> dict[str, Any]:
    batch["y"] = batch["x"]
    batch["x"] = batch["x"] + 100
    return batch


@pytest.mark.parametrize("kind", ["savable", "stateful", "plain"])
def test_all_batches_of_an_epoch_can_be_kept(tmp_path: Path, kind: str) -> None:
    for part in range(4):
        ids = range(part * 5_000, part * 5_000 + 5_000)
        pq.write_table(pa.table({"id": ids, "wide": [[i] * 20 for i in ids]}), tmp_path / f"{part}.parquet")
    dataset = StatefulShardedDataset(tmp_path, batch_size=250, shuffle=True, fill_null=None)
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
    loader: Any
    if kind == "savable":
        loader = SavableLoader(dataset, persistent_workers=True, **options)
    else:
        loader = (StatefulDataLoader if kind == "stateful" else DataLoader)(dataset, batch_size=None, **options)
    for _ in range(2):
        kept = list(loader)
        assert sorted(i for batch in kept for i in batch["id"].tolist()) == list(range(20_000))
        for batch in kept:
            assert all(row.tolist() == [i] * 20 for i, row in zip(batch["id"].tolist(), batch["wide"], strict=True))

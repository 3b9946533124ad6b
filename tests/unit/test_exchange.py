"""Exchanges over a store, between ranks that are threads here."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

from laneway import exchange
from laneway.errors import CollectiveError, LanewayError
from laneway.exchange import Answer, Exchange
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORLD_SIZE = 4


def make_stores(kind: str, folder: Path, timeout_s: float = 60) -> list[Any]:
    """Return the store of each rank."""
    if kind == "hash":
        stores: list[Any] = [dist.HashStore()] * WORLD_SIZE  # type: ignore[attr-defined]
    elif kind == "file":
        stores = [dist.FileStore(f"{folder}/store", WORLD_SIZE) for _ in range(WORLD_SIZE)]  # type: ignore[attr-defined]
    else:
        server = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        others = [
            dist.TCPStore("127.0.0.1", server.port, None, is_master=False)  # type: ignore[attr-defined]
            for _ in range(WORLD_SIZE - 1)
        ]
        stores = [server, *others]
    for store in stores:
        store.set_timeout(timedelta(seconds=timeout_s))
    return stores


def exchanges(stores: list[Any]) -> list[Exchange]:
    return [Exchange(store, rank, len(stores)) for rank, store in enumerate(stores)]


def on_ranks(call: Callable[[int], Any], ranks: range = range(WORLD_SIZE)) -> list[Any]:
    """Return what `call` returns, or the message of its CollectiveError, on each rank."""

    def outcome(rank: int) -> Any:
        try:
            return call(rank)
        except CollectiveError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(outcome, ranks))


def run(ranks: list[Exchange], call: str, reports: list[bytes], answer: Callable[[list[bytes]], Answer]) -> list[Any]:
    """Return the outcome of a call on the first ranks, as many as there are reports."""
    return on_ranks(lambda rank: ranks[rank].run(call, reports[rank], answer), range(len(reports)))


def to_all(reports: list[bytes]) -> Answer:
    return Answer(b",".join(reports))


@pytest.mark.parametrize("kind", ["hash", "file", "tcp"])
def test_rank_0_answers_all_ranks_and_no_key_is_left(tmp_path: Path, kind: str) -> None:
    stores = make_stores(kind, tmp_path)
    ranks = exchanges(stores)

    def to_rank_2(reports: list[bytes]) -> Answer:
        return Answer(b"done", 2, b"".join(reports))

    num_keys = []
    for index in range(20):
        sent = [f"{index}.{rank}".encode() for rank in range(WORLD_SIZE)]
        assert run(ranks, "call", sent, to_all) == [(b",".join(sent), None)] * WORLD_SIZE
        found = run(ranks, "call", sent, to_rank_2)
        assert found == [(b"done", b"".join(sent) if rank == 2 else None) for rank in range(WORLD_SIZE)]
        num_keys.append(stores[0].num_keys())
    assert num_keys == num_keys[:1] * 20
    # TCPStore and FileStore have one of their own.
    assert num_keys[0] <= 1


@pytest.mark.parametrize("kind", ["hash", "tcp"])
def test_values_larger_than_a_store_takes_are_sent_in_chunks(tmp_path: Path, kind: str) -> None:
    stores = make_stores(kind, tmp_path)
    ranks = exchanges(stores)
    sizes = [0, exchange.CHUNK_BYTES, exchange.CHUNK_BYTES + 1, 9 << 20]
    sent = [bytes([65 + rank]) * size for rank, size in enumerate(sizes)]

    def answer(reports: list[bytes]) -> Answer:
        return Answer(reports[3], 1, reports[2])

    found = on_ranks(lambda rank: ranks[rank].run("call", sent[rank], answer))
    assert found == [(sent[3], sent[2] if rank == 1 else None) for rank in range(WORLD_SIZE)]
    assert stores[0].num_keys() <= 1


@pytest.mark.parametrize("num_calls", [0, 1])
@pytest.mark.parametrize("absent", [1, 0])
def test_a_rank_that_does_not_come_is_named_on_all_others(tmp_path: Path, absent: int, num_calls: int) -> None:
    stores = make_stores("tcp", tmp_path, timeout_s=0.3)
    ranks = exchanges(stores)
    for _ in range(num_calls):
        run(ranks, "call", [b""] * WORLD_SIZE, to_all)

    def call(rank: int) -> Any:
        return "" if rank == absent else ranks[rank].run("save", b"", to_all)

    found = on_ranks(call)
    assert all(
        f"called save, but within 0.3 s, the timeout of the process group, rank {absent} did not" in text
        for rank, text in enumerate(found)
        if rank != absent
    ), found


def test_a_rank_that_comes_late_learns_at_once_that_the_others_gave_up(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path, timeout_s=0.3)
    ranks = exchanges(stores)
    run(ranks, "call", [b""] * WORLD_SIZE, to_all)
    on_ranks(lambda rank: ranks[rank].run("save", b"", to_all), range(2))
    for store in stores[2:]:
        store.set_timeout(timedelta(hours=1))
    late = on_ranks(lambda rank: ranks[rank + 2].run("save", b"", to_all), range(2))
    message = (
        "rank 0 of 4 called save, but within 0.3 s, the timeout of the process group, ranks 2, 3 did not: they died, "
        "or are slow, or made another call"
    )
    assert late == [message] * 2
    # They are in step again.
    again = on_ranks(lambda rank: ranks[rank].run("call", str(rank).encode(), to_all))
    assert again == [(b"0,1,2,3", None)] * WORLD_SIZE


def test_rank_0_does_not_count_on_a_rank_that_gave_up(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path)
    ranks = exchanges(stores)
    run(ranks, "call", [b""] * WORLD_SIZE, to_all)
    stores[1].set_timeout(timedelta(seconds=0.1))
    (given_up,) = on_ranks(lambda _: ranks[1].run("save", b"", to_all), range(1))
    assert "ranks 0, 2, 3 did not" in given_up
    found = on_ranks(lambda rank: "" if rank == 1 else ranks[rank].run("save", b"", to_all))
    message = "rank 0 called save, but rank 1 had waited in vain"
    assert found == [message, "", message, message]


def test_keys_of_a_group_that_failed_on_the_same_store_are_not_read(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path, timeout_s=0.2)
    for call in ("first", "second"):
        ranks = exchanges(stores)
        run(ranks, "call", [b""] * WORLD_SIZE, to_all)
        # Rank 3 dies in the second call, and leaves the others with their reports, or the error.
        run(ranks, call, [call.encode()] * 3, to_all)
    for store in stores:
        store.set_timeout(timedelta(seconds=60))
    fresh = exchanges(stores)
    for sent in (b"a", b"b", b"c"):
        assert run(fresh, "call", [sent] * WORLD_SIZE, to_all) == [(b",".join([sent] * WORLD_SIZE), None)] * WORLD_SIZE


def test_a_rank_that_was_killed_while_it_joined_is_not_taken_for_the_one_that_comes_later(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path, timeout_s=0.2)
    # Ranks 2 and 3 join, and rank 0 never comes.
    on_ranks(lambda rank: Exchange(stores[rank + 2], rank + 2, WORLD_SIZE).run("call", b"", to_all), range(2))
    for store in stores:
        store.set_timeout(timedelta(seconds=60))
    ranks = exchanges(stores)
    num_keys = stores[1].num_keys()
    with ThreadPoolExecutor(WORLD_SIZE) as threads:
        first = threads.submit(ranks[0].run, "call", b"0", to_all)
        # Rank 0 has answered to the two keys that are left, and reported, before anybody comes.
        wait_until(lambda: stores[1].num_keys() >= num_keys + 3, lambda: f"{stores[1].num_keys()} keys")
        others = [threads.submit(ranks[rank].run, "call", str(rank).encode(), to_all) for rank in range(1, WORLD_SIZE)]
        assert [each.result() for each in (first, *others)] == [(b"0,1,2,3", None)] * WORLD_SIZE


def test_rank_0_stays_until_all_ranks_have_the_answer(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path)
    ranks = exchanges(stores)
    may_read, has_returned = threading.Event(), threading.Event()
    may_read.set()

    class Slow:
        """A store from which a rank takes long to read."""

        def __getattr__(self, name: str) -> Any:
            if name == "multi_get":
                assert may_read.wait(60)
            return getattr(stores[3], name)

    slow: Any = Slow()
    ranks[3] = Exchange(slow, 3, WORLD_SIZE)
    run(ranks, "call", [b""] * WORLD_SIZE, to_all)
    may_read.clear()

    def call(rank: int) -> Any:
        found = ranks[rank].run("call", b"", to_all)
        if rank == 0:
            has_returned.set()
        return found

    with ThreadPoolExecutor(WORLD_SIZE) as threads:
        pending = [threads.submit(call, rank) for rank in range(WORLD_SIZE)]
        wait_until(lambda: pending[1].done() and pending[2].done(), lambda: "two ranks have the answer")
        assert not has_returned.is_set()
        may_read.set()
        assert [each.result() for each in pending] == [(b",,,", None)] * WORLD_SIZE


def test_an_exchange_does_not_keep_its_store(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path)
    ranks = exchanges(stores)
    run(ranks, "call", [b""] * WORLD_SIZE, to_all)
    del stores
    gc.collect()
    with pytest.raises(LanewayError, match="the process group was destroyed: create the loader after the last"):
        ranks[0].run("call", b"", to_all)


def test_a_store_whose_server_has_ended_is_an_error(tmp_path: Path) -> None:
    stores = make_stores("tcp", tmp_path, timeout_s=1)
    ranks = exchanges(stores)
    run(ranks, "call", [b""] * WORLD_SIZE, to_all)
    # Rank 0 has the server.
    ranks.pop(0)
    stores.pop(0)
    with pytest.raises(CollectiveError, match="rank 1 of 4 called save, and could not reach the store"):
        ranks[0].run("save", b"", to_all)

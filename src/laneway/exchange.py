"""How ranks communicate: over the store in which their process group met, so that no connections are added to it.

A job of W ranks that joins another process group of gloo makes a connection for each pair of ranks. The store is a
server that every rank is connected to anyway.
"""

from __future__ import annotations

import struct
import time
import uuid
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist

from laneway.errors import CollectiveError, LanewayError
from laneway.process_groups import store_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.distributed.distributed_c10d import Store

CHUNK_BYTES = 1 << 20
"""Bytes of a value under one key; TCPStore accepts up to 8 MiB."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.0005, 0.02
"""Pauses between two looks at the store, which become longer."""
PAUSE_PER_RANK_S = 0.0001
"""Least of the longest pause, per rank: all ranks together ask the store 10,000 times per second."""
_NUM_CHUNKS = struct.Struct("<I")
_HEAD = struct.Struct("<?i")
_MOST_NAMED = 10


class Answer(NamedTuple):
    """What rank 0 answers to the reports of all ranks."""

    to_all: bytes
    """The part that every rank receives."""
    dst_rank: int | None = None
    """The rank that receives `to_one`."""
    to_one: bytes = b""
    """A part for a single rank, which may be large."""


class Exchange:
    """Exchanges of bytes between the ranks of a group: all report to rank 0, which answers all.

    Every rank makes the same calls in the same order, so each knows the number of a call, and its keys. After a call
    that succeeds, none of its keys is left.
    """

    def __init__(self, store: Store, rank: int, world_size: int, session: str | None = None) -> None:
        """Use a store together with the other ranks.

        Args:
            store: The store. The exchange does not keep it: torch.distributed does, until the user destroys the group.
            rank: Rank of this process in the group.
            world_size: Number of ranks, at least 2.
            session: A name that no other exchange uses, the same on all ranks. None: they agree on one.
        """
        self._store = weakref.ref(store)
        self._rank = rank
        self._world_size = world_size
        self._session = session
        self._num_calls = 0

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> Exchange:
        """Return the exchange of a group, the same one for every call."""
        if group not in _exchanges:
            _exchanges[group] = cls(store_of(group), dist.get_rank(group), dist.get_world_size(group))
        return _exchanges[group]

    @property
    def store(self) -> Store:
        """The store.

        Raises:
            LanewayError: The process group was destroyed.
        """
        store = self._store()
        if store is None:
            message = "the process group was destroyed: create the loader after the last init_process_group()"
            raise LanewayError(message)
        return store

    def run(self, call: str, report: bytes, answer: Callable[[list[bytes]], Answer]) -> tuple[bytes, bytes | None]:
        """Send a report to rank 0, and return its answer, and the part of the answer for this rank alone.

        All ranks must call it.

        Args:
            call: What this rank does, for errors.
            report: What it sends.
            answer: Called on rank 0 with the reports of all ranks; it must not raise.

        Raises:
            CollectiveError: A rank did not make the call within the timeout of the process group, or the store could
                not be reached.
        """
        with self._errors_of_store(call):
            if self._session is None:
                self._session = self._agree_on_session(call)
            self._num_calls += 1
            keys = _Keys(f"laneway/{self._session}/{self._num_calls}")
            if self._rank == 0:
                return self._answer(keys, call, report, answer)
            return self._report(keys, call, report)

    def _agree_on_session(self, call: str) -> str:
        """Return a name that rank 0 chose, so that keys of an earlier process group on the same store don't count.

        A job that torchrun restarts may have the store of the start before. A rank that was killed while it joined has
        left its key, so rank 0 answers to the key of each name, until all ranks have come.
        """
        keys = _Keys("laneway")
        if self._rank == 0:
            session = uuid.uuid4().hex
            joined, names = keys.reports(self._world_size)[1:], set[bytes]()

            def welcome() -> None:
                present = joined if self.store.check(joined) else [key for key in joined if self.store.check([key])]
                for name in {*filter(None, self._find_each(present))} - names:
                    self._put(keys.welcome(name.decode()), session.encode())
                    names.add(name)

            self._answer(_Keys(f"laneway/{session}/0"), call, b"", lambda _: Answer(b""), meanwhile=welcome)
            for key in (*joined, *(keys.welcome(name.decode()) for name in names)):
                self.store.delete_key(key)
            return session
        name = uuid.uuid4().hex
        self._put(keys.report(self._rank), name.encode())
        if not self._wait([keys.welcome(name)]):
            raise CollectiveError(self._lost_ranks(call, keys))
        session = self._get(keys.welcome(name)).decode()
        self._report(_Keys(f"laneway/{session}/0"), call, b"")
        return session

    def _answer(
        self,
        keys: _Keys,
        call: str,
        report: bytes,
        answer: Callable[[list[bytes]], Answer],
        meanwhile: Callable[[], None] | None = None,
    ) -> tuple[bytes, bytes | None]:
        reports, lost = self._collect(keys, call, meanwhile)
        if lost is not None:
            self._put(keys.answer, _HEAD.pack(True, -1) + lost.encode())  # noqa: FBT003 - a field of the struct
            raise CollectiveError(lost)
        to_all, dst_rank, to_one = answer([report, *(each for each in reports if each is not None)])
        if dst_rank:
            self._put(keys.to_one, to_one)
        self._put(keys.answer, _HEAD.pack(False, -1 if dst_rank is None else dst_rank) + to_all)  # noqa: FBT003
        # The server of the store may be in this process, and must not end with it before all ranks have the answer.
        # If one of them died since, the next call tells.
        self._wait([keys.all_received])
        for key in (keys.report(0), keys.num_received, keys.all_received):
            self.store.delete_key(key)
        self._delete(keys.answer, _HEAD.size + len(to_all))
        return to_all, to_one if dst_rank == 0 else None

    def _collect(
        self, keys: _Keys, call: str, meanwhile: Callable[[], None] | None
    ) -> tuple[list[bytes | None], str | None]:
        """Return the reports of the other ranks, or the error if any is missing."""
        # Other ranks look whether this one has come.
        self._put(keys.report(0), b"")
        reported = keys.reports(self._world_size)[1:]
        if not self._wait(reported, meanwhile):
            return [], self._lost_ranks(call, keys)
        reports = self._find_each(reported)
        gone = [rank for rank, report in enumerate(reports, start=1) if report is None]
        return reports, f"rank 0 called {call}, but {_named(gone)} had waited in vain" if gone else None

    def _report(self, keys: _Keys, call: str, report: bytes) -> tuple[bytes, bytes | None]:
        with self._reported(keys, report):
            dst_rank, to_all = self._receive(keys.answer, keys, call)
            to_one = None
            if dst_rank == self._rank:
                to_one = self._get(keys.to_one)
                self._delete(keys.to_one, len(to_one))
        if self.store.add(keys.num_received, 1) == self._world_size - 1:
            self._put(keys.all_received, b"")
        return to_all, to_one

    @contextmanager
    def _reported(self, keys: _Keys, report: bytes) -> Iterator[None]:
        """Have a report in the store; if this rank gives up, rank 0 must know that it came, and not count on it."""
        key = keys.report(self._rank)
        self._put(key, report)
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                self._put(key, None)
            raise
        self._delete(key, len(report))

    def _receive(self, key: str, keys: _Keys, call: str) -> tuple[int, bytes]:
        if not self._wait([key]):
            raise CollectiveError(self._lost_ranks(call, keys))
        value = self._get(key)
        has_failed, dst_rank = _HEAD.unpack_from(value)
        if has_failed:
            raise CollectiveError(value[_HEAD.size :].decode())
        return dst_rank, value[_HEAD.size :]

    def _lost_ranks(self, call: str, keys: _Keys) -> str:
        """Return the message of an error that names the ranks whose report is missing."""
        reports = keys.reports(self._world_size)

        def missing(start: int, stop: int) -> list[int]:
            if self.store.check(reports[start:stop]):
                return []
            middle = (start + stop) // 2
            return [start] if stop - start == 1 else missing(start, middle) + missing(middle, stop)

        # A rank that has the answer may have deleted its report; this one has none.
        ranks = missing(0, self._world_size) or [0]
        return (
            f"rank {self._rank} of {self._world_size} called {call}, but within {self._timeout_s:g} s, "
            f"the timeout of the process group, {_named(ranks)} did not: they died, or are slow, or made "
            "another call"
        )

    @property
    def _timeout_s(self) -> float:
        # torch's stubs don't know it.
        seconds: float = self.store.timeout.total_seconds()  # type: ignore[attr-defined]
        return seconds

    # -- The store ----------------------------------------------------------------------------------------------------

    def _wait(self, keys: list[str], meanwhile: Callable[[], None] | None = None) -> bool:
        """Wait until all keys are in the store, and return whether they are within the timeout."""
        # Not `Store.wait`: other threads couldn't use the store in the meantime, nor would signals be handled.
        deadline = time.monotonic() + self._timeout_s
        pause_s, last_pause_s = FIRST_PAUSE_S, max(LAST_PAUSE_S, PAUSE_PER_RANK_S * self._world_size)
        while not self.store.check(keys):
            if time.monotonic() > deadline:
                return False
            if meanwhile is not None:
                meanwhile()
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, last_pause_s)
        return True

    def _put(self, key: str, value: bytes | None) -> None:
        # torch's stubs know values of str only.
        put: Callable[[str, bytes], None] = self.store.set  # type: ignore[assignment]
        if value is None:
            put(key, _NUM_CHUNKS.pack(0))
            return
        num_chunks = _num_chunks(len(value))
        for index in range(1, num_chunks):
            put(f"{key}/{index}", value[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        # Last: whoever finds it finds the others.
        put(key, _NUM_CHUNKS.pack(num_chunks) + value[:CHUNK_BYTES])

    def _get(self, key: str) -> bytes:
        return self._find_each([key])[0] or b""

    def _find_each(self, keys: list[str]) -> list[bytes | None]:
        """Return the values of keys that exist, None for those put as None."""
        values: list[bytes | None] = []
        for key, first in zip(keys, self.store.multi_get(keys), strict=True):
            (num_chunks,) = _NUM_CHUNKS.unpack_from(first)
            chunks = (self.store.get(f"{key}/{index}") for index in range(1, num_chunks))
            values.append(b"".join([first[_NUM_CHUNKS.size :], *chunks]) if num_chunks else None)
        return values

    def _delete(self, key: str, num_bytes: int = 0) -> None:
        """Delete a value of a number of bytes."""
        self.store.delete_key(key)
        for index in range(1, _num_chunks(num_bytes)):
            self.store.delete_key(f"{key}/{index}")

    @contextmanager
    def _errors_of_store(self, call: str) -> Iterator[None]:
        try:
            yield
        except CollectiveError:
            raise
        except RuntimeError as error:
            message = (
                f"rank {self._rank} of {self._world_size} called {call}, and could not reach the store of the process "
                f"group: the process that runs it, rank 0 or torchrun, has ended, or is cut off: {error}"
            )
            raise CollectiveError(message) from error


class _Keys(NamedTuple):
    """The keys of one call."""

    prefix: str

    def report(self, rank: int) -> str:
        return f"{self.prefix}/report/{rank}"

    def reports(self, world_size: int) -> list[str]:
        return list(map(self.report, range(world_size)))

    def welcome(self, name: str) -> str:
        return f"{self.prefix}/welcome/{name}"

    @property
    def answer(self) -> str:
        return f"{self.prefix}/answer"

    @property
    def to_one(self) -> str:
        return f"{self.prefix}/to_one"

    @property
    def num_received(self) -> str:
        return f"{self.prefix}/num_received"

    @property
    def all_received(self) -> str:
        return f"{self.prefix}/all_received"


def _named(ranks: list[int]) -> str:
    others = f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
    named = ", ".join(map(str, ranks[:_MOST_NAMED])) + others
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {named}"


def _num_chunks(num_bytes: int) -> int:
    return max(1, -(-num_bytes // CHUNK_BYTES))


_exchanges: weakref.WeakKeyDictionary[dist.ProcessGroup, Exchange] = weakref.WeakKeyDictionary()
"""The exchange of each process group that communicated."""

"""What the ranks of a job do together: agree, gather and broadcast. The only module that calls an exchange.

Ranks agree before they raise: a call that fails on one rank fails on all ranks with the same error, and no rank is left
waiting for another.
"""

from __future__ import annotations

import pickle
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import torch.distributed as dist

from laneway import errors
from laneway.arguments import plain_int
from laneway.errors import LanewayError
from laneway.exchange import Answer, Exchange
from laneway.process_groups import as_group, is_initialised

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.process_groups import ProcessGroup

Value = TypeVar("Value")


class _Failure(NamedTuple):
    """An error as ranks send it."""

    class_name: str
    message: str


class _Report(NamedTuple):
    """What a rank tells rank 0."""

    call: str
    failure: _Failure | None
    sent: bytes


@dataclass(frozen=True, slots=True)
class Ranks:
    """The data-parallel ranks of a job, able to communicate.

    The first argument of each method says what the ranks do, and must be the same on all of them: if it is not, all
    ranks raise CollectiveError with the calls of two of them.
    """

    rank: int
    """Data-parallel rank of this process."""
    world_size: int
    """Number of data-parallel ranks."""
    exchange: Exchange | None
    """How they communicate; None for a single rank."""

    @classmethod
    def of(cls, process_group: ProcessGroup | None, rank: int, world_size: int) -> Self:
        """Return the ranks of a group, or by default of the whole world.

        Args:
            process_group: Process group or one-dimensional DeviceMesh of the data-parallel ranks.
            rank: Data-parallel rank of this process, used without torch.distributed.
            world_size: Number of data-parallel ranks, used without torch.distributed.

        Raises:
            ValueError: There are several ranks, but torch.distributed is not initialised.
        """
        if process_group is None and not is_initialised():
            if world_size > 1:
                message = (
                    f"this is rank {rank} of {world_size}, but torch.distributed is not initialised, so ranks can't "
                    "communicate: call init_process_group(), or save_state_rank() on each rank and merge_states()"
                )
                raise ValueError(message)
            return cls(rank, world_size, None)
        group = as_group(process_group)
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        return cls(rank, world_size, Exchange.of(group) if world_size > 1 else None)

    def with_own_exchange(self, call: str) -> Self:
        """Return the same ranks with an exchange of their own, for a thread that communicates beside another one.

        All ranks must call it.
        """
        if self.exchange is None:
            return self
        session = self.broadcast(call, lambda: uuid.uuid4().hex, src_rank=0)
        exchange = Exchange(self.exchange.store, self.rank, self.world_size, session)
        return type(self)(self.rank, self.world_size, exchange)

    def check(self, rank: int, world_size: int) -> None:
        """Check that a dataset has the rank and world size of this process.

        Args:
            rank: Data-parallel rank of the dataset.
            world_size: Number of data-parallel ranks of the dataset.

        Raises:
            ValueError: They differ from those in the process group.
        """
        if (self.rank, self.world_size) != (rank, world_size):
            message = (
                f"the dataset was created for rank {rank} of {world_size}, but this process is rank {self.rank} of "
                f"{self.world_size} in the process group: give process_group= the group of the data-parallel ranks"
            )
            raise ValueError(message)

    def gather(self, call: str, work: Callable[[], Value], dst_rank: int) -> list[Value] | None:
        """Return the results of `work` on all ranks, in the order of ranks, on rank `dst_rank`, and None on the others.

        All ranks must call it. An error on one rank is raised on all ranks.
        """

        # Pickled before it is sent: a value that can't be pickled must not leave other ranks waiting.
        def pickle_result() -> bytes:
            self._check_rank("dst_rank", dst_rank)
            return pickle.dumps(work())

        if self.exchange is None:
            return [pickle.loads(pickle_result())]  # noqa: S301 - pickled here
        _, gathered = self._meet(
            self.exchange, call, pickle_result, lambda sent: Answer(b"", dst_rank, pickle.dumps(sent))
        )
        if gathered is None:
            return None
        return [pickle.loads(each) for each in pickle.loads(gathered)]  # noqa: S301 - pickled by ranks of the same job

    def compare(self, call: str, work: Callable[[], Value], check: Callable[[list[Value]], None]) -> None:
        """Call `work` on all ranks, and `check` on rank 0 with their results, in the order of ranks.

        All ranks must call it. An error of `work` on one rank, or of `check`, is raised on all ranks.
        """
        results = self.gather(call, work, dst_rank=0)
        self.agree(f"{call}: compare", lambda: None if results is None else check(results))

    def broadcast(self, call: str, work: Callable[[], Value], src_rank: int) -> Value:
        """Call `work` on rank `src_rank` and return its result on all ranks.

        All ranks must call it. An error on that rank is raised on all ranks.
        """

        def pickle_result() -> bytes:
            self._check_rank("src_rank", src_rank)
            return pickle.dumps(work()) if self.rank == src_rank else b""

        if self.exchange is None:
            result = pickle_result()
        else:
            result, _ = self._meet(self.exchange, call, pickle_result, lambda sent: Answer(sent[src_rank]))
        value: Value = pickle.loads(result)  # noqa: S301 - pickled by a rank of the same job
        return value

    def agree(self, call: str, work: Callable[[], Value]) -> Value:
        """Return the result of `work` on this rank; if it raises on any rank, raise that error on all ranks.

        All ranks must call it.

        Raises:
            LanewayError: `work` raised on a rank; the error has the class of the error on the first rank that failed.
            CollectiveError: A rank could not be reached, or made another call.
        """
        if self.exchange is None:
            return work()
        results: list[Value] = []

        def keep_result() -> bytes:
            results.append(work())
            return b""

        self._meet(self.exchange, call, keep_result, lambda _: Answer(b""))
        return results[0]

    def _meet(
        self, exchange: Exchange, call: str, work: Callable[[], bytes], answer: Callable[[list[bytes]], Answer]
    ) -> tuple[bytes, bytes | None]:
        """Call `work` on all ranks, and what they send through rank 0, if none of them failed."""
        sent, failure, error = b"", None, None
        try:
            sent = work()
        except Exception as raised:  # noqa: BLE001 - the other ranks must learn of any error
            error, failure = raised, _Failure(type(raised).__name__, str(raised))

        def judge(pickled: list[bytes]) -> Answer:
            reports = [pickle.loads(each) for each in pickled]  # noqa: S301 - pickled by ranks of the same job
            failure = _failure_of(reports)
            if failure is not None:
                return Answer(pickle.dumps((failure, b"")))
            found = answer([report.sent for report in reports])
            return found._replace(to_all=pickle.dumps((None, found.to_all)))

        to_all, to_one = exchange.run(call, pickle.dumps(_Report(call, failure, sent)), judge)
        failed, result = pickle.loads(to_all)  # noqa: S301 - pickled by rank 0 of the same job
        if failed is not None:
            raise _error_class(failed.class_name)(failed.message) from error
        return result, to_one

    def _check_rank(self, name: str, rank: int) -> None:
        if plain_int(rank) is None or not 0 <= rank < self.world_size:
            message = f"{name} must be a data-parallel rank in [0, {self.world_size}), not {rank!r}"
            raise ValueError(message)


def _failure_of(reports: list[_Report]) -> _Failure | None:
    """Return the error of the first rank that failed, or that ranks made different calls, if so."""
    failed = [(rank, report.failure) for rank, report in enumerate(reports) if report.failure is not None]
    if failed:
        rank, failure = failed[0]
        others = f" (and on {len(failed) - 1} more)" if len(failed) > 1 else ""
        return failure._replace(message=f"on rank {rank}{others}: {failure.message}")
    for rank, report in enumerate(reports):
        if report.call != reports[0].call:
            message = (
                f"all ranks must make the same call: rank 0 called {reports[0].call}, rank {rank} called {report.call}"
            )
            return _Failure("CollectiveError", message)
    return None


def _error_class(name: str) -> type[Exception]:
    if name in {"TypeError", "ValueError"}:
        return TypeError if name == "TypeError" else ValueError
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, LanewayError) else LanewayError

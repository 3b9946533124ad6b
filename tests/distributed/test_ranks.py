"""The ranks of the other tests: an error on one of them is reported, and the next test gets new ranks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist

if TYPE_CHECKING:
    from tests.distributed.ranks import RunRanks


def raise_on_rank_1(rank: int) -> None:
    if rank == 1:
        message = "on purpose"
        raise ArithmeticError(message)
    dist.barrier()


def exit_on_rank_1(rank: int) -> None:
    if rank == 1:
        os._exit(1)
    dist.barrier()


def process_of_rank(rank: int, value: str) -> tuple[int, int, int, str]:
    dist.barrier()
    return rank, dist.get_world_size(), os.getpid(), value


def test_ranks_are_kept_until_one_of_them_fails(run_ranks: RunRanks) -> None:
    first = run_ranks(process_of_rank, 2, "a")
    pids = [pid for *_, pid, _ in first]
    assert first == [(0, 2, pids[0], "a"), (1, 2, pids[1], "a")]
    assert run_ranks(process_of_rank, 2, "a") == first
    with pytest.raises(AssertionError, match=r"(?s)rank 1 failed:\nTraceback .*ArithmeticError: on purpose"):
        run_ranks(raise_on_rank_1, 2)
    second = run_ranks(process_of_rank, 2, "a")
    assert not {*pids} & {pid for *_, pid, _ in second}
    with pytest.raises(AssertionError, match="rank 1 died"):
        run_ranks(exit_on_rank_1, 2)
    assert [rank for rank, *_ in run_ranks(process_of_rank, 3, "b")] == [0, 1, 2]

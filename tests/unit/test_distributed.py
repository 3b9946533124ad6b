"""The data-parallel rank of a process, and its ranks without a process group."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from laneway.distributed import data_parallel_rank, rank_in_group
from laneway.ranks import Ranks


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_process_alone_is_rank_0_of_1() -> None:
    assert data_parallel_rank() == (0, 1)


def test_rank_and_world_size_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert data_parallel_rank() == (3, 4)


def test_arguments_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "many")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert data_parallel_rank(1, 2) == (1, 2)


def test_ranks_of_numpy_become_built_in_ints() -> None:
    found = data_parallel_rank(np.int64(1), np.int32(2))  # type: ignore[arg-type]
    assert found == (1, 2)
    assert [type(value) for value in found] == [int, int]


@pytest.mark.parametrize(("name", "other"), [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
def test_one_variable_without_the_other_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, other: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=rf"RANK and WORLD_SIZE must be given together: .*{other.lower()} is None"):
        data_parallel_rank()


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"world_size": 1}])
def test_one_argument_without_the_other_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"rank and world_size must be given together: .*; give both or neither"):
        data_parallel_rank(**arguments)


@pytest.mark.parametrize(("name", "other"), [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
@pytest.mark.parametrize("value", ["many", "", "1.5"])
def test_a_variable_that_is_not_an_int_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, other: str, value: str
) -> None:
    monkeypatch.setenv(other, "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"the environment variable {name} is '{value}', not an int; unset it"):
        data_parallel_rank()


@pytest.mark.parametrize(("rank", "world_size"), [("0", 1), (0, "1"), (0.0, 1), (False, 1), (0, True)])
def test_arguments_that_are_not_ints_are_refused(rank: Any, world_size: Any) -> None:
    with pytest.raises(TypeError, match=rf"rank and world_size must be ints, not {rank!r} and {world_size!r}"):
        data_parallel_rank(rank, world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (0, -1)])
def test_a_rank_outside_the_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"rank and world_size: rank {rank} is not in \[0, {world_size}\)"):
        data_parallel_rank(rank, world_size)


def test_a_rank_outside_the_world_names_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"variables RANK and WORLD_SIZE: rank 4 is not in \[0, 4\)"):
        data_parallel_rank()


def test_a_process_group_needs_torch_distributed() -> None:
    group: Any = object()
    with pytest.raises(ValueError, match=r"not initialised: call init_process_group\(\) first"):
        rank_in_group(group)


def test_several_ranks_need_torch_distributed_to_communicate() -> None:
    with pytest.raises(ValueError, match=r"this is rank 1 of 2, .* can't communicate: call init_process_group\(\)"):
        Ranks.of(None, 1, 2)


def test_without_a_group_a_rank_gathers_and_receives_its_own_results() -> None:
    ranks = Ranks.of(None, 0, 1)
    assert ranks.with_own_exchange("call") is ranks
    assert ranks.gather("call", lambda: {"x": 1}, dst_rank=0) == [{"x": 1}]
    assert ranks.gather("call", lambda: 2, dst_rank=0) == [2]
    assert ranks.broadcast("call", lambda: 3, src_rank=0) == 3
    assert ranks.agree("call", lambda: 4) == 4


@pytest.mark.parametrize("rank", [1, -1, "0", True])
def test_a_rank_that_does_not_exist_is_refused_before_any_work(rank: Any) -> None:
    def fail() -> None:
        pytest.fail("called")

    ranks = Ranks.of(None, 0, 1)
    with pytest.raises(ValueError, match=r"dst_rank must be a data-parallel rank in \[0, 1\), not"):
        ranks.gather("call", fail, dst_rank=rank)
    with pytest.raises(ValueError, match=r"src_rank must be a data-parallel rank in \[0, 1\), not"):
        ranks.broadcast("call", fail, src_rank=rank)


def test_a_result_that_can_not_be_sent_is_an_error_without_a_group_too() -> None:
    ranks = Ranks.of(None, 0, 1)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        ranks.gather("call", lambda: lambda: 1, dst_rank=0)


def test_a_dataset_of_another_rank_is_refused() -> None:
    ranks = Ranks.of(None, 0, 1)
    ranks.check(0, 1)
    with pytest.raises(ValueError, match="the dataset was created for rank 1 of 2, but this process is rank 0 of 1"):
        ranks.check(1, 2)

"""How many cores a process uses: those of the machine, of its container, of its rank, and that it is bound to."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from laneway import cores
from laneway.cores import cores_of_rank, usable_cores

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend to be on a machine of 64 cores, outside of any container and job."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {*range(64)}, raising=False)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_all_cores_of_the_machine_are_used_unless_something_limits_them() -> None:
    assert (usable_cores(), cores_of_rank()) == (64, 64)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 64),
        ("1600000 100000\n", 16),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("9900000 100000\n", 64),
    ],
)
def test_a_container_has_as_many_cores_as_its_quota_of_cpu_time_rounded_up(
    tmp_path: Path, content: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert (usable_cores(), cores_of_rank()) == (expected, expected)


@pytest.mark.parametrize(("local_world_size", "expected"), [("8", 8), ("1", 64), ("100", 1), ("0", 64), ("", 64)])
def test_the_ranks_on_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, local_world_size: str, expected: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world_size)
    assert (usable_cores(), cores_of_rank()) == (64, expected)


def test_the_ranks_in_a_container_share_its_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("1600000 100000\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (usable_cores(), cores_of_rank()) == (16, 4)


def test_cores_that_a_rank_is_bound_to_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {8, 9, 10, 11, 12}, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (usable_cores(), cores_of_rank()) == (5, 5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only on Linux")
def test_a_process_that_is_bound_to_one_core_uses_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from laneway.cores import cores_of_rank, usable_cores; print(usable_cores(), cores_of_rank())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1\n"

"""Faults of the machine: a quota in the middle of a write, a folder of thousands of checkpoints, clocks set back."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from laneway import Checkpoints
from laneway.checkpoint import KeepLatest, folder
from laneway.checkpoint.layout import Checkpoint, decode_index, folder_name
from laneway.errors import CheckpointError
from tests.checkpoints import write_indices
from tests.fuzzing import num_cases

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 300
QUOTA_BYTES = WIDTH * WIDTH * 2
"""Half of a checkpoint's largest file."""


def model_of(step: int) -> nn.Linear:
    model = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        model.weight.fill_(step)
    return model


def resumed(path: Path) -> tuple[int, float]:
    model = model_of(-1)
    with Checkpoints(path) as checkpoints:
        start = checkpoints.resume(model=model)
    assert start is not None
    return start.step, float(model.weight[0, 0].detach())


def save_within_a_quota(path: Path) -> None:
    # Without a handler the kernel ends a process that writes beyond the limit.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for name, async_save in (("sync", False), ("async", True)):
        with Checkpoints(path / name, async_save=async_save) as checkpoints:
            checkpoints.save(0, model=model_of(0))
            checkpoints.wait()
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (QUOTA_BYTES, limits[1]))
            with pytest.raises(CheckpointError, match=os.strerror(errno.EFBIG)):
                save_and_wait(checkpoints)
            # Nothing takes up the space that is missing.
            assert [each.name for each in (path / name).glob("*-step-*")] == ["000001-step-0"]
            assert checkpoints.latest is not None
            assert checkpoints.latest.step == 0
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            # More space, and training goes on.
            checkpoints.save(2, model=model_of(2))


def save_and_wait(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, model=model_of(1))
    checkpoints.wait()


def test_a_quota_that_is_reached_in_mid_write_leaves_the_checkpoint_before_and_later_ones_work(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=save_within_a_quota, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    for path in (tmp_path / "sync", tmp_path / "async"):
        assert resumed(path) == (2, 2)
        (path / "000003-step-2" / "index.json").unlink()
        assert resumed(path) == (0, 0)


def test_a_folder_of_thousands_of_checkpoints_is_resumed_from_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = num_cases(2_000)
    write_indices(tmp_path, count)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(count + 1, model=model_of(1))
        assert len(checkpoints.list()) == count + 1
    read: list[str] = []

    def decode(data: bytes, name: str) -> Checkpoint:
        read.append(name)
        return decode_index(data, name)

    monkeypatch.setattr(folder, "decode_index", decode)
    assert resumed(tmp_path) == (count + 1, 1)
    assert read == [folder_name(count + 1, count + 1)]
    read.clear()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.load(count + 1, model=model_of(-1)).step == count + 1
    assert read == [folder_name(count + 1, count + 1)]
    with Checkpoints(tmp_path, keep=[KeepLatest(2)]) as checkpoints:
        checkpoints.save(count + 2, model=model_of(2))
        assert [each.step for each in checkpoints.list()] == [count + 1, count + 2]


def test_clocks_that_are_set_back_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for step in range(3):
        # A day earlier with every save.
        monkeypatch.setattr(time, "time", lambda step=step: now - 86_400 * step)
        with Checkpoints(tmp_path, keep=[KeepLatest(2)]) as checkpoints:
            checkpoints.save(step, model=model_of(step))
        for file in (tmp_path / folder_name(step + 1, step)).iterdir():
            os.utime(file, (now - 86_400 * step,) * 2)
    assert resumed(tmp_path) == (2, 2)
    with Checkpoints(tmp_path) as checkpoints:
        assert [each.step for each in checkpoints.list()] == [1, 2]


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, model=model_of(0))

        def refuse(*_: Any) -> None:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(CheckpointError, match=os.strerror(error)):
                checkpoints.save(1, model=model_of(1))
        checkpoints.save(2, model=model_of(2))
    assert resumed(tmp_path) == (2, 2)

"""Checkpoints on S3 while requests fail: a save succeeds or is an error, and there is always one to resume from."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from laneway import Checkpoints, RetryPolicy
from laneway.checkpoint import KeepLatest, lock
from laneway.errors import CheckpointError
from laneway.storage.filesystem import Storage
from laneway.storage.writing import create_file
from tests.checkpoints import write_indices
from tests.fuzzing import num_cases
from tests.storage.beds import THOROUGH
from tests.storage.fault_proxy import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.storage.beds import Bed

QUICK = RetryPolicy(max_attempts=6, first_delay_s=0.01, max_delay_s=0.05, attempt_timeout_s=2.0, deadline_s=10.0)
KINDS: tuple[Kind, ...] = ("500", "503", "cut", "lost", "drop", "reset", "short", "stall at once")
TRAINED_S = 60.0
"""Far more than a few saves take, retries included."""


@pytest.fixture(autouse=True)
def _remove_faults(s3: Bed) -> Iterator[None]:
    yield
    s3.proxy.behave()


class Job:
    """A model, whose weights are the step."""

    def __init__(self) -> None:
        self.model = nn.Linear(300, 300)

    def step(self, step: int) -> None:
        with torch.no_grad():
            self.model.weight.fill_(step)

    @property
    def weight(self) -> float:
        assert len({*self.model.weight.detach().flatten().tolist()}) == 1
        return float(self.model.weight.detach()[0, 0])


def opened(bed: Bed, url: str, **arguments: Any) -> Checkpoints:
    return Checkpoints(url, storage_options=bed.options, retries=QUICK, **arguments)


def check(bed: Bed, url: str, step: int) -> None:
    """Check that a job resumes from a step, and that all there is is complete."""
    bed.proxy.behave()
    job = Job()
    with opened(bed, url) as checkpoints:
        for each in checkpoints.list():
            checkpoints.verify(each.step)
        found = checkpoints.resume(model=job.model)
    assert found is not None
    assert (found.step, job.weight) == (step, step)


def save(checkpoints: Checkpoints, job: Job, step: int) -> None:
    job.step(step)
    checkpoints.save(step, model=job.model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_request_of_a_save_or_a_load_is_retried(s3: Bed, tmp_path: Path, kind: Kind) -> None:
    url, job = s3.upload(tmp_path) + "/run", Job()
    with opened(s3, url, keep=[KeepLatest(2)]) as checkpoints:
        save(checkpoints, job, 0)
        s3.proxy.behave()
        save(checkpoints, job, 1)
        num_requests = len(s3.proxy.requests())
        places = range(num_requests) if THOROUGH else random.Random(kind).sample(range(num_requests), 2)
        for step, place in enumerate(places, 2):
            s3.proxy.behave(Fault(kind, method="", skip=place, times=1))
            save(checkpoints, job, step)
            assert [each.fault for each in s3.proxy.requests()].count(kind) == 1
        assert [each.step for each in checkpoints.list()] == [len(places), len(places) + 1]
        s3.proxy.behave()
        assert checkpoints.resume(model=job.model)
        num_requests = len(s3.proxy.requests())
        for place in range(num_requests) if THOROUGH else random.Random(kind).sample(range(num_requests), 1):
            s3.proxy.behave(Fault(kind, method="", skip=place, times=1))
            job.step(-1)
            assert checkpoints.resume(model=job.model)
            assert job.weight == len(places) + 1
    check(s3, url, len(places) + 1)


@pytest.mark.parametrize("seed", range(num_cases(2)))
def test_a_job_on_a_broken_network_goes_on_from_its_last_checkpoint_but_one_at_worst(
    s3: Bed, tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    url, job = s3.upload(tmp_path) + "/run", Job()
    with opened(s3, url) as checkpoints:
        save(checkpoints, job, 0)
    saved, began = 0, monotonic()
    async_save = generator.random() < 0.5
    with opened(s3, url, keep=[KeepLatest(2)], async_save=async_save) as checkpoints:
        checkpoints.resume(model=job.model)
        faults = [
            Fault(kind, method="", probability=generator.choice([0.02, 0.1, 0.3]))
            for kind in generator.sample(KINDS, 2)
        ]
        s3.proxy.behave(*faults, seed=seed)
        for step in range(1, 5):
            try:
                save(checkpoints, job, step)
                checkpoints.wait()
            except CheckpointError:
                continue
            saved = step
        s3.proxy.behave()
    assert monotonic() - began < TRAINED_S
    newest = opened(s3, url).latest
    assert newest is not None
    # An index whose answer was lost may be there although the save failed.
    assert newest.step >= saved
    check(s3, url, newest.step)


PART_BYTES = 5 << 20
"""The least that S3 accepts."""


@pytest.mark.parametrize("kind", ["503", "cut", "lost"])
def test_a_fault_in_an_upload_of_several_parts_is_retried(s3: Bed, tmp_path: Path, kind: Kind) -> None:
    url, model = s3.upload(tmp_path) + "/run", nn.Linear(1024, 3 * 1024)
    options = {**s3.options, "default_block_size": PART_BYTES}
    with Checkpoints(url, storage_options=options, retries=QUICK) as checkpoints:
        s3.proxy.behave()
        checkpoints.save(0, model=model)
        assert len([each for each in s3.proxy.requests() if "uploadId" in each.query]) == 3
        for step, place in enumerate(range(3), 1):
            s3.proxy.behave(Fault(kind, method="", path="uploadId", skip=place, times=1))
            checkpoints.save(step, model=model)
            assert [each.fault for each in s3.proxy.requests()].count(kind) == 1
            s3.proxy.behave()
            checkpoints.verify(step)


def test_writes_that_are_denied_fail_at_once_and_training_goes_on(s3: Bed, tmp_path: Path) -> None:
    url, job = s3.upload(tmp_path) + "/run", Job()
    with opened(s3, url) as checkpoints:
        save(checkpoints, job, 0)
        s3.proxy.behave(Fault("403", method="PUT"))
        with pytest.raises(CheckpointError, match=r"permission denied"):
            save(checkpoints, job, 1)
        assert len([each for each in s3.proxy.requests() if each.method == "PUT"]) <= 2
        s3.proxy.behave(Fault("403", method="PUT", path=r"index\.json"))
        with pytest.raises(CheckpointError, match=r"index\.json .*permission denied"):
            save(checkpoints, job, 2)
        s3.proxy.behave()
        assert [each.step for each in checkpoints.list()] == [0]
        save(checkpoints, job, 3)
    check(s3, url, 3)


def test_a_deletion_that_is_denied_is_tried_again(s3: Bed, tmp_path: Path) -> None:
    url, job = s3.upload(tmp_path) + "/run", Job()
    with opened(s3, url, keep=[KeepLatest(1)]) as checkpoints:
        save(checkpoints, job, 0)
        s3.proxy.behave(Fault("403", method="DELETE", path="-step-"))
        save(checkpoints, job, 1)
        assert [each.step for each in checkpoints.list()] == [0, 1]
        s3.proxy.behave()
        save(checkpoints, job, 2)
        assert [each.step for each in checkpoints.list()] == [2]
    check(s3, url, 2)


def test_of_several_that_create_an_object_at_once_one_succeeds(each_s3: Bed, tmp_path: Path) -> None:
    storage = Storage(each_s3.upload(tmp_path), None, each_s3.options, QUICK)
    for index in range(5):
        path = storage.join(f"once-{index}")
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda content: create_file(storage, path, bytes([content])), range(4))) == 1  # noqa: B023


def test_an_object_that_was_created_though_the_answer_was_lost_is_ones_own(s3: Bed, tmp_path: Path) -> None:
    storage = Storage(s3.upload(tmp_path), None, s3.options, QUICK)
    s3.proxy.behave(Fault("lost", method="PUT", times=1))
    assert create_file(storage, storage.join("mine"), b"mine")
    assert not create_file(storage, storage.join("mine"), b"yours")


def test_two_jobs_that_begin_at_once_on_one_folder_do_not_both_save(
    each_s3: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = each_s3.upload(tmp_path) + "/run"
    monkeypatch.setattr(lock, "BEAT_S", 0.1)

    def begin(index: int) -> str:
        job = Job()
        try:
            save(jobs[index], job, index)
        except CheckpointError as error:
            return str(error)
        return "saved"

    jobs = [opened(each_s3, url) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        refused, saved = sorted(pool.map(begin, range(2)), key=lambda each: each == "saved")
    assert "writes checkpoints to" in refused
    assert saved == "saved"
    for each in jobs:
        each.close()
    assert len(opened(each_s3, url).list()) == 1


def test_the_file_of_a_writer_that_is_gone_is_taken_over(
    s3: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.upload(tmp_path) + "/run"
    monkeypatch.setattr(lock, "STALE_S", 0.2)
    for content in (b'{"owner": "a", "host": "elsewhere", "pid": 1, "beat": 9}', b"", b"{"):
        s3.put(f"{url}/writer.json", content)
        with opened(s3, url) as checkpoints:
            save(checkpoints, Job(), 0)
    assert len(opened(s3, url).list()) == 3


def upload_run(bed: Bed, folder: Path, count: int) -> str:
    """Upload the indices of many checkpoints of nothing."""
    write_indices(folder / "run", count)
    return bed.upload(folder) + "/run"


def test_retention_of_many_checkpoints_takes_few_requests(s3: Bed, tmp_path: Path) -> None:
    count = 1_000 if THOROUGH else 60
    url, job = upload_run(s3, tmp_path, count), Job()
    with opened(s3, url, keep=[KeepLatest(3)]) as checkpoints:
        s3.proxy.behave()
        save(checkpoints, job, count + 1)
        # The writer's file is renewed every 10 s.
        cleared = [each.method for each in s3.proxy.requests() if "writer.json" not in each.path]
        # Of each old one the index is read, then the folder is listed, and the index, its only file, is deleted.
        assert cleared.count("DELETE") == count - 2
        assert cleared.count("PUT") <= 7
        assert cleared.count("GET") <= 2 * count + 15
        s3.proxy.behave()
        save(checkpoints, job, count + 2)
        # One more with its four files and its index.
        assert len([each for each in s3.proxy.requests() if "writer.json" not in each.path]) <= 25
        assert [each.step for each in checkpoints.list()] == [count, count + 1, count + 2]
    check_requests_of_resume(s3, url)


def check_requests_of_resume(bed: Bed, url: str) -> None:
    job = Job()
    with opened(bed, url) as checkpoints:
        bed.proxy.behave()
        assert checkpoints.resume(model=job.model)
        # The writer's file, two listings, the index, the files.
        assert len(bed.proxy.requests()) <= 14

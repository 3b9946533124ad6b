"""Training checkpoints on S3: complete or absent, found again, deleted, and damaged ones passed over."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from laneway import Checkpoints
from laneway.checkpoint import KeepLatest
from laneway.errors import CheckpointError, LanewayError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed


class Job:
    """A model and its optimizer; every step changes them."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def step(self) -> None:
        self.model(torch.rand(2, 4)).sum().backward()
        self.optimizer.step()

    @property
    def objects(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}


def train(bed: Bed, url: str, num_steps: int, **arguments: Any) -> Job:
    job = Job()
    with Checkpoints(url, storage_options=bed.options, **arguments) as checkpoints:
        start = checkpoints.resume(**job.objects)
        first = start.step + 1 if start else 0
        for step in range(first, first + num_steps):
            job.step()
            checkpoints.save(step, **job.objects, user={"step": step})
    return job


def resume(bed: Bed, url: str) -> tuple[Job, int]:
    job = Job()
    with Checkpoints(url, storage_options=bed.options) as checkpoints:
        start = checkpoints.resume(**job.objects)
    assert start is not None
    assert start.user == {"step": start.step}
    return job, start.step


def files(bed: Bed, url: str) -> list[str]:
    listed = bed.server.client.list_objects_v2(Bucket="bucket", Prefix=url.removeprefix("s3://bucket/"))
    return [each["Key"].removeprefix(url.removeprefix("s3://bucket/") + "/") for each in listed.get("Contents", ())]


def test_a_job_saves_to_a_bucket_keeps_what_it_was_told_to_and_resumes(each_s3: Bed, tmp_path: Path) -> None:
    url = each_s3.upload(tmp_path) + "/run"
    job = train(each_s3, url, 4, keep=[KeepLatest(2)])
    resumed, step = resume(each_s3, url)
    assert step == 3
    assert torch.equal(resumed.model.weight, job.model.weight)
    names = [f"{number:06}-step-{number - 1}/{file}" for number in (3, 4) for file in FILES]
    assert sorted(files(each_s3, url)) == sorted(names)


FILES = (".metadata", "__0_0.distcp", "index.json", "job.pt", "rank-0.pt")


def test_an_upload_that_fails_leaves_no_checkpoint_and_the_one_before_is_resumed(
    s3: Bed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = s3.upload(tmp_path) + "/run"
    train(s3, url, 2)
    s3.server.client.delete_object(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/000002-step-1/index.json")
    caplog.set_level(logging.WARNING)
    assert resume(s3, url)[1] == 0
    assert "000002-step-1 is passed over: it was not completed" in caplog.text


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_object_is_found_and_the_checkpoint_before_is_resumed(s3: Bed, tmp_path: Path, file: str) -> None:
    url = s3.upload(tmp_path) + "/run"
    train(s3, url, 2)
    key = f"{url.removeprefix('s3://bucket/')}/000002-step-1/{file}"
    client = s3.server.client
    data = bytearray(client.get_object(Bucket="bucket", Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket="bucket", Key=key, Body=bytes(data))
    with Checkpoints(url, storage_options=s3.options) as checkpoints:
        found = {each.step for each in checkpoints.list()}
        if 1 in found:
            with pytest.raises(CheckpointError, match="damaged"):
                checkpoints.verify(1)
        else:
            assert file == "index.json"
    assert resume(s3, url)[1] == 0


def test_no_secret_is_in_an_index_an_error_or_a_repr(s3: Bed, tmp_path: Path) -> None:
    url = s3.upload(tmp_path) + "/run"
    train(s3, url, 1)
    checkpoints = Checkpoints(url, storage_options={**s3.options, "secret": "wrong-and-secret"})
    with pytest.raises(LanewayError) as raised:
        checkpoints.resume()
    index = s3.server.client.get_object(
        Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/000001-step-0/index.json"
    )
    text = index["Body"].read().decode()
    assert json.loads(text)["step"] == 0
    for each in (text, str(raised.value), repr(checkpoints)):
        assert "secret" not in each
        assert s3.server.secret not in each

"""kill -9 one rank or all while they save to S3: there is always a complete checkpoint, and resuming is bit-equal."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.distributed.test_killed_checkpoints import check_kills
from tests.fuzzing import num_cases
from tests.storage.beds import THOROUGH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed


@pytest.mark.skipif(not THOROUGH, reason="a minute for each job: only make test-storage does it")
@pytest.mark.parametrize("seed", range(num_cases(1)))
def test_a_job_that_saves_to_a_bucket_may_be_killed_at_any_moment(each_s3: Bed, tmp_path: Path, seed: int) -> None:
    url = each_s3.upload(tmp_path) + "/run"
    check_kills(tmp_path, random.Random(1_000 + seed), url, each_s3.server.options())

"""A storage that doesn't answer: the log names the file, workers are replaced, and in the end an error names it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from laneway import RetryPolicy, WorkerError
from laneway.loader import SavableLoader
from tests.compat.loaders import loader_raises
from tests.storage.beds import THOROUGH, ids
from tests.storage.fault_proxy import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed

PATIENT = RetryPolicy(attempt_timeout_s=600, deadline_s=600, read_timeout_s=600)
"""As if the client of the storage had no time limit of its own."""
STALL_S = 6.0
"""Workers need some seconds for their first request, on a busy machine."""


def loader_of(s3: Bed, url: str, **arguments: Any) -> SavableLoader:
    # All retries are left to the policy.
    options = {**s3.options, "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}
    dataset = s3.dataset(url, retries=PATIENT, storage_options=options, cache_dir=False)
    return SavableLoader(dataset, num_workers=2, **arguments)


def test_a_storage_that_stalls_is_read_again_by_new_workers(
    s3: Bed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = s3.corpus(tmp_path)
    expected = ids(loader_of(s3, url))
    loader = loader_of(s3, url, stall_warning_s=STALL_S / 2, stall_timeout_s=STALL_S)
    # Of the rows, not of the scan, which came first.
    s3.proxy.behave(Fault("stall", path=r"part-002\.", times=1))
    with caplog.at_level(logging.WARNING, "laneway"):
        assert ids(loader) == expected
    messages = [each.getMessage() for each in caplog.records if "no batch for" in each.getMessage()]
    stalls = [each for each in messages if re.search(r"reads row group \d( to \d)? of part-002\.parquet \(for", each)]
    assert any("the workers are replaced, and the batch is read again (1 of 2 times" in each for each in stalls)
    # The stack of the thread that reads.
    assert any(re.search(r'File ".*clients.py", line \d+ in fetch', each) for each in stalls)
    assert loader.metrics().rows == sum(map(len, expected))


@pytest.mark.skipif(not THOROUGH, reason="waits for the same file three times: make test-storage does")
def test_a_storage_that_never_answers_is_an_error_that_names_the_file_and_no_batch_is_lost(
    s3: Bed, tmp_path: Path
) -> None:
    url = s3.corpus(tmp_path)
    expected = ids(loader_of(s3, url))
    loader = loader_of(s3, url, stall_warning_s=None, stall_timeout_s=STALL_S)
    s3.proxy.behave(Fault("stall at once", path=r"part-002\."))
    batches = iter(loader)
    found: list[list[int]] = []
    with loader_raises(WorkerError, r"reads row group .* has happened 3 times .* is part-002\.parquet damaged"):
        found.extend(batch["id"].tolist() for batch in batches)
    s3.proxy.behave()
    found += [batch["id"].tolist() for batch in batches]
    assert found == expected


def test_retries_are_counted(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path)
    loader = loader_of(s3, url)
    s3.proxy.behave(Fault("503", path=r"part-002\.", times=1))
    ids(loader)
    found = loader.metrics()
    assert found.retries == 1
    assert found.stages.read > 0
    sent = sum(each.body_bytes for each in s3.proxy.requests() if each.status < 400)
    assert found.bytes_read == sent

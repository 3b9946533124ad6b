"""Text and ORC on S3: the rows of a disk, also where requests fail, and an overwritten object is an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from laneway import DataFileError
from laneway.testing import assert_resumes_exactly, corpus_tables
from tests.storage.fault_proxy import Fault
from tests.writers import WRITERS, csv, json_lines

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed

KINDS = ["orc", "jsonl", "jsonl in zstd frames", "csv"]


def upload(s3: Bed, folder: Path, kind: str) -> str:
    """Write two files of a format, upload them, and return their URL."""
    name, write = WRITERS[kind]
    folder.mkdir()
    for index, start in enumerate((0, 14)):
        write(folder / f"part-{index}.{name}", corpus_tables((5, 9), start))
    return s3.upload(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_files_on_s3_have_the_rows_of_those_on_a_disk(s3: Bed, tmp_path: Path, kind: str) -> None:
    url = upload(s3, tmp_path / "corpus", kind)
    local = s3.dataset(str(tmp_path / "corpus"), storage_options=None, output="python")
    s3.proxy.behave(Fault("503", times=2), Fault("drop", skip=2, times=1), Fault("short", skip=3, times=1))
    remote = s3.dataset(url, output="python")
    assert list(remote) == list(local)
    assert remote.manifest.fingerprint == local.manifest.fingerprint
    assert any(each.fault for each in s3.proxy.requests())
    s3.proxy.behave()
    assert assert_resumes_exactly(lambda: s3.savable(url), stops=[0, 4]) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_is_overwritten_is_an_error(s3: Bed, tmp_path: Path, kind: str) -> None:
    url = upload(s3, tmp_path / "corpus", kind)
    dataset = s3.dataset(url)
    name, write = WRITERS[kind]
    write(tmp_path / "other", corpus_tables((5, 9), 28))
    s3.put(f"{url}/part-1.{name}", (tmp_path / "other").read_bytes())
    with pytest.raises(DataFileError, match=f"part-1.{name} changed since it was planned"):
        list(dataset)


def test_a_block_of_a_large_file_is_one_request(s3: Bed, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    row = json.dumps({"id": 1, "text": "x" * 1000}).encode() + b"\n"
    (folder / "part-0.jsonl").write_bytes(row * 5000)
    dataset = s3.dataset(s3.upload(folder), shuffle=False, shard_rows=None, batch_size=1000, window_bytes="1MiB")
    s3.proxy.behave()
    assert sum(len(batch["id"]) for batch in dataset) == 5000
    ranges = [each.range for each in s3.proxy.requests()]
    assert all(ranges)
    assert len(ranges) <= len(dataset.manifest.files.block_rows) == 5


def test_what_the_writers_of_tests_write_is_what_is_meant() -> None:
    (table,) = corpus_tables((2,))
    assert [json.loads(line) for line in json_lines(table).splitlines()] == table.to_pylist()
    assert csv(table, delimiter=",", header=True).startswith(b'"id","text","x","flag"\n0,"row 0, ""quoted""\n')
    assert isinstance(table, pa.Table)

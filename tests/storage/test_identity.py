"""An object rewritten since it was planned is an error that names it, and delivers no rows."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import DataFileError
from tests.compat.loaders import loader_raises, saved
from tests.storage.beds import ids

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed

NUM_FILES, GROUPS, GROUP_ROWS = 2, 4, 5000
"""Files of 160 kB: larger than the tail that is read with the footer."""
SCHEMA = pa.schema([("id", pa.int64())])
ORDERED: dict[str, Any] = {"shuffle": False, "shard_rows": GROUP_ROWS, "window_bytes": 1, "batch_size": GROUP_ROWS}
"""One row group is one shard, one window, one batch."""


def data_file(kind: str, start: int) -> bytes:
    """Return a file of consecutive numbers from `start`; its size does not depend on them."""
    sink = pa.BufferOutputStream()
    table = pa.table({"id": range(start, start + GROUPS * GROUP_ROWS)}, schema=SCHEMA)
    if kind == "parquet":
        with pq.ParquetWriter(sink, SCHEMA, compression="none", use_dictionary=False, write_statistics=False) as writer:
            writer.write_table(table, row_group_size=GROUP_ROWS)
    else:
        with pa.ipc.new_file(sink, SCHEMA) as batches:
            batches.write_table(table, max_chunksize=GROUP_ROWS)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def upload(bed: Bed, folder: Path, kind: str) -> str:
    folder.mkdir()
    for index in range(NUM_FILES):
        (folder / f"part-{index}.{kind}").write_bytes(data_file(kind, index * GROUPS * GROUP_ROWS))
    return bed.upload(folder)


def unchanged(batch: Any) -> Any:
    """Return a batch; with a function, workers read ahead a few batches, rather than as many as fit into parcels."""
    return batch


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_an_object_overwritten_mid_epoch_is_detected(each_s3: Bed, tmp_path: Path, kind: str, num_workers: int) -> None:
    url = upload(each_s3, tmp_path / "corpus", kind)
    # Each row group is read by itself.
    arguments = {**ORDERED, "shard_bytes": 1, "prefetch_windows": 0, "transform": unchanged}
    expected = ids(each_s3.savable(url, **arguments))
    loader = each_s3.savable(url, num_workers, **arguments)
    batches = iter(loader)
    received = ids(islice(batches, 1))
    # The same size, other numbers in row groups that have not been read, the same numbers in the first.
    changed = bytearray(data_file(kind, 0))
    other = data_file(kind, 1000)
    half = len(changed) // 3
    changed[half : 2 * half] = other[half : 2 * half]
    assert len(changed) == len(data_file(kind, 0))
    each_s3.put(f"{url}/part-0.{kind}", bytes(changed))
    with loader_raises(DataFileError, rf"{re.escape(url)}/part-0\.{kind} changed since it was planned"):
        received.extend(batch["id"].tolist() for batch in batches)
    assert received == expected[: len(received)]
    assert len(received) < GROUPS
    # The state is that of the last batch, and the run resumes from it once the original object is back.
    state = saved(loader.state_dict())
    each_s3.put(f"{url}/part-0.{kind}", data_file(kind, 0))
    resumed = each_s3.savable(url, num_workers, **arguments)
    resumed.load_state_dict(state)
    assert received + ids(resumed) == expected


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_an_object_overwritten_before_its_first_read_is_detected(s3: Bed, tmp_path: Path, kind: str) -> None:
    url = upload(s3, tmp_path / "corpus", kind)
    dataset = s3.dataset(url, **ORDERED)
    changed = bytearray(data_file(kind, 0))
    other = data_file(kind, 1000)
    half = len(changed) // 3
    changed[half : 2 * half] = other[half : 2 * half]
    s3.put(f"{url}/part-0.{kind}", bytes(changed))
    with pytest.raises(DataFileError, match=rf"{re.escape(url)}/part-0\.{kind} changed since it was planned"):
        list(dataset)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_an_object_of_another_size_is_detected(s3: Bed, tmp_path: Path, kind: str) -> None:
    url = upload(s3, tmp_path / "corpus", kind)
    dataset = s3.dataset(url, **ORDERED)
    s3.put(f"{url}/part-1.{kind}", data_file(kind, 0) + b"more")
    with pytest.raises(DataFileError, match=rf"part-1\.{kind} changed since it was planned"):
        list(dataset)


def test_a_deleted_object_is_named(s3: Bed, tmp_path: Path) -> None:
    url = upload(s3, tmp_path / "corpus", "parquet")
    dataset = s3.dataset(url, **ORDERED)
    s3.server.client.delete_object(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/part-1.parquet")
    with pytest.raises(DataFileError, match=rf"{re.escape(url)}/part-1\.parquet does not exist"):
        list(dataset)

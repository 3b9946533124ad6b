"""The number of requests and bytes that operations cost, as recorded by the proxy."""

from __future__ import annotations

import gc
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import Manifest
from laneway.distributed import scan_once
from tests.compat.loaders import saved
from tests.corpora import UNEQUAL_FILES, rows, write_blocks
from tests.distributed.ranks import run_ranks
from tests.storage.beds import flat, ids

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed
    from tests.storage.fault_proxy import Request

NUM_FILES = len(UNEQUAL_FILES)
GROUPS, GROUP_ROWS, COLUMNS = 3, 160_000, 5
CHUNK_BYTES = GROUP_ROWS * 8
"""More than the largest gap that reads span."""


def listings(requests: list[Request]) -> list[Request]:
    return [request for request in requests if "list-type=2" in request.query]


def objects(requests: list[Request]) -> list[Request]:
    return [request for request in requests if "/corpus" in request.path]


def body_bytes(requests: list[Request]) -> int:
    return sum(request.body_bytes for request in requests)


def upload_wide(bed: Bed, folder: Path) -> str:
    """Upload one file of row groups with five columns, as large as its numbers."""
    folder.mkdir()
    numbers = np.random.default_rng(0)
    table = pa.table({f"c{i}": numbers.integers(0, 1 << 62, GROUPS * GROUP_ROWS) for i in range(COLUMNS)})
    path = folder / "part-0.parquet"
    pq.write_table(table, path, row_group_size=GROUP_ROWS, compression="none", use_dictionary=False)
    return bed.upload(folder)


def wide_dataset(bed: Bed, url: str, window_groups: int, **arguments: Any) -> Any:
    group_bytes = COLUMNS * CHUNK_BYTES + 100_000
    settings = {"window_bytes": window_groups * group_bytes, "shard_rows": GROUP_ROWS, "batch_size": GROUP_ROWS}
    return bed.dataset(url, **{**settings, "shuffle": False, "prefetch_windows": 0, **arguments})


@pytest.mark.parametrize("kind", ["parquet"])
def test_a_scan_costs_one_listing_and_one_request_per_footer(s3: Bed, tmp_path: Path, kind: Any) -> None:
    url = s3.corpus(tmp_path / "corpus", kind)
    s3.proxy.behave()
    Manifest.scan(url, storage_options=s3.options, cache_dir=False)
    seen = s3.proxy.requests()
    footers = [request for request in seen if request.range]
    assert len(footers) == len({request.path for request in footers}) == NUM_FILES
    assert body_bytes(footers) <= sum(path.stat().st_size for path in (tmp_path / "corpus").iterdir())
    assert len(listings(seen)) <= 2
    assert len(seen) <= NUM_FILES + 2, "only a listing and footers"


def test_the_footer_of_a_large_file_costs_only_its_tail(s3: Bed, tmp_path: Path) -> None:
    url = upload_wide(s3, tmp_path / "wide")
    s3.proxy.behave()
    Manifest.scan(url, storage_options=s3.options, cache_dir=False)
    footers = [request for request in s3.proxy.requests() if request.range]
    assert len(footers) == 1
    assert body_bytes(footers) <= 64 * 1024


@pytest.mark.parametrize(
    ("columns", "ranges_of_a_group"),
    [(["c0", "c3"], 2), (["c1", "c2"], 1), (["c3", "c0"], 2)],
)
def test_a_window_with_two_of_five_columns_costs_only_their_ranges(
    s3: Bed, tmp_path: Path, columns: list[str], ranges_of_a_group: int
) -> None:
    url = upload_wide(s3, tmp_path / "wide")
    dataset = wide_dataset(s3, url, 1, columns=columns)
    s3.proxy.behave()
    num_rows = sum(len(batch[columns[0]]) for batch in dataset)
    assert num_rows == GROUPS * GROUP_ROWS
    seen = s3.proxy.requests()
    assert {request.method for request in seen} == {"GET"}, "no HEAD to open a file"
    tails = [request for request in seen if request.body_bytes <= 64 * 1024]
    chunks = [request for request in seen if request.body_bytes > 64 * 1024]
    assert len(tails) <= 1, "the footer is read at most once"
    assert len(chunks) <= 1.2 * GROUPS * ranges_of_a_group
    assert body_bytes(chunks) <= 1.01 * GROUPS * 2 * CHUNK_BYTES


def test_adjacent_row_groups_of_a_window_are_one_range(s3: Bed, tmp_path: Path) -> None:
    url = upload_wide(s3, tmp_path / "wide")
    dataset = wide_dataset(s3, url, GROUPS, columns=["c0", "c4"], shuffle=True)
    s3.proxy.behave()
    assert sum(len(batch["c0"]) for batch in dataset) == GROUPS * GROUP_ROWS
    chunks = [request for request in s3.proxy.requests() if request.body_bytes > 64 * 1024]
    # c0, then c4 with the next group's c0, and so on, then c4.
    assert len(chunks) <= 1.2 * (GROUPS + 1)
    assert body_bytes(chunks) <= 1.01 * GROUPS * 2 * CHUNK_BYTES


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_reads_nothing_of_completed_shards(s3: Bed, tmp_path: Path, num_workers: int) -> None:
    url = s3.corpus(tmp_path / "corpus", files=((4,), (4,), (4,), (4,), (4,), (4,)))
    arguments = {"shuffle": False, "batch_size": 4, "window_bytes": 1, "lanes": 2, "prefetch_windows": 0}
    loader = s3.savable(url, num_workers, **arguments)
    received = ids(islice(loader, 4))
    state = saved(loader.state_dict())
    manifest = Manifest.scan(url, storage_options=s3.options)
    s3.proxy.behave()
    resumed = s3.savable(url, num_workers, **arguments)
    planned = objects([request for request in s3.proxy.requests() if request.range])
    assert planned == [], "its manifest was cached"
    resumed.load_state_dict(state)
    received += ids(resumed)
    assert sorted(flat(received)) == list(range(manifest.num_rows))
    touched = {request.path.rpartition("/")[2] for request in s3.proxy.requests() if request.range}
    assert touched == {"part-002.parquet", "part-005.parquet"}


def test_a_second_scan_costs_a_listing_and_the_footers_of_changed_objects(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "corpus")
    options: dict[str, Any] = {"storage_options": s3.options, "cache_dir": tmp_path / "cache"}
    first = Manifest.scan(url, **options)
    s3.proxy.behave()
    second = Manifest.scan(url, **options)
    seen = s3.proxy.requests()
    assert second.fingerprint == first.fingerprint
    assert seen == listings(seen)
    assert len(seen) <= 2
    path = tmp_path / "changed.parquet"
    write_blocks(path, "parquet", [rows(13, 15)], rows(0, 1).schema)
    s3.put(f"{url}/part-002.parquet", path.read_bytes())
    s3.proxy.behave()
    third = Manifest.scan(url, **options)
    footers = [request for request in s3.proxy.requests() if request.range]
    assert [request.path.rpartition("/")[2] for request in footers] == ["part-002.parquet"]
    assert third.num_rows == first.num_rows + 1
    assert third.fingerprint != first.fingerprint


def scan_on_a_rank(rank: int, url: str, options: dict[str, Any]) -> str:
    del rank
    return scan_once(url, storage_options=options, cache_dir=False).fingerprint


def test_scan_once_on_four_ranks_costs_as_much_as_on_one(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "corpus")
    s3.proxy.behave()
    alone = Manifest.scan(url, storage_options=s3.options, cache_dir=False)
    by_one = sorted(f"{each.method} {each.path} {each.query} {each.range}" for each in s3.proxy.requests())
    s3.proxy.behave()
    fingerprints = run_ranks(scan_on_a_rank, 4, url, s3.options)
    by_four = sorted(f"{each.method} {each.path} {each.query} {each.range}" for each in s3.proxy.requests())
    assert fingerprints == [alone.fingerprint] * 4
    assert by_four == by_one


def collect_garbage(batch: Any) -> Any:
    if {0, 20, 40} & set(batch["id"].tolist()):
        gc.collect()
    return batch


def test_forked_workers_do_not_close_the_connections_of_their_parent(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "corpus")
    patient = s3.server.options(s3.proxy.endpoint, config_kwargs={"read_timeout": 6})
    # The parent uses its connections before the fork and after the workers have ended.
    loader = s3.savable(url, num_workers=2, transform=collect_garbage, storage_options=patient)
    assert sorted(flat(ids(loader))) == list(range(48))
    s3.proxy.behave()
    began = monotonic()
    assert Manifest.scan(url, storage_options=patient, cache_dir=False).num_rows == 48
    assert len(s3.proxy.requests()) <= NUM_FILES + 2, "no request was repeated"
    assert monotonic() - began < 5

"""Reading with each client: requests, faults, deadlines, versions, forks and secrets."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import subprocess
import sys
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from laneway import DataFileError, Manifest, RetryPolicy, SavableLoader, StatefulShardedDataset
from laneway.manifest import scan_source
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from laneway.storage.filesystem import Storage
from tests.storage.beds import BUCKET, flat, ids
from tests.storage.fault_proxy import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.storage.beds import Bed

GROUPS, GROUP_ROWS, COLUMNS = 3, 160_000, 5
CHUNK_BYTES = GROUP_ROWS * 8
"""More than the largest gap that reads span."""
QUICK = RetryPolicy(first_delay_s=0.01, max_delay_s=0.05, attempt_timeout_s=5, deadline_s=20, read_timeout_s=1)
EVERY_FAULT = os.environ.get("LANEWAY_STORAGE_TESTS") == "all"
"""Otherwise only a few: test_faults.py covers s3fs with random ones."""
CANARY = "canary+4711/secret"


def through_s3fs(bed: Bed, endpoint: str | None = None, secret: str | None = None) -> dict[str, Any]:
    return {
        "storage_options": {
            "key": bed.server.key,
            "secret": secret or bed.server.secret,
            "client_kwargs": {"endpoint_url": endpoint or bed.proxy.endpoint, "region_name": "us-east-1"},
        }
    }


def through_pyarrow(bed: Bed, endpoint: str | None = None, secret: str | None = None) -> dict[str, Any]:
    # Its client also retries: disable that here.
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=bed.server.key,
        secret_key=secret or bed.server.secret,
        endpoint_override=endpoint or bed.proxy.endpoint,
        region="us-east-1",
        connect_timeout=1,
        request_timeout=1,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    return {"filesystem": filesystem, "storage_options": None}


def through_obstore(bed: Bed, endpoint: str | None = None, secret: str | None = None) -> dict[str, Any]:
    obstore = pytest.importorskip("obstore.fsspec")
    filesystem = obstore.FsspecStore(
        "s3",
        access_key_id=bed.server.key,
        secret_access_key=secret or bed.server.secret,
        endpoint=endpoint or bed.proxy.endpoint,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "1s"},
        retry_config={"max_retries": 0, "backoff": {}},
    )
    return {"filesystem": filesystem, "storage_options": None}


CLIENTS = {"s3fs": through_s3fs, "pyarrow": through_pyarrow, "obstore": through_obstore}


@pytest.fixture(params=list(CLIENTS))
def client(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    found: Callable[..., dict[str, Any]] = CLIENTS[request.param]
    return found


def place(url: str, options: dict[str, Any]) -> str:
    return url.removeprefix("s3://") if "filesystem" in options else url


def wide(bed: Bed, folder: Path, seed: int = 0) -> tuple[str, pa.Table]:
    """Upload one file of row groups with five columns, as large as its numbers."""
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(seed)
    table = pa.table({f"c{i}": numbers.integers(0, 1 << 62, GROUPS * GROUP_ROWS) for i in range(COLUMNS)})
    path = folder / "part-0.parquet"
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, row_group_size=GROUP_ROWS, **options)
    return bed.upload(folder), table


def test_adjacent_row_groups_are_fetched_as_few_ranges_and_a_footer_once(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]]
) -> None:
    url, table = wide(s3, tmp_path / "wide")
    options = client(s3)
    manifest, storage = scan_source(place(url, options), cache_dir=False, **options)
    for _ in range(2):
        s3.proxy.behave()
        reader = RowReader(manifest, storage, select_columns(manifest, ["c4", "c0"]))
        assert reader.read(0, 0, len(table)).equals(table.select(["c4", "c0"]))
        seen = s3.proxy.requests()
        chunks = [request for request in seen if request.body_bytes > 64 * 1024]
        # c0, then c4 with the next group's c0, and so on, then c4.
        assert len(chunks) == GROUPS + 1
        assert sum(request.body_bytes for request in chunks) < 1.01 * GROUPS * 2 * CHUNK_BYTES
        if not isinstance(options.get("filesystem"), pyarrow.fs.FileSystem):
            assert {request.method for request in seen} == {"GET"}
            assert all(request.if_match for request in chunks)
        else:
            # pyarrow's client can't make a request conditional: a HEAD after each read, and one to open a file.
            assert sum(request.method == "HEAD" for request in seen) <= 4
    assert len(seen) - len(chunks) <= 1, "the process caches the footer"


@pytest.mark.parametrize(
    ("client", "kind"),
    [
        *((through_s3fs, kind) for kind in get_args(Kind) if EVERY_FAULT and not kind.startswith("40")),
        *((through_pyarrow, kind) for kind in ("503", "reset", "short", "ignore range") if EVERY_FAULT),
        *((through_obstore, kind) for kind in ("500", "drop", "short", "ignore range") if EVERY_FAULT),
        (through_s3fs, "short"),
        (through_s3fs, "stall"),
        (through_pyarrow, "short"),
        (through_obstore, "short"),
    ],
)
def test_a_transient_fault_costs_time_and_no_row(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]], kind: Kind
) -> None:
    url = s3.corpus(tmp_path / "corpus")
    options = client(s3)
    dataset = s3.dataset(place(url, options), cache_dir=False, retries=QUICK, prefetch_windows=0, **options)
    expected = ids(dataset)
    s3.proxy.behave(Fault(kind, path=r"part-00[012]", times=2))
    began = time.monotonic()
    again = s3.dataset(place(url, options), cache_dir=False, retries=QUICK, prefetch_windows=0, **options)
    assert ids(again) == expected
    assert sum(bool(request.fault) for request in s3.proxy.requests()) == 2
    assert time.monotonic() - began < 15


def test_a_permanent_fault_ends_within_the_deadline_and_names_the_object(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]]
) -> None:
    url = s3.corpus(tmp_path / "corpus", files=((4,),))
    options = client(s3)
    quick = RetryPolicy(max_attempts=3, first_delay_s=0, attempt_timeout_s=1, deadline_s=2, read_timeout_s=1)
    dataset = s3.dataset(place(url, options), cache_dir=False, retries=quick, **options)
    for kind in ("503", "stall"):
        s3.proxy.behave(Fault(kind, path="parquet"))
        began = time.monotonic()
        with pytest.raises(DataFileError, match=r"part-000\.parquet can't be read \(tried [23] times in .* s\)"):
            list(dataset)
        # One read fails, then the reader checks whether the file has changed.
        assert time.monotonic() - began < 2 * (quick.deadline_s + 2)
    s3.proxy.behave()
    assert sorted(flat(ids(dataset))) == [0, 1, 2, 3]


@pytest.mark.parametrize(("kind", "problem"), [("403", r"can't be read"), ("404", "does not exist")])
def test_a_refused_request_fails_immediately(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]], kind: Kind, problem: str
) -> None:
    url = s3.corpus(tmp_path / "corpus", files=((4,),))
    options = client(s3)
    dataset = s3.dataset(place(url, options), cache_dir=False, **options)
    s3.proxy.behave(Fault(kind, path="parquet"))
    with pytest.raises(DataFileError, match=rf"part-000\.parquet {problem}"):
        list(dataset)
    assert len(s3.proxy.requests()) <= 3


def test_a_stalled_thread_does_not_delay_the_exit_of_the_process(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "corpus", files=((4,),))
    options = through_s3fs(s3)
    program = f"""
import sys, time
from laneway import RetryPolicy, StatefulShardedDataset
patient = RetryPolicy(attempt_timeout_s=1, deadline_s=1.5, read_timeout_s=60)
dataset = StatefulShardedDataset({url!r}, cache_dir=False, retries=patient, **{options!r})
print("go", flush=True)
sys.stdin.readline()
try:
    list(dataset)
except OSError as error:
    print(error, flush=True)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        s3.proxy.behave(Fault("stall at once", method=""))
        began = time.monotonic()
        process.stdin.write("\n")
        process.stdin.close()
        assert "no answer within" in process.stdout.read()
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 12


def test_an_object_of_another_version_is_never_read(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]]
) -> None:
    url, table = wide(s3, tmp_path / "wide")
    options = client(s3)
    manifest, storage = scan_source(place(url, options), cache_dir=False, **options)
    reader = RowReader(manifest, storage, select_columns(manifest, ["c0"]))
    assert reader.read(0, 0, 10).equals(table.select(["c0"]).slice(0, 10))
    if isinstance(options.get("filesystem"), pyarrow.fs.FileSystem):
        # Apart from the size, pyarrow reports only a modification time, in seconds.
        time.sleep(1.1)
    whole = bytearray((tmp_path / "wide" / "part-0.parquet").read_bytes())
    whole[1000:2000] = bytes(1000)
    s3.put(f"{url}/part-0.parquet", bytes(whole))
    with pytest.raises(DataFileError, match=r"part-0\.parquet changed since it was planned"):
        reader.read(0, GROUP_ROWS, GROUP_ROWS + 10)
    with pytest.raises(DataFileError, match=r"part-0\.parquet changed since it was planned"):
        RowReader(manifest, storage, select_columns(manifest, ["c0"])).read(0, GROUP_ROWS, GROUP_ROWS + 10)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_files_that_their_parent_reads_before_and_after(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]], method: str
) -> None:
    if (method == "spawn") != (client is through_obstore):
        pytest.skip("obstore works only in spawned processes; for the others spawning is slow and makes no difference")
    url = s3.corpus(tmp_path / "corpus")
    options = client(s3)
    dataset = s3.dataset(place(url, options), cache_dir=False, **options)
    assert sorted(flat(ids(dataset))) == list(range(48))
    loader = SavableLoader(dataset, num_workers=2, multiprocessing_context=multiprocessing.get_context(method))
    assert sorted(flat(ids(loader))) == list(range(48))
    assert sorted(flat(ids(dataset))) == list(range(48))


def test_obstore_in_a_forked_worker_is_an_error_with_a_way_out(s3: Bed, tmp_path: Path) -> None:
    options = through_obstore(s3)
    dataset = s3.dataset(place(s3.corpus(tmp_path / "corpus"), options), cache_dir=False, **options)
    with pytest.raises(DataFileError, match="obstore does not work in a process that was forked after its use"):
        list(SavableLoader(dataset, num_workers=1, multiprocessing_context=multiprocessing.get_context("fork")))


def test_no_secret_reaches_an_error_a_repr_or_a_log(
    s3: Bed, tmp_path: Path, client: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "laneway")
    url = s3.corpus(tmp_path / "corpus", files=((4,),))
    correct, wrong = client(s3), client(s3, secret=CANARY)
    manifest = Manifest.scan(place(url, correct), cache_dir=False, **correct)
    texts: list[str] = []
    nowhere = client(s3, endpoint="http://127.0.0.1:1", secret=CANARY)
    for given in (wrong, nowhere):
        options = {**given, "retries": RetryPolicy(max_attempts=1)}
        file = place(f"{url}/manifest.json", options)
        calls: list[Callable[[], object]] = [
            partial(Manifest.scan, place(url, options), cache_dir=False, **options),
            partial(list, StatefulShardedDataset(manifest, **options)),
            partial(Manifest.load, file, **options),
            partial(manifest.save, file, **options),
        ]
        for call in calls:
            with pytest.raises(DataFileError) as caught:
                call()
            texts += traceback.format_exception(caught.value)
        texts += [repr(Storage(place(url, options), **options)), repr(StatefulShardedDataset(manifest, **options))]
    text = "".join(texts) + caplog.text
    for secret in (CANARY, re.escape(CANARY), s3.server.secret, s3.server.key):
        assert secret not in text
    assert BUCKET in text

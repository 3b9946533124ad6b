"""The requests of a scan on a real server: one listing, one request per footer, and neither twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs
import pytest

from laneway import Manifest
from laneway.errors import DataFileError
from laneway.formats.parquet import ParquetFormat
from tests.corpora import KINDS, Kind, rows, write_blocks, write_corpus
from tests.storage.fault_proxy import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.storage.beds import Bed
    from tests.storage.fault_proxy import Request

SMALL_FILES = ((3,),) * 7
NUM_FILES = len(SMALL_FILES)


def _kind(request: Request) -> str:
    return "LIST" if "list-type=2" in request.query else request.method


def _requests(s3: Bed) -> Mapping[str, int]:
    """Return the number of requests of each kind, and reset the counts."""
    counts = Counter(_kind(request) for request in s3.proxy.requests())
    s3.proxy.behave()
    return counts


def test_a_scan_is_one_listing_and_one_request_per_footer_and_the_next_scan_only_a_listing(
    s3: Bed, tmp_path: Path
) -> None:
    url = s3.corpus(tmp_path / "d", files=SMALL_FILES)
    expected = Manifest.scan(tmp_path / "d").fingerprint
    bucket = url.removeprefix("s3://")
    arrow = pyarrow.fs.S3FileSystem(
        endpoint_override=s3.proxy.endpoint.removeprefix("http://"),
        scheme="http",
        access_key=s3.server.key,
        secret_key=s3.server.secret,
        region="us-east-1",
    )
    ways: list[tuple[Any, dict[str, Any], dict[str, int]]] = [
        (url, {"storage_options": s3.options}, {"LIST": 1, "GET": NUM_FILES}),
        (f"{url}/", {"storage_options": s3.options}, {"LIST": 1, "GET": NUM_FILES}),
        (f"{url}/*.parquet", {"storage_options": s3.options}, {"LIST": 1, "GET": NUM_FILES}),
        (f"{url}/**", {"storage_options": s3.options}, {"LIST": 1, "GET": NUM_FILES}),
        (f"{url}/part-*", {"storage_options": s3.options}, {"LIST": 1, "GET": NUM_FILES}),
        (
            [f"{url}/part-{index:03}.parquet" for index in range(NUM_FILES)],
            {"storage_options": s3.options},
            {"HEAD": NUM_FILES, "GET": NUM_FILES},
        ),
        # pyarrow's client requests the size of each file that it opens.
        (bucket, {"filesystem": arrow}, {"LIST": 1, "HEAD": NUM_FILES, "GET": NUM_FILES}),
    ]
    for source, options, counts in ways:
        _requests(s3)
        assert Manifest.scan(source, cache_dir=False, **options).fingerprint == expected
        assert _requests(s3) == counts
    cache: dict[str, Any] = {"cache_dir": tmp_path / "cache", "storage_options": s3.options}
    first = Manifest.scan(url, **cache)
    _requests(s3)
    second = Manifest.scan(url, **cache)
    assert _requests(s3) == {"LIST": 1}
    assert second.fingerprint == first.fingerprint == expected
    assert second.versions == first.versions
    assert all(version.startswith('"') for version in first.versions)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_object_that_changed_is_read_again(s3: Bed, tmp_path: Path, kind: Kind) -> None:
    url = s3.corpus(tmp_path / "d", kind, files=((3,), (4,), (5,)))
    # In the user's cache directory, as by default.
    Manifest.scan(url, storage_options=s3.options)
    path = sorted((tmp_path / "d").iterdir())[1]
    write_blocks(path, kind, [rows(100, 104)], rows(0, 0).schema)
    s3.put(f"{url}/{path.name}", path.read_bytes())
    s3.proxy.behave()
    manifest = Manifest.scan(url, storage_options=s3.options)
    asked = {request.path.rsplit("/", 1)[-1] for request in s3.proxy.requests() if _kind(request) != "LIST"}
    assert asked == {path.name}
    assert manifest.fingerprint == Manifest.scan(tmp_path / "d").fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_file_of_any_format_takes_one_request(s3: Bed, tmp_path: Path, kind: Kind) -> None:
    url = s3.corpus(tmp_path / "d", kind, files=((3, 2), (4,), (1, 1, 1)))
    s3.proxy.behave()
    manifest = Manifest.scan(url, cache_dir=False, storage_options=s3.options)
    assert _requests(s3) == {"LIST": 1, "GET": 3}
    assert manifest.fingerprint == Manifest.scan(tmp_path / "d").fingerprint


def test_the_headers_of_an_arrow_file_are_requested_together(s3: Bed, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "a.arrow"
    batch = pa.record_batch([pa.array(range(20_000)), pa.array(["a", "b"] * 10_000).dictionary_encode()], ["id", "d"])
    num_batches = 9
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        for _ in range(num_batches):
            writer.write_batch(batch)
    url = s3.upload(tmp_path / "d")
    s3.proxy.behave()
    manifest = Manifest.scan(url, cache_dir=False, storage_options=s3.options)
    requests = [request for request in s3.proxy.requests() if _kind(request) == "GET"]
    # The tail, and each boundary between two bodies: the last one is in the tail.
    assert len(requests) == 1 + num_batches
    assert sum(request.body_bytes for request in requests) < path.stat().st_size / 4
    local = Manifest.scan(tmp_path / "d")
    assert manifest.fingerprint == local.fingerprint
    assert manifest.layout.tolist() == local.layout.tolist()
    for damage in (b"\0" * 4, b"\xff" * 4):
        # A footer that can't be read may have listed any batches.
        text = path.read_bytes()
        end = len(text) - 10
        start = end - int.from_bytes(text[end : end + 4], "little")
        s3.put(f"{url}/a.arrow", text[:start] + damage + text[start + 4 :])
        with pytest.raises(DataFileError, match=r"a\.arrow has an invalid footer"):
            Manifest.scan(url, cache_dir=False, storage_options=s3.options)


def test_a_footer_of_many_kilobytes_takes_a_second_request(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "d", files=((1,) * 400, (2,)))
    assert (tmp_path / "d" / "part-000.parquet").stat().st_size > 2 * ParquetFormat.tail_bytes
    s3.proxy.behave()
    manifest = Manifest.scan(url, cache_dir=False, storage_options=s3.options)
    assert manifest.fingerprint == Manifest.scan(tmp_path / "d").fingerprint
    assert _requests(s3) == {"LIST": 1, "GET": 3}


@pytest.mark.parametrize("kind", ["500", "drop", "short", "ignore range"])
def test_an_incomplete_footer_is_requested_again(s3: Bed, tmp_path: Path, kind: Any) -> None:
    url = s3.corpus(tmp_path / "d", files=SMALL_FILES)
    s3.proxy.behave(Fault(kind, path=r"\.parquet", times=2))
    manifest = Manifest.scan(url, cache_dir=False, storage_options=s3.options)
    assert manifest.fingerprint == Manifest.scan(tmp_path / "d").fingerprint
    assert any(request.fault for request in s3.proxy.requests())


def test_an_unreadable_object_is_named_and_the_scan_stops_early(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "d", files=((1,),) * 300)
    s3.proxy.behave(Fault("403", path=r"\.parquet"))
    with pytest.raises(DataFileError, match=r"part-000\.parquet can't be read, permission denied") as caught:
        Manifest.scan(url, cache_dir=False, storage_options=s3.options)
    assert s3.server.secret not in str(caught.value)
    assert len(s3.proxy.requests()) < 200
    s3.proxy.behave(Fault("403", path="list-type"))
    with pytest.raises(DataFileError, match=rf"{url} can't be read, permission denied"):
        Manifest.scan(url, cache_dir=False, storage_options=s3.options)
    with pytest.raises(DataFileError, match=rf"{url} can't be read, permission denied"):
        Manifest.scan(f"{url}/*.parquet", cache_dir=False, storage_options=s3.options)
    s3.proxy.behave()
    with pytest.raises(DataFileError, match=rf"{url}-gone does not exist"):
        Manifest.scan(f"{url}-gone", storage_options=s3.options)


def test_directories_of_an_object_store_are_found_as_on_a_disk(s3: Bed, tmp_path: Path) -> None:
    names = ("a/k1/x", "a/k2/x", "b/_no/x", "b/y", "t.parquet/part-0")
    write_corpus(tmp_path / "d", files=((1,),) * len(names), names=names)
    (tmp_path / "d" / "_SUCCESS").touch()
    url = s3.upload(tmp_path / "d")
    for name in ("", "/a", "/a/k1", "/b"):
        s3.put(f"{url}{name}/", b"")
    for source in ("", "/a", "/*", "/*/*.parquet", "/?", "/[ab]", "/a/**", "/**/x.parquet", "/t.parquet", "/*.parquet"):
        expected = Manifest.scan(f"{tmp_path}/d{source}")
        found = Manifest.scan(f"{url}{source}", cache_dir=False, storage_options=s3.options)
        assert (source, found.files.paths) == (source, expected.files.paths)
        assert found.fingerprint == expected.fingerprint


def test_a_cache_in_the_bucket_uses_the_same_keys_and_reveals_none(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "d", files=SMALL_FILES)
    options: dict[str, Any] = {"storage_options": s3.options, "cache_dir": f"{url}/cache"}
    first = Manifest.scan(url, **options)
    _requests(s3)
    assert Manifest.scan(url, **options).fingerprint == first.fingerprint
    assert _requests(s3) == {"LIST": 1, "HEAD": 1, "GET": 1}
    listed = s3.server.client.list_objects_v2(Bucket="bucket", Prefix=f"{url.removeprefix('s3://bucket/')}/cache/")
    (key,) = [each["Key"] for each in listed["Contents"]]
    data = s3.server.client.get_object(Bucket="bucket", Key=key)["Body"].read()
    text = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read().decode("latin1")
    assert "part-000.parquet" in text
    for secret in (s3.server.key, s3.server.secret, s3.proxy.endpoint):
        assert secret not in text

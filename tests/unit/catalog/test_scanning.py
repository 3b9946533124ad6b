"""Scanning with a cache: a file's cached metadata is used only if its version is known and unchanged."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from laneway.catalog import scanning
from laneway.catalog.caching import CacheEntry
from laneway.catalog.decoding import decode
from laneway.catalog.encoding import FORMAT_VERSION, encode
from laneway.catalog.footers import read_footers
from laneway.catalog.scanning import scan_files
from laneway.catalog.sources import DataFiles, find_data_files
from laneway.errors import ManifestCacheWarning
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from laneway.formats import FileScan

FILES = ((3, 1), (2,), (5,))
NAMES = ["part-000.parquet", "part-001.parquet", "part-002.parquet"]


@pytest.fixture
def found(tmp_path: Path) -> DataFiles:
    """Three files, whose versions are ETags."""
    write_corpus(tmp_path / "d", files=FILES)
    return replace(find_data_files(tmp_path / "d"), versions=["a", "b", "c"])


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the files whose footers are read."""
    paths: list[str] = []
    read = read_footers

    def record(found: DataFiles, indices: Sequence[int], *, progress: bool | None) -> list[FileScan]:
        paths.extend(found.paths[index] for index in indices)
        return read(found, indices, progress=progress)

    monkeypatch.setattr(scanning, "read_footers", record)
    return paths


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entry_of(found: DataFiles, cache: Path) -> CacheEntry:
    key = (f"format {FORMAT_VERSION}", found.format.name, *found.sources)
    entry = CacheEntry.find(cache, found.storage, key)
    assert entry is not None
    return entry


def scan(found: DataFiles, cache: Path | bool) -> Any:
    return scan_files(found, progress=False, cache_dir=cache)


def test_files_of_known_and_unchanged_versions_are_not_read_again(
    found: DataFiles, cache: Path, read_files: list[str]
) -> None:
    first = scan(found, cache)
    assert read_files == NAMES
    (entry,) = cache.iterdir()
    written = entry.stat()
    read_files.clear()
    second = scan(found, cache)
    assert read_files == []
    assert encode(second) == encode(first)
    # A file that is replaced is another one.
    assert entry.stat().st_ino == written.st_ino


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ({"versions": ["a", "x", "c"]}, ["part-001.parquet"]),
        ({"versions": ["a", "", "c"]}, ["part-001.parquet"]),
        ({"versions": ["", "", ""]}, NAMES),
        ({"sizes": [0, None, None]}, ["part-000.parquet"]),
    ],
    ids=["changed", "unknown", "all unknown", "other size"],
)
def test_only_files_of_changed_or_unknown_versions_are_read_again(
    found: DataFiles, cache: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, list[Any]], read: list[str]
) -> None:
    first = scan(found, cache)
    indices_read: list[int] = []

    def record(_: DataFiles, indices: Sequence[int], *, progress: bool | None) -> list[FileScan]:
        assert progress is False
        indices_read.extend(indices)
        return [first.file_scan(index) for index in indices]

    monkeypatch.setattr(scanning, "read_footers", record)
    sizes = [
        size if new is None else new for size, new in zip(found.sizes, change.get("sizes", [None] * 3), strict=True)
    ]
    changed = replace(found, sizes=sizes, versions=change.get("versions", found.versions))
    second = scan(changed, cache)
    assert [NAMES[index] for index in indices_read] == read
    assert second.files.block_rows.tolist() == first.files.block_rows.tolist()
    assert second.versions == tuple(changed.versions)


def test_a_version_that_was_unknown_when_it_was_cached_is_read_again(
    found: DataFiles, cache: Path, read_files: list[str]
) -> None:
    unknown = replace(found, versions=["a", "", "c"])
    scan(unknown, cache)
    for _ in range(2):
        read_files.clear()
        scan(unknown, cache)
        assert read_files == ["part-001.parquet"]
    read_files.clear()
    scan(found, cache)
    assert read_files == ["part-001.parquet"]
    read_files.clear()
    scan(found, cache)
    assert read_files == []


def test_a_cached_scan_of_files_that_differ_is_that_of_a_new_one(tmp_path: Path, cache: Path) -> None:
    corpus = tmp_path / "d"
    write_corpus(corpus, files=FILES)
    for name, each in (("part-003", "element"), ("part-004", "item"), ("part-005", "item")):
        tokens = pa.array([[1]], pa.list_(pa.field(each, pa.int64())))
        pq.write_table(
            pa.table({"tokens": tokens, "id": [1]}), corpus / f"{name}.parquet", use_compliant_nested_type=False
        )
    names = [*NAMES, *(f"part-00{index}.parquet" for index in (3, 4, 5))]
    found = replace(find_data_files(corpus), versions=list("abcdef"))
    assert found.paths == names
    scan(found, cache)
    for kept in ([0, 3, 4], [4, 5], [3, 4], [5, 0, 3, 4]):
        order = sorted(kept)
        some = replace(
            found,
            paths=[names[index] for index in order],
            sizes=[found.sizes[index] for index in order],
            versions=[found.versions[index] for index in order],
        )
        cached, new = scan(some, cache), scan(some, False)  # noqa: FBT003 - no cache
        assert cached.fingerprint == new.fingerprint
        assert cached.schemas.distinct == new.schemas.distinct
        assert cached.schemas.indices.tolist() == new.schemas.indices.tolist()
        scan(found, cache)


def test_files_may_come_and_go(found: DataFiles, cache: Path, read_files: list[str]) -> None:
    scan(replace(found, paths=NAMES[:2], sizes=found.sizes[:2], versions=["a", "b"]), cache)
    read_files.clear()
    later = replace(found, paths=NAMES[1:], sizes=found.sizes[1:], versions=["b", "c"])
    contents = scan(later, cache)
    assert read_files == ["part-002.parquet"]
    assert contents.files.paths == NAMES[1:]
    assert contents.files.block_rows.tolist() == [2, 5]
    assert encode(contents) == encode(scan(later, cache=False))


def test_a_time_moments_before_the_listing_is_not_trusted(found: DataFiles, cache: Path, read_files: list[str]) -> None:
    now = time.time_ns()
    recent = replace(found, versions=[str(now - 3 * 10**9), str(now - 10**9), "c"], listed_at_ns=now)
    assert scan(recent, cache).versions == tuple(recent.versions)
    data = entry_of(found, cache).read()
    assert data is not None
    assert decode(data, "entry").versions == (recent.versions[0], "", "c")
    read_files.clear()
    scan(recent, cache)
    assert read_files == ["part-001.parquet"]


def test_nothing_is_cached_where_no_version_is_known_or_no_cache_is_wanted(found: DataFiles, cache: Path) -> None:
    scan(replace(found, versions=["", "", ""]), cache)
    scan(found, cache=False)
    assert not cache.exists()


def test_a_damaged_entry_is_replaced_with_a_warning(found: DataFiles, cache: Path, read_files: list[str]) -> None:
    first = scan(found, cache)
    entry_of(found, cache).write(b"damaged")
    read_files.clear()
    with pytest.warns(ManifestCacheWarning, match="a cached manifest is unusable, scanning again"):
        assert encode(scan(found, cache)) == encode(first)
    assert read_files == NAMES
    read_files.clear()
    scan(found, cache)
    assert read_files == []


class _Four(pa.ExtensionType):
    """A type of a user."""

    def __init__(self) -> None:
        super().__init__(pa.binary(4), "tests.scanned_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, data: bytes) -> _Four:
        return cls()


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_the_fingerprint_does_not_depend_on_which_extension_types_are_registered(tmp_path: Path, suffix: str) -> None:
    values: Any = pa.ExtensionArray.from_storage(_Four(), pa.array([b"1234", b"5678"], pa.binary(4)))
    table = pa.table({"m": values, "s": pa.StructArray.from_arrays([values], ["inner"])})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    unknown = scan_files(find_data_files(path), progress=False, cache_dir=False)
    registered: Any = _Four()
    pa.register_extension_type(registered)
    try:
        known = scan_files(find_data_files(path), progress=False, cache_dir=False)
    finally:
        pa.unregister_extension_type("tests.scanned_type")
    assert known.schemas.union.field("m").type == _Four()
    assert unknown.schemas.union.field("m").type == pa.binary(4)
    assert known.files.fingerprint == unknown.files.fingerprint

"""Manifests that are cached for the next run."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway import Manifest, ManifestCacheWarning, StatefulShardedDataset
from laneway.catalog.caching import CacheEntry
from laneway.errors import DataFileError
from laneway.storage.filesystem import Storage
from tests.corpora import KINDS, Kind, rows, write_blocks, write_corpus

if TYPE_CHECKING:
    from pathlib import Path

LONG_AGO_NS = 10**18
"""A modification time long ago."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _corpus(folder: Path, kind: Kind = "parquet") -> list[Path]:
    """Write a corpus with old modification times; return its files."""
    write_corpus(folder, kind)
    paths = sorted(folder.iterdir())
    for path in paths:
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return paths


def _spoil(path: Path) -> None:
    """Make a file unreadable in a way that no listing shows."""
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def _rewrite(path: Path, kind: Kind, num_rows: int) -> None:
    write_blocks(path, kind, [rows(0, num_rows)], rows(0, 0).schema)
    os.utime(path, ns=(2 * LONG_AGO_NS // 3, 2 * LONG_AGO_NS // 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_scan_reads_only_what_is_new_or_changed(tmp_path: Path, cache: Path, kind: Kind) -> None:
    paths = _corpus(tmp_path / "d", kind)
    first = Manifest.scan(tmp_path / "d", cache_dir=cache)
    contents = paths[0].read_bytes()
    _spoil(paths[0])
    with pytest.raises(DataFileError):
        Manifest.scan(tmp_path / "d")
    second = Manifest.scan(tmp_path / "d", cache_dir=cache)
    assert second.fingerprint == first.fingerprint
    assert second.schema.equals(first.schema, check_metadata=True)
    assert (second.layout.tolist(), second.versions) == (first.layout.tolist(), first.versions)

    _rewrite(paths[1], kind, 7)
    _rewrite(tmp_path / "d" / f"new{paths[0].suffix}", kind, 2)
    paths[2].unlink()
    third = Manifest.scan(tmp_path / "d", cache_dir=cache)
    paths[0].write_bytes(contents)
    assert third.fingerprint == Manifest.scan(tmp_path / "d").fingerprint


def test_a_file_modified_moments_ago_is_read_again(tmp_path: Path, cache: Path) -> None:
    path = _corpus(tmp_path / "d")[0]
    path.touch()
    before = path.stat()
    first = Manifest.scan(tmp_path / "d", cache_dir=cache)
    content = path.read_bytes()
    path.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])
    # As on a filesystem whose clock is too coarse to distinguish two writes.
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    second = Manifest.scan(tmp_path / "d", cache_dir=cache)
    assert second.versions == first.versions
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", [b"", b"garbage", "cut", "flipped"])
def test_a_damaged_entry_is_rebuilt_with_a_warning(tmp_path: Path, cache: Path, damage: bytes | str) -> None:
    _corpus(tmp_path / "d")
    expected = Manifest.scan(tmp_path / "d", cache_dir=cache).fingerprint
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    flipped = whole[:-900] + bytes([whole[-900] ^ 1]) + whole[-899:]
    entry.write_bytes({"cut": whole[:-40], "flipped": flipped}.get(str(damage), b"garbage" if damage else b""))
    with pytest.warns(
        ManifestCacheWarning, match=rf"unusable, scanning again: .*{entry.name} is .*damaged.*cache_dir=False"
    ):
        assert Manifest.scan(tmp_path / "d", cache_dir=cache).fingerprint == expected
    assert Manifest.scan(tmp_path / "d", cache_dir=cache).fingerprint == expected


def test_an_unusable_cache_is_one_warning_and_not_an_error(tmp_path: Path) -> None:
    _corpus(tmp_path / "d")
    (tmp_path / "file").touch()
    for cache, message in ((tmp_path / "file", "can't be read"), ("/proc/laneway", "the next run will scan again")):
        with pytest.warns(ManifestCacheWarning, match=f"{message}.*; give another cache_dir, or cache_dir=F") as caught:
            first = Manifest.scan(tmp_path / "d", cache_dir=cache)
        assert len(caught) == 1
        assert Manifest.scan(tmp_path / "d", cache_dir=cache).fingerprint == first.fingerprint


def test_a_source_has_one_entry_however_often_it_changes(tmp_path: Path, cache: Path) -> None:
    paths = _corpus(tmp_path / "d")
    for num_rows in (2, 3, 4):
        _rewrite(paths[0], "parquet", num_rows)
        assert Manifest.scan(tmp_path / "d", cache_dir=cache).files.rows[0] == num_rows
        assert len(list(cache.iterdir())) == 1
    Manifest.scan(f"{tmp_path}/d/*1.parquet", cache_dir=cache)
    Manifest.scan(paths[:2], cache_dir=cache)
    names = [path.name for path in cache.iterdir()]
    assert len(names) == 3
    assert all(name.startswith("_manifest-") for name in names)


def test_a_cache_in_the_directory_of_the_dataset_is_not_data(tmp_path: Path) -> None:
    _corpus(tmp_path / "d")
    expected = Manifest.scan(tmp_path / "d").fingerprint
    for _ in range(2):
        assert Manifest.scan(tmp_path / "d", cache_dir=tmp_path / "d").fingerprint == expected


def test_a_shared_entry_can_be_read_by_others(tmp_path: Path, cache: Path) -> None:
    _corpus(tmp_path / "d")
    mask = os.umask(0o022)
    try:
        Manifest.scan(tmp_path / "d", cache_dir=cache)
    finally:
        os.umask(mask)
    assert [oct(path.stat().st_mode & 0o777) for path in cache.iterdir()] == ["0o644"]


def test_a_cache_may_be_a_url(tmp_path: Path) -> None:
    paths = _corpus(tmp_path / "d")
    filesystem = fsspec.filesystem("memory")
    try:
        first = Manifest.scan(tmp_path / "d", cache_dir="memory://laneway-cache/deep")
        assert len(filesystem.ls("/laneway-cache/deep", detail=False)) == 1
        _spoil(paths[0])
        second = Manifest.scan(tmp_path / "d", cache_dir="memory://laneway-cache/deep")
        assert second.fingerprint == first.fingerprint
    finally:
        filesystem.rm("/laneway-cache", recursive=True)


def test_local_files_are_cached_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    paths = _corpus(tmp_path / "d")
    arrow = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    Manifest.scan(tmp_path / "d")
    Manifest.scan(tmp_path / "d", cache_dir=False)
    Manifest.scan("d", filesystem=arrow)
    Manifest.scan("d", filesystem=DirFileSystem(str(tmp_path), fsspec.filesystem("file")))
    assert not (tmp_path / "home").exists()
    first = StatefulShardedDataset(tmp_path / "d", cache_dir=True).manifest
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["laneway"]
    _spoil(paths[0])
    assert Manifest.scan(tmp_path / "d", cache_dir=True).fingerprint == first.fingerprint


def test_two_directories_under_the_same_name_share_nothing(tmp_path: Path, cache: Path) -> None:
    write_corpus(tmp_path / "a" / "d")
    write_corpus(tmp_path / "b" / "d", files=((3,),))
    for wrap in (
        lambda name: DirFileSystem(str(tmp_path / name), fsspec.filesystem("file")),
        lambda name: pyarrow.fs.SubTreeFileSystem(str(tmp_path / name), pyarrow.fs.LocalFileSystem()),
    ):
        before = len(list(cache.iterdir())) if cache.exists() else 0
        for path in tmp_path.glob("[ab]/d/*"):
            os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
        manifests = [Manifest.scan("d", filesystem=wrap(name), cache_dir=cache) for name in ("a", "b")]
        assert [manifest.num_rows for manifest in manifests] == [48, 3]
        assert len(list(cache.iterdir())) == before + 2


def test_an_entry_is_found_with_new_credentials(cache: Path) -> None:
    def name(source: str, also: str = "", **options: Any) -> str:
        entry = CacheEntry.find(cache, Storage(source, storage_options=options), [also])
        assert entry is not None
        return entry.name

    first, second = (f"https://user:{secret}@store.example/d?signature={secret}" for secret in ("old", "new"))
    assert name(first, first) == name(second, second)
    urls: list[dict[str, Any]] = [{"client_kwargs": {"endpoint_url": f"http://{host}.example"}} for host in ("a", "b")]
    names = [name("s3://bucket/d", key=each, secret=each, **url) for url in urls for each in ("old", "new")]
    assert names[0] == names[1] != names[2] == names[3]


def _scan_often(folder: Path, cache: Path, results: object) -> None:
    warnings.simplefilter("error")
    found = set()
    for index in range(8):
        if index % 2:
            for entry in cache.glob("_manifest-*"):
                entry.unlink(missing_ok=True)
        found.add(Manifest.scan(folder, cache_dir=cache).fingerprint)
    results.put(sorted(found))  # type: ignore[attr-defined]


def test_many_processes_may_use_one_cache(tmp_path: Path, cache: Path) -> None:
    _corpus(tmp_path / "d")
    expected = Manifest.scan(tmp_path / "d").fingerprint
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    processes = [fork.Process(target=_scan_often, args=(tmp_path / "d", cache, results)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [results.get() for _ in processes] == [[expected]] * 4
    assert all(path.name.startswith("_manifest-") for path in cache.iterdir())

"""Saved and pickled manifests: where their files are, and that they are the same."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway import manifest as manifest_module
from laneway.catalog.encoding import encode
from laneway.errors import DataFileError
from laneway.manifest import Manifest
from laneway.storage.listing import find_files
from tests.corpora import rows, write_blocks, write_corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from laneway.storage.entries import Entry
    from laneway.storage.filesystem import Storage


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://laneway-saved"
    filesystem = fsspec.filesystem("memory")
    for path in ("/laneway-saved", "/other"):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def saved(tmp_path: Path, root: str) -> Path:
    """Return a saved manifest that says that its files are in `root`."""
    if not (tmp_path / "d").exists():
        write_corpus(tmp_path / "d")
    replace(Manifest.scan(tmp_path / "d"), root=root).save(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("root", ["http://127.0.0.1:1/x", "memory://d", "s3://bucket/d", "file:///etc", "s3://k:s@b/d"])
def test_a_root_on_another_storage_than_the_manifest_must_be_given(tmp_path: Path, root: str) -> None:
    path = saved(tmp_path, root)
    with pytest.raises(DataFileError, match=r"m says that its data files are in .*, on another storage .* pass root="):
        Manifest.load(path)
    with pytest.raises(DataFileError, match="on another storage") as caught:
        Manifest.load("m", filesystem=DirFileSystem(str(tmp_path), fsspec.filesystem("file")))
    assert "k:s@" not in str(caught.value)
    assert Manifest.load(path, root=tmp_path / "d").root == str(tmp_path / "d")


def test_a_manifest_on_a_remote_storage_may_name_only_roots_there(tmp_path: Path, memory: str) -> None:
    for root, is_same in (
        ("memory:///laneway-saved/d", True),
        ("memory://other/d", False),
        (str(tmp_path), False),
        ("/etc", False),
    ):
        manifest = Manifest.scan(write_file_in(tmp_path))
        replace(manifest, root=root).save(f"{memory}/m")
        if is_same:
            assert Manifest.load(f"{memory}/m").root == root
        else:
            with pytest.raises(DataFileError, match="on another storage than the manifest"):
                Manifest.load(f"{memory}/m")


def write_file_in(directory: Path) -> Path:
    (directory / "one").mkdir(exist_ok=True)
    write_blocks(directory / "one" / "a.parquet", "parquet", [rows(0, 3)], rows(0, 0).schema)
    return directory / "one"


def test_a_local_manifest_may_name_any_local_root(tmp_path: Path) -> None:
    assert Manifest.load(saved(tmp_path, str(tmp_path / "d"))).num_rows == 48


def test_a_manifest_that_names_its_own_root_is_loaded_without_listing_it(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").put(str(write_file_in(tmp_path) / "a.parquet"), f"{memory}/d/a.parquet")
    manifest = Manifest.scan(f"{memory}/d")
    manifest.save(f"{memory}/m")
    listed: list[str] = []

    def record(storage: Storage, directory: str) -> list[Entry]:
        listed.append(directory)
        return find_files(storage, directory)

    monkeypatch.setattr(manifest_module, "find_files", record)
    assert Manifest.load(f"{memory}/m", root=f"{memory}/d").versions == manifest.versions
    assert Manifest.load(f"{memory}/m").versions == manifest.versions
    assert listed == []
    Manifest.load(f"{memory}/m", root=f"{memory}/moved")
    assert len(listed) == 1


def test_a_manifest_that_can_not_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    manifest = Manifest.scan(write_file_in(tmp_path))
    (tmp_path / "directory").mkdir()
    for path, problem in (
        (tmp_path / "gone" / "m", "can't be written, its directory is missing"),
        (tmp_path / "directory", "can't be written: "),
        (tmp_path / "one" / "a.parquet" / "m", "can't be written: "),
    ):
        with pytest.raises(DataFileError, match=f"^{re.escape(str(path))} {problem}"):
            manifest.save(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "one"]


def test_a_pickled_manifest_is_the_same(tmp_path: Path) -> None:
    write_corpus(tmp_path, "arrow-file", ((3, 1), (2,), ()), names=("k=1/a", "k=1/b", "k=2/c"))
    manifest = Manifest.scan(tmp_path)
    assert pickle.loads(pickle.dumps(manifest)).files.known_fingerprint is None
    fingerprint = manifest.fingerprint
    found = pickle.loads(pickle.dumps(manifest))
    assert found.files.known_fingerprint == fingerprint
    assert replace(found.files).fingerprint == fingerprint
    assert encode(found) == encode(manifest)
    assert encode(copy.deepcopy(manifest)) == encode(manifest)

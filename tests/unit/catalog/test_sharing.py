"""The file of a large manifest, which workers and ranks map into memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from laneway import Manifest, StatefulShardedDataset
from laneway import manifest as manifest_module
from laneway.catalog import sharing
from laneway.catalog.decoding import pack
from laneway.catalog.encoding import encode
from laneway.catalog.sharing import read_local
from laneway.errors import DataFileError
from tests.compat.loaders import FORKSERVER
from tests.corpora import write_corpus
from tests.fuzzing import thorough
from tests.mapping import is_mapped

if TYPE_CHECKING:
    from laneway.catalog.decoding import Compression

METHODS = [thorough("spawn"), "forkserver"]


@pytest.fixture(autouse=True)
def _share_small_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MIN_SHARED_BYTES", 1)
    monkeypatch.setattr(manifest_module, "MIN_SHARED_BYTES", 1)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_corpus(tmp_path / "d", "arrow-file", ((3, 1), (2,), ()), names=("k=1/a", "k=1/b", "k=2/c"))
    return Manifest.scan(tmp_path / "d")


def send_back(value: Any, results: Any) -> None:
    manifest = value.manifest if isinstance(value, StatefulShardedDataset) else value
    results.put((is_mapped(manifest.files.block_rows), encode(manifest), manifest.files.known_fingerprint))


def received(value: Any, method: str, num_workers: int = 1) -> list[tuple[bool, bytes, str | None]]:
    """Return what workers find that were started with a value."""
    # This fork server has imported torch already.
    context = FORKSERVER if method == "forkserver" else multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=send_back, args=(value, results)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return found


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def sizes_of_pickles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the lengths of what is packed for a pickle."""
    found: list[int] = []

    def record(data: bytes, compression: Compression) -> bytes:
        found.append(len(data))
        return pack(data, compression)

    monkeypatch.setattr(manifest_module, "pack", record)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_maps_the_file_that_the_manifest_was_loaded_from(
    manifest: Manifest, tmp_path: Path, method: str, sizes_of_pickles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest.save(tmp_path / "m")
    loaded = Manifest.load(tmp_path / "m")
    monkeypatch.setattr(sharing, "_write_unnamed", None)
    assert is_mapped(loaded.files.block_rows)
    assert received(loaded, method, 2) == [(True, encode(manifest), None)] * 2
    fingerprint = loaded.fingerprint
    assert received(loaded, method) == [(True, encode(manifest), fingerprint)]
    assert sizes_of_pickles == []


@pytest.mark.parametrize("how", ["scanned", "replaced", "gone", "changed here", "gzipped"])
def test_a_worker_maps_a_temporary_file_where_the_manifest_has_no_file_of_its_own(
    manifest: Manifest, tmp_path: Path, how: str, sizes_of_pickles: list[int]
) -> None:
    path = tmp_path / ("m.gz" if how == "gzipped" else "m")
    replace(manifest, root=str(tmp_path)).save(path)
    sent = manifest if how == "scanned" else Manifest.load(path)
    if how == "replaced":
        manifest.save(path)
    elif how == "gone":
        path.unlink()
    elif how == "changed here":
        sent = replace(sent, root="elsewhere")
    sizes_of_pickles.clear()
    assert received(sent, "forkserver", 2) == [(True, encode(sent), None)] * 2
    assert sizes_of_pickles == []


def test_a_cached_manifest_is_mapped_and_shared(manifest: Manifest, tmp_path: Path) -> None:
    for path in (tmp_path / "d").rglob("*.arrow"):
        os.utime(path, (1, 1))
    Manifest.scan(tmp_path / "d", cache_dir=tmp_path / "cache")
    cached = Manifest.scan(tmp_path / "d", cache_dir=tmp_path / "cache")
    assert is_mapped(cached.files.block_rows)
    assert cached.fingerprint == manifest.fingerprint
    assert received(cached, "forkserver") == [(True, encode(cached), manifest.fingerprint)]


def test_a_dataset_is_sent_without_a_copy_of_its_file_table(manifest: Manifest, sizes_of_pickles: list[int]) -> None:
    dataset = StatefulShardedDataset(manifest, batch_size=2)
    assert [each[:2] for each in received(dataset, "forkserver")] == [(True, encode(manifest))]
    assert sizes_of_pickles == []


def test_descriptors_are_closed_when_the_manifest_is_gone(manifest: Manifest, tmp_path: Path) -> None:
    received(manifest, "forkserver")
    manifest.save(tmp_path / "m")
    before = descriptors()
    loaded = Manifest.load(tmp_path / "m")
    assert descriptors() == before
    received(loaded, "forkserver")
    assert len(descriptors()) == len(before) + 1
    del loaded
    gc.collect()
    assert descriptors() <= before


def test_only_a_large_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    assert is_mapped(np.frombuffer(read_local(str(tmp_path / "f")), np.uint8))
    monkeypatch.setattr(sharing, "MIN_SHARED_BYTES", 101)
    data = read_local(str(tmp_path / "f"))
    assert bytes(data) == b"x" * 100
    assert not is_mapped(np.frombuffer(data, np.uint8))


def test_a_mapped_manifest_stays_the_same_when_save_replaces_its_file(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "m")
    loaded = Manifest.load(tmp_path / "m")
    replace(manifest, root=str(tmp_path)).save(tmp_path / "m")
    assert encode(loaded) == encode(manifest)


def test_a_temporary_file_that_can_not_be_written_is_an_error_that_says_what_to_do(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> int:
        raise OSError(28, "No space left on device", len(data))

    monkeypatch.setattr(sharing, "_write_unnamed", fail)
    with pytest.raises(DataFileError, match=r"written to a temporary file for workers: .*No space left.*; set TMPDIR"):
        received(manifest, "forkserver")

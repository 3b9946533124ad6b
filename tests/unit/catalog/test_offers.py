"""Offers of the file of a manifest to other ranks: accepted only if it is that manifest."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from laneway import Manifest
from laneway.catalog import offers, sharing
from laneway.catalog.encoding import encode
from laneway.catalog.offers import Offer
from tests.corpora import write_corpus


@pytest.fixture(autouse=True)
def _share_small_manifests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (offers, sharing):
        monkeypatch.setattr(module, "MIN_SHARED_BYTES", 1)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_corpus(tmp_path / "d")
    return Manifest.scan(tmp_path / "d")


def offer_of(manifest: Manifest) -> Offer:
    offer = Offer.of(manifest)
    assert offer is not None
    return offer


def test_a_scanned_manifest_is_offered_as_a_temporary_file(manifest: Manifest, tmp_path: Path) -> None:
    fingerprint = manifest.fingerprint
    offer = offer_of(manifest)
    assert [str(path) for path in (tmp_path / "temporary").iterdir()] == [offer.path]
    accepted = offer.accept()
    assert accepted is not None
    offer.withdraw()
    offer.withdraw()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert offer.accept() is None
    assert encode(accepted) == encode(manifest)
    assert accepted.files.known_fingerprint == fingerprint


def test_a_loaded_manifest_is_offered_as_its_own_file_which_stays(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "m")
    offer = offer_of(Manifest.load(tmp_path / "m"))
    assert (offer.path, offer.is_temporary) == (str(tmp_path / "m"), False)
    offer.withdraw()
    accepted = offer.accept()
    assert accepted is not None
    assert encode(accepted) == encode(manifest)


@pytest.mark.parametrize("how", ["another manifest", "damaged", "cut off", "empty", "a directory"])
def test_another_file_under_the_same_path_is_not_accepted(manifest: Manifest, tmp_path: Path, how: str) -> None:
    path = tmp_path / "m"
    manifest.save(path)
    offer = offer_of(Manifest.load(path))
    data = path.read_bytes()
    path.unlink()
    if how == "another manifest":
        replace(manifest, root=str(tmp_path)).save(path)
    elif how == "a directory":
        path.mkdir()
    else:
        path.write_bytes({"damaged": data[:-70] + b"!" + data[-69:], "cut off": data[:100]}.get(how, b""))
    # What other tests have left must not be collected in between.
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert offer.accept() is None
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_small_manifest_is_not_offered(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "MIN_SHARED_BYTES", 1 << 20)
    assert Offer.of(manifest) is None


def test_a_manifest_is_not_offered_where_no_file_can_be_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail)
    assert Offer.of(manifest) is None
    assert list((tmp_path / "temporary").iterdir()) == []

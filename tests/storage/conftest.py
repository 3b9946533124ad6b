"""One server of each kind per session, and a separate cache for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.storage.beds import THOROUGH, Bed, bed
from tests.storage.servers import ceph_rgw, moto, why_no_ceph_rgw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def moto_bed() -> Iterator[Bed]:
    with bed(moto) as running:
        yield running


@pytest.fixture(scope="session")
def ceph_bed() -> Iterator[Bed]:
    reason = why_no_ceph_rgw()
    if reason:
        pytest.skip(reason)
    with bed(ceph_rgw) as running:
        yield running


@pytest.fixture
def s3(moto_bed: Bed) -> Bed:
    """moto, through a proxy without faults."""
    moto_bed.proxy.behave()
    return moto_bed


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def each_s3(request: pytest.FixtureRequest) -> Bed:
    """Each server, through a proxy without faults."""
    if request.param == "ceph" and not THOROUGH and request.node.callspec.params.get("kind", "parquet") != "parquet":
        pytest.skip("only make test-storage reads every kind of file from Ceph")
    running: Bed = request.getfixturevalue(f"{request.param}_bed")
    running.proxy.behave()
    return running


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache directory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "the user's cache"))

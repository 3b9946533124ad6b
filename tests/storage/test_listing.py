"""Thousands of objects are listed completely, in order, and without files that are not data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laneway import Manifest
from laneway.catalog.sources import find_data_files
from tests.corpora import rows, write_blocks
from tests.storage.beds import THOROUGH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed

NUM_OBJECTS = 3000
"""More than two pages of a listing: a page has at most a thousand objects."""
DATES = ("2026-01-01", "2026-01-02", "2026-01-03")


def upload_many(bed: Bed, folder: Path) -> tuple[str, list[str]]:
    """Upload objects of one row each, among the files that other programs leave behind; return URL and names."""
    names = [f"{DATES[index % 3]}/part-{index}.parquet" for index in range(NUM_OBJECTS)]
    one = folder / "one.parquet"
    folder.mkdir()
    write_blocks(one, "parquet", [rows(0, 1)], rows(0, 1).schema)
    data = one.read_bytes()
    one.unlink()
    for date in DATES:
        (folder / date / "_temporary").mkdir(parents=True)
        (folder / date / "_temporary" / "part-0.parquet").write_bytes(b"not finished")
    for name in names:
        (folder / name).write_bytes(data)
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"checksum")
    (folder / "README.md").write_text("what this is")
    url = bed.upload(folder)
    for directory in ("", *(f"{date}/" for date in DATES)):
        bed.put(f"{url}/{directory}", b"")
    return url, sorted(names)


def test_three_thousand_objects_are_listed_completely_and_sorted(s3: Bed, tmp_path: Path) -> None:
    url, names = upload_many(s3, tmp_path / "many")
    s3.proxy.behave()
    # moto may take longer for a page of a thousand objects than the timeout of other tests.
    patient = s3.server.options(s3.proxy.endpoint, config_kwargs={"read_timeout": 30})
    found = find_data_files(url, storage_options=patient)
    assert found.paths == names
    seen = s3.proxy.requests()
    pages = [request for request in seen if "list-type=2" in request.query and "max-keys=1&" not in request.query]
    assert len(pages) == 1 + NUM_OBJECTS // 1000
    assert len(seen) <= len(pages) + 2, "requests other than the pages"
    by_glob = find_data_files(f"{url}/*/part-*.parquet", storage_options=patient)
    assert by_glob.paths == names


@pytest.mark.ceph
@pytest.mark.skipif(not THOROUGH, reason="takes half a minute: make test-storage runs it")
def test_three_thousand_objects_are_planned(ceph_bed: Bed, tmp_path: Path) -> None:
    url, names = upload_many(ceph_bed, tmp_path / "many")
    ceph_bed.proxy.behave()
    manifest = Manifest.scan(url, storage_options=ceph_bed.options, progress=False)
    assert list(manifest.files.paths) == names
    assert manifest.num_rows == NUM_OBJECTS
    footers = [request for request in ceph_bed.proxy.requests() if request.range]
    assert len(footers) == NUM_OBJECTS

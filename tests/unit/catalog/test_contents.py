"""The contents of a manifest: what is encoded is decoded again, and anything else is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from laneway.catalog.contents import FORMAT_VERSION, ManifestContents, decode, encode, layout_table
from laneway.catalog.scanning import scan_files
from laneway.catalog.sources import find_data_files
from laneway.errors import DataFileError
from laneway.storage.filesystem import Storage
from tests.corpora import KINDS, Kind, write_corpus

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("lang=de/year=2023/a", "lang=en/year=2024/\u00e9", "lang=fr/year=2025/c")


def scan(directory: Path, kind: Kind = "parquet") -> ManifestContents:
    write_corpus(directory, kind, ((3, 1), (2,), ()), names=NAMES)
    return scan_files(find_data_files(directory), progress=False, cache_dir=False)


def plain(value: Any) -> Any:
    """Return a value that can be compared with ==."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_decoding_returns_all_that_was_encoded(tmp_path: Path, kind: Kind, pack: Any) -> None:
    contents = replace(scan(tmp_path, kind), versions=("5", "", '"etag"'))
    found = decode(pack(encode(contents)), "manifest.json")
    assert plain(found) == plain(contents)
    assert found.fingerprint == contents.fingerprint
    assert found.schema.equals(contents.schema, check_metadata=True)
    assert encode(found) == encode(contents)


def test_contents_of_no_block_have_a_layout_without_entries(tmp_path: Path) -> None:
    assert plain(decode(encode(scan(tmp_path)), "m").layout) == (np.int64, (0, 0), [])
    assert plain(layout_table([[1, 2, 3], [4, 5, 6]])) == (np.int64, (2, 3), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_found_as_it_was_scanned(tmp_path: Path, kind: Kind) -> None:
    contents = scan(tmp_path, kind)
    found = find_data_files(tmp_path)
    storage = Storage(tmp_path)
    for index, path in enumerate(found.paths):
        size = (tmp_path / path).stat().st_size
        expected = found.format.scan(storage, str(tmp_path / path), size)
        kept = contents.file_scan(index)
        assert kept.schema.equals(contents.file_schema)
        assert (kept.block_rows, kept.block_bytes) == (expected.block_rows, expected.block_bytes)
        assert (kept.digest, kept.layout) == (expected.digest, expected.layout)
        planned = contents.planned(storage, index)
        assert (planned.path, planned.size) == (str(tmp_path / path), size)
        assert (planned.digest, planned.version) == (expected.digest, contents.versions[index])
        assert (planned.block_rows.tolist(), planned.layout.tolist()) == (expected.block_rows, expected.layout)


@pytest.mark.parametrize(
    "data", [b"", b"[1]", b"3", b"{}", b"null", b"\xff\xfe", b"\x1f\x8bgarbage", b"cut", b"cut.gz"]
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    whole = encode(scan(tmp_path))
    data = {b"cut": whole[:-10], b"cut.gz": gzip.compress(whole)[:-10]}.get(data, data)
    message = r"^m\.json is not a laneway manifest, or it is damaged \(\w+\): scan the dataset again$"
    with pytest.raises(DataFileError, match=message):
        decode(data, "m.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"block_rows":[3', b'"block_rows":[4'),
        (b"year=2023", b"year=2022"),
        (b'"format":"parquet"', b'"format":"arrow"'),
        (b'"digest":"', b'"digest":"0'),
        (b',"body":', b',"head":'),
    ],
)
def test_any_change_is_damage(tmp_path: Path, old: bytes, new: bytes) -> None:
    whole = encode(scan(tmp_path))
    assert old in whole
    with pytest.raises(DataFileError, match=r"^m\.json is damaged: its digest is \w+ and should be \w+; scan the dat"):
        decode(whole.replace(old, new, 1), "m.json")


@pytest.mark.parametrize("version", [1, FORMAT_VERSION + 1, "2", None])
def test_another_format_version_is_refused_even_if_the_rest_is_unknown(version: Any) -> None:
    message = (
        f"^m.json is a manifest of format {version}, but this release of laneway reads format 2: "
        "update laneway or scan the dataset again$"
    )
    with pytest.raises(DataFileError, match=message):
        decode(json.dumps({"laneway_manifest": version, "new": []}).encode(), "m.json")

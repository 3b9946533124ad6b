"""The contents of a manifest: what is encoded is decoded again."""

from __future__ import annotations

import gzip
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from laneway.catalog.contents import ManifestContents, layout_table
from laneway.catalog.decoding import decode
from laneway.catalog.encoding import CodedValues, encode
from laneway.catalog.scanning import scan_files
from laneway.catalog.sources import find_data_files
from laneway.core.strings import Strings
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
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, (Strings, CodedValues, tuple)):
        return [plain(each) for each in value]
    return value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_decoding_returns_all_that_was_encoded(tmp_path: Path, kind: Kind, pack: Any) -> None:
    contents = replace(scan(tmp_path, kind), versions=Strings.of(["5", "", '"etag"']))
    found = decode(memoryview(pack(encode(contents))), "m")
    assert plain(found) == plain(contents)
    assert found.fingerprint == contents.fingerprint
    assert found.schema.equals(contents.schema, check_metadata=True)
    assert encode(found) == encode(contents)


def test_contents_of_no_block_have_a_layout_without_entries(tmp_path: Path) -> None:
    assert plain(decode(memoryview(encode(scan(tmp_path))), "m").layout) == (np.int64, (0, 0), [])
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
        assert kept.schema.equals(contents.schemas.of_file(0))
        assert (kept.block_rows, kept.block_bytes) == (expected.block_rows, expected.block_bytes)
        assert (kept.digest, kept.layout) == (expected.digest, expected.layout)
        planned = contents.planned(storage, index)
        assert (planned.path, planned.size) == (str(tmp_path / path), size)
        assert (planned.digest, planned.version) == (expected.digest, contents.versions[index])
        assert (planned.block_rows.tolist(), planned.layout.tolist()) == (expected.block_rows, expected.layout)

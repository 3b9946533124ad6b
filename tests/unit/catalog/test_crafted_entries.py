"""Cache entries that someone made, with the right digest: a warning and a new scan, or the right rows, or an error."""

from __future__ import annotations

import gzip
import os
import random
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from laneway import LanewayError, Manifest, ManifestCacheWarning, StatefulShardedDataset
from laneway.catalog.decoding import decode
from tests.corpora import write_corpus
from tests.fuzzing import num_cases
from tests.unit.catalog.manifests import as_json, closed, json_manifest, opened
from tests.unit.catalog.test_decoding import mutated, mutated_columns

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "d", "parquet", ((3, 1), (2,), (5,)))
    for path in (tmp_path / "d").iterdir():
        os.utime(path, (1, 1))
    return tmp_path / "d"


@pytest.fixture
def entry(corpus: Path, tmp_path: Path) -> Path:
    Manifest.scan(corpus, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    return path


def rows_of(source: Path | Manifest, **options: Any) -> list[int]:
    dataset = StatefulShardedDataset(source, batch_size=4, **options)
    return [row for batch in dataset for row in batch["id"].tolist()]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"root": "/etc"}, "is of parquet files in /etc, not of parquet files in"),
        ({"root": "http://user:secret@host/x"}, "is of parquet files in http://host/x, not of"),
        ({"format": "arrow"}, "is of arrow files in"),
        ({"format": "nope"}, "the format 'nope'"),
        ({"partition_schema": 5}, "is malformed"),
    ],
)
def test_an_entry_of_another_place_or_format_is_scanned_again_with_a_warning(
    corpus: Path, entry: Path, change: dict[str, Any], reason: str
) -> None:
    values, columns = opened(entry.read_bytes())
    entry.write_bytes(closed({**values, **change}, columns))
    with pytest.warns(ManifestCacheWarning, match=reason) as caught:
        manifest = Manifest.scan(corpus, cache_dir=entry.parent)
    assert "secret" not in str(caught[0].message)
    assert (manifest.root, manifest.format) == (str(corpus), "parquet")
    assert rows_of(manifest) == list(range(11))
    # It has been replaced.
    assert Manifest.scan(corpus, cache_dir=entry.parent).fingerprint == manifest.fingerprint


@pytest.mark.parametrize("name", ["block_bytes", "block_rows", "block_starts", "sizes", "versions.data"])
def test_an_entry_with_a_column_that_is_empty_is_scanned_again_with_a_warning(
    corpus: Path, entry: Path, name: str
) -> None:
    values, columns = opened(entry.read_bytes())
    columns[name] = columns[name][:0]
    entry.write_bytes(closed(values, columns))
    with pytest.warns(ManifestCacheWarning, match="unusable, scanning again"):
        assert rows_of(corpus, cache_dir=entry.parent) == list(range(11))


@pytest.mark.parametrize("content", [b"[" * 100_000, b" " * (40 << 20), b"[]," * (12 << 20)])
def test_an_entry_that_unpacks_to_something_else_is_scanned_again_with_a_warning(
    corpus: Path, entry: Path, content: bytes
) -> None:
    entry.write_bytes(gzip.compress(content))
    with pytest.warns(ManifestCacheWarning, match="unusable, scanning again"):
        assert rows_of(corpus, cache_dir=entry.parent) == list(range(11))


def test_paths_of_an_entry_are_not_read_unless_they_were_listed(corpus: Path, entry: Path) -> None:
    body = as_json(decode(memoryview(entry.read_bytes()), "m"))
    body["paths"][0] = "a-secret.parquet"
    entry.write_bytes(json_manifest(body))
    assert list(Manifest.scan(corpus, cache_dir=entry.parent).files.paths) == sorted(os.listdir(corpus))  # noqa: PTH208


def test_crafted_entries_never_give_wrong_or_repeated_rows(corpus: Path, entry: Path) -> None:
    chance = random.Random(0)
    data = entry.read_bytes()
    body = as_json(decode(memoryview(data), "m"))
    expected = Manifest.scan(corpus).fingerprint
    outcomes = {"warned": 0, "right": 0, "refused": 0}
    for index in range(num_cases(150)):
        crafted = mutated_columns(data, chance) if index % 2 else json_manifest(mutated(body, chance))
        entry.write_bytes(crafted)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manifest = Manifest.scan(corpus, cache_dir=entry.parent)
        assert {each.category for each in caught} <= {ManifestCacheWarning}
        if manifest.fingerprint == expected:
            outcomes["warned" if caught else "right"] += 1
            continue
        try:
            found = rows_of(manifest)
        except LanewayError:
            outcomes["refused"] += 1
            continue
        # Only the file itself could tell that it has a block which the entry leaves out.
        assert found == sorted(set(found) & set(range(11)))
        outcomes["right"] += 1
    assert min(outcomes.values()) > 0

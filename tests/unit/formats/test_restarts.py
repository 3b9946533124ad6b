"""Gzip members that are read from the middle: the same rows as those of the text, at any point and any bit."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import zlib
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest

from laneway import CheckpointMismatchError, DataFileError, Manifest, SavableLoader, StatefulShardedDataset
from laneway.formats import restarts
from laneway.formats.restarts import StoredPoints, find_points, inflate_from, layout_of
from laneway.storage.filesystem import Storage
from laneway.testing import assert_resumes_exactly

if TYPE_CHECKING:
    from pathlib import Path

NUM_ROWS = 24_000


def some_lines() -> bytes:
    """Return lines that compress to more than a MiB."""
    draw = random.Random(3)
    words = [f"{draw.getrandbits(32):x}" for _ in range(3000)]
    return b"".join(
        json.dumps({"id": i, "text": " ".join(draw.choices(words, k=20))}).encode() + b"\n" for i in range(NUM_ROWS)
    )


LINES = some_lines()


@pytest.fixture(autouse=True)
def _points_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "SPACING", 256 << 10)


def rows(source: Any, **options: Any) -> list[int]:
    return [row["id"] for row in StatefulShardedDataset(source, columns=["id"], **options)]


def gzip_of(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


@pytest.mark.parametrize("level", [1, 9])
def test_text_follows_from_each_point_at_each_bit(tmp_path: Path, level: int) -> None:
    data = gzip_of(LINES, level)
    path = tmp_path / "part.jsonl.gz"
    path.write_bytes(data)
    restarts.SPACING = 64 << 10  # type: ignore[misc]
    points = find_points(Storage(tmp_path), str(path), len(data), "")
    assert {each.bits for each in points} == {*range(8)}
    stored = StoredPoints(np.array(layout_of(points), np.int64))
    for each in points:
        found = stored.at(each.text_start)
        assert found == each
        text, _ = inflate_from(each, data[each.file_start :], 3000)
        assert text == LINES[each.text_start : each.text_start + 3000]
    assert stored.at(1) is None


def members(data: bytes) -> bytes:
    """Return several members, with zeros between, the first of which has stored blocks."""
    third = len(data) // 3
    first = zlib.compressobj(0, wbits=31)
    stored = first.compress(data[:third]) + first.flush()
    return stored + b"\0" * 99 + gzip_of(data[third : 2 * third]) + gzip_of(b"") + gzip_of(data[2 * third :], 1)


@pytest.mark.parametrize("compress", [gzip_of, members])
def test_a_large_gzip_file_has_blocks_of_a_mib(tmp_path: Path, compress: Any) -> None:
    (tmp_path / "part.jsonl.gz").write_bytes(compress(LINES))
    dataset = StatefulShardedDataset(tmp_path / "part.jsonl.gz")
    files = dataset.manifest.files
    assert all(1 <= num_bytes / (1 << 20) < 2 for num_bytes in files.block_bytes[:-1].tolist())
    assert len(files.block_rows) == 5
    assert rows(tmp_path / "part.jsonl.gz") == [*range(NUM_ROWS)]
    # A row of the last block is read without what precedes it.
    found = dataset.read(files.paths[0], [NUM_ROWS - 1, 5])
    assert [row["id"] for row in found] == [NUM_ROWS - 1, 5]


def test_csv_has_points_too_and_shuffled_rows_resume_exactly(tmp_path: Path) -> None:
    draw = random.Random(5)
    lines = "".join(f'{i},"{draw.getrandbits(400):x}\n{i}"\n' for i in range(9000))
    (tmp_path / "part.csv.gz").write_bytes(gzip_of(b"\xef\xbb\xbfid,text\n" + lines.encode()))
    arguments: dict[str, Any] = {"batch_size": 900, "shuffle": True, "seed": 1, "window_bytes": "1MiB"}
    assert_resumes_exactly(lambda: SavableLoader(StatefulShardedDataset(tmp_path, **arguments)), stops=[0, 3, 9])
    found = [*StatefulShardedDataset(tmp_path, output="python")]
    assert [row["id"] for row in found] == [*range(9000)]
    assert all(row["text"].endswith(f"\n{row['id']}") for row in found)


def test_points_are_kept_with_the_manifest_and_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "part.jsonl.gz"
    source.write_bytes(gzip_of(LINES))
    (tmp_path / "small.jsonl.gz").write_bytes(gzip_of(b'{"id": 0}\n'))
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    manifest = Manifest.scan(tmp_path, cache_dir=tmp_path / "_cache")
    manifest.save(tmp_path / "_manifest")
    monkeypatch.setitem(sys.modules, "indexed_gzip", None)
    for each in (Manifest.load(tmp_path / "_manifest"), Manifest.scan(tmp_path, cache_dir=tmp_path / "_cache")):
        assert each.fingerprint == manifest.fingerprint
        assert rows(each) == [*range(NUM_ROWS), 0]
    without = Manifest.scan(tmp_path, cache_dir=False)
    assert without.files.block_rows.tolist() == [NUM_ROWS, 1]
    assert rows(without) == [*range(NUM_ROWS), 0]


def test_a_state_from_before_indexed_gzip_was_installed_is_refused_and_its_manifest_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part.jsonl.gz").write_bytes(gzip_of(LINES))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "indexed_gzip", None)
        before = Manifest.scan(tmp_path, cache_dir=False)

    def loader(manifest: Manifest) -> SavableLoader:
        return SavableLoader(StatefulShardedDataset(manifest, columns=["id"], batch_size=9000))

    first = loader(before)
    next(iter(first))
    with pytest.raises(
        CheckpointMismatchError, match=r"part\.jsonl\.gz was rewritten .* or indexed_gzip is installed on one side"
    ):
        loader(Manifest.scan(tmp_path, cache_dir=False)).load_state_dict(first.state_dict())
    resumed = loader(before)
    resumed.load_state_dict(first.state_dict())
    assert [row for batch in resumed for row in batch["id"].tolist()] == [*range(9000, NUM_ROWS)]


def test_a_gzip_file_of_a_remote_storage_is_read_from_its_points(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/restarts/part.jsonl.gz", gzip_of(LINES))
    try:
        assert len(Manifest.scan("memory://restarts").files.block_rows) > 3
        assert rows("memory://restarts") == [*range(NUM_ROWS)]
    finally:
        memory.rm("/restarts", recursive=True)
    assert not [*tmp_path.iterdir()]


def test_bgzip_has_its_own_members_and_needs_no_points() -> None:
    head = b"\x1f\x8b\x08\x04" + bytes(6) + b"\x06\x00BC\x02\x00"
    assert not restarts.can_find_points(head)
    assert restarts.can_find_points(gzip_of(b"")[:16])


def test_a_damaged_file_is_an_error_when_it_is_scanned_or_changed_later(tmp_path: Path) -> None:
    path, data = tmp_path / "part.jsonl.gz", gzip_of(LINES)
    for damaged in (data[:-9], data[: len(data) // 2], data[:-5] + b"\0" + data[-4:]):
        path.write_bytes(damaged)
        with pytest.raises(DataFileError, match=r"part\.jsonl\.gz can't be read"):
            Manifest.scan(tmp_path)
    path.write_bytes(data)
    manifest = Manifest.scan(tmp_path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :])
    with pytest.raises(DataFileError, match="changed since it was planned"):
        rows(manifest)


def test_an_index_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl.gz"
    path.write_bytes(gzip_of(LINES))
    layout = np.array(layout_of(find_points(Storage(tmp_path), str(path), path.stat().st_size, "")), np.int64)
    with pytest.raises(ValueError, match="restart points of a gzip file are damaged"):
        StoredPoints(layout[:-1])
    layout[1] = 0
    with pytest.raises(ValueError, match="a window of a gzip file is damaged"):
        StoredPoints(layout).at(0)

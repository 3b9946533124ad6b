"""Data rewritten as Parquet: the same rows in the same order, also if it is interrupted and called again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import DataFileError, SchemaMismatchError, StatefulShardedDataset, to_parquet
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from pathlib import Path


def write_lines(directory: Path, num_rows: int = 3_000) -> None:
    directory.mkdir()
    for part in range(2):
        rows = ({"id": part * num_rows + row, "text": f"{row} " * 40} for row in range(num_rows))
        (directory / f"part-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def rows(source: Any) -> list[Any]:
    return list(StatefulShardedDataset(source, output="python"))


def test_many_tiny_files_become_one_with_larger_row_groups(tmp_path: Path) -> None:
    write_corpus(tmp_path / "source")
    manifest = to_parquet(tmp_path / "source", tmp_path / "dest")
    assert manifest.files.block_rows.tolist() == [48]
    assert rows(tmp_path / "dest") == rows(tmp_path / "source")
    column = pq.read_metadata(tmp_path / "dest" / "part-000000.parquet").row_group(0).column(0)
    assert (column.is_stats_set, column.compression) == (True, "ZSTD")


def test_a_single_file_and_a_glob_are_sources(tmp_path: Path) -> None:
    write_corpus(tmp_path / "source")
    one = to_parquet(tmp_path / "source" / "part-000.parquet", tmp_path / "one")
    assert rows(one) == rows(tmp_path / "source" / "part-000.parquet")
    assert to_parquet(tmp_path / "source" / "*.parquet", tmp_path / "all").num_rows == 48


def test_files_and_row_groups_have_about_the_size_that_is_asked_for(tmp_path: Path) -> None:
    write_lines(tmp_path / "source")
    manifest = to_parquet(tmp_path / "source", tmp_path / "dest", row_group_bytes="200KiB", file_bytes="8KB")
    assert manifest.files.num_files > 1
    assert manifest.files.sizes[:-1].min() >= 8_000
    assert rows(manifest) == rows(tmp_path / "source")


def test_the_texts_of_a_dictionary_do_not_end_a_row_group_before_its_rows_do(tmp_path: Path) -> None:
    texts = pa.array([f"{number} " * 100 for number in range(200)])
    column = pa.DictionaryArray.from_arrays(pa.array([row % 200 for row in range(5_000)], pa.int32()), texts)
    pq.write_table(pa.table({"text": column}), tmp_path / "source.parquet")
    manifest = to_parquet(tmp_path / "source.parquet", tmp_path / "dest", row_group_bytes=200_000)
    assert manifest.files.block_rows.tolist() == [5_000]


def test_an_interrupted_call_goes_on_after_the_files_that_are_complete(tmp_path: Path) -> None:
    write_lines(tmp_path / "source")
    sizes: dict[str, Any] = {"row_group_bytes": "400KiB", "file_bytes": "1KB"}
    whole = to_parquet(tmp_path / "source", tmp_path / "whole", **sizes)
    num_files = whole.files.num_files
    assert num_files >= 3
    to_parquet(tmp_path / "source", tmp_path / "dest", **sizes)
    for keep in range(num_files):
        for number in range(keep, num_files):
            (tmp_path / "dest" / f"part-{number:06}.parquet").unlink()
        (tmp_path / "dest" / ".part-000001.parquet.1.tmp").write_bytes(b"left over")
        again = to_parquet(tmp_path / "source", tmp_path / "dest", **sizes)
        assert again.fingerprint == whole.fingerprint
        assert again.files.num_files == num_files


def test_what_an_interrupted_call_writes_does_not_depend_on_where_it_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    lines = (json.dumps({"id": row, "text": "x" * (row % 50)}) for row in range(250))
    (tmp_path / "source" / "part.jsonl").write_text("\n".join(lines))
    sizes: dict[str, Any] = {"row_group_bytes": 1200, "file_bytes": 1}
    whole = to_parquet(tmp_path / "source", tmp_path / "whole", **sizes)
    for keep in (1, 2, 3):
        (tmp_path / f"{keep}").mkdir()
        for name in whole.files.paths[:keep]:
            shutil.copy(tmp_path / "whole" / name, tmp_path / f"{keep}")
        again = to_parquet(tmp_path / "source", tmp_path / f"{keep}", **sizes)
        assert again.files.rows.tolist() == whole.files.rows.tolist()
        assert again.fingerprint == whole.fingerprint


def test_a_directory_of_other_files_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "source")
    write_lines(tmp_path / "other", 10)
    to_parquet(tmp_path / "source", tmp_path / "dest")
    for arguments in ({"source": tmp_path / "other"}, {"source": tmp_path / "source", "columns": ["id"]}):
        with pytest.raises(DataFileError, match=r"dest holds part-000000.parquet, which is of another source, or was"):
            to_parquet(dest=tmp_path / "dest", **arguments)
    with pytest.raises(DataFileError, match=r"other holds part-0.jsonl, which is of another source"):
        to_parquet(tmp_path / "source", tmp_path / "other")
    with pytest.raises(DataFileError, match=r"part-0.jsonl can't be written: "):
        to_parquet(tmp_path / "source", tmp_path / "other" / "part-0.jsonl")


def test_no_rows_keep_their_columns(tmp_path: Path) -> None:
    write_corpus(tmp_path / "source", files=((),))
    manifest = to_parquet(tmp_path / "source", tmp_path / "dest", columns=["x", "id"])
    assert (manifest.num_rows, manifest.schema.names) == (0, ["x", "id"])
    assert to_parquet(tmp_path / "source", tmp_path / "dest", columns=["x", "id"]).num_rows == 0


def test_types_can_be_given_and_dest_may_be_remote(tmp_path: Path) -> None:
    write_lines(tmp_path / "source", 20)
    schema = pa.schema([pa.field("id", pa.int16())])
    manifest = to_parquet(tmp_path / "source", "memory://rewritten/dest", schema=schema)
    try:
        assert manifest.schema == schema
        assert [row["id"] for row in rows("memory://rewritten/dest")] == list(range(40))
    finally:
        fsspec.filesystem("memory").rm("/rewritten", recursive=True)


def test_samples_of_webdataset_are_rows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for part in range(3):
        members = {}
        for sample in range(part * 20, part * 20 + 20):
            members[f"a/{sample:04}.jpg"] = bytes([sample]) * 9
            members[f"a/{sample:04}.json"] = json.dumps({"n": sample}).encode()
            if sample % 3:
                members[f"a/{sample:04}.seg.png"] = b"png"
        write_tar(source / f"{part:02}.tar", {**members, "README": b"no sample"})
    manifest = to_parquet(source, tmp_path / "dest", row_group_bytes="300B", file_bytes="1KB")
    assert manifest.schema.names == ["__key__", "jpg", "json", "seg.png"]
    assert manifest.files.num_files > 1
    found = rows(tmp_path / "dest")
    assert found[4] == {"__key__": "a/0004", "jpg": bytes([4]) * 9, "json": '{"n": 4}', "seg.png": b"png"}
    assert [row["__key__"] for row in found] == [f"a/{sample:04}" for sample in range(60)]
    assert [row["seg.png"] is None for row in found] == [sample % 3 == 0 for sample in range(60)]
    fingerprint = manifest.fingerprint
    for path in sorted((tmp_path / "dest").iterdir())[1:]:
        path.unlink()
    assert to_parquet(source, tmp_path / "dest", row_group_bytes="300B", file_bytes="1KB").fingerprint == fingerprint


def test_tar_files_that_can_not_be_converted_are_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    write_tar(tmp_path / "1.tar", {"b.png": b"x"})
    with pytest.raises(SchemaMismatchError, match=r"1.tar has the member b.png, but the first file only has txt"):
        to_parquet(tmp_path, tmp_path / "dest")
    write_tar(tmp_path / "1.tar", {"b.txt": b"\xff"})
    with pytest.raises(DataFileError, match=r"1.tar has the member b.txt, which is not UTF-8"):
        to_parquet(tmp_path, tmp_path / "dest")
    write_tar(tmp_path / "1.tar", {"b.txt": b"x" * 2000})
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:1500])
    with pytest.raises(DataFileError, match=r"1.tar (is truncated|can't be read)"):
        to_parquet(tmp_path, tmp_path / "dest")
    with pytest.raises(ValueError, match="are not for tar files"):
        to_parquet(tmp_path, tmp_path / "dest", columns=["txt"])
    write_tar(tmp_path / "empty.tar", {"README": b"x"})
    with pytest.raises(DataFileError, match=r"empty.tar has no sample"):
        to_parquet(tmp_path / "empty.tar", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()

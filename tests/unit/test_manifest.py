"""Scanning, saving and loading manifests."""

from __future__ import annotations

import json
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway.errors import DataFileError, SchemaMismatchError
from laneway.manifest import Manifest, scan_source
from tests.corpora import FORMAT_OF, KINDS, UNEQUAL_FILES, Kind, rows, write_blocks, write_corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "canary-4711"


def _file(path: Path, kind: Kind = "parquet", start: int = 0, stop: int = 3) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_blocks(path, kind, [rows(start, stop)], rows(0, 0).schema)
    return str(path)


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://laneway-manifest"
    fsspec.filesystem("memory").rm("/laneway-manifest", recursive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_is_scanned_file_by_file(tmp_path: Path, kind: Kind) -> None:
    num_rows = write_corpus(tmp_path, kind)
    manifest = Manifest.scan(tmp_path)
    assert manifest.num_rows == num_rows == 48
    assert manifest.format == FORMAT_OF[kind]
    assert manifest.files.rows.tolist() == [sum(blocks) for blocks in UNEQUAL_FILES]
    assert manifest.root == str(tmp_path)
    assert manifest.schema.equals(rows(0, 0).schema)
    sizes = [(tmp_path / path).stat().st_size for path in manifest.files.paths]
    assert manifest.files.sizes.tolist() == sizes
    blocks = [[size for size in file if size or kind != "parquet"] for file in UNEQUAL_FILES]
    assert manifest.files.block_rows.tolist() == [size for file in blocks for size in file]
    assert np.diff(manifest.files.block_starts).tolist() == [len(file) for file in blocks]


def test_a_dataset_keeps_its_fingerprint_when_it_moves_or_is_listed_in_another_way(tmp_path: Path, memory: str) -> None:
    write_corpus(tmp_path / "a")
    expected = Manifest.scan(tmp_path / "a").fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{tmp_path}/b/", "/laneway-manifest/", recursive=True)
    names = sorted((tmp_path / "b").iterdir(), reverse=True)
    arrow = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    for manifest in (
        Manifest.scan(tmp_path / "b"),
        Manifest.scan(names),
        Manifest.scan(f"{tmp_path}/b/*.parquet"),
        Manifest.scan(f"file://{tmp_path}/b/"),
        Manifest.scan(memory),
        Manifest.scan("b", filesystem=arrow),
        Manifest.scan(f"{tmp_path}/b", filesystem=pyarrow.fs.LocalFileSystem()),
    ):
        assert manifest.fingerprint == expected


@pytest.mark.parametrize("kind", KINDS)
def test_anything_that_changes_rows_changes_the_fingerprint(tmp_path: Path, kind: Kind) -> None:
    write_corpus(tmp_path, kind)
    paths = sorted(tmp_path.iterdir())
    whole = paths[0].read_bytes()
    seen = {Manifest.scan(tmp_path).fingerprint}

    write_blocks(paths[0], kind, [rows(0, 5), rows(5, 6), rows(6, 12)], rows(0, 0).schema)
    seen.add(Manifest.scan(tmp_path).fingerprint)
    write_blocks(paths[0], kind, [rows(0, 6), rows(6, 6 + 7)], rows(0, 0).schema)
    seen.add(Manifest.scan(tmp_path).fingerprint)
    paths[0].write_bytes(whole)
    paths[0].rename(tmp_path / f"zzz{paths[0].suffix}")
    seen.add(Manifest.scan(tmp_path).fingerprint)
    paths[1].unlink()
    seen.add(Manifest.scan(tmp_path).fingerprint)
    assert len(seen) == 5


def test_hidden_names_and_other_suffixes_are_not_data(tmp_path: Path) -> None:
    for name in ("a.parquet", "deep/b.PARQUET", "deep/c.pq"):
        _file(tmp_path / name)
    for name in ("_d.parquet", ".e.parquet", "_temporary/f.parquet", "deep/.g/h.parquet"):
        _file(tmp_path / name)
    for name in ("_SUCCESS", "README.md", "deep/.a.parquet.crc"):
        (tmp_path / name).write_text("no data")
    assert Manifest.scan(tmp_path).files.paths == ("a.parquet", "deep/b.PARQUET", "deep/c.pq")
    assert Manifest.scan(tmp_path / "_d.parquet").files.paths == ("_d.parquet",)
    assert Manifest.scan(tmp_path / "_temporary").files.paths == ("f.parquet",)


def test_paths_are_relative_to_the_root_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/a.parquet", "x/y/b.parquet", "x/y/_z/b.parquet", "z/c.parquet"):
        _file(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for source, root, paths in (
        ("x", "x", ("a.parquet", "y/b.parquet")),
        ("x/a.parquet", "x", ("a.parquet",)),
        ("x/*", "x", ("a.parquet", "y/b.parquet")),
        ("x/**", "x", ("a.parquet", "y/b.parquet")),
        ("*/?.parquet", "", ("x/a.parquet", "z/c.parquet")),
        (["x/y", "z/c.parquet"], "", ("x/y/b.parquet", "z/c.parquet")),
        (["x/y/b.parquet", "x/a.parquet"], "x", ("a.parquet", "y/b.parquet")),
    ):
        manifest = Manifest.scan(source)
        assert (manifest.root, tuple(manifest.files.paths)) == (str(tmp_path / root).rstrip("/"), paths)


def test_a_name_with_wildcard_characters_is_found(tmp_path: Path) -> None:
    _file(tmp_path / "a[1]" / "b.parquet")
    assert Manifest.scan(tmp_path / "a[1]").files.paths == ("b.parquet",)
    assert Manifest.scan(tmp_path / "a[1]" / "b.parquet").files.paths == ("b.parquet",)


def test_a_spark_output_directory_that_matches_a_glob_is_searched(tmp_path: Path) -> None:
    _file(tmp_path / "t.parquet" / "part-0.snappy.parquet")
    (tmp_path / "t.parquet" / "_SUCCESS").touch()
    assert Manifest.scan(f"{tmp_path}/*.parquet").files.paths == ("t.parquet/part-0.snappy.parquet",)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_known_suffix_the_first_bytes_determine_the_format(tmp_path: Path, kind: Kind) -> None:
    _file(tmp_path / "part-0", kind)
    _file(tmp_path / "part-1", kind)
    assert Manifest.scan(tmp_path).format == FORMAT_OF[kind]
    (tmp_path / "part-2").write_text("hello")
    with pytest.raises(DataFileError, match="part-2"):
        Manifest.scan(tmp_path)
    (tmp_path / "a").write_text("hello, world")
    with pytest.raises(
        DataFileError, match="/a begins with b'hello, w', as no known format does: if it is one of parquet"
    ):
        Manifest.scan(tmp_path)


@pytest.mark.parametrize("name", ["manifest", "manifest.gz"])
def test_a_saved_manifest_is_no_data_and_the_error_says_how_to_load_it(tmp_path: Path, name: str) -> None:
    _file(tmp_path / "part.parquet")
    (tmp_path / "saved").mkdir()
    Manifest.scan(tmp_path / "part.parquet").save(tmp_path / "saved" / name)
    way_out = rf"{name} is a saved manifest, not data: pass Manifest\.load\('.*/{name}'\)"
    for source in (tmp_path / "saved" / name, tmp_path / "saved"):
        with pytest.raises(DataFileError, match=way_out):
            Manifest.scan(source)


def test_files_of_two_formats_are_an_error_unless_one_is_chosen(tmp_path: Path) -> None:
    _file(tmp_path / "a.parquet")
    _file(tmp_path / "b.arrow", "arrow-stream")
    with pytest.raises(
        DataFileError, match=r"b\.arrow is of format 'arrow', but .*a\.parquet is of format 'parquet': choose one"
    ):
        Manifest.scan(tmp_path)
    assert Manifest.scan(tmp_path, format="arrow").files.paths == ("b.arrow",)
    assert Manifest.scan(tmp_path, format="parquet").files.paths == ("a.parquet",)
    with pytest.raises(ValueError, match="format is 'xml': give one of 'parquet', 'arrow'"):
        Manifest.scan(tmp_path, format="xml")


def test_a_wrong_suffix_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    _file(tmp_path / "a.parquet")
    _file(tmp_path / "b.parquet", "arrow-file")
    with pytest.raises(DataFileError, match=r"b\.parquet is not a Parquet file, .* end with b'ROW1'"):
        Manifest.scan(tmp_path)
    with pytest.raises(DataFileError, match=r"a\.parquet has no Arrow message at byte 0"):
        Manifest.scan(tmp_path / "a.parquet", format="arrow")


def test_nothing_to_read_is_an_error_that_says_what_was_searched_for(tmp_path: Path) -> None:
    with pytest.raises(
        DataFileError, match=rf"no data file found in {tmp_path}: searched for names that end with \.parquet"
    ):
        Manifest.scan(tmp_path)
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(DataFileError, match="no data file found"):
        Manifest.scan(tmp_path)
    with pytest.raises(DataFileError, match=r"no data file found in .*/\*\.parquet"):
        Manifest.scan(f"{tmp_path}/*.parquet")
    with pytest.raises(DataFileError, match="gone does not exist"):
        Manifest.scan(tmp_path / "gone")
    with pytest.raises(DataFileError, match="the sequence of paths is empty"):
        Manifest.scan([])
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(DataFileError, match=r"empty\.parquet is not a Parquet file, or it is truncated: it is empty"):
        Manifest.scan(tmp_path)


def test_an_unreadable_directory_is_an_error_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path / "a.parquet")
    _file(tmp_path / "closed" / "b.parquet")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    # Not by chmod: root reads everything, and tests may run as root.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataFileError, match="closed can't be read, permission denied"):
        Manifest.scan(tmp_path)


def test_a_file_that_is_given_twice_is_an_error(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.parquet")
    for source in ([path, path], [path, str(tmp_path)], [f"{tmp_path}/*.parquet", f"{tmp_path}/./a.parquet"]):
        with pytest.raises(DataFileError, match=r"a\.parquet is given twice"):
            Manifest.scan(source)


def test_sources_on_two_filesystems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="and memory://x are on different filesystems"):
        Manifest.scan([_file(tmp_path / "a.parquet"), "memory://x"])


def test_the_first_of_several_failures_is_named_and_the_rest_are_counted(tmp_path: Path) -> None:
    for index in range(9):
        _file(tmp_path / f"{index}.parquet")
    for index in (3, 5, 8):
        (tmp_path / f"{index}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataFileError, match=r"/3\.parquet is not a Parquet file.*\(2 more of 9 files failed\)"):
        Manifest.scan(tmp_path)


def test_files_of_different_columns_have_a_schema_each(tmp_path: Path) -> None:
    _file(tmp_path / "a.parquet")
    other = rows(0, 3).select(["text", "id"]).append_column("y", [[1, 2, 3]]).set_column(1, "id", [["1", "2", "3"]])
    for name in ("b.parquet", "c.parquet"):
        pq.write_table(other, tmp_path / name)
    manifest = Manifest.scan(tmp_path)
    assert manifest.schemas.distinct == (rows(0, 0).schema, other.schema)
    assert manifest.schemas.indices.tolist() == [0, 1, 1]
    # All columns, of the type in the first file.
    assert manifest.schema.equals(pa.schema([*rows(0, 0).schema, ("y", pa.int64())]))
    manifest.save(tmp_path / "manifest")
    for loaded in (Manifest.load(tmp_path / "manifest"), pickle.loads(pickle.dumps(manifest))):
        assert loaded.fingerprint == manifest.fingerprint
        assert loaded.schemas.distinct == manifest.schemas.distinct
        assert loaded.schemas.indices.tolist() == [0, 1, 1]


def test_metadata_and_nullability_may_differ(tmp_path: Path) -> None:
    _file(tmp_path / "b.parquet")
    expected = Manifest.scan(tmp_path).schema
    fields = [pa.field(field.name, field.type, nullable=False) for field in rows(0, 0).schema]
    pq.write_table(rows(0, 3).cast(pa.schema(fields, {"by": "me"})), tmp_path / "a.parquet")
    manifest = Manifest.scan(tmp_path)
    assert manifest.schema.equals(expected, check_metadata=True)
    assert manifest.files.schema_digest == Manifest.scan(tmp_path / "b.parquet").files.schema_digest


def test_a_column_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array([1]), pa.array([2])], ["id", "id"])
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(SchemaMismatchError, match=r"a\.arrow has the column 'id' twice"):
        Manifest.scan(tmp_path)


def test_directories_add_columns(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((3,), (2,)), names=("lang=de/year=2023/a", "lang=en/year=2024/a"))
    manifest = Manifest.scan(tmp_path)
    assert manifest.schema.names == ["id", "text", "x", "lang", "year"]
    assert manifest.schema.types[3:] == [pa.string(), pa.int64()]
    assert manifest.partitions.values == (("de", "en"), (2023, 2024))


@pytest.mark.parametrize(
    "source", ["lang=de", "lang=de/year=2023", "lang=de/*/*.parquet", "lang=de/year=2023/a.parquet"]
)
def test_a_source_that_is_one_partition_or_lies_in_it_has_the_same_columns(tmp_path: Path, source: str) -> None:
    write_corpus(tmp_path, files=((3,), (2,)), names=("lang=de/year=2023/a", "lang=en/year=2024/a"))
    manifest = Manifest.scan(tmp_path / source)
    assert manifest.schema.equals(Manifest.scan(tmp_path).schema)
    assert list(manifest.files.paths) == ["lang=de/year=2023/a.parquet"]
    assert manifest.root == str(tmp_path)


def test_directories_of_keys_that_begin_with_an_underscore_are_not_hidden(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((3,), (2,), (1,)), names=("_k=1/a", "_k=2/b", "_temporary/c"))
    assert Manifest.scan(tmp_path).schema.names == ["id", "text", "x", "_k"]


def test_a_name_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((3,),), names=("a",))
    (tmp_path / "a.parquet").rename(tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    with pytest.raises(DataFileError, match=r"xe9\.parquet' is not UTF-8: rename"):
        Manifest.scan(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest", "manifest.gz"])
def test_a_saved_manifest_is_loaded_unchanged(tmp_path: Path, memory: str, kind: Kind, name: str) -> None:
    write_corpus(tmp_path / "d", kind, ((3, 1), (2,), ()), names=("k=%20/a", "k=1/b", "k=2/c"))
    for path in (tmp_path / "d").rglob("*.*"):
        os.utime(path, (10**9, 10**9))
    manifest = Manifest.scan(tmp_path / "d")
    for place in (str(tmp_path), memory):
        manifest.save(f"{place}/{name}")
        loaded = Manifest.load(f"{place}/{name}", root=tmp_path / "d")
        assert loaded.fingerprint == manifest.fingerprint
        assert loaded.schema.equals(manifest.schema, check_metadata=True)
        assert loaded.partitions.fields == manifest.partitions.fields
        assert [tuple(values) for values in loaded.partitions.values] == list(manifest.partitions.values)
        assert (loaded.root, loaded.format) == (manifest.root, manifest.format)
        assert loaded.layout.tolist() == manifest.layout.tolist()
        assert loaded.layout_starts.tolist() == manifest.layout_starts.tolist()
        assert loaded.versions == manifest.versions
        assert all(loaded.versions)
        moved = Manifest.load(f"{place}/{name}", root=f"{place}/elsewhere").root
        assert moved.replace("memory:///", "memory://") == f"{place}/elsewhere"


def test_a_damaged_manifest_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    write_corpus(tmp_path / "d")
    path = tmp_path / "manifest"
    Manifest.scan(tmp_path / "d").save(path)
    data = path.read_bytes()
    for damaged, message in (
        (data[:-10], "manifest is not a laneway manifest, or it is damaged"),
        (data[:-70] + b"!" + data[-69:], "manifest is damaged: its digest is .* and should be"),
        (b"", "manifest is not a laneway manifest"),
        (data[:8] + b"\x09" + data[9:], "manifest is a manifest of format 9"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataFileError, match=message):
            Manifest.load(path)
    path.unlink()
    with pytest.raises(DataFileError, match="manifest does not exist"):
        Manifest.load(path)
    path.mkdir()
    with pytest.raises(DataFileError, match="manifest can't be read: "):
        Manifest.load(path)


def test_no_credentials_reach_a_manifest(tmp_path: Path) -> None:
    _file(tmp_path / "a.parquet")

    class Secretive(DirFileSystem):  # type: ignore[misc]
        pass

    filesystem = Secretive(str(tmp_path), fsspec.filesystem("file"), secret=CANARY)
    manifest, storage = scan_source("", filesystem=filesystem)
    manifest.save(tmp_path / "m.json")
    texts = (
        repr(manifest),
        repr(storage),
        (tmp_path / "m.json").read_bytes().decode("latin1"),
        json.dumps(manifest.files.encoded),
    )
    assert all(CANARY not in text for text in texts)


def test_no_thread_outlives_a_scan(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    before = set(threading.enumerate())
    Manifest.scan(tmp_path, progress=True)
    assert set(threading.enumerate()) <= before


def test_a_progress_bar_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path)
    Manifest.scan(tmp_path)
    Manifest.scan(tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    Manifest.scan(tmp_path, progress=True)
    assert "reading footers:   0%|" in capsys.readouterr().err


def test_the_repr_of_a_manifest_summarizes_it(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    manifest = Manifest.scan(tmp_path)
    summary = "parquet, 7 files, 48 rows, 3 columns"
    assert repr(manifest) == f"<Manifest of {tmp_path}: {summary}, fingerprint {manifest.fingerprint[:8]}>"


def test_a_moved_manifest_has_the_versions_of_the_files_at_their_new_location(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    pq.write_table(pa.table({"id": range(9)}), tmp_path / "a.parquet")
    memory.put(str(tmp_path / "a.parquet"), "/first/a.parquet")
    scanned = Manifest.scan("memory://first")
    scanned.save("memory://first/_manifest.json")
    memory.copy("/first", "/second", recursive=True)
    moved = Manifest.load("memory://first/_manifest.json", root="memory://second")
    assert moved.fingerprint == scanned.fingerprint
    assert all(moved.versions)
    assert moved.versions != scanned.versions

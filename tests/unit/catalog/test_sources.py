"""The data files of a source: directories, globs, single files, and several of them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway.catalog.sources import find_data_files
from laneway.errors import DataFileError
from tests.corpora import KINDS, Kind, rows, write_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEMORY_ROOT = "/laneway-sources"


def _write(folder: Path, *names: str, kind: Kind = "parquet") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_blocks(path, kind, [rows(0, 3)], rows(0, 0).schema)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.mkdir(MEMORY_ROOT)
    yield filesystem
    filesystem.rm(MEMORY_ROOT, recursive=True)


@pytest.fixture(params=["local", "fsspec", "arrow", "memory"])
def find(
    request: pytest.FixtureRequest, tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> Callable[..., tuple[str, list[str]]]:
    """A function that finds the files of sources relative to `tmp_path`, and returns root and paths."""

    def find(*sources: str, **options: Any) -> tuple[str, list[str]]:
        if request.param == "local":
            found = find_data_files([f"{tmp_path}/{source}".rstrip("/") for source in sources], **options)
            return os.path.relpath(found.storage.root, tmp_path).removeprefix("."), found.paths
        if request.param == "memory":
            memory.put(f"{tmp_path}/", f"{MEMORY_ROOT}/", recursive=True)
            found = find_data_files([f"memory:/{MEMORY_ROOT}/{source}".rstrip("/") for source in sources], **options)
            return found.storage.root.removeprefix(MEMORY_ROOT).strip("/"), found.paths
        filesystem: Any = DirFileSystem(str(tmp_path), fsspec.filesystem("file"))
        if request.param == "arrow":
            filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        found = find_data_files(list(sources), filesystem=filesystem, **options)
        return found.storage.root.strip("/"), found.paths

    return find


NAMES = ("a/0.parquet", "a/1.parquet", "a/deep/2.parquet", "b/3.parquet", "b.parquet/4.parquet")


@pytest.mark.parametrize(
    ("sources", "root", "paths"),
    [
        # Directories
        (["a"], "a", ["0.parquet", "1.parquet", "deep/2.parquet"]),
        (["a/deep"], "a/deep", ["2.parquet"]),
        # Globs: a directory that matches is searched as well.
        (["a/*.parquet"], "a", ["0.parquet", "1.parquet"]),
        (["a/*"], "a", ["0.parquet", "1.parquet", "deep/2.parquet"]),
        (["a/**"], "a", ["0.parquet", "1.parquet", "deep/2.parquet"]),
        (["a/[1-9].parquet"], "a", ["1.parquet"]),
        (["*/?.parquet"], "", ["a/0.parquet", "a/1.parquet", "b.parquet/4.parquet", "b/3.parquet"]),
        (["*.parquet"], "", ["b.parquet/4.parquet"]),
        (["**/2.parquet"], "", ["a/deep/2.parquet"]),
        # Single files
        (["a/1.parquet"], "a", ["1.parquet"]),
        # Several sources
        (["b/3.parquet", "a/deep"], "", ["a/deep/2.parquet", "b/3.parquet"]),
        (["a/deep/2.parquet", "a/0.parquet"], "a", ["0.parquet", "deep/2.parquet"]),
        (["a/1*", "a/0*"], "a", ["0.parquet", "1.parquet"]),
        (["b", "b.parquet"], "", ["b.parquet/4.parquet", "b/3.parquet"]),
    ],
)
def test_paths_are_sorted_and_relative_to_the_root_of_the_sources(
    tmp_path: Path,
    find: Callable[..., tuple[str, list[str]]],
    sources: list[str],
    root: str,
    paths: list[str],
) -> None:
    _write(tmp_path, *NAMES)
    assert find(*sources) == (root, paths)


def test_hidden_names_are_skipped_below_the_root(tmp_path: Path, find: Callable[..., tuple[str, list[str]]]) -> None:
    _write(tmp_path, "d/a.parquet", "d/_b.parquet", "d/.c.parquet", "d/_tmp/d.parquet", "d/x/.y/e.parquet")
    assert find("d")[1] == ["a.parquet"]
    assert find("d/*.parquet")[1] == ["a.parquet"]
    assert find("d/**")[1] == ["a.parquet"]
    # A name that is part of the source itself is not hidden.
    assert find("d/_tmp")[1] == ["d.parquet"]
    assert find("d/_b.parquet")[1] == ["_b.parquet"]
    assert find("d/_tmp/*.parquet")[1] == ["d.parquet"]


@pytest.mark.parametrize(
    "sources",
    [
        ["d/a.parquet", "d/a.parquet"],
        ["d", "d/a.parquet"],
        ["d/*.parquet", "d/a*"],
        ["d", "d/x"],
    ],
)
def test_a_file_in_two_sources_is_an_error(
    tmp_path: Path, find: Callable[..., tuple[str, list[str]]], sources: list[str]
) -> None:
    _write(tmp_path, "d/a.parquet", "d/x/b.parquet")
    with pytest.raises(DataFileError, match=r"[ab]\.parquet is given twice \(1 such files\): name each file once"):
        find(*sources)


def test_files_without_a_known_suffix_are_skipped_beside_files_with_one(
    tmp_path: Path, find: Callable[..., tuple[str, list[str]]]
) -> None:
    _write(tmp_path, "d/a.parquet", "d/b.PQ", "d/c")
    (tmp_path / "d" / "README.md").write_text("no data")
    assert find("d")[1] == ["a.parquet", "b.PQ"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_known_suffix_the_first_file_determines_the_format(
    tmp_path: Path, find: Callable[..., tuple[str, list[str]]], kind: Kind
) -> None:
    _write(tmp_path, "d/part-0", "d/part-1", kind=kind)
    assert find("d")[1] == ["part-0", "part-1"]
    (tmp_path / "d" / "a").write_text("hello, world")
    with pytest.raises(DataFileError, match="d/a begins with b'hello, w'"):
        find("d")


def test_mixed_formats_are_an_error_unless_one_is_chosen(
    tmp_path: Path, find: Callable[..., tuple[str, list[str]]]
) -> None:
    _write(tmp_path, "d/a.parquet")
    _write(tmp_path, "d/b.arrow", "d/c.feather", kind="arrow-file")
    message = r"d/b\.arrow is of format 'arrow', but .*d/a\.parquet is of format 'parquet': choose one with format="
    for sources in (["d"], ["d/*"], ["d/a.parquet", "d/b.arrow"]):
        with pytest.raises(DataFileError, match=message):
            find(*sources)
    assert find("d", format="arrow")[1] == ["b.arrow", "c.feather"]
    assert find("d", format="parquet")[1] == ["a.parquet"]
    with pytest.raises(ValueError, match=r"format is 'xml': give one of 'parquet', 'arrow', .*, or None to detect it"):
        find("d", format="xml")


def test_a_file_given_by_its_path_is_taken_whatever_its_name(
    tmp_path: Path, find: Callable[..., tuple[str, list[str]]]
) -> None:
    _write(tmp_path, "d/_hidden.parquet", "d/a.arrow")
    assert find("d/_hidden.parquet") == ("d", ["_hidden.parquet"])
    assert find("d/a.arrow", format="parquet")[1] == ["a.arrow"]


def test_a_file_given_by_its_path_needs_no_suffix(tmp_path: Path) -> None:
    _write(tmp_path, "d/data", "d/data.bin")
    assert find_data_files(tmp_path / "d" / "data").paths == ["data"]
    found = find_data_files([tmp_path / "d" / "data.bin", tmp_path / "d" / "data"])
    assert found.paths == ["data", "data.bin"]
    assert found.format.name == "parquet"


def test_nothing_found_says_what_was_searched_and_how_many_other_files_there_are(
    tmp_path: Path, find: Callable[..., tuple[str, list[str]]]
) -> None:
    _write(tmp_path, "d/_hidden.parquet", "e/a.arrow", kind="arrow-file")
    message = r"no data file found in .*d: searched for names that end with \.parquet, \.pq, \.arrow.*; found 0 other"
    with pytest.raises(DataFileError, match=message):
        find("d")
    with pytest.raises(DataFileError, match=r"found in .*e: searched for names that end with \.parquet, \.pq and do"):
        find("e", format="parquet")
    with pytest.raises(DataFileError, match=r"no data file found in .*d/\*\.parquet and 1 more sources"):
        find("d/*.parquet", "gone/*.parquet")


def test_a_source_that_does_not_exist_is_an_error(tmp_path: Path, find: Callable[..., tuple[str, list[str]]]) -> None:
    _write(tmp_path, "d/a.parquet")
    for source in ("gone", "gone.parquet", "d/gone"):
        with pytest.raises(DataFileError, match=rf"{source} does not exist"):
            find(source)
    with pytest.raises(DataFileError, match=r"gone\.parquet does not exist"):
        find("d", "gone.parquet")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_named_pipe_is_not_a_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataFileError, match="pipe is neither a file nor a directory"):
        find_data_files(tmp_path / "pipe")


def test_a_source_of_the_wrong_type_or_without_paths_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="source must be a path or URL, a sequence of them, or a Manifest, not 3"):
        find_data_files(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"source is an empty path; give '\.' for the working directory"):
        find_data_files("")
    with pytest.raises(DataFileError, match="the sequence of paths is empty"):
        find_data_files([])
    with pytest.raises(ValueError, match="and memory://x are on different filesystems: read them as two datasets"):
        find_data_files([str(tmp_path), "memory://x"])


def test_sizes_and_versions_are_those_of_the_listing(tmp_path: Path) -> None:
    _write(tmp_path, "a.parquet", "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        os.utime(tmp_path / name, ns=(0, 10**18 + 123))
    before = time.time_ns()
    found = find_data_files(tmp_path)
    assert found.sizes == [(tmp_path / path).stat().st_size for path in found.paths]
    assert found.versions == [str(10**18 + 123)] * 2
    assert before <= found.listed_at_ns <= time.time_ns()
    assert found.format.name == "parquet"
    assert found.sources == (str(tmp_path),)


def test_names_with_wildcard_characters_are_found_as_files_and_directories(tmp_path: Path) -> None:
    _write(tmp_path, "a[1]/b*.parquet")
    assert find_data_files(tmp_path / "a[1]").paths == ["b*.parquet"]
    assert find_data_files(tmp_path / "a[1]" / "b*.parquet").paths == ["b*.parquet"]


def test_a_local_file_that_may_change_without_a_new_modification_time_has_no_version(tmp_path: Path) -> None:
    _write(tmp_path, "a.parquet", "b.parquet")
    old, recent = time.time_ns() - 10 * 10**9, time.time_ns() - 10**9
    os.utime(tmp_path / "a.parquet", ns=(old, old))
    os.utime(tmp_path / "b.parquet", ns=(recent, recent))
    assert find_data_files(tmp_path).versions == [str(old), ""]


def test_a_path_with_two_colons_is_a_path_and_no_chain_of_urls(tmp_path: Path) -> None:
    _write(tmp_path, "a::b/c::d.parquet")
    for source in (tmp_path / "a::b", tmp_path / "a::b" / "c::d.parquet"):
        assert find_data_files(source).paths == ["c::d.parquet"]


@pytest.mark.parametrize("source", [5, b"x", [1], [b"x"], None, ["a", 1]])
def test_a_source_that_is_no_path_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError, match="source must be a path or URL, a sequence of them, or a Manifest, not"):
        find_data_files(source)


@pytest.mark.parametrize("arguments", [{"retries": 5}, {"storage_options": 5}, {"storage_options": ["key"]}])
def test_options_of_the_wrong_type_are_type_errors(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(arguments))):
        find_data_files(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("metadata", "source", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "", "a Delta table"),
        ("_delta_log/00000000000000000000.json", "lang=en", "a Delta table"),
        ("metadata/00000-0.metadata.json", "", "an Iceberg table"),
        ("metadata/00000-0.metadata.json", "data", "an Iceberg table"),
    ],
)
def test_a_directory_of_a_table_is_read_with_a_warning(tmp_path: Path, metadata: str, source: str, kind: str) -> None:
    for name in (metadata, f"{source or 'data'}/part-0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=f"is {kind}, or in one: a directory is read with all files in it"):
        found = find_data_files(tmp_path / source)
    assert len(found.paths) == 1


def test_other_files_named_metadata_are_no_table(tmp_path: Path) -> None:
    for name in ("metadata/notes.json", "a.metadata.json", "part-0.parquet", "deep/_delta_log/0.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1")
    assert find_data_files(tmp_path).paths == ["part-0.parquet"]

"""Datasets that MosaicML Streaming has written, as Parquet; see mds/write.py."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pytest

from laneway import DataFileError, SchemaMismatchError, StatefulShardedDataset, mds, to_parquet
from laneway.cli.main import main
from laneway.storage.reading import read_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.storage.filesystem import Storage

ARCHIVE = Path(__file__).parent / "mds" / "mosaicml-streaming-0.13.zip"
NUM_SAMPLES = 7


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of datasets that the real package has written."""
    folder = tmp_path_factory.mktemp("mds")
    zipfile.ZipFile(ARCHIVE).extractall(folder)
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """Return the path of the only shard of a dataset that may be changed."""
    source, dest = written / "pickled", tmp_path / "source"
    dest.mkdir()
    for path in source.iterdir():
        (dest / path.name).write_bytes(path.read_bytes())
    return dest / "shard.00000.mds"


def change_index(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what an index says of its first shard."""
    index = json.loads(path.read_text())
    change(index["shards"][0])
    path.write_text(json.dumps(index))


def rows(source: Any) -> list[dict[str, Any]]:
    return list(StatefulShardedDataset(source, output="python"))


@pytest.mark.parametrize("kind", ["plain", "zstd", "gz", "br", "bz2", "snappy"])
def test_every_encoding_and_compression_of_the_real_package_is_read(written: Path, tmp_path: Path, kind: str) -> None:
    assert len(list((written / kind).iterdir())) > 2
    found = rows(to_parquet(written / kind, tmp_path))
    assert len(found) == NUM_SAMPLES
    for i, row in enumerate(found):
        image, images, photos = row.pop("image"), row.pop("images"), row.pop("photos")
        assert image.startswith(b"\x89PNG")
        assert images == [image] * (i % 3)
        assert [each[:2] for each in photos] == [b"\xff\xd8"] * (1 + i % 2)
        assert row == {
            "id": i,
            "u8": i,
            "f16": i / 2,
            "f32": i / 4,
            "text": f"text ü {i}" * (i % 3),
            "raw": b"\x00\xff" * (i % 4),
            "big": str(10**25 + i),
            "real": i / 3,
            "money": {0: "0", 2: "0.25", 4: "0.5", 6: "0.75"}.get(i, str(i / 8)),
            "meta": json.dumps({"i": i, "list": [1] * i}),
            "any": [*range(i + 1)],
            "tokens": [*range(i + 1)],
            "fixed": [[i] * 3] * 2,
            "matrix": [[i] * 2] * (1 + i % 2),
        }


def test_columns_have_the_types_of_their_encodings(written: Path, tmp_path: Path) -> None:
    schema = to_parquet(written / "zstd", tmp_path).schema
    names = ["u8", "f16", "big", "real", "image", "photos", "any", "tokens", "fixed", "matrix"]
    assert [str(schema.field(name).type) for name in names] == [
        *("uint8", "halffloat", "string", "double", "binary", "list<element: binary>", "list<element: int64>"),
        *("list<element: int32>", "fixed_size_list<element: fixed_size_list<element: float>[3]>[2]"),
        "list<element: list<element: int16>>",
    ]


def test_a_merged_index_of_several_folders_is_read_in_its_order(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written / "parts")
    sources: list[str | Path] = [written / "parts", written / "parts" / "index.json", "index.json", "."]
    for index, source in enumerate(sources):
        found = rows(to_parquet(source, tmp_path / str(index)))
        assert found == [{"id": i, "text": "abc"} for i in range(2 * NUM_SAMPLES)]


def test_a_call_that_was_interrupted_goes_on(written: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"row_group_bytes": 1, "file_bytes": 1}
    whole = to_parquet(written / "zstd", tmp_path / "whole", **sizes)
    assert whole.files.num_files > 1
    dest = tmp_path / "dest"
    dest.mkdir()
    first = whole.files.paths[0]
    (dest / first).write_bytes((tmp_path / "whole" / first).read_bytes())
    again = to_parquet(written / "zstd", dest, **sizes)
    assert [path.read_bytes() for path in sorted(dest.iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "whole").iterdir())
    ]
    assert again.fingerprint == whole.fingerprint


def test_python_objects_are_left_out_or_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SchemaMismatchError, match=r"'object' .* is encoded as 'pkl', .* leave it out with columns=\['id'"
    ):
        to_parquet(written / "pickled", tmp_path / "refused")
    assert rows(to_parquet(written / "pickled", tmp_path / "dest", columns=["id"])) == [{"id": i} for i in range(3)]
    with pytest.raises(SchemaMismatchError, match="no column 'text'"):
        to_parquet(written / "pickled", tmp_path / "other", columns=["text"])
    with pytest.raises(ValueError, match="schema= is not for MDS"):
        to_parquet(written / "pickled", tmp_path / "other", schema=pa.schema([("id", pa.int32())]))


def test_a_damaged_shard_is_an_error_that_names_it(copied: Path, tmp_path: Path) -> None:
    data = copied.read_bytes()

    def convert() -> None:
        to_parquet(copied.parent, tmp_path / "dest", columns=["id"])

    copied.write_bytes(data[:-3] + b"abc")
    hashes = {"sha1": hashlib.sha1(data).hexdigest()}
    change_index(copied.with_name("index.json"), lambda shard: shard["raw_data"].update(hashes=hashes))
    with pytest.raises(DataFileError, match=r"shard\.00000\.mds is damaged: its sha1 is"):
        convert()
    change_index(copied.with_name("index.json"), lambda shard: shard["raw_data"].update(hashes={}))
    for cut in (0, 3, 7, 40, len(data) - 1):
        copied.write_bytes(data[:cut])
        with pytest.raises(DataFileError, match=r"shard\.00000\.mds is truncated or damaged: it must have 3 samples"):
            convert()
    # The size of the first value.
    start = int.from_bytes(data[4:8], "little")
    copied.write_bytes(data[:start] + b"\xff\xff\xff\x7f" + data[start + 4 :])
    with pytest.raises(DataFileError, match=r"can't be decoded \(sample 0, column 'object'\): its values end at"):
        convert()
    copied.unlink()
    with pytest.raises(DataFileError, match=r"shard\.00000\.mds does not exist, but index.json lists it"):
        convert()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda shard: shard.update(column_encodings=["ndarray:int8:4", "pkl"], column_sizes=[8, None]), "has 8 bytes"),
        (lambda shard: shard.update(column_encodings=["ndarray", "pkl"]), "array of type 0, which is not known"),
        (lambda shard: shard.update(column_encodings=["jpeg_array", "pkl"]), "its images end at byte"),
        (lambda shard: shard.pop("samples"), r"index\.json can't be read"),
        (lambda shard: shard.update(zip_data=shard["raw_data"], compression="lz4"), "compressed with 'lz4', which"),
    ],
)
def test_an_index_that_does_not_fit_is_an_error(copied: Path, tmp_path: Path, change: Any, error: str) -> None:
    change_index(copied.with_name("index.json"), change)
    with pytest.raises(DataFileError, match=error):
        to_parquet(copied.parent, tmp_path / "dest", columns=["id"])


def test_an_index_is_read_once(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def counted(storage: Storage, path: str, *arguments: Any) -> bytes:
        requested.append(path)
        return read_range(storage, path, *arguments)

    monkeypatch.setattr(mds, "read_range", counted)
    to_parquet(written / "plain", tmp_path)
    assert [path for path in requested if path.endswith(".json")] == [str(written / "plain" / "index.json")]


def test_what_is_no_mds_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"chunks": []}')
    assert rows(to_parquet(tmp_path, tmp_path / "dest")) == [{"chunks": []}]
    with pytest.raises(DataFileError, match=r"index\.json is no index of MDS shards"):
        to_parquet(tmp_path, tmp_path / "other", format="mds")
    (tmp_path / "index.json").write_text('{"shards": []}')
    with pytest.raises(DataFileError, match="lists no sample"):
        to_parquet(tmp_path, tmp_path / "other")


def test_mds_on_another_filesystem_is_read(written: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(written / "gz"), "/mds-source", recursive=True)
    try:
        found = rows(to_parquet("memory://mds-source", tmp_path))
        assert [row["id"] for row in found] == [*range(NUM_SAMPLES)]
    finally:
        memory.rm("/mds-source", recursive=True)


def test_the_command_converts_it(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(written / "parts"), str(tmp_path / "dest"), "--columns", "id", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["files"], facts["rows"], facts["schema"]) == (1, 14, {"id": "int64"})
    assert rows(tmp_path / "dest") == [{"id": i} for i in range(14)]

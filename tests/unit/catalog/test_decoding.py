"""Decoding of manifests: sound ones of every format, and no others."""

from __future__ import annotations

import copy
import gzip
import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from laneway import Manifest
from laneway.catalog.decoding import decode, pack
from laneway.catalog.encoding import encode, encode_schema
from laneway.catalog.scanning import scan_files
from laneway.catalog.schemas import FileSchemas
from laneway.catalog.sources import find_data_files
from laneway.core.shards import cut_shards
from laneway.errors import DataFileError
from laneway.storage.filesystem import Storage
from tests.corpora import KINDS, Kind, write_corpus
from tests.fuzzing import num_cases
from tests.unit.catalog.manifests import as_json, closed, json_manifest, opened, sealed

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.catalog.contents import ManifestContents

GOLDEN = Path(__file__).parents[2] / "golden" / "manifests"
NAMES = ("lang=de/year=2023/a", "lang=en/year=2024/b..c", "lang=__HIVE_DEFAULT_PARTITION__/year=2025/\u00e9")
FINGERPRINTS = {"parquet": "00c4a13b5adbf24705cdad56605552ce", "arrow-file": "ab13a83f4f57574a8feadca785f0bbe9"}


@pytest.fixture(scope="module", params=KINDS)
def contents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ManifestContents:
    kind: Kind = request.param
    directory = tmp_path_factory.mktemp(kind)
    write_corpus(directory, kind, ((3, 1), (2,), ()), names=NAMES)
    return scan_files(find_data_files(directory), progress=False, cache_dir=False)


def load(data: bytes) -> ManifestContents:
    return decode(memoryview(data), "m")


def refusal(data: bytes) -> str:
    with pytest.raises(DataFileError) as caught:
        load(data)
    message = str(caught.value)
    assert message.startswith("m ")
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_a_manifest_that_an_earlier_release_saved_is_read(path: Path) -> None:
    found = Manifest.load(path, root="elsewhere")
    assert found.files.fingerprint_v1 == FINGERPRINTS[path.name.removeprefix("v2_").split(".")[0]]
    assert found.files.block_rows.tolist() == [3, 1, 2]
    assert list(found.partitions.values[0]) == [" ", "1", "2"]
    written = load(path.read_bytes())
    assert (written.root, list(written.versions)) == ("memory://corpus", ["5", "", '"etag"'])
    assert encode(load(encode(written))) == encode(written)


def test_a_manifest_of_format_2_has_the_same_contents(contents: ManifestContents) -> None:
    data = json_manifest(as_json(contents))
    for each in (data, gzip.compress(data)):
        assert encode(load(each)) == encode(contents)
    body = as_json(contents)
    del body["block_memory_bytes"]
    found = load(json_manifest(body)).files
    assert found.block_memory_bytes.tolist() == found.block_bytes.tolist()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_manifest_is_read(contents: ManifestContents, compression: Any) -> None:
    data = encode(contents)
    packed = pack(data, compression)
    assert len(packed) < len(data)
    assert encode(load(packed)) == data


def test_a_manifest_is_not_compressed_so_much_that_it_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laneway.catalog.decoding._MIN_UNPACKED_BYTES", 1 << 20)
    assert pack(bytes(2 << 20), "gzip") == bytes(2 << 20)
    assert len(pack(bytes(1 << 20), "gzip")) < 1 << 14


@pytest.mark.parametrize("data", [b"", b"[1]", b"3", b"{}", b"null", b"\xff\xfe", b"\x1f\x8bgarbage", b"(\xb5/\xfdno"])
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    message = r"^m is not a laneway manifest, or it is damaged \(\w+\): scan the dataset again$"
    with pytest.raises(DataFileError, match=message):
        load(data)


def test_a_manifest_that_is_cut_off_is_refused(contents: ManifestContents) -> None:
    for data in (encode(contents), pack(encode(contents), "zstd"), json_manifest(as_json(contents))):
        for length in (1, 8, 12, 63, 64, 65, len(data) // 2, len(data) - 2):
            refusal(data[:length])


def test_any_flipped_bit_is_damage(contents: ManifestContents) -> None:
    data = encode(contents)
    for position in random.Random(0).sample(range(len(data)), 200):
        flipped = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        refusal(flipped)


def test_a_flipped_bit_after_the_head_is_told_by_the_digest(contents: ManifestContents) -> None:
    data = encode(contents)
    assert "m is damaged: its digest is" in refusal(data[:-70] + bytes([data[-70] ^ 1]) + data[-69:])
    assert "m is damaged: its digest is" in refusal(
        json_manifest(as_json(contents)).replace(b'"block_rows":[3', b'"block_rows":[4')
    )


def test_another_format_version_is_refused(contents: ManifestContents) -> None:
    data = encode(contents)
    message = "m is a manifest of format 5, but this release of laneway reads formats 2 to 4: update laneway or scan"
    assert refusal(data[:8] + b"\5" + data[9:]).startswith(message)
    for version in (1, 5, "2", None, 2.0, True):
        found = refusal(json.dumps({"laneway_manifest": version, "new": []}).encode())
        assert f"is a manifest of format {version!r}" in found


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "a/../b",
        "a/..",
        "..",
        "/etc/a",
        "",
        "\\a",
        "a\\..\\b",
        "http://host/a",
        "file:///a",
        "C:\\a",
        "zip::s3://b/a",
    ],
)
def test_a_path_that_is_not_below_the_root_is_refused(contents: ManifestContents, path: str) -> None:
    body = as_json(contents)
    body["paths"] = sorted([path, *body["paths"][1:]])
    assert "is not below the root" in refusal(json_manifest(body))


@pytest.mark.parametrize(
    "path", ["a..b/..c", "a/...", "x=1:2/a.parquet", "t=12:00:00/b", ".hidden", "a b\u00e9", "aa:/b", "a::b.parquet"]
)
def test_other_paths_are_below_the_root(contents: ManifestContents, path: str) -> None:
    body = as_json(contents)
    body["paths"] = [path, "zzz1", "zzz2"]
    assert load(json_manifest(body)).files.paths[0] == path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_bytes": []}, "its blocks"),
        ({"block_memory_bytes": []}, "its blocks"),
        ({"block_rows": []}, "its blocks"),
        ({"block_rows": [3, 1, -2]}, "block_rows has a negative number"),
        ({"block_rows": [3, 1, 2**62]}, "the sum of block_rows is too large"),
        ({"block_bytes": [2**61, 2**61, 2**61]}, "the sum of block_bytes is too large"),
        ({"block_rows": [3, 1, 2**63]}, "OverflowError"),
        ({"block_rows": [3, 1, True]}, "a list of int is expected"),
        ({"block_rows": [3, 1, 2.5]}, "a list of int is expected"),
        ({"block_starts": [0, 2, 3]}, "block_starts"),
        ({"block_starts": [0, 3, 2, 3]}, "block_starts"),
        ({"block_starts": [1, 2, 3, 3]}, "block_starts"),
        ({"block_starts": [0, 2, 3, 2]}, "block_starts"),
        ({"layout_starts": [0, 0, 0, 1000]}, "layout_starts"),
        ({"sizes": [-1, 5, 5]}, "sizes has a negative number"),
        ({"sizes": [1, 2]}, "the number of paths"),
        ({"sizes": [], "paths": [], "digests": [], "versions": []}, "it has no files"),
        ({"versions": ["", ""]}, "the number of versions"),
        ({"digests": ["", ""]}, "the number of digests"),
        ({"digests": [1, 2, 3]}, "a list of str is expected"),
        ({"digests": ["\ud800", "", ""]}, "UnicodeEncodeError"),
        ({"paths": ["b", "a", "c"]}, "its paths are not sorted"),
        ({"paths": ["a", "a", "c"]}, "its paths are not sorted"),
        ({"paths": ["a", "b\0", "c"]}, "a path holds a NUL byte"),
        ({"format": "nope"}, "the format 'nope'"),
        ({"format": None}, "its names"),
        ({"root": 5}, "its names"),
        ({"schema": 5}, "TypeError"),
        ({"schema": "AAAA"}, "Arrow"),
        ({"schema": "\u00e9"}, "ValueError"),
        ({"partition_values": []}, "ValueError"),
        ({"partition_values": [["de", "en"], [1, 2, 3]]}, "the values of the partition key 'lang'"),
        ({"partition_values": [["de", "en", 5], [1, 2, 3]]}, "a list of str is expected"),
        ({"partition_values": [["de", "en", None], [1, 2, "3"]]}, "a list of int is expected"),
        ({"layout": [[1, 2], [3]]}, "ValueError"),
        ({"layout": [[1.5]]}, "a list of int is expected"),
        ({"layout": 7}, "TypeError"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(
    contents: ManifestContents, change: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(json_manifest({**as_json(contents), **change}))


@pytest.mark.parametrize("body", [None, [], 5, "x", {}])
def test_a_body_of_another_type_is_refused(body: Any) -> None:
    assert "m is malformed" in refusal(json_manifest(body))


def test_a_partition_key_can_not_be_a_column_too(contents: ManifestContents) -> None:
    year: tuple[str, pa.DataType] = ("year", pa.int64())
    body = {**as_json(contents), "partition_schema": encode_schema(pa.schema([("id", pa.string()), year]))}
    assert "a column has the name of another" in refusal(json_manifest(body))
    body["partition_schema"] = encode_schema(pa.schema([("lang", pa.large_string()), year]))
    assert "the type of the partition key 'lang'" in refusal(json_manifest(body))


@pytest.mark.parametrize("wrap", [lambda text: text, gzip.compress], ids=["plain", "gzipped"])
def test_json_that_is_nested_deep_is_refused(wrap: Callable[[bytes], bytes]) -> None:
    assert "is not a laneway manifest" in refusal(wrap(b"[" * 100_000))
    assert "is not a laneway manifest" in refusal(wrap(b"[ " * 60 + b" " * 1000))


@pytest.mark.parametrize("text", [b" ", b"[],", b'"",'], ids=["spaces", "lists", "strings"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_unpacks_to_far_more_than_it_is_takes_bounded_memory(
    text: bytes, compression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laneway.catalog.decoding._MIN_UNPACKED_BYTES", 1 << 40)
    packed = pack(text * ((80 << 20) // len(text)), compression)
    assert len(packed) < 1 << 20
    monkeypatch.undo()
    tracemalloc.start()
    try:
        assert "and unpacks to more than 33,554,432: scan" in refusal(packed)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


def test_columns_of_a_file_are_views_of_it(contents: ManifestContents) -> None:
    data = encode(contents)
    found = load(data)
    memory = np.frombuffer(data, np.uint8)
    for column in (found.files.sizes, found.files.paths.data, found.files.block_rows, found.versions.offsets):
        assert np.shares_memory(column, memory)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_indices": [0, 1]}, "the schemas of its files"),
        ({"schema_indices": [0, 1, 2]}, "the schemas of its files"),
        ({"schema_indices": [0, 1, -1]}, "the schemas of its files"),
        ({"schemas.offsets": [0], "schemas.data": []}, "the schemas of its files"),
        ({"schemas.data": b"a"}, "schemas"),
        ({"schemas.offsets": [0, 4], "schemas.data": b"AAA\0"}, "m is malformed"),
    ],
)
def test_schemas_that_contradict_the_files_are_refused(
    contents: ManifestContents, change: dict[str, Any], reason: str
) -> None:
    other = pa.schema([("id", pa.int32())])
    schemas = FileSchemas.of([contents.schemas.of_file(0), other, other])
    data = encode(replace(contents, schemas=schemas))
    assert load(data).schemas.indices.tolist() == [0, 1, 1]
    values, columns = opened(data)
    for name, column in change.items():
        array = np.frombuffer(column, np.uint8) if isinstance(column, bytes) else np.array(column, np.int64)
        columns[name] = array.astype(np.uint8) if name.endswith(".data") else array
    assert reason in refusal(closed(values, columns))


def test_only_files_that_differ_have_a_column_for_their_schemas(contents: ManifestContents) -> None:
    assert "schema_indices" not in opened(encode(contents))[1]


JUNK: list[Any] = [None, True, 1.5, "", "x", "../x", "/x", [], [1], ["a"], {}]
JUNK += [0, 1, -1, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63)]
NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]


def mutated(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one change."""
    if isinstance(value, (list, dict)) and value and chance.random() < 0.8:
        value = copy.copy(value)
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        kind = chance.randrange(6)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, list):
            value.insert(key, copy.copy(chance.choice([*value, *JUNK])))
        elif kind == 2 and isinstance(value, list):
            other = chance.randrange(len(value))
            value[key], value[other] = value[other], value[key]
        else:
            value[key] = mutated(value[key], chance)
        return value
    if isinstance(value, str) and value and chance.random() < 0.5:
        position = chance.randrange(len(value))
        return value[:position] + chance.choice(["", "..", "/", "\0", "\u00e9", "A"]) + value[position + 1 :]
    if type(value) is int and chance.random() < 0.5:
        return value + chance.choice([-1, 1])
    return chance.choice(JUNK)


def mutated_columns(data: bytes, chance: random.Random) -> bytes:
    """Return a manifest of format 3 with one change, and the right digest."""
    values, columns = opened(data)
    kind = chance.randrange(8)
    if kind == 0:
        key = chance.choice(list(values))
        return closed({**values, key: mutated(values[key], chance)}, columns)
    if kind == 1:
        rest = bytearray(data[64:])
        for _ in range(chance.randrange(1, 4)):
            rest[chance.randrange(len(rest) if chance.random() < 0.5 else 2000) % len(rest)] = chance.randrange(256)
        return sealed(bytes(rest))
    if kind == 2:
        return sealed(data[64 : 64 + chance.randrange(len(data) - 64)])
    name = chance.choice(list(columns))
    column = columns[name]
    if kind == 3:
        del columns[name]
    elif kind == 4 or len(column) == 0:
        columns[name] = np.append(column, column.dtype.type(chance.choice([0, 1, 7])))
    elif kind == 5:
        columns[name] = np.delete(column, chance.randrange(len(column)))
    else:
        number = chance.choice(NUMBERS)
        column[chance.randrange(len(column))] = number % 256 if column.dtype == np.uint8 else number
    return closed(values, columns)


def check_usable(found: ManifestContents) -> None:
    """Use a manifest in every way that does not read its files."""
    files = found.files
    storage = Storage(".")
    planned = [found.planned(storage, index) for index in range(files.num_files)]
    assert sum(int(each.block_rows.sum()) for each in planned) == files.num_rows == sum(files.rows.tolist())
    assert list(files.paths) == sorted(set(files.paths))
    for each in planned:
        assert Path(each.path).resolve().is_relative_to(Path.cwd())
        assert isinstance(each.version, str)
    shards = cut_shards(files, files.block_memory_bytes, shard_bytes=1000)
    assert int(shards.row_length.sum()) == files.num_rows
    for field, values in zip(found.partitions.fields, found.partitions.values, strict=True):
        expected = int if str(field.type) == "int64" else str
        assert all(value is None or type(value) is expected for value in values)
    again = load(encode(found))
    assert again.fingerprint == found.fingerprint
    assert encode(again) == encode(found)
    assert files.encoded
    assert len(found.schema)


def test_crafted_manifests_are_refused_or_usable(contents: ManifestContents) -> None:
    chance = random.Random(contents.format)
    body, data = as_json(contents), encode(contents)
    accepted = 0
    for index in range(num_cases(300)):
        crafted = mutated_columns(data, chance) if index % 2 else json_manifest(mutated(body, chance))
        try:
            found = load(crafted)
        except DataFileError as error:
            assert str(error).startswith("m ")  # noqa: PT017 - most are refused, and some are not
            continue
        check_usable(found)
        accepted += 1
    assert 0 < accepted < num_cases(300) / 2

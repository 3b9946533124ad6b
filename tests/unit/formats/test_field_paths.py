"""Fields inside of structs, found by path and read without their siblings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import SchemaMismatchError, StatefulShardedDataset
from laneway.formats.field_paths import field_type, fields_inside, find_field, select_fields
from laneway.manifest import Manifest
from laneway.reading.projection import select_columns
from tests.corpora import KINDS, SUFFIX_OF, Kind, schema_of, write_blocks
from tests.unit.formats.test_parquet import CountingMemory

if TYPE_CHECKING:
    from pathlib import Path

SIZE = pa.struct([("w", pa.int32()), ("h", pa.int32())])
IMAGE = pa.struct([("bytes", pa.binary()), ("size", SIZE), ("a.b", pa.int8())])
ROWS = pa.table(
    {
        "label": [1, 2, 3, 4],
        "image": pa.array(
            [
                {"bytes": b"x", "size": {"w": 1, "h": 2}, "a.b": 1},
                None,
                {"bytes": None, "size": None, "a.b": 3},
                {"bytes": b"yy", "size": {"w": 7, "h": None}, "a.b": None},
            ],
            IMAGE,
        ),
        "image.label": ["a", "b", "c", "d"],
        "tags": pa.array([[{"t": 1}], [], None, [{"t": 2}]], pa.list_(pa.struct([("t", pa.int8())]))),
    }
)
FIELDS: dict[str, list[Any]] = {
    "label": [1, 2, 3, 4],
    "image.bytes": [b"x", None, None, b"yy"],
    "image.size.h": [2, None, None, None],
    "image.size": [{"w": 1, "h": 2}, None, None, {"w": 7, "h": None}],
    "image.a.b": [1, None, 3, None],
    "image.label": ["a", "b", "c", "d"],
}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("label", ("label",)),
        ("image", ("image",)),
        ("image.bytes", ("image", "bytes")),
        ("image.size.h", ("image", "size", "h")),
        ("image.a.b", ("image", "a.b")),
        ("image.label", ("image.label",)),
        ("image.text", None),
        ("label.x", None),
        ("tags.t", None),
        ("tags.list.element.t", None),
        ("image.", None),
        (".image", None),
    ],
)
def test_a_path_leads_through_structs_only(name: str, path: tuple[str, ...] | None) -> None:
    assert find_field(ROWS.schema, name) == path


def test_the_types_of_fields() -> None:
    assert field_type(ROWS.schema, ("image", "size", "h")) == pa.int32()
    assert field_type(ROWS.schema, ("label",)) == pa.int64()


def test_all_fields_have_paths() -> None:
    found = [*fields_inside(ROWS.schema)]
    assert found == [
        *("label", "image", "image.bytes", "image.size", "image.size.w", "image.size.h", "image.a.b"),
        *("image.label", "tags"),
    ]


def test_fields_of_a_table() -> None:
    fields = [(name, find_field(ROWS.schema, name) or ()) for name in FIELDS]
    assert select_fields(ROWS, fields).to_pydict() == FIELDS


def write(path: Path, kind: Kind) -> Path:
    file = path / f"a{SUFFIX_OF[kind]}"
    write_blocks(file, kind, [ROWS.slice(0, 3), ROWS.slice(3)], ROWS.schema)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_read_without_the_structs_that_they_are_in(tmp_path: Path, kind: Kind) -> None:
    file = write(tmp_path, kind)
    rows = [*StatefulShardedDataset(file, columns=[*FIELDS])]
    assert rows == [{name: values[i] for name, values in FIELDS.items()} for i in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_and_its_struct(tmp_path: Path, kind: Kind) -> None:
    file = write(tmp_path, kind)
    dataset = StatefulShardedDataset(file, columns=["image.bytes", "image"], output="arrow", batch_size=4)
    assert dataset.schema == pa.schema({"image.bytes": pa.binary(), "image": IMAGE})
    (batch,) = dataset
    assert batch["image"].to_pylist() == ROWS["image"].to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_schema_may_name_fields(tmp_path: Path, kind: Kind) -> None:
    write(tmp_path, kind)
    without = pa.table({"label": [9]})
    write_blocks(tmp_path / f"b{SUFFIX_OF[kind]}", kind, [without], without.schema)
    given = schema_of(label=pa.int16()).append(pa.field("image.size.w", pa.float32()))
    dataset = StatefulShardedDataset(tmp_path, schema=given)
    assert [row["image.size.w"] for row in dataset] == [1.0, None, None, 7.0, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image.byte", r"there is no column 'image.byte': did you mean 'image.bytes'"),
        ("tags.t", "there is no column 'tags.t'"),
        ("label.x", "there is no column 'label.x'"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    manifest = Manifest.scan(write(tmp_path, "parquet"))
    with pytest.raises(SchemaMismatchError, match=message):
        select_columns(manifest, [name])


def test_only_the_bytes_of_a_field_are_fetched(tmp_path: Path) -> None:
    images = pa.array([{"bytes": bytes([i]) * 300_000, "size": i} for i in range(4)])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    filesystem = CountingMemory()
    try:
        filesystem.pipe_file("/data/a.parquet", (tmp_path / "a.parquet").read_bytes())
        dataset = StatefulShardedDataset("/data", filesystem=filesystem, columns=["image.size"], cache_dir=False)
        filesystem.ranges.clear()
        assert [row["image.size"] for row in dataset] == [0, 1, 2, 3]
    finally:
        filesystem.store.clear()
    assert 0 < sum(stop - start for start, stop in filesystem.ranges) < 100_000

"""Which columns are delivered, of files whose columns differ."""

from __future__ import annotations

import ctypes
import warnings
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pytest

from laneway import StatefulShardedDataset
from laneway.errors import SchemaMismatchError
from laneway.manifest import Manifest
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from tests.corpora import KINDS, SUFFIX_OF, Kind, schema_of, write_blocks

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = pa.list_(pa.field("item", pa.int64(), nullable=False))
A = pa.table({"id": pa.array([1], pa.int32()), "text": ["a"], "x": [0.5], "tokens": pa.array([[1]], REQUIRED)})
B = pa.table(
    {"tokens": pa.array([[None]], pa.list_(pa.int64())), "y": [1], "id": pa.array([1], pa.int64()), "text": ["b"]}
)


@pytest.fixture(params=KINDS)
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    return scan(tmp_path, request.param, a=A, b=B, c=B)


def scan(directory: Path, kind: Kind = "parquet", **tables: pa.Table) -> Manifest:
    for name, table in tables.items():
        path = directory / f"{name.replace('__', '/')}{SUFFIX_OF[kind]}".replace("_is_", "=")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_blocks(path, kind, [table], table.schema)
    return Manifest.scan(directory)


def test_columns_that_agree_have_the_types_of_the_files(manifest: Manifest) -> None:
    assert select_columns(manifest, ["text"]) == schema_of(text=pa.string())


def test_values_inside_of_others_may_be_null_if_they_may_in_any_file(manifest: Manifest) -> None:
    assert select_columns(manifest, ["tokens"]).field("tokens").type == pa.list_(pa.int64())


def test_files_that_agree_keep_their_types(tmp_path: Path) -> None:
    manifest = scan(tmp_path, a=A, b=A.select(["tokens", "x", "text", "id"]))
    assert select_columns(manifest) == A.schema
    assert select_columns(manifest, ["tokens", "id"]) == A.select(["tokens", "id"]).schema


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, r"'id' is int32 in a\.\w+ and int64 in b\.\w+: pass schema= with the type .*, or columns= without it"),
        (["text", "id"], r"the files have different columns: 'id' is int32 in a\.\w+ and int64 in b\.\w+: pass"),
        (["x"], r"the files have different columns: 'x' is double in a\.\w+ and missing in b\.\w+: pass schema="),
        (["y"], r"the files have different columns: 'y' is int64 in b\.\w+ and missing in a\.\w+: pass schema="),
        (["texts"], r"no column 'texts': did you mean 'text'\? the columns are id, text, x, tokens, y$"),
        (["text", "text"], "the column 'text' is selected twice"),
    ],
)
def test_selected_columns_that_differ_are_an_error_with_both_types_and_files(
    manifest: Manifest, columns: list[str] | None, message: str
) -> None:
    with pytest.raises(SchemaMismatchError, match=message):
        select_columns(manifest, columns)


def test_a_schema_names_the_columns_and_their_types(manifest: Manifest) -> None:
    fields: list[Any] = [pa.field("y", pa.int8(), nullable=False, metadata={"a": "b"}), pa.field("id", pa.string())]
    schema = pa.schema(fields, {"c": "d"})
    delivered = schema_of(y=pa.int8(), id=pa.string())
    assert select_columns(manifest, None, schema).equals(delivered, check_metadata=True)
    assert select_columns(manifest, ["id"], schema) == delivered.remove(0)


@pytest.mark.parametrize(
    ("columns", "type_", "message"),
    [
        (
            None,
            pa.list_(pa.int8()),
            r"'text' is string in a\.\w+, which can't be cast to list<item: int8>, the type in sc",
        ),
        (["id"], pa.string(), "there is no column 'id': schema has text$"),
        (["tex"], pa.string(), r"there is no column 'tex': did you mean 'text'\? schema has text$"),
    ],
)
def test_a_schema_that_can_not_be_delivered_is_an_error(
    manifest: Manifest, columns: list[str] | None, type_: Any, message: str
) -> None:
    with pytest.raises(SchemaMismatchError, match=message):
        select_columns(manifest, columns, schema_of(text=type_))


def test_a_column_that_no_file_has_gives_one_warning_at_the_line_of_the_user(tmp_path: Path) -> None:
    manifest = scan(tmp_path, a=A)
    schema = schema_of(id=pa.int64(), texts=pa.string(), qqq=pa.string())
    conditions = [pc.field("texts").is_null(), pc.field("qqq").is_null()]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        dataset = StatefulShardedDataset(manifest, schema=schema, columns=["id", "texts"], filter=conditions[0])
        texts = ["no file has the column 'texts' of schema=, so it is null in all rows: did you mean 'text'?"]
        assert [str(each.message) for each in found] == texts
        filtered = dataset.filter(conditions[0])
        assert len(found) == 1
        filtered.filter(conditions[1])
        texts.append("no file has the column 'qqq' of schema=, so it is null in all rows")
        assert [str(each.message) for each in found] == texts
        StatefulShardedDataset(manifest, schema=schema, columns=["id"], filter=conditions[1])
        assert [str(each.message) for each in found] == [*texts, texts[1]]
        dataset.split({"a": 1.0}, by="qqq")
        assert [str(each.message) for each in found] == [*texts, texts[1], texts[1]]
        assert {each.filename for each in found} == {__file__}


def test_a_column_of_only_some_files_may_be_a_key_of_the_directories_of_the_others(tmp_path: Path) -> None:
    manifest = scan(tmp_path, y_is_0__a=A, y_is_1__b=B)
    assert manifest.schema.names == ["id", "text", "x", "tokens", "y"]
    assert select_columns(manifest, ["y"]) == schema_of(y=pa.int64())
    assert select_columns(manifest, None, schema_of(y=pa.string())) == schema_of(y=pa.string())
    with pytest.raises(SchemaMismatchError, match=r"'y' is int64 in y=0/a\.parquet, which can't be cast to list"):
        select_columns(manifest, None, schema_of(y=pa.list_(pa.int8())))


def test_a_column_of_another_type_than_the_key_of_other_files_is_an_error(tmp_path: Path) -> None:
    manifest = scan(tmp_path, id_is_1__a=A, id_is_2__b=B.drop_columns("id"))
    with pytest.raises(SchemaMismatchError, match=r"'id' is int32 in id=1/a\.parquet and int64 in id=2/b\.parquet"):
        select_columns(manifest, ["id"])


class _Exported(ctypes.Structure):
    """A field in Arrow's C data interface."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("format", "name", "metadata")),
        *((name, ctypes.c_int64) for name in ("flags", "n_children")),
        *((name, ctypes.c_void_p) for name in ("children", "dictionary", "release", "private_data")),
    )


def _mark_as_released(exported: Any) -> None:
    exported.contents.release = None


_release = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Exported))(_mark_as_released)


def _interval(format_: bytes) -> Any:
    """Return a type that pyarrow itself can't make: "tiM" is an interval of months, "tiD" one of days."""
    exported = _Exported(format_, b"m", None, 2, 0, None, None, ctypes.cast(_release, ctypes.c_void_p), None)
    imported: Any = pa.Field._import_from_c(ctypes.addressof(exported))
    return imported.type


@pytest.mark.parametrize("has_dictionary", [False, True])
@pytest.mark.parametrize(
    ("format_", "wrap", "stored", "name"),
    [
        (b"tiM", lambda inner: inner, pa.array([1, 2], pa.int32()), "month_interval"),
        (b"tiD", pa.list_, pa.array([[1], [2]], pa.list_(pa.int64())), "day_time_interval"),
        (
            b"tiM",
            lambda inner: pa.struct([("a", inner)]),
            pa.array([{"a": 1}] * 2, pa.struct([("a", pa.int32())])),
            "month_interval",
        ),
    ],
    ids=["plain", "in a list", "in a struct"],
)
def test_a_column_that_pyarrow_can_not_read_is_an_error_unless_others_are_selected(
    tmp_path: Path, format_: bytes, wrap: Any, stored: Any, name: str, *, has_dictionary: bool
) -> None:
    message = pa.record_batch({"x": [3, 4], "m": stored}).serialize()
    batch = pa.ipc.read_record_batch(message, schema_of(x=pa.int64(), m=wrap(_interval(format_))))
    if has_dictionary:
        batch = batch.add_column(0, "s", pa.array(["a", "b"]).dictionary_encode())
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    manifest = Manifest.scan(tmp_path)
    for schema in (None, schema_of(m=pa.string())):
        with pytest.raises(
            SchemaMismatchError, match=rf"the column 'm' in a\.arrow has the type {name}, which pyarrow"
        ):
            select_columns(manifest, ["m"], schema)
    reader = RowReader(manifest, manifest.storage(), select_columns(manifest, ["x"]))
    assert reader.read(0, 0, 2).to_pydict() == {"x": [3, 4]}

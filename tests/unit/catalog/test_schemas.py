"""The distinct schemas of data files."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from laneway.catalog.schemas import FileSchemas
from laneway.core.files import digest
from tests.corpora import schema_of

PLAIN = schema_of(id=pa.int64(), text=pa.string())
DIGEST = digest(b"id: int64\ntext: string")


def _values(name: str, type_: Any, *, nullable: bool = True, **metadata: str) -> pa.Field[Any]:
    return pa.field(name, type_, nullable=nullable, metadata=dict[str | bytes, str | bytes](metadata))


def test_files_of_few_schemas_refer_to_them_in_the_order_of_the_files() -> None:
    other = schema_of(text=pa.string(), id=pa.int64())
    schemas = FileSchemas.of([PLAIN, other, PLAIN.with_metadata({"by": "me"}), other])
    assert schemas.distinct == (PLAIN, other)
    assert schemas.indices.tolist() == [0, 1, 0, 1]
    assert [schemas.of_file(index) for index in range(4)] == [PLAIN, other, PLAIN, other]
    assert [schemas.first_file(index) for index in range(2)] == [0, 1]


def test_more_schemas_than_are_compared_first_are_told_apart() -> None:
    each = [pa.schema([(f"c{index}", pa.int64())]) for index in range(40)]
    schemas = FileSchemas.of([*each, *reversed(each)])
    assert schemas.distinct == tuple(each)
    assert schemas.indices.tolist() == [*range(40), *reversed(range(40))]


def test_metadata_and_whether_columns_may_be_null_make_no_other_schema() -> None:
    fields = [_values("id", pa.int64(), nullable=False, key="1"), _values("text", pa.string(), key="2")]
    schemas = FileSchemas.of([pa.schema(fields, {"by": "me"}), PLAIN])
    assert schemas.indices.tolist() == [0, 0]
    assert schemas.distinct[0].equals(PLAIN, check_metadata=True)


def test_the_union_has_each_column_once_in_the_type_of_the_first_file() -> None:
    other = schema_of(x=pa.float32(), id=pa.int32())
    assert FileSchemas.of([PLAIN, other]).union == pa.schema([*PLAIN, ("x", pa.float32())])
    assert FileSchemas.of([other, PLAIN]).union == pa.schema([*other, ("text", pa.string())])


def test_the_digest_of_files_that_agree_is_that_of_their_names_and_types() -> None:
    assert FileSchemas.same(PLAIN, 3).digest == FileSchemas.of([PLAIN] * 2).digest == DIGEST == "7f5532a27ef41f9e"


def test_the_digest_of_lists_does_not_depend_on_what_the_first_scan_saw() -> None:
    element, item = (schema_of(x=pa.list_(_values(name, pa.int64()))) for name in ("element", "item"))
    # Arrow calls these types equal, so the files agree; the first one decides, as it does without the other.
    both = FileSchemas.of([element, item])
    assert both.digest == FileSchemas.same(element, 2).digest
    assert FileSchemas.of([both.of_file(1)]).digest == FileSchemas.same(item, 1).digest


@pytest.mark.parametrize(
    "files",
    [
        [PLAIN, schema_of(id=pa.int64())],
        [PLAIN, schema_of(id=pa.int32(), text=pa.string())],
        [PLAIN, schema_of(text=pa.string(), id=pa.int64())],
        [schema_of(x=pa.list_(_values("item", pa.int8(), nullable=n))) for n in (False, True)],
    ],
    ids=["fewer", "another type", "another order", "nullability inside"],
)
def test_the_digest_of_files_that_differ_says_which_file_has_which_schema(files: list[pa.Schema]) -> None:
    a, b = files
    found = [FileSchemas.of(each).digest for each in ([a, a], [b, b], [a, b], [b, a], [a, b, b], [a, a, b])]
    assert len(set(found)) == len(found)
    assert FileSchemas.of([a.with_metadata({"by": "me"}), b]).digest == found[2]


class _Four(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(4), "tests.schemas_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _serialized: bytes) -> _Four:
        return cls()


def test_the_digest_does_not_depend_on_extension_types() -> None:
    stored: Any = schema_of(m=pa.binary(4))
    known: Any = pa.schema([pa.field("m", _Four())])
    assert FileSchemas.of([known, stored]).digest == FileSchemas.same(stored, 2).digest
    other = schema_of(n=pa.int8())
    assert FileSchemas.of([known, stored, other]).digest == FileSchemas.of([stored, stored, other]).digest

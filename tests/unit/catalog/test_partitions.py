"""Partition keys in directory names."""

from __future__ import annotations

import pyarrow as pa
import pytest

from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.errors import DataFileError, SchemaMismatchError

SCHEMA = pa.schema([("id", pa.int64()), ("lang", pa.dictionary(pa.int8(), pa.string()))])


def _parse(*paths: str) -> dict[str, tuple[str, tuple[int | str | None, ...]]]:
    partitions = Partitions.parse(paths, FileSchemas.same(SCHEMA, len(paths)))
    fields = zip(partitions.fields, partitions.values, strict=True)
    return {field.name: (str(field.type), tuple(values)) for field, values in fields}


def test_keys_are_typed_over_all_files_and_keep_the_order_of_the_directories() -> None:
    parsed = _parse("year=2024/tag=a/0.parquet", "year=-5/tag=7/1.parquet")
    assert parsed == {"year": ("int64", (2024, -5)), "tag": ("string", ("a", "7"))}
    assert list(parsed) == ["year", "tag"]


@pytest.mark.parametrize("value", ["007", "1.5", "+1", "", "9223372036854775808", "1_000", "٣"])
def test_a_value_that_is_not_a_canonical_int64_stays_a_string(value: str) -> None:
    assert _parse("k=1/a", f"k={value}/b") == {"k": ("string", ("1", value))}


def test_the_hive_default_is_null_and_names_and_values_are_decoded() -> None:
    assert _parse("k=1/a", "k=__HIVE_DEFAULT_PARTITION__/b") == {"k": ("int64", (1, None))}
    assert _parse("k=__HIVE_DEFAULT_PARTITION__/b") == {"k": ("string", (None,))}
    assert _parse("my%20key=a%2Fb%3Dc=d/x") == {"my key": ("string", ("a/b=c=d",))}


@pytest.mark.parametrize("path", ["k=%ff/a", "k%fe=1/a"])
def test_a_name_that_is_not_utf8_once_it_is_decoded_is_refused(path: str) -> None:
    with pytest.raises(DataFileError, match=r"a directory of .* has '[^']*%f[ef]' in its name, which is not UTF-8"):
        _parse(path)


def test_other_directories_and_the_file_name_are_not_keys() -> None:
    assert _parse("plain/=x/k=1/y=2.parquet") == {"k": ("int64", (1,))}
    assert _parse() == {}


def test_every_file_needs_the_same_keys_in_the_same_order() -> None:
    for other, found in (("b.parquet", "none"), ("y=1/x=1/b", "'y', 'x'"), ("x=1/b", "'x'")):
        with pytest.raises(
            SchemaMismatchError, match=f"{other} has the partition keys {found}, but x=1/y=2/a has 'x', 'y'"
        ):
            _parse("x=1/y=2/a", other)
    with pytest.raises(SchemaMismatchError, match="x=1/x=2/a has the partition key 'x' twice"):
        _parse("x=1/x=2/a")


def test_a_key_that_is_a_column_of_the_files_adds_nothing_if_the_types_agree() -> None:
    assert _parse("lang=en/id=7/a") == {}
    with pytest.raises(
        SchemaMismatchError, match=r"'id' is both a column of the files, of type int64, and a partition key, .* string"
    ):
        _parse("id=seven/a")
    with pytest.raises(
        SchemaMismatchError,
        match=r"'lang' is both a column of the files, of type string, and a partition key, .* int64",
    ):
        _parse("lang=7/a")


def test_a_key_that_only_some_files_have_as_a_column_is_a_key() -> None:
    without = pa.schema([("id", pa.int64())])
    partitions = Partitions.parse(["lang=de/a", "lang=en/b"], FileSchemas.of([SCHEMA, without]))
    assert partitions.fields == (pa.field("lang", pa.string()),)
    assert partitions.values == (("de", "en"),)
    with pytest.raises(SchemaMismatchError, match="'lang' is both a column of the files, of type string, and a part"):
        Partitions.parse(["lang=1/a", "lang=2/b"], FileSchemas.of([without, SCHEMA]))

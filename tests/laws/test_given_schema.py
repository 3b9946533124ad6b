"""Law: a given schema delivers what pyarrow.dataset reads with it, whatever columns and types the files have."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from laneway import DataFileError, Manifest, SchemaMismatchError, StatefulShardedDataset
from tests.corpora import FORMAT_OF, KINDS, SUFFIX_OF, Kind, write_blocks

SECONDS = st.integers(0, 2**31).map(lambda number: number * 10**9)
NUMBERS = st.one_of(st.integers(-3, 100), st.integers(-(2**40), 2**40))
TEXTS = st.text("abé", max_size=3)
INSIDE = pa.field("item", pa.int64(), nullable=False)

FAMILIES: dict[str, tuple[st.SearchStrategy[Any], tuple[Any, ...]]] = {
    "number": (
        NUMBERS,
        (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.float32(), pa.float64(), pa.null()),
    ),
    "money": (st.integers(0, 999), (pa.decimal128(5, 1), pa.decimal128(9, 2), pa.decimal256(40, 3), pa.null())),
    "text": (TEXTS, (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.null())),
    "time": (SECONDS, (*(pa.timestamp(unit) for unit in ("ms", "us", "ns")), pa.timestamp("us", "UTC"), pa.null())),
    "list": (
        st.lists(NUMBERS, max_size=3),
        (pa.list_(pa.int64()), pa.list_(INSIDE), pa.large_list(pa.int64()), pa.list_(pa.int32()), pa.null()),
    ),
}
"""Values of a column, and the types that it may have in a file or in the schema."""


def _array(values: list[Any], type_: Any) -> pa.Array[Any]:
    """Return values in a type, with a null where one doesn't fit."""
    if pa.types.is_timestamp(type_):
        times: pa.Array[Any] = pa.array(values, pa.timestamp("ns", type_.tz)).cast(type_)
        return times
    kept = []
    for value in values:
        try:
            kept.append(pa.array([value], type_)[0].as_py())
        except (pa.ArrowException, OverflowError):
            kept.append(None)
    array: pa.Array[Any] = pa.array(kept, type_)
    return array


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Draw the rows of a file, which has any of the columns, each of any type of its family, in any order."""
    num_rows = draw(st.integers(1, 6))
    columns = {}
    for name in draw(st.permutations([*FAMILIES]).map(lambda names: names[: 1 + len(names) // 2])):
        values, types = FAMILIES[name]
        type_ = draw(st.sampled_from(types))
        found = draw(st.lists(st.none() | values, min_size=num_rows, max_size=num_rows))
        columns[name] = pa.nulls(num_rows) if pa.types.is_null(type_) else _array(found, type_)
    return pa.table(columns)


@st.composite
def schemas(draw: st.DrawFn) -> pa.Schema:
    """Draw the columns to deliver, which may be in all files, some or none."""
    names = draw(st.lists(st.sampled_from([*FAMILIES, "elsewhere"]), min_size=1, unique=True))
    types = [FAMILIES[name][1][:-1] if name in FAMILIES else (pa.int64(), pa.string()) for name in names]
    return pa.schema([(name, draw(st.sampled_from(each))) for name, each in zip(names, types, strict=True)])


def _rows(dataset: StatefulShardedDataset) -> pa.Table:
    batches = list(dataset)
    assert all(batch.schema.equals(dataset.schema) for batch in batches)
    return pa.Table.from_batches(batches, dataset.schema)


@pytest.mark.parametrize("kind", KINDS[:2])
@given(files=st.lists(tables(), min_size=1, max_size=4), schema=schemas(), num_rows=st.integers(1, 4))
def test_a_given_schema_delivers_what_pyarrow_reads_with_it(
    kind: Kind, files: list[pa.Table], schema: pa.Schema, num_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no file has the column")
        paths = [Path(directory) / f"{index}{SUFFIX_OF[kind]}" for index in range(len(files))]
        for path, table in zip(paths, files, strict=True):
            blocks = [table.slice(start, num_rows) for start in range(0, table.num_rows, num_rows)]
            write_blocks(path, kind, blocks, table.schema)
        format_ = "parquet" if FORMAT_OF[kind] == "parquet" else "ipc"
        names: Any = [str(path) for path in paths]
        open_dataset: Any = pyarrow.dataset.dataset
        try:
            expected = open_dataset(names, schema=schema, format=format_).to_table()
        except pa.ArrowInvalid:
            # A value doesn't fit.
            with pytest.raises((DataFileError, SchemaMismatchError)):
                _rows(StatefulShardedDataset(directory, schema=schema, batch_size=3, output="arrow"))
            return
        except pa.ArrowNotImplementedError:
            reject()
        found = _rows(StatefulShardedDataset(directory, schema=schema, batch_size=3, output="arrow"))
        assert found.to_pylist() == expected.to_pylist()
        assert found.schema.types == expected.schema.types
        # Nothing of this decides which row is where.
        assert Manifest.scan(directory).num_rows == expected.num_rows

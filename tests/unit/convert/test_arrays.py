"""Arrays of any type are joined, put in order and returned to the type of their column."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from laneway.convert import arrays
from laneway.convert.arrays import decode, filter_rows, fit, join, take_rows
from laneway.convert.nested import copy_array
from tests.columns import COLUMNS

_compute: Any = pc
_runs: Any = pa.RunEndEncodedArray.from_arrays
_dictionary: Any = pa.DictionaryArray.from_arrays
_interval: Any = pa.MonthDayNano
_from_arrays: Any = pa.ListArray.from_arrays
_view: Any = pa.string_view()
_NUM_CHUNKS = 10
_OFFSETS: Any = pa.array([0, 2, 2, 5, 9, 20], pa.int32())


class _Name(pa.ExtensionType):
    """A type as users register it: it can't be hashed, and is stored as views."""

    def __init__(self) -> None:
        super().__init__(_view, "tests.name")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _: bytes) -> _Name:
        return cls()


def _columns(prefix: str) -> dict[str, Any]:
    """Return columns whose texts begin with `prefix`, of 3 to 20 rows each."""
    texts: Any = pa.array([None if i % 7 == 3 else f"{prefix}{i}" * (i % 3 + 1) for i in range(20)])
    views = texts.cast(_view)
    codes: Any = pa.array([None if i == 4 else i for i in range(20)], pa.int8())
    coded = _dictionary(codes, pa.array([f"{prefix}{i}" for i in range(20)]))
    runs = _compute.run_end_encode(texts)
    singles = _runs(pa.array(range(1, 21), pa.int32()), views)
    some_null: Any = pa.array([i % 5 == 0 for i in range(20)])
    types: Any = pa.array([0, 1, 0], pa.int8())
    uuids: Any = pa.array([prefix.encode() * 16, None, b"1" * 16], pa.uuid())
    from_dense: Any = pa.UnionArray.from_dense
    from_sparse: Any = pa.UnionArray.from_sparse
    from_pairs: Any = pa.MapArray.from_arrays
    from_views: Any = pa.ListViewArray.from_arrays
    return {
        "text": texts,
        "views": views,
        "list of views": _from_arrays(_OFFSETS, views),
        "list view of views": from_views([0, 2, 5, 9, 3], [2, 3, 4, 1, 5], views),
        "fixed-size list of views": pa.FixedSizeListArray.from_arrays(views, 4),
        "struct of views": pa.StructArray.from_arrays([views, coded], ["view", "coded"], mask=some_null),
        "dictionary": coded,
        "dictionary of views": _dictionary(codes, coded.dictionary.cast(_view)),
        "dictionary of lists": _dictionary(pa.array([0, 3, 2, 1, None, 4], pa.int8()), _from_arrays(_OFFSETS, texts)),
        "dictionary of extensions": _dictionary(pa.array([0, 2, None, 2], pa.int8()), uuids),
        "list of dictionaries": _from_arrays(_OFFSETS, coded),
        "runs": runs,
        "short runs": _compute.run_end_encode(texts, pa.int16()),
        "runs of views": singles,
        "runs of dictionaries": _runs(pa.array(range(1, 21), pa.int32()), coded),
        "struct of runs": pa.StructArray.from_arrays([runs, singles], ["runs", "singles"]),
        "list of runs": _from_arrays(_OFFSETS, runs),
        "map": from_pairs(_OFFSETS, pa.array([f"k{i}" for i in range(20)], _view), coded),
        "list of lists of structs": _from_arrays(
            pa.array([0, 2, 5], pa.int32()),
            _from_arrays(_OFFSETS, pa.StructArray.from_arrays([views, runs], ["view", "runs"])),
        ),
        "dense union": from_dense(
            types, pa.array([0, 0, 1], pa.int32()), [pa.array([prefix, "b"], _view), pa.array([1])]
        ),
        "sparse union": from_sparse(types, [pa.array([prefix, "b", "c"], _view), pa.array([1, 2, 3])]),
        "extension": uuids,
        "extension of a user": pa.ExtensionArray.from_storage(_Name(), views),
        "list of extensions": _from_arrays(_OFFSETS, pa.ExtensionArray.from_storage(_Name(), views)),
        "intervals": pa.array([_interval([1, 2, 3]), None]),
        "nulls": pa.nulls(5),
    }


_MANY = [_columns(chr(ord("a") + i)) for i in range(_NUM_CHUNKS)]


def _chunks(name: str) -> list[Any]:
    """Return the column of each file, as a whole and as slices."""
    columns = [columns[name] for columns in _MANY]
    return [part for each in columns for part in (each, each.slice(1), each.slice(1, len(each) - 2), each.slice(0, 0))]


@pytest.fixture(params=["default limits", "low limits"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lowers the largest offset and run end, so that small arrays are too long for their types."""
    if request.param == "low limits":
        monkeypatch.setattr(arrays, "MAX_OFFSET", 30)
        max_index = arrays._max_index
        monkeypatch.setattr(arrays, "_max_index", lambda index_type: min(max_index(index_type), 127))
    return str(request.param)


@pytest.mark.parametrize("name", _MANY[0])
@pytest.mark.usefixtures("limits")
def test_arrays_of_every_type_are_joined_and_put_in_order(name: str) -> None:
    chunks = _chunks(name)
    data_type = chunks[0].type
    values = [value for chunk in chunks for value in chunk.to_pylist()]
    joined = join(list(chunks), data_type)
    joined.validate(full=True)
    assert joined.to_pylist() == values
    order = random.Random(0).sample(range(len(values)), len(values))
    remaining = list(chunks)
    taken = take_rows(remaining, data_type, pa.array(order))
    assert not remaining
    taken.validate(full=True)
    assert taken.to_pylist() == [values[i] for i in order]


@pytest.mark.parametrize("name", _MANY[0])
def test_rows_of_every_type_are_filtered(name: str) -> None:
    table: Any = pa.table({"column": pa.chunked_array(_chunks(name))})
    values, mask = table["column"].to_pylist(), np.arange(len(table)) % 3 == 1
    found = filter_rows(table, mask)
    found.validate(full=True)
    assert found["column"].to_pylist() == values[1::3]


@pytest.mark.parametrize("name", [*_MANY[0]])
def test_a_slice_of_a_wide_array_fits_into_the_type_of_its_column(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = _chunks(name)
    monkeypatch.setattr(arrays, "MAX_OFFSET", 100)
    taken = take_rows(list(chunks), chunks[0].type, pa.array(range(30)))
    monkeypatch.undo()
    part = fit(copy_array(taken.slice(3, 5)), chunks[0].type)
    part.validate(full=True)
    assert part.type.equals(chunks[0].type)
    assert part.to_pylist() == taken.slice(3, 5).to_pylist()


@pytest.mark.parametrize(
    ("name", "wide_type"),
    [
        ("text", pa.large_string()),
        ("list of views", pa.large_list(pa.string_view())),
        ("dictionary", pa.dictionary(pa.int64(), pa.large_string())),
        ("list of dictionaries", pa.large_list(pa.dictionary(pa.int64(), pa.large_string()))),
        ("runs", pa.run_end_encoded(pa.int64(), pa.large_string())),
        ("views", pa.string_view()),
        ("extension", pa.uuid()),
    ],
)
@pytest.mark.parametrize("limits", ["low limits"], indirect=True)
@pytest.mark.usefixtures("limits")
def test_only_what_the_sum_demands_becomes_wider(name: str, wide_type: pa.DataType) -> None:
    chunks = _chunks(name)
    assert join(list(chunks), chunks[0].type).type.equals(wide_type)
    assert join(chunks[:1], chunks[0].type).type.equals(chunks[0].type)


def test_indices_become_wider_only_if_the_distinct_values_demand_it() -> None:
    def coded(values: range) -> Any:
        return _dictionary(pa.array(range(len(values)), pa.int8()), pa.array([f"{i}" for i in values]))

    same = [coded(range(100)) for _ in range(3)]
    assert join(list(same), same[0].type).type.equals(same[0].type)
    most = [coded(range(100)), coded(range(20, 120))]
    assert join(list(most), same[0].type).type.equals(same[0].type)
    others = [coded(range(100)), coded(range(100, 200))]
    wide = join(list(others), same[0].type)
    assert wide.type.equals(pa.dictionary(pa.int32(), pa.string()))
    assert wide.to_pylist() == [f"{i}" for i in range(200)]


def test_a_part_of_a_list_joins_without_the_values_of_the_rest() -> None:
    values = pa.array(np.arange(1000))
    lists = _from_arrays(pa.array([0, 990, 995, 1000], pa.int32()), values)
    # As Arrow files have them: no offset, but the first row doesn't begin with the first value.
    late: Any = pa.Array.from_buffers(lists.type, 2, [None, lists.buffers()[1].slice(4)], 0, 0, [values])
    joined: Any = fit(take_rows([late, late], pa.large_list(pa.int64()), pa.array([3, 0])), lists.type)
    assert joined.to_pylist() == [[*range(995, 1000)], [*range(990, 995)]]
    assert len(joined.values) == 10


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_rows_of_slices_are_taken_in_order(column: pa.Array[Any]) -> None:
    chunks = [column.slice(1, 3), column.slice(3), column]
    order: list[int] = [9, 0, 4, 4, 2, 6]
    values = [value for chunk in chunks for value in chunk.to_pylist()]
    found = take_rows(chunks, column.type, pa.array(order))
    found.validate(full=True)
    assert found.type.equals(column.type)
    assert found.to_pylist() == [values[i] for i in order]


@pytest.mark.parametrize(
    "name",
    ["dictionary", "dictionary of views", "dictionary of lists", "runs", "runs of views", "runs of dictionaries"],
)
def test_encoded_values_of_every_type_are_decoded(name: str) -> None:
    for array in _chunks(name):
        decoded = decode(array)
        decoded.validate(full=True)
        assert decoded.to_pylist() == array.to_pylist()


def test_no_rows_are_an_array_without_rows() -> None:
    order = pa.array([], pa.int64())
    for column in _MANY[0].values():
        assert take_rows([column], column.type, order).type.equals(column.type)
        assert take_rows([], column.type, order).type.equals(column.type)

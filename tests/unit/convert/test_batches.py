# ruff: noqa: DTZ001 - Arrow has times without a zone
from __future__ import annotations

import gc
import io
import math
import mmap
import pickle
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from laneway.convert.batches import BatchConverter
from laneway.convert.columns import Output
from laneway.convert.open_rows import OpenRows
from laneway.errors import ColumnConversionError, LanewayError, NullInColumnError, SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from laneway.convert.fill import FillNull

BERLIN = pa.timestamp("us", tz="Europe/Berlin")
NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)

# Each: Arrow type, three values, dtype of the tensor, what the tensor holds, dtype of the array.
NUMBERS: list[tuple[pa.DataType, list[Any], torch.dtype, list[Any], str]] = [
    (pa.int8(), [-128, 0, 127], torch.int8, [-128, 0, 127], "i1"),
    (pa.int16(), [-(2**15), 0, 2**15 - 1], torch.int16, [-(2**15), 0, 2**15 - 1], "i2"),
    (pa.int32(), [-(2**31), 0, 2**31 - 1], torch.int32, [-(2**31), 0, 2**31 - 1], "i4"),
    (pa.int64(), [-(2**63), 2**53 + 1, 2**63 - 1], torch.int64, [-(2**63), 2**53 + 1, 2**63 - 1], "i8"),
    (pa.uint8(), [0, 1, 255], torch.uint8, [0, 1, 255], "u1"),
    (pa.uint16(), [0, 1, 2**16 - 1], torch.uint16, [0, 1, 2**16 - 1], "u2"),
    (pa.uint32(), [0, 1, 2**32 - 1], torch.uint32, [0, 1, 2**32 - 1], "u4"),
    (pa.uint64(), [0, 2**53 + 1, 2**64 - 1], torch.uint64, [0, 2**53 + 1, 2**64 - 1], "u8"),
    (pa.float16(), [1.5, -2.0, 65504.0], torch.float16, [1.5, -2.0, 65504.0], "f2"),
    (pa.float32(), [1.5, -math.inf, 2.0**127], torch.float32, [1.5, -math.inf, 2.0**127], "f4"),
    (pa.float64(), [0.1, math.inf, 1e308], torch.float64, [0.1, math.inf, 1e308], "f8"),
    (pa.bool_(), [True, False, True], torch.bool, [True, False, True], "?"),
    (
        pa.timestamp("s"),
        [datetime(1970, 1, 2), datetime(1969, 12, 31), datetime(1970, 1, 1)],
        torch.int64,
        [86_400, -86_400, 0],
        "M8[s]",
    ),
    (pa.timestamp("ns"), [1, 2**62, -1], torch.int64, [1, 2**62, -1], "M8[ns]"),
    (BERLIN, [NOON, NOON, NOON], torch.int64, [1_719_835_200_000_000] * 3, "M8[us]"),
    (
        pa.date32(),
        [date(1970, 1, 3), date(1969, 12, 31), date(9999, 1, 1)],
        torch.int32,
        [2, -1, 2_932_532],
        "M8[D]",
    ),
    (pa.date64(), [date(1970, 1, 3)] * 3, torch.int64, [172_800_000] * 3, "M8[ms]"),
    (pa.time32("s"), [time(1), time(0), time(23, 59, 59)], torch.int32, [3600, 0, 86_399], "m8[s]"),
    (pa.time64("us"), [time(0, 0, 0, 7)] * 3, torch.int64, [7, 7, 7], "m8[us]"),
    (
        pa.duration("ms"),
        [timedelta(seconds=1), timedelta(0), timedelta(-1)],
        torch.int64,
        [1000, 0, -86_400_000],
        "m8[ms]",
    ),
]
OBJECTS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.string(), ["", "né", "row"]),
    (pa.large_string(), ["", "né", "row"]),
    (pa.string_view(), ["", "a string of more than twelve bytes", "row"]),
    (pa.binary(), [b"", b"\xff", b"row"]),
    (pa.large_binary(), [b"", b"\xff", b"row"]),
    (pa.binary_view(), [b"", b"bytes, more than twelve of them", b"row"]),
    (pa.binary(2), [b"ab", b"\x00\x00", b"yz"]),
    (pa.decimal128(20, 2), [Decimal("1.50"), Decimal(0), Decimal("-99999999999999999.99")]),
    (
        pa.struct([("x", pa.int64()), ("y", pa.string())]),
        [{"x": 1, "y": "a"}, {"x": None, "y": "b"}, {"x": 3, "y": None}],
    ),
    (pa.map_(pa.string(), pa.int64()), [[("a", 1)], [], [("b", None), ("c", 3)]]),
    (pa.list_(pa.string()), [["a", "b"], [], ["c", None]]),
    (pa.list_(pa.string(), 2), [["a", "b"], ["c", "d"], ["e", None]]),
    (pa.list_(pa.struct([("x", pa.int64())])), [[{"x": 1}], [], [{"x": None}]]),
    (pa.null(), [None, None, None]),
]
NUMBER_IDS = [str(case[0]) for case in NUMBERS]
OBJECT_IDS = [str(case[0]) for case in OBJECTS]


def one_column(values: list[Any], data_type: pa.DataType) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, data_type)], ["x"])


def convert(converter: BatchConverter, batch: pa.RecordBatch) -> Any:
    return converter.to_batch(OpenRows.from_batch(batch, converter.vectorized))


def converted(batch: pa.RecordBatch, output: Output, fill_null: FillNull | None = None) -> Any:
    columns = convert(BatchConverter(batch.schema, output, fill_null), batch)
    assert isinstance(columns, dict)
    return columns["x"]


def to_rows(converter: BatchConverter, batch: pa.RecordBatch) -> list[Any]:
    return converter.to_rows(OpenRows.from_batch(batch, {}))


def plain(value: Any) -> Any:
    """Return Python numbers and lists for tensors and arrays inside any list."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, list) else value


def sliced(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the same rows as a slice that starts in the middle of a byte of bits."""
    around = [batch] * 11
    table = pa.Table.from_batches([*around, batch, *around]).combine_chunks()
    return table.to_batches()[0].slice(11 * batch.num_rows, batch.num_rows)


@pytest.mark.parametrize(("data_type", "values", "dtype", "expected", "_"), NUMBERS, ids=NUMBER_IDS)
@pytest.mark.parametrize("make", [pa.RecordBatch.slice, sliced], ids=["whole", "sliced"])
def test_numbers_bools_and_times_become_tensors_of_what_arrow_stores(
    data_type: pa.DataType, values: list[Any], dtype: torch.dtype, expected: list[Any], _: str, make: Any
) -> None:
    tensor = converted(make(one_column(values, data_type)), "torch")
    assert tensor.dtype == dtype
    assert tensor.tolist() == expected


@pytest.mark.parametrize(("data_type", "values", "_", "expected", "dtype"), NUMBERS, ids=NUMBER_IDS)
@pytest.mark.parametrize("make", [pa.RecordBatch.slice, sliced], ids=["whole", "sliced"])
def test_numbers_bools_and_times_become_arrays_of_numpys_own_dtypes(
    data_type: pa.DataType, values: list[Any], _: torch.dtype, expected: list[Any], dtype: str, make: Any
) -> None:
    array = converted(make(one_column(values, data_type)), "numpy")
    assert array.dtype == np.dtype(dtype)
    in_units = array.astype("i8").tolist() if array.dtype.kind in "mM" else array.tolist()
    assert in_units == expected
    array[0] = array[1]


@pytest.mark.parametrize(("data_type", "values"), OBJECTS, ids=OBJECT_IDS)
@pytest.mark.parametrize("make", [pa.RecordBatch.slice, sliced], ids=["whole", "sliced"])
def test_everything_else_becomes_python_values(data_type: pa.DataType, values: list[Any], make: Any) -> None:
    batch = make(one_column(values, data_type))
    assert converted(batch, "torch") == values
    array = converted(batch, "numpy")
    assert array.dtype == object
    assert array.shape == (3,)
    assert list(array) == values


@pytest.mark.parametrize(("data_type", "values"), [*((c[0], c[1]) for c in NUMBERS), *OBJECTS])
@pytest.mark.parametrize("output", get_args(Output))
def test_slices_of_an_open_batch_are_what_slices_of_a_batch_become(
    data_type: pa.DataType, values: list[Any], output: Output
) -> None:
    lists = pa.array([values, values[:1], values[1:]], pa.list_(data_type))
    batch = pa.record_batch({"x": pa.array(values, data_type), "lists": lists, "n": pa.array([1, 2, 3])})
    batch = sliced(batch)
    converter = BatchConverter(batch.schema, output)
    opened = OpenRows.from_batch(batch, converter.vectorized)
    for start, stop in [(0, 3), (0, 1), (1, 3), (2, 2)]:
        part = batch.slice(start, stop - start)
        rows = opened.slice(start, stop)
        assert rows.num_rows == stop - start
        assert outcome(converter.to_batch, rows) == outcome(converter.to_batch, OpenRows.from_batch(part, {}))
        assert outcome(converter.to_rows, rows) == outcome(converter.to_rows, OpenRows.from_batch(part, {}))


def outcome(conversion: Any, rows: Any) -> str:
    """Return the repr of what a conversion returns, or the message of the error that it raises."""
    try:
        return repr(conversion(rows))
    except ColumnConversionError as error:
        return str(error)


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_a_null_in_an_open_batch_is_an_error_of_its_slice_only(output: Output) -> None:
    batch = pa.record_batch({"x": pa.array([1, 2, None, 4]), "y": pa.array([1, 2, 3, 4])})
    converter = BatchConverter(batch.schema, output)
    opened = OpenRows.from_batch(batch, converter.vectorized)
    assert repr(converter.to_batch(opened.slice(0, 2))) == repr(convert(converter, batch.slice(0, 2)))
    with pytest.raises(NullInColumnError) as raised:
        converter.to_batch(opened.slice(1, 4))
    assert raised.value.row_index == 1
    filled = BatchConverter(batch.schema, output, fill_null=-1)
    columns: Any = filled.to_batch(OpenRows.from_batch(batch, filled.vectorized).slice(1, 4))
    assert [*columns["x"]] == [2, -1, 4]


@pytest.mark.parametrize("data_type", [case[0] for case in NUMBERS] + [case[0] for case in OBJECTS])
@pytest.mark.parametrize("make", [pa.array, lambda _, t: pa.array([None] * 9, t).slice(9)], ids=["new", "sliced"])
def test_a_batch_without_rows_keeps_its_dtype(data_type: pa.DataType, make: Any) -> None:
    batch = pa.RecordBatch.from_arrays([make([], data_type)], ["x"])
    dtypes = {case[0]: case[2] for case in NUMBERS}
    tensor = converted(batch, "torch")
    if data_type in dtypes:
        assert tensor.dtype == dtypes[data_type]
        assert tensor.shape == (0,)
    else:
        assert tensor == []
    assert converted(batch, "numpy").shape == (0,)
    assert converted(batch, "python") == []
    for output in get_args(Output):
        assert to_rows(BatchConverter(batch.schema, output), batch) == []


@pytest.mark.parametrize(("data_type", "values", "dtype", "expected", "_"), NUMBERS, ids=NUMBER_IDS)
def test_a_null_is_an_error_that_names_column_row_and_remedy(
    data_type: pa.DataType, values: list[Any], dtype: torch.dtype, expected: list[Any], _: str
) -> None:
    batch = one_column([*values, None, None, *values], data_type).slice(1)
    for output in ("numpy", "torch"):
        with pytest.raises(NullInColumnError, match=r"column 'x' of type .* row 2 .* fill_null=\{'x': 0\}") as caught:
            converted(batch, output)
        assert (caught.value.column, caught.value.row_index) == ("x", 2)
    filled = converted(batch, "torch", {"x": 0})
    assert filled.dtype == dtype
    assert filled.tolist() == [*expected[1:], 0, 0, *expected]
    assert batch.column(0).null_count == 2


def test_nulls_in_python_values_stay_none() -> None:
    for data_type, values in OBJECTS:
        batch = one_column([None, *values, None], data_type).slice(1)
        assert converted(batch, "torch") == [*values, None]
        assert list(converted(batch, "numpy")) == [*values, None]
        assert converted(batch, "python") == [*values, None]
    for data_type, values, *_ in NUMBERS:
        if data_type != pa.timestamp("ns"):
            assert converted(one_column([*values, None], data_type), "python")[3] is None


def test_nan_in_the_data_is_no_null() -> None:
    batch = one_column([math.nan, 1.0, None], pa.float32())
    assert converted(batch.slice(0, 2), "torch").isnan().tolist() == [True, False]
    filled = converted(batch, "torch", -1)
    assert filled[0].isnan()
    assert filled[1:].tolist() == [1, -1]


@pytest.mark.parametrize("make", [pa.RecordBatch.slice, sliced], ids=["whole", "sliced"])
def test_fixed_size_lists_become_tensors_of_more_dimensions(make: Any) -> None:
    values = np.arange(24, dtype=np.int16).reshape(3, 4, 2)
    batch = make(one_column(values.tolist(), pa.list_(pa.list_(pa.int16(), 2), 4)))
    tensor = converted(batch.slice(1), "torch")
    assert tensor.dtype == torch.int16
    assert tensor.tolist() == values[1:].tolist()
    rows = to_rows(BatchConverter(batch.schema, "torch"), batch)
    assert [row["x"].tolist() for row in rows] == values.tolist()
    np.testing.assert_array_equal(converted(batch, "numpy"), values)
    bools = make(one_column([[True, False, True]] * 3, pa.list_(pa.bool_(), 3)))
    assert converted(bools.slice(1), "torch").tolist() == [[True, False, True]] * 2
    days = converted(make(one_column([[date(1970, 1, 2)]], pa.list_(pa.date32(), 1))), "numpy")
    assert days.dtype == "M8[D]"
    assert days.shape == (1, 1)
    assert converted(make(one_column([[], []], pa.list_(pa.int8(), 0))), "torch").shape == (2, 0)


def test_a_null_in_a_fixed_size_list_names_the_row_and_can_be_filled() -> None:
    nested = pa.list_(pa.list_(pa.int16(), 2), 2)
    batch = one_column([None, [[1, 2], [3, 4]], [[5, 6], [7, None]], [None, [8, 9]], None], nested)
    for start, row_index in ((0, 0), (1, 1), (2, 0), (3, 0), (4, 0)):
        with pytest.raises(NullInColumnError) as caught:
            converted(batch.slice(start), "torch")
        assert caught.value.row_index == row_index
    expected = [[[5, 6], [7, -1]], [[-1, -1], [8, 9]], [[-1, -1], [-1, -1]]]
    assert converted(batch.slice(2), "torch", {"x": -1}).tolist() == expected
    assert converted(batch.slice(2), "python", {"x": -1}) == expected


@pytest.mark.parametrize(
    "make_type", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("make", [pa.RecordBatch.slice, sliced], ids=["whole", "sliced"])
def test_lists_become_lists_of_tensors_and_arrays(make_type: Any, make: Any) -> None:
    values = [[1, 2, 3], [], None, [4], [5, 6]]
    batch = make(one_column(values, make_type(pa.int32())))
    tensors = converted(batch, "torch")
    assert plain(tensors) == values
    assert [tensor.dtype for tensor in tensors if tensor is not None] == [torch.int32] * 4
    arrays = converted(batch, "numpy")
    assert plain(arrays) == values
    assert arrays[1].dtype == np.int32
    assert plain(converted(batch.slice(3), "torch")) == [[4], [5, 6]]
    assert converted(batch, "python") == values
    assert [plain(row["x"]) for row in to_rows(BatchConverter(batch.schema, "torch"), batch)] == values


def test_lists_of_lists_and_of_fixed_size_lists_keep_their_shape() -> None:
    ragged = [[[1], [2, 3]], [], None, [[], None, [4]]]
    batch = sliced(one_column(ragged, pa.list_(pa.list_(pa.int64()))))
    assert plain(converted(batch, "torch")) == ragged
    assert isinstance(converted(batch, "torch")[0][1], torch.Tensor)
    pairs = converted(sliced(one_column([[[1, 2], [3, 4]], []], pa.list_(pa.list_(pa.int64(), 2)))), "torch")
    assert [pair.shape for pair in pairs] == [(2, 2), (0, 2)]
    fixed = [[[1], [2, 3]], [[], [4]]]
    assert plain(converted(sliced(one_column(fixed, pa.list_(pa.list_(pa.int8()), 2))), "torch")) == fixed


def test_a_null_inside_a_list_names_the_row_and_can_be_filled() -> None:
    batch = one_column([[9], [], None, [1, 2], [3, None], [4]], pa.list_(pa.int32()))
    for output in ("numpy", "torch"):
        with pytest.raises(NullInColumnError) as caught:
            converted(batch.slice(1), output)
        assert caught.value.row_index == 3
        filled = converted(batch, output, {"x": 0})
        assert plain(filled) == [[9], [], None, [1, 2], [3, 0], [4]]
    assert converted(batch, "python", {"x": 0}) == [[9], [], None, [1, 2], [3, 0], [4]]


def test_values_hidden_by_a_null_list_are_ignored() -> None:
    mask = pa.array([False, True, False])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, None, 8, 3]), mask=mask)
    batch = pa.RecordBatch.from_arrays([lists], ["x"])
    assert plain(converted(batch, "torch")) == [[1, 2], None, [3]]
    pairs = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 7, 8, 3, 4]), 2, mask=mask)
    batch = pa.RecordBatch.from_arrays([pairs], ["x"])
    assert converted(batch, "torch", -1).tolist() == [[1, 2], [-1, -1], [3, 4]]


@pytest.mark.parametrize("make", [pa.RecordBatch.slice, sliced], ids=["whole", "sliced"])
def test_dictionaries_are_decoded(make: Any) -> None:
    for values in (["a", "b", "a"], [1.5, 2.5, 1.5]):
        column = pa.array(values).dictionary_encode()
        batch = make(pa.RecordBatch.from_arrays([column], ["x"]))
        assert plain(converted(batch, "torch")) == values
        assert plain(converted(batch, "numpy")) == values
        assert converted(batch, "python") == values
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array([5, None]))
    batch = make(pa.RecordBatch.from_arrays([codes], ["x"]))
    with pytest.raises(NullInColumnError, match="row 1 "):
        converted(batch, "torch")
    assert converted(batch, "torch", 0).tolist() == [5, 0, 5]


def test_encoded_values_inside_lists_are_decoded() -> None:
    numbers = pa.array([1, 2, 1, 2]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 4], pa.int32()), numbers)
    assert plain(converted(pa.RecordBatch.from_arrays([lists], ["x"]), "torch")) == [[1], [2, 1, 2]]
    pairs = pa.FixedSizeListArray.from_arrays(numbers, 2)
    assert converted(pa.RecordBatch.from_arrays([pairs], ["x"]).slice(1), "torch").tolist() == [[1, 2]]


def test_run_end_encoded_values_are_decoded() -> None:
    runs: Any = pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), pa.array([1.5, None]))
    batch = pa.RecordBatch.from_arrays([runs], ["x"])
    assert converted(batch.slice(0, 2), "torch").tolist() == [1.5, 1.5]
    assert converted(batch.slice(1, 2), "python") == [1.5, None]
    with pytest.raises(NullInColumnError, match="row 1 "):
        converted(batch.slice(1), "torch")


def test_extension_types_are_converted_as_their_storage() -> None:
    tensors: Any = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    batch = pa.RecordBatch.from_arrays([tensors], ["x"]).slice(1)
    assert converted(batch, "torch").tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"], pa.binary(16)))
    assert converted(pa.RecordBatch.from_arrays([uuids], ["x"]), "torch") == [b"0123456789abcdef"]


class _LabelScalar(pa.ExtensionScalar):
    def as_py(self, **_: Any) -> Any:
        return f"label {self.value}"


class _Label(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int16(), "tests.label")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _: bytes) -> _Label:
        return cls()

    def __arrow_ext_scalar_class__(self) -> type[_LabelScalar]:
        return _LabelScalar


@pytest.mark.parametrize("output", ["python", "numpy", "torch"])
def test_extension_types_of_users_are_converted_as_where_they_are_not_registered(output: Output) -> None:
    numbers: Any = pa.array([1, 2, 3], pa.int16())
    labels: Any = pa.ExtensionArray.from_storage(_Label(), numbers)
    offsets: Any = pa.array([0, 1, 1, 3], pa.int32())
    from_arrays: Any = pa.ListArray.from_arrays
    for make in (
        lambda values: values,
        lambda values: from_arrays(offsets, values),
        lambda values: pa.StructArray.from_arrays([values], ["x"]),
        lambda values: pa.FixedSizeListArray.from_arrays(values, 1),
    ):
        registered, stored = (pa.record_batch({"x": make(values)}) for values in (labels, numbers))
        assert plain(converted(registered, output)) == plain(converted(stored, output))
        assert plain(converted(registered.slice(1), output)) == plain(converted(stored.slice(1), output))
        assert registered.schema != stored.schema


def test_uuids_are_objects_in_python_and_bytes_elsewhere() -> None:
    uuids: Any = pa.array([b"0123456789abcdef"], pa.uuid())
    offsets: Any = pa.array([0, 1], pa.int32())
    lists: Any = pa.ListArray.from_arrays(offsets, uuids)
    batch = pa.record_batch({"x": uuids, "list": lists})
    row = convert(BatchConverter(batch.schema, "python"), batch)
    assert row == {"x": [UUID(bytes=b"0123456789abcdef")], "list": [[UUID(bytes=b"0123456789abcdef")]]}
    assert converted(batch, "torch") == [b"0123456789abcdef"]


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_tensors_and_arrays_are_views_of_arrows_memory(output: Output, tmp_path: Path) -> None:
    data = {
        "int": pa.array(range(100), pa.int32()),
        "time": pa.array(range(100), pa.timestamp("us")),
        "pair": pa.FixedSizeListArray.from_arrays(pa.array(range(200), pa.float32()), 2),
        "list": pa.ListArray.from_arrays(pa.array(range(0, 202, 2), pa.int32()), pa.array(range(200), pa.float64())),
    }
    pq.write_table(pa.table(data), tmp_path / "rows.parquet")
    batch = pq.read_table(tmp_path / "rows.parquet").to_batches()[0].slice(10, 20)
    columns: Any = convert(BatchConverter(batch.schema, output), batch)
    columns["list"] = columns["list"][0]
    for name, row_bytes in (("int", 4), ("time", 8), ("pair", 8), ("list", 16)):
        column = columns[name]
        address = column.data_ptr() if isinstance(column, torch.Tensor) else column.__array_interface__["data"][0]
        buffer = batch.column(name).buffers()[-1]
        assert buffer is not None
        assert address == buffer.address + 10 * row_bytes, name


def test_memory_lives_as_long_as_a_tensor_does() -> None:
    gc.collect()
    before = pa.total_allocated_bytes()
    batch = pa.RecordBatch.from_arrays([pa.array(range(100_000), pa.int64())], ["x"])
    row = to_rows(BatchConverter(batch.schema, "torch"), batch.slice(5, 3))[0]["x"]
    del batch
    gc.collect()
    assert pa.total_allocated_bytes() - before >= 790_000
    assert row.item() == 5
    del row
    gc.collect()
    assert pa.total_allocated_bytes() - before < 10_000


def arrow_file(folder: Path) -> Path:
    path = folder / "rows.arrow"
    batch = one_column([1, 2, 3], pa.int64())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return path


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_changing_a_tensor_of_read_only_memory_changes_a_copy(output: Output, tmp_path: Path) -> None:
    path = arrow_file(tmp_path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        sources: list[Any] = [pa.memory_map(str(path)), pa.py_buffer(mapped), pa.py_buffer(path.read_bytes())]
        for source in sources:
            batch = pa.ipc.open_file(source).get_batch(0)
            column = converted(batch, output)
            column += 1
            assert column.tolist() == [2, 3, 4]
            assert batch.column(0).to_pylist() == [1, 2, 3]
            del batch
        del source, sources
        gc.collect()


def test_tensors_of_a_copy_on_write_map_are_views_that_leave_the_file_alone(tmp_path: Path) -> None:
    path = arrow_file(tmp_path)
    saved = path.read_bytes()
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    batch = pa.ipc.open_file(pa.py_buffer(mapped)).get_batch(0)
    tensor = converted(batch.slice(1), "torch")
    buffer = batch.column(0).buffers()[1]
    assert buffer is not None
    assert tensor.data_ptr() == buffer.address + 8
    tensor += 1
    assert batch.column(0).to_pylist() == [1, 3, 4]
    assert path.read_bytes() == saved


def test_a_scalar_fills_every_column_of_numbers_and_no_other() -> None:
    batch = pa.record_batch(
        {
            "int": pa.array([None], pa.int8()),
            "bool": pa.array([None], pa.bool_()),
            "time": pa.array([None], BERLIN),
            "pair": pa.array([None], pa.list_(pa.float32(), 2)),
            "list": pa.array([[None]], pa.list_(pa.int64())),
            "text": pa.array([None], pa.string()),
            "texts": pa.array([[None]], pa.list_(pa.string())),
        }
    )
    expected: dict[str, Any] = {"int": [0], "bool": [False], "time": [0], "pair": [[0, 0]], "list": [[0]]}
    expected |= {"text": [None], "texts": [[None]]}
    columns: Any = convert(BatchConverter(batch.schema, "torch", 0), batch)
    assert {name: plain(column) for name, column in columns.items()} == expected
    columns = convert(BatchConverter(batch.schema, "python", 0), batch)
    assert columns == expected | {"time": [datetime.fromtimestamp(0, UTC)]}


FITTING: list[tuple[pa.DataType, Any, Any]] = [
    (pa.int64(), 2**63 - 1, 2**63 - 1),
    (pa.int64(), 3.0, 3),
    (pa.int64(), np.float32(3), 3),
    (pa.uint64(), 2**64 - 1, 2**64 - 1),
    (pa.float32(), math.inf, math.inf),
    (pa.float32(), 0.5, 0.5),
    (pa.float16(), 2, 2.0),
    (pa.bool_(), True, True),
    (pa.bool_(), 0, False),
    (pa.timestamp("ms"), 5, 5),
    (BERLIN, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 1_000_000),
    (pa.date32(), date(1970, 1, 2), 1),
    (pa.date32(), 7, 7),
    (pa.time32("s"), time(1), 3600),
    (pa.duration("s"), timedelta(minutes=1), 60),
]
UNFITTING: list[tuple[pa.DataType, Any]] = [
    (pa.int64(), 1.5),
    (pa.int64(), 2**63),
    (pa.int64(), math.nan),
    (pa.int64(), "1"),
    (pa.int64(), None),
    (pa.int64(), True),
    (pa.uint8(), -1),
    (pa.uint8(), 256),
    (pa.float32(), 1e300),
    (pa.float16(), 1e6),
    (pa.float64(), "nan"),
    (pa.bool_(), 2),
    (pa.timestamp("ms"), 1.5),
    (pa.timestamp("s"), datetime(2024, 1, 1, 0, 0, 0, 1)),
    (pa.date32(), datetime(2024, 1, 1, 12)),
    (pa.time32("s"), time(1, 0, 0, 1)),
    (pa.list_(pa.int8()), 128),
    (pa.list_(pa.uint8(), 2), -1),
    (pa.string(), 0),
    (pa.binary(2), b"abc"),
    (pa.decimal128(4, 1), Decimal("0.05")),
    (pa.struct([("x", pa.int64())]), 0),
    (pa.null(), 0),
]


@pytest.mark.parametrize(("data_type", "value", "stored"), FITTING, ids=str)
def test_a_fill_value_that_fits_is_stored_exactly(data_type: pa.DataType, value: Any, stored: Any) -> None:
    batch = one_column([None], data_type)
    assert converted(batch, "torch", {"x": value}).tolist() == [stored]
    array = converted(batch, "numpy", {"x": value})
    assert (array.astype("i8") if array.dtype.kind in "mM" else array).tolist() == [stored]


@pytest.mark.parametrize(("data_type", "value"), UNFITTING, ids=str)
def test_a_fill_value_that_does_not_fit_is_refused_by_the_constructor(data_type: pa.DataType, value: Any) -> None:
    schema = pa.schema({"x": data_type})
    for output in ("python", "numpy", "torch"):
        with pytest.raises(ColumnConversionError, match="'x'") as caught:
            BatchConverter(schema, output, {"x": value})
        assert repr(value) in str(caught.value)


def test_strings_bytes_and_decimals_are_filled_if_named() -> None:
    for data_type, value in ((pa.string(), "?"), (pa.binary(), b"?"), (pa.decimal128(4, 1), Decimal("0.5"))):
        batch = one_column([None], data_type)
        assert converted(batch, "torch", {"x": value}) == [value]
        assert converted(batch, "python", {"x": value}) == [value]
        assert converted(batch, "numpy", {"x": value}).tolist() == [value]


def test_filling_does_not_change_the_batch() -> None:
    batch = pa.record_batch(
        {
            "x": pa.array([1, None], pa.int64()),
            "pair": pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2, mask=pa.array([False, True])),
        }
    )
    saved = [bytes(buffer) for column in batch.columns for buffer in column.buffers() if buffer]
    columns: Any = convert(BatchConverter(batch.schema, "torch", -1), batch)
    assert columns["pair"].tolist() == [[1, 2], [-1, -1]]
    columns["x"].zero_()
    assert [bytes(buffer) for column in batch.columns for buffer in column.buffers() if buffer] == saved


def test_an_unknown_column_in_fill_null_is_named() -> None:
    with pytest.raises(SchemaMismatchError, match=r"\['y'\].*\['x'\]"):
        BatchConverter(pa.schema({"x": pa.int64()}), "torch", {"x": 0, "y": 0})


def test_arrow_gives_the_batch_itself_and_rows_that_are_slices() -> None:
    batch = one_column([1, None, 3], pa.int64())
    converter = BatchConverter(batch.schema, "arrow")
    assert convert(converter, batch).equals(batch)
    rows = to_rows(converter, batch.slice(1))
    assert [row.to_pylist() for row in rows] == [[{"x": None}], [{"x": 3}]]
    with pytest.raises(ColumnConversionError, match="fill_null"):
        BatchConverter(batch.schema, "arrow", 0)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ColumnConversionError, match=r"'pandas'.*'torch'"):
        BatchConverter(pa.schema({}), "pandas")  # type: ignore[arg-type]


def test_columns_that_share_a_name_are_refused_unless_the_output_is_arrow() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    assert convert(BatchConverter(batch.schema, "arrow"), batch).equals(batch)
    with pytest.raises(ColumnConversionError, match="'x'"):
        BatchConverter(batch.schema, "torch")


def test_an_error_for_a_value_that_python_cannot_represent_names_its_column() -> None:
    text = pa.array([b"\xff"]).cast(pa.string(), safe=False)
    batch = pa.RecordBatch.from_arrays([text], ["x"])
    with pytest.raises(ColumnConversionError, match="column 'x' of type string"):
        converted(batch, "torch")


def test_rows_are_dicts_of_single_values() -> None:
    batch = pa.record_batch({"x": [1, 2], "name": ["a", None], "on": [True, False]}).slice(1)
    assert to_rows(BatchConverter(batch.schema, "python"), batch) == [{"x": 2, "name": None, "on": False}]
    (row,) = to_rows(BatchConverter(batch.schema, "torch"), batch)
    assert row["x"].shape == ()
    assert (row["x"].item(), row["name"], row["on"].dtype) == (2, None, torch.bool)
    (row,) = to_rows(BatchConverter(batch.schema, "numpy"), batch)
    assert isinstance(row["x"], np.int64)
    assert isinstance(row["on"], np.bool_)
    assert row["x"] == 2
    assert row["name"] is None


def test_rows_without_columns_are_still_counted() -> None:
    batch = one_column([1, 2], pa.int64()).select([])
    assert to_rows(BatchConverter(batch.schema, "torch"), batch) == [{}, {}]


def test_a_converter_can_be_sent_to_another_process() -> None:
    batch = pa.record_batch({"x": [1, None], "list": [[1], [2, 3]], "name": ["a", "b"]})
    converter = pickle.loads(pickle.dumps(BatchConverter(batch.schema, "torch", {"x": 7})))
    columns = convert(converter, batch)
    assert {name: plain(column) for name, column in columns.items()} == {
        "x": [1, 7],
        "list": [[1], [2, 3]],
        "name": ["a", "b"],
    }


class RowsWithNull(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        batch = one_column([1, None], pa.int64())
        yield from to_rows(BatchConverter(batch.schema, "torch"), batch)


def test_a_null_found_by_a_worker_is_the_same_error_in_the_main_process() -> None:
    with pytest.raises(NullInColumnError, match="column 'x' of type int64 has a null in row 1 of this batch"):
        list(DataLoader(RowsWithNull(), batch_size=None, num_workers=1))


def test_the_place_of_a_null_can_be_replaced_in_the_message() -> None:
    error = NullInColumnError.found("x", "int64", 3)
    moved = pickle.loads(pickle.dumps(error.at("row 17 of part-0.parquet")))
    assert "has a null in row 17 of part-0.parquet, " in str(moved)
    assert (moved.column, moved.row_index) == ("x", 3)
    assert isinstance(moved, LanewayError)
    assert str(NullInColumnError("from a worker").at("row 1")) == "from a worker"


def test_tensors_survive_torch_save_without_the_rest_of_the_file() -> None:
    batch = one_column(list(range(10_000)), pa.int64())
    file = io.BytesIO()
    torch.save(converted(batch.slice(100, 10), "torch"), file)
    assert len(file.getvalue()) < 10_000


LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint16(): st.integers(0, 2**16 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(codec="utf-8"), max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.string_view(): st.text(st.characters(codec="utf-8"), max_size=20),
}


@st.composite
def columns_of_any_type(draw: st.DrawFn, num_rows: int) -> pa.Array[Any]:
    data_type = draw(st.sampled_from(list(LEAVES)))
    values = LEAVES[data_type] if draw(st.booleans()) else st.none() | LEAVES[data_type]
    for _ in range(draw(st.integers(0, 2))):
        make = draw(st.sampled_from([None, pa.list_, pa.large_list, pa.list_view]))
        if make is None:
            size = draw(st.integers(0, 3))
            data_type, values = pa.list_(data_type, size), st.lists(values, min_size=size, max_size=size)
        else:
            data_type = make(data_type)
            values = st.lists(values, max_size=4)
        if draw(st.booleans()):
            values = st.none() | values
    array: pa.Array[Any] = pa.array(draw(st.lists(values, min_size=num_rows, max_size=num_rows)), data_type)
    is_flat = not pa.types.is_nested(data_type) and not pa.types.is_string_view(data_type)
    return array.dictionary_encode() if is_flat and draw(st.booleans()) else array


@st.composite
def batches_of_any_schema(draw: st.DrawFn) -> pa.RecordBatch:
    num_rows = draw(st.integers(0, 30))
    columns = draw(st.lists(columns_of_any_type(num_rows), min_size=1, max_size=4))
    batch = pa.RecordBatch.from_arrays(columns, [f"c{i}" for i in range(len(columns))])
    start = draw(st.integers(0, num_rows))
    return batch.slice(start, draw(st.integers(0, num_rows - start)))


def filled_with_zero(values: list[Any], data_type: pa.DataType) -> list[Any]:
    """Say once more, for Python values, what `fill_null=0` means."""
    if isinstance(data_type, pa.DictionaryType):
        return filled_with_zero(values, data_type.value_type)
    if data_type in (pa.string(), pa.binary(), pa.string_view()):
        return values
    if not pa.types.is_nested(data_type):
        return [0 if value is None else value for value in values]
    value_type: pa.DataType = data_type.value_type  # type: ignore[union-attr]
    if isinstance(data_type, pa.FixedSizeListType) and filled_with_zero([None], value_type) != [None]:
        values = [[None] * data_type.list_size if row is None else row for row in values]
    return [None if row is None else filled_with_zero(row, value_type) for row in values]


@settings(max_examples=100, deadline=None)
@given(batch=batches_of_any_schema())
def test_every_output_agrees_with_arrows_own_python_values(batch: pa.RecordBatch) -> None:
    values = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    assert convert(BatchConverter(batch.schema, "python"), batch) == values
    assert to_rows(BatchConverter(batch.schema, "python"), batch) == batch.to_pylist()
    filled = {name: filled_with_zero(values[name], batch.schema.field(name).type) for name in values}
    for output in get_args(Output)[:3]:
        converter = BatchConverter(batch.schema, output, 0)
        columns: Any = convert(converter, batch)
        assert {name: plain(column) for name, column in columns.items()} == filled
        rows = to_rows(converter, batch)
        assert {name: [plain(row[name]) for row in rows] for name in filled} == filled


@settings(max_examples=100, deadline=None)
@given(batch=batches_of_any_schema(), output=st.sampled_from(["torch", "numpy"]))
def test_a_column_is_refused_exactly_if_a_number_is_missing(batch: pa.RecordBatch, output: Output) -> None:
    for name in batch.schema.names:
        column = batch.select([name])
        values = batch.column(name).to_pylist()
        filled = filled_with_zero(values, batch.schema.field(name).type)
        missing = [i for i, (value, fill) in enumerate(zip(values, filled, strict=True)) if value != fill]
        if missing:
            with pytest.raises(NullInColumnError) as caught:
                convert(BatchConverter(column.schema, output), column)
            assert caught.value.column == name
            assert caught.value.row_index in missing
        else:
            columns: Any = convert(BatchConverter(column.schema, output), column)
            assert plain(columns[name]) == values


@settings(max_examples=100, deadline=None)
@given(
    batch=batches_of_any_schema(),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    output=st.sampled_from(get_args(Output)),
)
def test_parts_that_are_gathered_are_the_batch_of_all_their_rows(
    batch: pa.RecordBatch, cuts: list[int], output: Output
) -> None:
    fill = None if output == "arrow" else 0
    converter = BatchConverter(batch.schema, output, fill)
    bounds = sorted({0, batch.num_rows, *(cut for cut in cuts if cut < batch.num_rows)})
    # Every other part is as a window with a value that can't be converted: all of it is still Arrow.
    parts = [
        OpenRows.from_batch(batch, {} if i % 2 else converter.vectorized).slice(start, stop)
        for i, (start, stop) in enumerate(pairwise(bounds))
    ] or [OpenRows.from_batch(batch, {})]
    gathered: Any = converter.gather(parts)
    if isinstance(gathered, pa.RecordBatch):
        gathered.validate(full=True)
        assert gathered.equals(batch)
    else:
        expected: Any = convert(converter, batch)
        assert {name: plain(column) for name, column in gathered.items()} == {
            name: plain(column) for name, column in expected.items()
        }
    assert len(converter.gather_rows(parts)) == batch.num_rows


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("is_converted", [True, False])
def test_a_null_in_gathered_parts_is_counted_from_the_first_row(output: Output, *, is_converted: bool) -> None:
    batch = pa.record_batch({"x": [1, 2, 3, None, 5], "pair": pa.array([[1], [2], [3], [4], [5]])})
    converter = BatchConverter(batch.schema, output)
    rows = OpenRows.from_batch(batch, converter.vectorized if is_converted else {})
    with pytest.raises(NullInColumnError, match="row 2 of this batch") as caught:
        converter.gather([rows.slice(1, 3), rows.slice(3, 5)])
    assert caught.value.row_index == 2


def test_arrow_batches_return_to_the_types_of_the_schema_if_their_values_fit() -> None:
    narrow = pa.schema([pa.field("code", pa.dictionary(pa.int8(), pa.string())), pa.field("text", pa.string())])
    names = pa.array([f"user {i}" for i in range(300)])
    wide = pa.record_batch(
        {
            "code": pa.DictionaryArray.from_arrays(pa.array(range(300), pa.int32()), names),
            "text": names.cast(pa.large_string()),
        }
    )
    converter = BatchConverter(narrow, "arrow")
    rows = OpenRows.from_batch(wide, {})
    some: Any = converter.to_batch(rows.slice(10, 14))
    assert some.schema.equals(narrow)
    assert some.column("code").to_pylist() == some.column("text").to_pylist() == [f"user {i}" for i in range(10, 14)]
    assert len(some.column("code").dictionary) == 4
    most: Any = converter.to_batch(rows.slice(0, 200))
    assert most.schema.field("code").type.equals(pa.dictionary(pa.int32(), pa.string()))
    assert most.schema.field("text").type.equals(pa.string())
    both: Any = converter.gather([rows.slice(0, 200), rows.slice(10, 14)])
    assert both.column("code").to_pylist() == [f"user {i}" for i in [*range(200), *range(10, 14)]]

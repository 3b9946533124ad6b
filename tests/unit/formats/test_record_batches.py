"""The arrays and buffers of a record batch: sound headers of all types are accepted, damaged ones are not."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from laneway.formats.messages import VERSION_5, MessageHeader, parse_header
from laneway.formats.record_batches import (
    BatchError,
    BatchShape,
    check_compressed_lengths,
    dictionary_value_types,
    needs_validation,
)
from tests.unit.formats.damage import columns

if TYPE_CHECKING:
    from collections.abc import Callable


def _header(batch: pa.RecordBatch, codec: Any = None) -> tuple[MessageHeader, pa.Buffer]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    message = next(message for message in reader if message.type == "record batch")
    metadata = message.metadata.to_pybytes()
    return parse_header(metadata), message.body or pa.py_buffer(b"")


ALL_TYPES = pa.record_batch(columns(60, for_parquet=False))


@pytest.mark.parametrize("name", ALL_TYPES.schema.names)
@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_a_sound_header_of_every_type_is_accepted(name: str, codec: str | None) -> None:
    for batch in (ALL_TYPES, ALL_TYPES.slice(0, 0), ALL_TYPES.slice(0, 7)):
        selected = batch.select([name])
        header, body = _header(selected, codec)
        shape = BatchShape(selected.schema.types, VERSION_5)
        shape.check([header])
        if header.is_compressed:
            check_compressed_lengths(header, body)


def _change(header: MessageHeader, array: str, index: tuple[int, int], value: int) -> MessageHeader:
    values = getattr(header, array).copy()
    values[index] = value
    return dataclasses.replace(header, **{array: values})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda it: dataclasses.replace(it, num_rows=101), "claims 101 rows, but its columns have other lengths"),
        (lambda it: dataclasses.replace(it, nodes=it.nodes[:1]), "has 1 arrays, and its columns 2"),
        (lambda it: dataclasses.replace(it, buffers=it.buffers[:3]), "has 3 buffers, unlike its columns"),
        (lambda it: _change(it, "buffers", (1, 0), -8), "claims 100 rows in buffers outside of its"),
        (lambda it: _change(it, "buffers", (1, 1), 2**62), "claims 100 rows in buffers outside of its"),
        (lambda it: _change(it, "buffers", (1, 1), 799), "claims 100 rows, which its .* bytes can't hold"),
        (lambda it: _change(it, "buffers", (3, 1), 400), "claims 100 rows, which its .* bytes can't hold"),
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_batch(
    damage: Callable[[MessageHeader], MessageHeader], problem: str
) -> None:
    batch = pa.record_batch({"x": np.arange(100), "s": ["text"] * 100})
    header, _ = _header(batch)
    shape = BatchShape(batch.schema.types, VERSION_5)
    shape.check([header] * 5)
    with pytest.raises(BatchError, match=f"its header is damaged: it {problem}") as caught:
        shape.check([header, header, damage(header), header])
    assert caught.value.index == 2


def test_a_row_count_that_no_compression_explains_is_an_error() -> None:
    batch = pa.record_batch({"x": np.zeros(10_000, np.int64)})
    header, body = _header(batch, "zstd")
    shape = BatchShape(batch.schema.types, VERSION_5)
    shape.check([header])
    nodes = header.nodes.copy()
    nodes[0, 0] = 2**40
    with pytest.raises(BatchError, match="can't hold"):
        shape.check([dataclasses.replace(header, num_rows=2**40, nodes=nodes)])
    data = bytearray(body.to_pybytes())
    offset = int(header.buffers[1, 0])
    for claimed in (2**50, -2):
        data[offset : offset + 8] = claimed.to_bytes(8, "little", signed=True)
        with pytest.raises(ValueError, match=f"claims to hold {claimed:,}"):
            check_compressed_lengths(header, pa.py_buffer(bytes(data)))


def test_only_types_whose_values_can_be_out_of_bounds_need_validation() -> None:
    numbers: list[pa.DataType] = [
        pa.int8(),
        pa.float64(),
        pa.bool_(),
        pa.decimal128(9, 2),
        pa.binary(3),
        pa.timestamp("us"),
        pa.null(),
    ]
    tensors: list[pa.DataType] = [pa.list_(pa.float32(), 4), pa.fixed_shape_tensor(pa.int32(), (2, 2)), pa.uuid()]
    records: list[pa.DataType] = [pa.struct([("a", pa.int64()), ("b", pa.list_(pa.bool_(), 2))])]
    assert not any(map(needs_validation, [*numbers, *tensors, *records]))
    references: list[pa.DataType] = [
        pa.string(),
        pa.binary_view(),
        pa.list_(pa.int8()),
        pa.map_(pa.int8(), pa.int8()),
        pa.json_(),
    ]
    references += [pa.dictionary(pa.int8(), pa.int64()), pa.run_end_encoded(pa.int16(), pa.int8())]
    references += [pa.dense_union([pa.field("a", pa.int8())]), pa.struct([("a", pa.list_view(pa.int8()))])]
    assert all(map(needs_validation, references))


def test_dictionaries_are_listed_before_those_in_their_values() -> None:
    inner = pa.dictionary(pa.int8(), pa.string())
    values: Any = pa.list_(inner)
    outer = pa.dictionary(pa.int16(), values)
    types = [pa.struct([("a", pa.int8()), ("b", outer)]), pa.list_(inner)]
    assert list(dictionary_value_types(types)) == [pa.list_(inner), pa.string(), pa.string()]

"""The flatbuffer parser, on messages written by pyarrow."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.formats.messages import PREFIX_BYTES, HeaderParser, MessageKind, parse_footer, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.formats.messages import MessageHeader


def _metadata(message: pa.Buffer) -> bytes:
    data = message.to_pybytes()
    return data[PREFIX_BYTES : PREFIX_BYTES + int.from_bytes(data[4:PREFIX_BYTES], "little")]


def test_a_record_batch_header_has_rows_and_body_length() -> None:
    batch = pa.record_batch({"id": pa.array(range(1000)), "text": pa.array([None, "é"] * 500)})
    message = batch.serialize()
    header = parse_header(_metadata(message))
    assert header.kind is MessageKind.RECORD_BATCH
    assert header.num_rows == 1000
    assert header.body_length == message.size - PREFIX_BYTES - len(_metadata(message))
    assert header.dictionary_id == -1


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_whether_a_batch_or_a_dictionary_is_compressed_is_known_without_parsing_it(codec: Any) -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"d": pa.array(["text " * 50] * 90).dictionary_encode(), "x": np.zeros(90)})
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    messages = list(pa.ipc.MessageReader.open_stream(sink.getvalue()))[1:]
    assert [message.type for message in messages] == ["dictionary", "record batch"]
    parser = HeaderParser()
    for message in messages * 2:
        metadata = message.metadata.to_pybytes()
        assert parser.is_compressed_batch(metadata) == parse_header(metadata).is_compressed == (codec is not None)
    with pytest.raises(ValueError, match="the message header is damaged"):
        parser.is_compressed_batch(b"")


def _facts(header: MessageHeader) -> tuple[object, ...]:
    arrays = (header.nodes, header.buffers, header.num_view_buffers)
    return header, *((array.shape, array.tobytes()) for array in arrays)


def _outcome(parse: Callable[[bytes], MessageHeader], metadata: bytes) -> object:
    try:
        return _facts(parse(metadata))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("codec", [None, "lz4"])
def test_a_parser_that_has_seen_a_batch_finds_the_same_in_others_also_in_damaged_ones(codec: Any) -> None:
    sink = pa.BufferOutputStream()
    columns = {
        "x": range(50),
        "s": ["a" * (each % 7) for each in range(50)],
        "v": pa.array(["b"] * 50, pa.string_view()),
    }
    table = pa.table({**columns, "n": pa.array([None, 1] * 25)})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=7)
        writer.write_table(table.slice(0, 0))
    messages = [each.metadata.to_pybytes() for each in pa.ipc.MessageReader.open_stream(sink.getvalue())]
    assert len(messages) >= 9
    parser = HeaderParser()
    for metadata in messages:
        assert _outcome(parser.parse, metadata) == _outcome(parse_header, metadata)
    generator = random.Random(0)
    for _ in range(2_000):
        damaged = bytearray(messages[generator.randrange(1, len(messages))])
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        assert _outcome(parser.parse, bytes(damaged)) == _outcome(parse_header, bytes(damaged))


def test_a_schema_header_has_no_body() -> None:
    header = parse_header(_metadata(pa.schema([("id", pa.int64())]).serialize()))
    assert (header.kind, header.body_length, header.num_rows) == (MessageKind.SCHEMA, 0, 0)


def test_a_tensor_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pa.ipc.write_tensor(pa.Tensor.from_numpy(np.ones((2, 2))), sink)
    with pytest.raises(ValueError, match="4 is not a valid MessageKind"):
        parse_header(_metadata(sink.getvalue()))


@pytest.mark.parametrize("length", range(0, 120, 7))
def test_a_truncated_header_is_an_error_and_not_a_crash(length: int) -> None:
    metadata = _metadata(pa.record_batch({"id": pa.array([1])}).serialize())
    try:
        header = parse_header(metadata[:length])
    except ValueError:
        return
    assert header == parse_header(metadata)


def test_random_bytes_raise_nothing_but_value_errors() -> None:
    source = random.Random(1)
    for _ in range(2000):
        try:
            parse_header(source.randbytes(source.randrange(80)))
        except ValueError:
            continue


def _footer(file: bytes) -> bytes:
    end = len(file) - 10
    return file[end - int.from_bytes(file[end : end + 4], "little") : end]


def test_a_footer_lists_dictionaries_and_record_batches() -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([pa.array(["a", "b", "a"]).dictionary_encode(), pa.array([1, 2, 3])], ["d", "x"])
    with pa.ipc.new_file(sink, batch.schema) as writer:
        for length in (3, 1, 2):
            writer.write_batch(batch.slice(0, length))
    file = sink.getvalue().to_pybytes()
    blocks = parse_footer(_footer(file)).blocks
    headers = [parse_header(file[offset + PREFIX_BYTES : offset + metadata]) for offset, metadata, _ in blocks]
    assert [header.kind for header in headers] == [MessageKind.DICTIONARY] + [MessageKind.RECORD_BATCH] * 3
    assert [header.num_rows for header in headers[1:]] == [3, 1, 2]
    assert [header.body_length for header in headers] == [body for _, _, body in blocks]


@given(st.data())
def test_a_damaged_footer_is_a_value_error_or_a_bounded_list(data: st.DataObject) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("x", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch([pa.array([1, 2])], ["x"]))
    footer = bytearray(_footer(sink.getvalue().to_pybytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        footer[data.draw(st.integers(0, len(footer) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        assert len(parse_footer(bytes(footer[: data.draw(st.integers(0, len(footer)))])).blocks) <= len(footer)

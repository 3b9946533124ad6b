"""The small flatbuffer reader, against messages that pyarrow wrote."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from laneway.formats.messages import PREFIX_BYTES, MessageKind, parse_header


def _metadata(message: pa.Buffer) -> bytes:
    data = message.to_pybytes()
    return data[PREFIX_BYTES : PREFIX_BYTES + int.from_bytes(data[4:PREFIX_BYTES], "little")]


def test_a_record_batch_header_tells_rows_and_body_length() -> None:
    batch = pa.record_batch({"id": pa.array(range(1000)), "text": pa.array([None, "é"] * 500)})
    message = batch.serialize()
    header = parse_header(_metadata(message))
    assert header.kind is MessageKind.RECORD_BATCH
    assert header.num_rows == 1000
    assert header.body_length == message.size - PREFIX_BYTES - len(_metadata(message))
    assert header.dictionary_id == -1


def test_a_schema_header_has_no_body() -> None:
    header = parse_header(_metadata(pa.schema([("id", pa.int64())]).serialize()))
    assert (header.kind, header.body_length, header.num_rows) == (MessageKind.SCHEMA, 0, 0)


def test_a_tensor_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pa.ipc.write_tensor(pa.Tensor.from_numpy(np.ones((2, 2))), sink)
    with pytest.raises(ValueError, match="4 is not a valid MessageKind"):
        parse_header(_metadata(sink.getvalue()))


@pytest.mark.parametrize("length", range(0, 120, 7))
def test_a_header_that_is_cut_short_is_an_error_and_no_crash(length: int) -> None:
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

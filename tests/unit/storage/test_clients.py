"""A client returns exactly the requested bytes, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from laneway.storage.clients import _read_into
from laneway.storage.ranges import Request, ShortBodyError

CONTENT = bytes(range(1, 201))


class TruncatedFile:
    """A pyarrow file whose responses lack some bytes at the end, and claim to be complete."""

    def __init__(self, content: bytes, num_missing: int) -> None:
        self._content, self._num_missing = content, num_missing

    def get_stream(self, _start: int, _num_bytes: int) -> TruncatedFile:
        return self

    def readinto(self, data: memoryview) -> int:
        num_read = len(data) - self._num_missing
        data[:num_read] = self._content[:num_read]
        return len(data)


def read(file: Any, data: bytearray) -> int:
    return _read_into(memoryview(data), file, Request("a", 0, len(data)))


@pytest.mark.parametrize("num_missing", [1, 5, 15, 16, 200])
def test_a_body_that_is_short_by_any_number_of_bytes_is_detected(num_missing: int) -> None:
    with pytest.raises(ShortBodyError, match="requested bytes 0 to 200"):
        read(TruncatedFile(CONTENT, num_missing), bytearray(200))


@pytest.mark.parametrize("last", range(256))
def test_a_body_is_complete_whatever_its_last_byte(last: int) -> None:
    content = CONTENT[:-1] + bytes([last])
    data = bytearray(200)
    assert read(TruncatedFile(content, 0), data) == 200
    assert data == content

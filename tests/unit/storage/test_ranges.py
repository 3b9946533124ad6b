"""What comes of a request is what was asked for, to the last byte."""

from __future__ import annotations

from typing import Any

import pytest

from laneway.storage.ranges import Request, ShortBodyError, _read_into

CONTENT = bytes(range(1, 201))


class Cut:
    """A file of pyarrow's whose answers lack some bytes at the end, and claim to be whole."""

    def __init__(self, content: bytes, num_missing: int) -> None:
        self._content, self._num_missing = content, num_missing

    def get_stream(self, _start: int, _num_bytes: int) -> Cut:
        return self

    def readinto(self, data: memoryview) -> int:
        came = len(data) - self._num_missing
        data[:came] = self._content[:came]
        return len(data)


def read(file: Any, data: bytearray) -> int:
    return _read_into(memoryview(data), file, Request("a", 0, len(data)))


@pytest.mark.parametrize("num_missing", [1, 5, 15, 16, 200])
def test_a_body_that_is_short_by_any_number_of_bytes_is_found_out(num_missing: int) -> None:
    with pytest.raises(ShortBodyError, match="bytes 0 to 200 were asked for"):
        read(Cut(CONTENT, num_missing), bytearray(200))


@pytest.mark.parametrize("last", range(256))
def test_a_body_is_whole_whatever_its_last_byte(last: int) -> None:
    content = CONTENT[:-1] + bytes([last])
    data = bytearray(200)
    assert read(Cut(content, 0), data) == 200
    assert data == content

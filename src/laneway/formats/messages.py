"""The headers of Arrow IPC messages: enough of them to find every record batch without reading one.

Format: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format and Message.fbs,
Schema.fbs and File.fbs there. The metadata of a message is a flatbuffer: a table starts with the distance back to
its vtable, and the vtable holds for each field its distance from the table's start (0: not there).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

CONTINUATION = b"\xff\xff\xff\xff"
"""What every message begins with since Arrow 0.15; then the metadata's length, four bytes."""
PREFIX_BYTES = 8
"""Length of the continuation marker and the metadata's length together."""
# Of the Footer table, and the Block struct that both are vectors of.
_DICTIONARIES, _RECORD_BATCHES = 2, 3
_BLOCK = struct.Struct("<qi4xq")

END_OF_STREAM = CONTINUATION + bytes(4)
"""What may stand at the end of a stream."""


class MessageKind(enum.IntEnum):
    """The MessageHeader union of Message.fbs, as far as data files use it."""

    SCHEMA = 1
    DICTIONARY = 2
    RECORD_BATCH = 3


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """What the metadata of one message says about its body."""

    kind: MessageKind
    body_length: int
    """Bytes between the end of the metadata and the next message."""
    num_rows: int
    """Rows of a record batch or values of a dictionary; 0 for a schema."""
    dictionary_id: int
    """Which dictionary a dictionary message is for; -1 for other messages."""
    is_delta: bool
    """Whether a dictionary message appends to the dictionary instead of replacing it."""


class _Table:
    """One flatbuffer table inside `data`, whose scalar fields are read at need."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start
        (back,) = struct.unpack_from("<i", data, start)
        self._vtable = start - back
        if self._vtable < 0:
            message = "the table's vtable lies outside of the message"
            raise ValueError(message)
        (self._vtable_bytes,) = struct.unpack_from("<H", data, self._vtable)

    def scalar(self, field_index: int, code: str, default: int) -> int:
        """Return a scalar field, `code` being its format in the `struct` module."""
        position = self._position(field_index)
        if position is None:
            return default
        value: int
        (value,) = struct.unpack_from("<" + code, self._data, position)
        return value

    def table(self, field_index: int) -> _Table:
        """Return the table that a field refers to."""
        position = self._position(field_index)
        if position is None:
            message = f"field {field_index} is missing"
            raise ValueError(message)
        (distance,) = struct.unpack_from("<I", self._data, position)
        return _Table(self._data, position + distance)

    def vector(self, field_index: int) -> tuple[int, int]:
        """Return where the elements of a field begin, and how many there are."""
        position = self._position(field_index)
        if position is None:
            return 0, 0
        (distance,) = struct.unpack_from("<I", self._data, position)
        (length,) = struct.unpack_from("<I", self._data, position + distance)
        return position + distance + 4, length

    def _position(self, field_index: int) -> int | None:
        slot = 4 + 2 * field_index
        if slot + 2 > self._vtable_bytes:
            return None
        (distance,) = struct.unpack_from("<H", self._data, self._vtable + slot)
        return self._start + distance if distance else None


def parse_header(metadata: bytes) -> MessageHeader:
    """Return what the metadata of a message says.

    Args:
        metadata: The flatbuffer that follows the message's first 8 bytes, padding included.

    Raises:
        ValueError: `metadata` is no such flatbuffer, or of a kind that data files do not hold.
    """
    try:
        (root,) = struct.unpack_from("<I", metadata, 0)
        message_table = _Table(metadata, root)
        kind = MessageKind(message_table.scalar(1, "B", 0))
        header = message_table.table(2)
        body_length = message_table.scalar(3, "q", 0)
        rows, dictionary_id, is_delta = 0, -1, False
        if kind is MessageKind.RECORD_BATCH:
            rows = header.scalar(0, "q", 0)
        elif kind is MessageKind.DICTIONARY:
            rows = header.table(1).scalar(0, "q", 0)
            dictionary_id = header.scalar(0, "q", 0)
            is_delta = bool(header.scalar(2, "B", 0))
    except struct.error as error:
        message = f"the message header is damaged: {error}"
        raise ValueError(message) from error
    if body_length < 0 or rows < 0:
        message = f"the message header is damaged: it claims {rows} rows in {body_length} bytes"
        raise ValueError(message)
    return MessageHeader(kind, body_length, rows, dictionary_id, is_delta)


def parse_footer(footer: bytes) -> list[tuple[int, int, int]]:
    """Return offset, metadata's length and body's length of each dictionary and record batch, in the file's order.

    Args:
        footer: The flatbuffer at the end of a file, without the length and the magic behind it (File.fbs).

    Raises:
        ValueError: `footer` is no such flatbuffer.
    """
    try:
        (root,) = struct.unpack_from("<I", footer, 0)
        table = _Table(footer, root)
        blocks: list[tuple[int, int, int]] = []
        for field_index in (_DICTIONARIES, _RECORD_BATCHES):
            start, length = table.vector(field_index)
            # The slice first: a damaged length must not make anything large.
            data = memoryview(footer)[start : start + length * _BLOCK.size]
            blocks += _BLOCK.iter_unpack(data[: len(data) // _BLOCK.size * _BLOCK.size])
    except struct.error as error:
        message = f"the footer is damaged: {error}"
        raise ValueError(message) from error
    return sorted(blocks)

"""Parser for the headers of Arrow IPC messages, enough to find every record batch without reading one.

Format: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format and Message.fbs,
Schema.fbs and File.fbs there. The metadata of a message is a flatbuffer: a table starts with the distance back to
its vtable, and the vtable holds the distance of each field from the start of the table (0: absent).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

CONTINUATION = b"\xff\xff\xff\xff"
"""First bytes of every message since Arrow 0.15, followed by the length of the metadata in four bytes."""
PREFIX_BYTES = 8
"""Total length of the continuation marker and the length field."""
# Fields of the Footer table, both vectors of the Block struct.
_DICTIONARIES, _RECORD_BATCHES = 2, 3
_BLOCK = struct.Struct("<qi4xq")

END_OF_STREAM = CONTINUATION + bytes(4)
"""Optional end of a stream."""


class MessageKind(enum.IntEnum):
    """The members of the MessageHeader union of Message.fbs that occur in data files."""

    SCHEMA = 1
    DICTIONARY = 2
    RECORD_BATCH = 3


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """The metadata of one message."""

    kind: MessageKind
    body_length: int
    """Bytes between the end of the metadata and the next message."""
    num_rows: int
    """Rows of a record batch or values of a dictionary; 0 for a schema."""
    dictionary_id: int
    """Dictionary of a dictionary message; -1 for other messages."""
    is_delta: bool
    """Whether a dictionary message appends to the dictionary instead of replacing it."""


class _Table:
    """A flatbuffer table inside `data`, whose fields are read on demand."""

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
        """Return a scalar field; `code` is its format in the `struct` module."""
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
        """Return the position of the first element of a vector field, and the number of elements."""
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
    """Parse the metadata of a message.

    Args:
        metadata: The flatbuffer that follows the message's first 8 bytes, padding included.

    Raises:
        ValueError: `metadata` is not such a flatbuffer, or its kind does not occur in data files.
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
    """Return the offset, metadata length and body length of each dictionary and record batch, in file order.

    Args:
        footer: The flatbuffer at the end of a file, without the length and the magic that follow it (File.fbs).

    Raises:
        ValueError: `footer` is not such a flatbuffer.
    """
    try:
        (root,) = struct.unpack_from("<I", footer, 0)
        table = _Table(footer, root)
        blocks: list[tuple[int, int, int]] = []
        for field_index in (_DICTIONARIES, _RECORD_BATCHES):
            start, length = table.vector(field_index)
            # Slice first: a damaged length must not allocate much memory.
            data = memoryview(footer)[start : start + length * _BLOCK.size]
            blocks += _BLOCK.iter_unpack(data[: len(data) // _BLOCK.size * _BLOCK.size])
    except struct.error as error:
        message = f"the footer is damaged: {error}"
        raise ValueError(message) from error
    return sorted(blocks)

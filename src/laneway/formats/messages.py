"""Parser for the headers of Arrow IPC messages, enough to find and to check record batches without reading them.

Format: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format and Message.fbs,
Schema.fbs and File.fbs there. The metadata of a message is a flatbuffer: a table starts with the distance back to
its vtable, and the vtable holds the distance of each field from the start of the table (0: absent).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CONTINUATION = b"\xff\xff\xff\xff"
"""First bytes of every message since Arrow 0.15, followed by the length of the metadata in four bytes."""
PREFIX_BYTES = 8
"""Total length of the continuation marker and the length field."""
VERSION_5: Final = 4
"""How the metadata version of Arrow 1.0 is encoded; in earlier ones, unions have a validity bitmap."""
# Fields of the Footer table; dictionaries and record batches are vectors of the Block struct.
_SCHEMA, _DICTIONARIES, _RECORD_BATCHES = 1, 2, 3
_BLOCK = struct.Struct("<qi4xq")
# Fields of the Field table.
_FIELD_DICTIONARY, _FIELD_CHILDREN = 4, 5
# A Message table of four fields: distance of the table, vtable, distance of the vtable, version, kind, distance of the
# header, length of the body.
_MESSAGE = struct.Struct("<I6HihbxI4xq")
_MESSAGE_HEADER_FIELD = 24
_UINT16, _INT32, _UINT32 = (struct.Struct(f"<{code}").unpack_from for code in "HiI")
_INT64: Final = struct.Struct("<q").unpack_from
_SCALARS: Final = {code: struct.Struct(f"<{code}").unpack_from for code in "hBq"}

END_OF_STREAM = CONTINUATION + bytes(4)
"""Optional end of a stream."""


class MessageKind(enum.IntEnum):
    """The members of the MessageHeader union of Message.fbs that occur in data files."""

    SCHEMA = 1
    DICTIONARY = 2
    RECORD_BATCH = 3


_NO_INTEGERS: Final = {width: np.zeros((0, width), np.int64) for width in (1, 2)}


def _no_entries() -> NDArray[np.int64]:
    return _NO_INTEGERS[2]


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
    version: int
    """Metadata version; see `VERSION_5`."""
    position: int
    """Where the table of the schema or record batch, also of the one in a dictionary, starts in the flatbuffer."""
    is_big_endian: bool = False
    """Whether a schema says that the bodies of all messages are big-endian."""
    is_compressed: bool = False
    """Whether the buffers of the body are compressed, each after its uncompressed length in 8 bytes."""
    nodes: NDArray[np.int64] = field(default_factory=_no_entries, compare=False)
    """Values and nulls of each array in the batch, in depth-first order, shape (num_nodes, 2)."""
    buffers: NDArray[np.int64] = field(default_factory=_no_entries, compare=False)
    """Offset in the body and length of each buffer, shape (num_buffers, 2)."""
    num_view_buffers: NDArray[np.int64] = field(default_factory=_no_entries, compare=False)
    """Number of data buffers of each array of views, shape (num_view_arrays,)."""


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer of an Arrow file."""

    blocks: list[tuple[int, int, int]]
    """Offset, metadata length and body length of each dictionary and record batch, in file order."""
    schema: MessageHeader
    """What the footer says of the schema; `position` counts in the footer."""


class _Table:
    """A flatbuffer table inside `data`, whose fields are read on demand."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self.start = start
        (back,) = _INT32(data, start)
        self._vtable = start - back
        if self._vtable < 0:
            message = "the table's vtable is outside the message"
            raise ValueError(message)
        (self._vtable_bytes,) = _UINT16(data, self._vtable)

    def scalar(self, field_index: int, code: str, default: int) -> int:
        """Return a scalar field; `code` is its format, of `_SCALARS`."""
        position = self.position(field_index)
        if position is None:
            return default
        value: int
        (value,) = _SCALARS[code](self._data, position)
        return value

    def table(self, field_index: int) -> _Table:
        """Return the table that a field refers to."""
        position = self.position(field_index)
        if position is None:
            message = f"field {field_index} is missing"
            raise ValueError(message)
        (distance,) = _UINT32(self._data, position)
        return _Table(self._data, position + distance)

    def has(self, field_index: int) -> bool:
        """Return whether a field is present."""
        return self.position(field_index) is not None

    def vector(self, field_index: int) -> tuple[int, int]:
        """Return the position of the first element of a vector field, and the number of elements."""
        position = self.position(field_index)
        if position is None:
            return 0, 0
        (distance,) = _UINT32(self._data, position)
        (length,) = _UINT32(self._data, position + distance)
        return position + distance + 4, length

    def integers(self, field_index: int, width: int) -> NDArray[np.int64]:
        """Return a vector of structs of `width` int64 values, or of int64 values, as an array of shape (n, width)."""
        start, length = self.vector(field_index)
        if not length:
            return _NO_INTEGERS[width]
        # Raises ValueError if there are fewer bytes: a damaged length allocates nothing.
        return np.frombuffer(self._data, "<i8", length * width, start).reshape(length, width)

    def tables(self, field_index: int) -> Iterator[_Table]:
        """Yield the tables of a vector field."""
        start, length = self.vector(field_index)
        for position in range(start, start + 4 * length, 4):
            (distance,) = _UINT32(self._data, position)
            yield _Table(self._data, position + distance)

    def position(self, field_index: int) -> int | None:
        """Return where a field is; None: it is absent."""
        slot = 4 + 2 * field_index
        if slot + 2 > self._vtable_bytes:
            return None
        (distance,) = _UINT16(self._data, self._vtable + slot)
        return self.start + distance if distance else None


def parse_header(metadata: bytes) -> MessageHeader:
    """Parse the metadata of a message.

    Args:
        metadata: The flatbuffer that follows the message's first 8 bytes, padding included.

    Raises:
        ValueError: `metadata` is not such a flatbuffer, or its kind does not occur in data files.
    """
    try:
        (root,) = _UINT32(metadata, 0)
        message_table = _Table(metadata, root)
        version = message_table.scalar(0, "h", 0)
        kind = MessageKind(message_table.scalar(1, "B", 0))
        header = message_table.table(2)
        body_length = message_table.scalar(3, "q", 0)
        if kind is MessageKind.SCHEMA:
            is_big_endian = header.scalar(0, "h", 0) != 0
            return MessageHeader(kind, body_length, 0, -1, False, version, header.start, is_big_endian)  # noqa: FBT003
        dictionary_id, is_delta, batch = -1, False, header
        if kind is MessageKind.DICTIONARY:
            dictionary_id = header.scalar(0, "q", 0)
            is_delta = bool(header.scalar(2, "B", 0))
            batch = header.table(1)
        rows = batch.scalar(0, "q", 0)
        parsed = MessageHeader(
            kind,
            body_length,
            rows,
            dictionary_id,
            is_delta,
            version,
            batch.start,
            is_compressed=batch.has(3),
            nodes=batch.integers(1, 2),
            buffers=batch.integers(2, 2),
            num_view_buffers=batch.integers(4, 1)[:, 0],
        )
    except struct.error as error:
        message = f"the message header is damaged: {error}"
        raise ValueError(message) from error
    if body_length < 0 or rows < 0:
        message = f"the message header is damaged: it claims {rows} rows in {body_length} bytes"
        raise ValueError(message)
    return parsed


@final
class HeaderParser:
    """Parses the metadata of the messages of a file, faster where only numbers differ from the last record batch."""

    def __init__(self) -> None:
        """Begin without a record batch."""
        self._length = -1
        self._fixed: list[tuple[slice, bytes]] = []
        """What the metadata of the last record batch consist of, other than numbers."""
        self._numbers: tuple[int, int, int, int] = (0, 0, 0, 0)
        """Positions of the length of the body, of the rows, of the nodes and of the buffers."""
        self._last: MessageHeader | None = None

    def parse(self, metadata: bytes) -> MessageHeader:
        """Return the same as `parse_header`.

        Raises:
            ValueError: See there.
        """
        last = self._last
        if last is None or not self._differs_in_numbers(metadata):
            return self._learn(metadata)
        body, rows, nodes, buffers = self._numbers
        (body_length,), (num_rows,) = _INT64(metadata, body), _INT64(metadata, rows)
        if body_length < 0 or num_rows < 0:
            return parse_header(metadata)
        return MessageHeader(
            last.kind,
            body_length,
            num_rows,
            last.dictionary_id,
            last.is_delta,
            last.version,
            last.position,
            is_compressed=last.is_compressed,
            nodes=np.frombuffer(metadata, "<i8", last.nodes.size, nodes).reshape(last.nodes.shape),
            buffers=np.frombuffer(metadata, "<i8", last.buffers.size, buffers).reshape(last.buffers.shape),
            num_view_buffers=last.num_view_buffers,
        )

    def is_compressed_batch(self, metadata: bytes) -> bool:
        """Return whether the body of a record batch or of a dictionary is compressed.

        Raises:
            ValueError: `metadata` is not the flatbuffer of such a message.
        """
        if self._last is None or not self._differs_in_numbers(metadata):
            return self._learn(metadata).is_compressed
        return self._last.is_compressed

    def _differs_in_numbers(self, metadata: bytes) -> bool:
        if len(metadata) != self._length:
            return False
        return all(metadata[span] == found for span, found in self._fixed)

    def _learn(self, metadata: bytes) -> MessageHeader:
        """Parse the metadata of a message, and remember where their numbers are if it is a record batch."""
        header = parse_header(metadata)
        if header.kind is not MessageKind.RECORD_BATCH:
            return header
        table = _Table(metadata, _UINT32(metadata, 0)[0])
        batch = _Table(metadata, header.position)
        body, rows = table.position(3), batch.position(0)
        if body is None or rows is None:
            return header
        numbers = body, rows, batch.vector(1)[0], batch.vector(2)[0]
        sizes = 8, 8, header.nodes.nbytes, header.buffers.nbytes
        edges = [
            0,
            *(edge for start, size in sorted(zip(numbers, sizes, strict=True)) for edge in (start, start + size)),
        ]
        edges.append(len(metadata))
        spans = [slice(*edges[index : index + 2]) for index in range(0, len(edges), 2)]
        if edges == sorted(edges):
            self._fixed = [(span, metadata[span]) for span in spans]
            self._length, self._numbers, self._last = len(metadata), numbers, header
        return header


def parse_footer(footer: bytes) -> Footer:
    """Parse the footer of an Arrow file.

    Args:
        footer: The flatbuffer at the end of a file, without the length and the magic that follow it (File.fbs).

    Raises:
        ValueError: `footer` is not such a flatbuffer.
    """
    try:
        (root,) = _UINT32(footer, 0)
        table = _Table(footer, root)
        schema = table.table(_SCHEMA)
        version, is_big_endian = table.scalar(0, "h", 0), schema.scalar(0, "h", 0) != 0
        blocks: list[tuple[int, int, int]] = []
        for field_index in (_DICTIONARIES, _RECORD_BATCHES):
            start, length = table.vector(field_index)
            data = memoryview(footer)[start : start + length * _BLOCK.size]
            if len(data) < length * _BLOCK.size:
                message = f"the footer is damaged: it claims to list {length:,} blocks"
                raise ValueError(message)
            blocks += _BLOCK.iter_unpack(data)
    except struct.error as error:
        message = f"the footer is damaged: {error}"
        raise ValueError(message) from error
    header = MessageHeader(MessageKind.SCHEMA, 0, 0, -1, False, version, schema.start, is_big_endian)  # noqa: FBT003
    return Footer(sorted(blocks), header)


def parse_dictionary_ids(flatbuffer: bytes, schema: MessageHeader) -> list[int]:
    """Return the id of the dictionary of each dictionary-encoded field, depth first, a field before its children.

    Args:
        flatbuffer: The metadata of a schema message, or a footer.
        schema: What `parse_header` or `parse_footer` returned for it.

    Raises:
        ValueError: `flatbuffer` is damaged.
    """

    def ids(fields: Iterator[_Table]) -> Iterator[int]:
        for each in fields:
            if each.has(_FIELD_DICTIONARY):
                yield each.table(_FIELD_DICTIONARY).scalar(0, "q", 0)
            yield from ids(each.tables(_FIELD_CHILDREN))

    try:
        return list(ids(_Table(flatbuffer, schema.position).tables(1)))
    except struct.error as error:
        message = f"the schema is damaged: {error}"
        raise ValueError(message) from error


def build_metadata(flatbuffer: bytes, header: MessageHeader, kind: MessageKind) -> bytes:
    """Return the metadata of a message, prefix included, whose schema or record batch is a table of `flatbuffer`.

    Args:
        flatbuffer: The metadata of another message, or a footer.
        header: What `parse_header` or `parse_footer` returned for it.
        kind: SCHEMA, or RECORD_BATCH also for the record batch in a dictionary.
    """
    size = _MESSAGE.size
    root, vtable, fields = 16, (12, size - 16), (4, 6, 8, 16)
    distance = size + header.position - _MESSAGE_HEADER_FIELD
    message = _MESSAGE.pack(root, *vtable, *fields, root - 4, header.version, kind, distance, header.body_length)
    metadata = message + flatbuffer
    metadata += bytes(-len(metadata) % 8)
    return CONTINUATION + len(metadata).to_bytes(4, "little") + metadata

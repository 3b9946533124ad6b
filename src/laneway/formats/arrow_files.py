"""Finding the messages of an Arrow file or stream, without reading their bodies.

The file format is the stream format between a magic and a footer that lists the record batches and the dictionaries.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, cast, final

import pyarrow as pa

from laneway.errors import DataFileError
from laneway.formats.messages import (
    CONTINUATION,
    END_OF_STREAM,
    PREFIX_BYTES,
    HeaderParser,
    MessageHeader,
    MessageKind,
    build_metadata,
    parse_footer,
)
from laneway.storage.ranges import coalesce
from laneway.storage.reading import RangeFile, read_range, read_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.storage.filesystem import Storage

MAGIC: Final = b"ARROW1"
"""First and last bytes of the file format."""
_FEATHER_1_MAGIC = b"FEA1"
_FILE_HEAD_BYTES = 8  # the padded magic
_FILE_TAIL_BYTES = 4 + len(MAGIC)  # the footer's length, then the magic
_SAMPLE_BYTES = 1024
_READ_AHEAD_BYTES = 16 * 1024
_TAIL_BYTES = 64 * 1024
_MAX_GAP_BYTES = 64 * 1024
_MAX_SPAN_BYTES = 4 * 1024 * 1024
_MAX_PADDING_BYTES = 256  # between messages: writers align them to 64 bytes at most, and may end with a marker


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a file, without its body."""

    offset: int
    """Offset of its prefix."""
    metadata: bytes
    """Prefix and flatbuffer."""
    header: MessageHeader
    """The parsed flatbuffer."""
    sample: bytes
    """The first and last KiB of the body."""

    @property
    def body_offset(self) -> int:
        """Offset of its body."""
        return self.offset + len(self.metadata)

    @property
    def stop(self) -> int:
        """Offset of the end of its body."""
        return self.body_offset + self.header.body_length


@dataclass(frozen=True, slots=True)
class SchemaPlace:
    """Where the schema of a file is."""

    flatbuffer: bytes
    """The flatbuffer of a schema message, or the footer."""
    header: MessageHeader
    """Its parsed header."""
    offset: int
    """Offset of the schema message, prefix included, or of the footer."""
    length: int
    """Number of bytes from there."""
    is_message: bool
    """Whether it is a message of its own; otherwise it is in the footer only."""

    def read(self) -> pa.Schema:
        """Return the schema.

        Raises:
            pa.ArrowException, OSError: pyarrow can't read it.
        """
        return pa.ipc.read_schema(pa.py_buffer(build_metadata(self.flatbuffer, self.header, MessageKind.SCHEMA)))


@dataclass(frozen=True, slots=True)
class FoundMessages:
    """The messages of a file."""

    schema: SchemaPlace
    """The schema that applies."""
    footer_schema: SchemaPlace | None
    """The schema in the footer, which must be the same; None in a stream."""
    messages: list[Message]
    """Dictionaries and record batches, in file order."""
    digest_parts: list[bytes]
    """What identifies the contents: headers, and samples of bodies."""
    has_end: bool
    """Whether the end of the messages is marked; a stream that just ends may be truncated."""


def find_messages(storage: Storage, path: str, size: int, version: str) -> FoundMessages:
    """Find the messages of a file, and read only their headers and the first and the last KiB of each body.

    Args:
        storage: Where the file is.
        path: The file.
        size: Its bytes.
        version: Required version of the file; "" for any.

    Raises:
        DataFileError: The file is unreadable, truncated, damaged or of another format.
    """
    file = _open(storage, path, size, version)
    name = storage.redact(path)
    head = file.read(_FILE_HEAD_BYTES)
    if head.startswith(_FEATHER_1_MAGIC):
        message = f"{name} is of Feather version 1, which laneway can't read: rewrite it as version 2"
        raise DataFileError(message)
    return _find_in_file(file, name, size) if head.startswith(MAGIC) else _find_in_stream(file, name, size)


def _find_in_stream(file: BinaryIO, name: str, size: int) -> FoundMessages:
    """Follow the messages from the first to the end marker, or to the end of the file."""
    messages: list[Message] = []
    parser, offset, has_end = HeaderParser(), 0, False
    while offset < size and not has_end:
        file.seek(offset)
        if file.read(PREFIX_BYTES) == END_OF_STREAM:
            has_end = True
            offset += len(END_OF_STREAM)
        else:
            messages.append(_read_message(file, name, offset, size, parser, is_schema=not messages))
            offset = messages[-1].stop
    if has_end and messages and offset < size:
        message = f"{name} has {size - offset:,} bytes after the end of its stream: the file may hold two streams"
        raise DataFileError(message)
    if not messages:
        message = f"{name} contains no Arrow message: it is {'truncated' if size else 'empty'}"
        raise DataFileError(message)
    parts = [part for each in messages for part in (each.metadata, each.sample)]
    return FoundMessages(_schema_place(messages[0]), None, messages[1:], parts, has_end)


def _find_in_file(file: BinaryIO, name: str, size: int) -> FoundMessages:
    """Find the messages that the footer lists, which must be all messages of the file.

    Most writers also write the schema as a message at the front. Where one is, it must agree with the footer.
    """
    end, data = _read_footer(file, name, size)
    try:
        footer = parse_footer(data)
    except ValueError as error:
        message = f"{name} has an invalid footer: {error}"
        raise DataFileError(message) from error
    in_footer = SchemaPlace(data, footer.schema, end, len(data), is_message=False)
    file.seek(_FILE_HEAD_BYTES)
    prefix = file.read(PREFIX_BYTES)
    messages: list[Message] = []
    parser = HeaderParser()
    offset = footer.blocks[0][0] if footer.blocks else end
    if prefix.startswith(CONTINUATION) and prefix != END_OF_STREAM:
        messages.append(_read_message(file, name, _FILE_HEAD_BYTES, end, parser, is_schema=True))
        offset = messages[0].stop
    schema = _schema_place(messages[0]) if messages else in_footer
    for start, metadata_length, body_length in footer.blocks:
        _check_padding(file, name, offset, start)
        found = _read_message(file, name, start, end, parser, is_schema=False)
        if (len(found.metadata), found.header.body_length) != (metadata_length, body_length):
            message = f"{name} is damaged: its footer and its message at byte {start:,} state different lengths"
            raise DataFileError(message)
        messages.append(found)
        offset = found.stop
    _check_padding(file, name, offset, end)
    parts = [part for each in messages for part in (each.metadata, each.sample)]
    if schema.is_message:
        return FoundMessages(schema, in_footer, messages[1:], parts, has_end=True)
    return FoundMessages(schema, in_footer, messages, [*parts, data], has_end=True)


def _read_message(
    file: BinaryIO, name: str, offset: int, end: int, parser: HeaderParser, *, is_schema: bool
) -> Message:
    """Read the message at an offset, which must end before `end`."""
    file.seek(max(0, offset))
    prefix = file.read(PREFIX_BYTES)
    metadata_end = offset + PREFIX_BYTES + int.from_bytes(prefix[4:], "little")
    if not prefix.startswith(CONTINUATION[: len(prefix)]) or not 0 <= offset < end:
        message = (
            f"{name} has no Arrow message at byte {offset:,}: it is damaged, not an Arrow file, or was "
            f"written by Arrow before 0.15 (rewrite it with a recent Arrow)"
        )
        raise DataFileError(message)
    metadata = prefix + (file.read(metadata_end - file.tell()) if metadata_end <= end else b"")
    try:
        header = parser.parse(metadata[PREFIX_BYTES:]) if metadata_end <= end else None
    except ValueError as error:
        message = f"{name} has an invalid message at byte {offset:,}: {error}"
        raise DataFileError(message) from error
    body_end = metadata_end + header.body_length if header else metadata_end
    if header is None or body_end > end:
        message = f"{name} is truncated: the message at byte {offset:,} ends at byte {body_end:,} of {end:,}"
        raise DataFileError(message)
    if (header.kind is MessageKind.SCHEMA) is not is_schema:
        message = f"{name} has {'no' if is_schema else 'a second'} schema at byte {offset:,}: it is damaged"
        raise DataFileError(message)
    head = file.read(min(_SAMPLE_BYTES, header.body_length))
    file.seek(max(file.tell(), body_end - _SAMPLE_BYTES))
    return Message(offset, metadata, header, head + file.read(body_end - file.tell()))


def _schema_place(found: Message) -> SchemaPlace:
    flatbuffer = found.metadata[PREFIX_BYTES:]
    return SchemaPlace(flatbuffer, found.header, found.offset, len(found.metadata), is_message=True)


def _check_padding(file: BinaryIO, name: str, start: int, stop: int) -> None:
    """Raise unless there is nothing but padding, or the end marker, between two messages."""
    if start == stop:
        return
    file.seek(start)
    data = file.read(stop - start) if 0 < stop - start <= _MAX_PADDING_BYTES else CONTINUATION * 2
    if data.replace(CONTINUATION, b"", 1).strip(b"\0"):
        message = f"{name} is damaged: its footer lists no message from byte {start:,} to {stop:,}"
        raise DataFileError(message)


def _read_footer(file: BinaryIO, name: str, size: int) -> tuple[int, bytes]:
    """Return the start of the footer, and the footer."""
    file.seek(max(0, size - _FILE_TAIL_BYTES))
    tail = file.read(_FILE_TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    start = size - _FILE_TAIL_BYTES - length
    if not tail.endswith(MAGIC) or start < _FILE_HEAD_BYTES:
        message = f"{name} is truncated: it begins like an Arrow file, but its {size:,} bytes end without a footer"
        raise DataFileError(message)
    file.seek(start)
    return start, file.read(length)


def _open(storage: Storage, path: str, size: int, version: str) -> BinaryIO:
    """Return a file to search; for a remote file, the ranges that its footer announces are read in advance."""
    plain = RangeFile(storage, path, size, version)
    if storage.is_local:
        return cast("BinaryIO", io.BufferedReader(plain, _READ_AHEAD_BYTES))
    tail_start = max(0, size - _TAIL_BYTES)
    tail = read_range(storage, path, tail_start, size, version)
    if tail.endswith(MAGIC) and len(tail) >= _FILE_TAIL_BYTES:
        length = int.from_bytes(tail[-_FILE_TAIL_BYTES : -len(MAGIC)], "little") + _FILE_TAIL_BYTES
        if len(tail) < length <= size:
            tail = read_range(storage, path, size - length, tail_start, version) + tail
            tail_start = size - length
        blocks = _announced_blocks(tail[-length:-_FILE_TAIL_BYTES])
    else:
        blocks = []
    if not blocks and tail_start > 0:
        return cast("BinaryIO", io.BufferedReader(plain, _READ_AHEAD_BYTES))
    # The end of a body, the next header and the beginning of its body form one range.
    spans = [(0, blocks[0][0])] if blocks else []
    for offset, metadata, body in blocks:
        spans += [(offset - _SAMPLE_BYTES, offset + metadata + _SAMPLE_BYTES)]
        spans += [(offset + metadata + body - _SAMPLE_BYTES, offset + metadata + body + PREFIX_BYTES)]
    # Only hints: the search validates everything, and reads other ranges itself.
    clipped = [(max(0, start), min(stop, tail_start)) for start, stop in spans]
    ranges = coalesce([span for span in clipped if span[0] < span[1]], _MAX_GAP_BYTES, _MAX_SPAN_BYTES)
    found = read_ranges(storage, path, ranges, version)
    parts = [(start, bytes(data)) for (start, _), data in zip(ranges, found, strict=True)]
    return cast("BinaryIO", _PartlyRead(storage, path, size, version, [*parts, (tail_start, tail)]))


def _announced_blocks(footer: bytes) -> list[tuple[int, int, int]]:
    try:
        return parse_footer(footer).blocks
    except ValueError:
        return []


@final
class _PartlyRead(RangeFile):
    """A file with some ranges in memory."""

    def __init__(
        self, storage: Storage, path: str, size: int, version: str, parts: Sequence[tuple[int, bytes]]
    ) -> None:
        super().__init__(storage, path, size, version)
        self._parts = sorted(parts)
        self._starts = [start for start, _ in self._parts]

    def read(self, size: int | None = -1) -> bytes:
        offset = self.tell()
        index = bisect_right(self._starts, offset) - 1
        start, data = self._parts[index] if index >= 0 else (0, b"")
        if size is None or not 0 <= size <= start + len(data) - offset:
            return super().read(size)
        self.seek(offset + size)
        return data[offset - start : offset - start + size]

"""Arrow IPC, both the file and the stream format: blocks are record batches, found by the message headers.

The file format is the stream format between a magic and a footer, so the same walk over the messages reads both.
"""

from __future__ import annotations

import io
import mmap
import sys
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast, final

import numpy as np
import pyarrow as pa

from laneway.core.files import digest
from laneway.errors import DataFileError
from laneway.formats.base import FileScan
from laneway.formats.messages import (
    CONTINUATION,
    END_OF_STREAM,
    PREFIX_BYTES,
    MessageHeader,
    MessageKind,
    parse_footer,
    parse_header,
)
from laneway.storage.entries import file_size
from laneway.storage.ranges import coalesce
from laneway.storage.reading import RangeFile, read_range, read_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from laneway.formats.base import PlannedFile
    from laneway.storage.filesystem import Storage

    _Source = Callable[[Sequence[tuple[int, int]]], list[pa.Buffer]]

_MAGIC = b"ARROW1"
_FEATHER_1_MAGIC = b"FEA1"
_FILE_HEAD_BYTES = 8  # the padded magic
_FILE_TAIL_BYTES = 4 + len(_MAGIC)  # the footer's length, then the magic
_SAMPLE_BYTES = 1024
_READ_AHEAD_BYTES = 16 * 1024
_TAIL_BYTES = 64 * 1024
_MAX_GAP_BYTES = 64 * 1024
_MAX_SPAN_BYTES = 4 * 1024 * 1024
_MAP_NORESERVE = 0x4000

# Columns of the layout, which has one entry per message in file order; the last two are for dictionaries.
_KIND, _OFFSET, _METADATA, _BODY, _DICTIONARY, _IS_DELTA = range(6)


@final
class ArrowFormat:
    """Reads Arrow IPC by record batch; local files are memory-mapped, without a copy."""

    name = "arrow"
    suffixes = (".arrow", ".arrows", ".ipc", ".feather")
    block_name = "record batch"
    is_mapped = True
    tail_bytes = 0

    def recognises(self, head: bytes) -> bool:
        """Return whether a file may be an Arrow file or stream, given its first bytes."""
        return head.startswith((_MAGIC, CONTINUATION))

    def scan(
        self,
        storage: Storage,
        path: str,
        size: int,
        tail: bytes | None = None,  # noqa: ARG002 - headers are read from the front
        version: str = "",
    ) -> FileScan:
        """Walk over the message headers, and read only the first and the last KiB of each body.

        The digest covers all of these bytes: headers alone stay equal when fixed-width values are rewritten.
        """
        messages = list(_walk(storage, path, size, version))
        if not messages:
            message = f"{storage.redact(path)} contains no Arrow message: it is {'truncated' if size else 'empty'}"
            raise DataFileError(message)
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(messages[0].metadata))
        except (pa.ArrowException, OSError) as error:
            raise storage.error_for(path, "has a schema that pyarrow can't read", error) from storage.cause(error)
        batches = [each.header for each in messages if each.header.kind is MessageKind.RECORD_BATCH]
        return FileScan(
            schema=schema,
            block_rows=[header.num_rows for header in batches],
            block_bytes=[header.body_length for header in batches],
            block_memory_bytes=[header.body_length for header in batches],
            digest=digest(*(part for each in messages for part in (each.metadata, each.sample))),
            layout=[each.layout_entry() for each in messages],
        )

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> ArrowBlocks:
        """Open a file, memory-mapped if it is local. Record batches are validated when they are read.

        The size of a local file is checked here. The file must not be truncated while it is in use: the operating
        system kills a process that reads mapped memory beyond the end of a file.
        """
        path = planned.path
        if not storage.is_local:

            def fetch(spans: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
                return [pa.py_buffer(span) for span in read_ranges(storage, path, spans, planned.version)]

            return ArrowBlocks(fetch, planned.layout, schema)
        size = file_size(storage, path)
        if size != planned.size:
            difference = f"it had {planned.size:,} bytes and now has {size:,}"
            raise storage.change_error(planned.path, difference)
        try:
            mapped = _map_copy_on_write(path, size)
        except OSError as error:
            raise storage.error_for(path, "can't be memory-mapped", error) from storage.cause(error)
        return ArrowBlocks(
            lambda spans: [mapped.slice(start, stop - start) for start, stop in spans], planned.layout, schema
        )


@final
class ArrowBlocks:
    """An open Arrow file or stream."""

    def __init__(self, source: _Source, layout: NDArray[np.int64], schema: pa.Schema) -> None:
        """Store the parts of an open file.

        Args:
            source: Returns the bytes [start, stop) of the file for each of several ranges.
            layout: Positions of its messages.
            schema: Its columns.
        """
        self._source: _Source | None = source
        self._starts = layout[:, _OFFSET]
        self._stops = layout[:, [_OFFSET, _METADATA, _BODY]].sum(axis=1)
        self._batches = np.flatnonzero(layout[:, _KIND] == MessageKind.RECORD_BATCH)
        self._dictionaries = np.flatnonzero(layout[:, _KIND] == MessageKind.DICTIONARY)
        self._layout = layout
        self._schema = schema

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Return the record batches [first, stop) of these columns, in this order.

        Zero-copy for a local file of uncompressed batches without dictionaries. The memory is copy-on-write, so a
        modification in place is not visible outside of this process.
        """
        indices = self._batches[first:stop]
        if len(self._dictionaries):
            batches = self._read_stream(self._with_dictionaries(indices))
        else:
            messages = map(pa.ipc.read_message, self._messages(indices))
            batches = [pa.ipc.read_record_batch(message, self._schema) for message in messages]
        for batch in batches:
            batch.validate()
        return pa.Table.from_batches(batches, self._schema).select(list(columns))

    def close(self) -> None:
        """Release the file; a memory map lives as long as the last table that was read from it."""
        self._source = None

    def _messages(self, indices: NDArray[np.int64]) -> Iterator[pa.Buffer]:
        """Yield these messages, read in one call, consecutive messages as one range."""
        if self._source is None:
            message = "the file is closed"
            raise ValueError(message)
        starts, stops = self._starts[indices], self._stops[indices]
        cuts = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        groups = list(zip(np.split(starts, cuts), np.split(stops, cuts), strict=True))
        spans = self._source([(int(first[0]), int(last[-1])) for first, last in groups])
        for span, (span_starts, span_stops) in zip(spans, groups, strict=True):
            origin = int(span_starts[0])
            for start, stop in zip(span_starts.tolist(), span_stops.tolist(), strict=True):
                yield span.slice(start - origin, stop - start)

    def _with_dictionaries(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the schema, of the dictionary messages that these batches need, and of the batches."""
        schema = np.zeros(1, np.int64)
        if self._starts[0] > 0:  # file format: its dictionaries apply to all batches
            return np.concatenate([schema, self._dictionaries, indices])
        before = self._dictionaries[self._dictionaries < indices[0]]
        ids, is_delta = self._layout[before, _DICTIONARY], self._layout[before, _IS_DELTA]
        needed = []
        for dictionary_id in np.unique(ids):
            same = before[ids == dictionary_id]
            replacements = np.flatnonzero(is_delta[ids == dictionary_id] == 0)
            needed.append(same[replacements[-1] if len(replacements) else 0 :])
        between = np.arange(indices[0], indices[-1] + 1)
        return np.concatenate([schema, np.sort(np.concatenate(needed)), between])

    def _read_stream(self, indices: NDArray[np.int64]) -> list[pa.RecordBatch]:
        """Return the batches in a stream of these messages, with dictionaries applied."""
        stream = pa.BufferOutputStream()
        for message in self._messages(indices):
            stream.write(message)
        stream.write(END_OF_STREAM)
        with pa.ipc.open_stream(stream.getvalue()) as reader:
            return [pa.RecordBatch.from_arrays(batch.columns, schema=self._schema) for batch in reader]


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a file, without its body."""

    offset: int
    """Offset of its prefix."""
    metadata: bytes
    """Prefix and flatbuffer."""
    header: MessageHeader
    """The parsed flatbuffer."""
    sample: bytes
    """The first and last KiB of the body."""

    def layout_entry(self) -> list[int]:
        """Return the layout entry of the message."""
        header = self.header
        size = [self.offset, len(self.metadata), header.body_length]
        return [int(header.kind), *size, header.dictionary_id, int(header.is_delta)]


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


def _headers(storage: Storage, path: str, size: int, version: str) -> BinaryIO:
    """Return a file for `_walk`; for a remote file, the ranges that the footer announces are read in advance."""
    if storage.is_local:
        return cast("BinaryIO", io.BufferedReader(RangeFile(storage, path, size, version), _READ_AHEAD_BYTES))
    tail_start = max(0, size - _TAIL_BYTES)
    tail = read_range(storage, path, tail_start, size, version)
    footer_end = len(tail) - _FILE_TAIL_BYTES
    footer_start = footer_end - int.from_bytes(tail[max(0, footer_end) : max(0, footer_end) + 4], "little")
    blocks: list[tuple[int, int, int]] = []
    if tail.endswith(_MAGIC) and footer_start >= 0:
        with suppress(ValueError):
            blocks = parse_footer(tail[footer_start:footer_end])
    if not blocks and tail_start > 0:
        return cast("BinaryIO", io.BufferedReader(RangeFile(storage, path, size, version), _READ_AHEAD_BYTES))
    # The end of a body, the next header and the beginning of its body form one range.
    spans = [(0, blocks[0][0])] if blocks else []
    for offset, metadata, body in blocks:
        spans += [(offset - _SAMPLE_BYTES, offset + metadata + _SAMPLE_BYTES)]
        spans += [(offset + metadata + body - _SAMPLE_BYTES, offset + metadata + body + PREFIX_BYTES)]
    # Only hints: the walk validates everything, and reads other ranges itself.
    clipped = [(max(0, start), min(stop, tail_start)) for start, stop in spans]
    ranges = coalesce([span for span in clipped if span[0] < span[1]], _MAX_GAP_BYTES, _MAX_SPAN_BYTES)
    found = read_ranges(storage, path, ranges, version)
    parts = [(start, bytes(data)) for (start, _), data in zip(ranges, found, strict=True)]
    return cast("BinaryIO", _PartlyRead(storage, path, size, version, [*parts, (tail_start, tail)]))


def _walk(storage: Storage, path: str, size: int, version: str) -> Iterator[_Message]:
    """Yield the messages of a file, the schema first."""
    file = _headers(storage, path, size, version)
    name = storage.redact(path)
    offset, end = _message_range(file, name, size)
    is_first = True
    while offset < end:
        file.seek(offset)
        prefix = file.read(PREFIX_BYTES)
        metadata_end = offset + PREFIX_BYTES + int.from_bytes(prefix[4:], "little")
        if not prefix.startswith(CONTINUATION[: len(prefix)]):
            message = (
                f"{name} has no Arrow message at byte {offset:,}: it is damaged, not an Arrow file, or was "
                f"written by Arrow before 0.15 (rewrite it with a recent Arrow)"
            )
            raise DataFileError(message)
        if prefix == END_OF_STREAM:
            if end == size and metadata_end < end:
                extra = end - metadata_end
                message = f"{name} has {extra:,} bytes after the end of its stream: the file may hold two streams"
                raise DataFileError(message)
            return
        metadata = prefix + (file.read(metadata_end - file.tell()) if metadata_end <= end else b"")
        try:
            header = parse_header(metadata[PREFIX_BYTES:]) if metadata_end <= end else None
        except ValueError as error:
            message = f"{name} has an invalid message at byte {offset:,}: {error}"
            raise DataFileError(message) from error
        body_end = metadata_end + header.body_length if header else metadata_end
        if header is None or body_end > end:
            message = f"{name} is truncated: the message at byte {offset:,} ends at byte {body_end:,} of {end:,}"
            raise DataFileError(message)
        if (header.kind is MessageKind.SCHEMA) is not is_first:
            message = f"{name} has {'no' if is_first else 'a second'} schema at byte {offset:,}: it is damaged"
            raise DataFileError(message)
        head = file.read(min(_SAMPLE_BYTES, header.body_length))
        file.seek(max(file.tell(), body_end - _SAMPLE_BYTES))
        yield _Message(offset, metadata, header, head + file.read(body_end - file.tell()))
        offset, is_first = body_end, False


def _message_range(file: BinaryIO, name: str, size: int) -> tuple[int, int]:
    """Return the start of the messages, and an upper bound of their end."""
    head = file.read(_FILE_HEAD_BYTES)
    if head.startswith(_FEATHER_1_MAGIC):
        message = f"{name} is of Feather version 1, which laneway can't read: rewrite it as version 2"
        raise DataFileError(message)
    if not head.startswith(_MAGIC):
        return 0, size
    file.seek(max(0, size - _FILE_TAIL_BYTES))
    tail = file.read(_FILE_TAIL_BYTES)
    end = size - _FILE_TAIL_BYTES - int.from_bytes(tail[:4], "little")
    if not tail.endswith(_MAGIC) or end < _FILE_HEAD_BYTES:
        message = f"{name} is truncated: it begins like an Arrow file, but its {size:,} bytes end without a footer"
        raise DataFileError(message)
    return _FILE_HEAD_BYTES, end


def _map_copy_on_write(path: str, size: int) -> pa.Buffer:
    """Map a file as writable memory whose modifications are not written to the file."""
    flags = mmap.MAP_PRIVATE
    if sys.platform == "linux":
        # Otherwise a private map of a file larger than memory may be refused.
        flags |= _MAP_NORESERVE
    with open(path, "rb") as file:  # noqa: PTH123 - paths are strings here
        return pa.py_buffer(mmap.mmap(file.fileno(), size, flags, mmap.PROT_READ | mmap.PROT_WRITE))

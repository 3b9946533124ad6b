"""Arrow IPC, both the file and the stream format: blocks are record batches, read one by one."""

from __future__ import annotations

import mmap
import os
import sys
import threading
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, final

import numpy as np
import pyarrow as pa

from laneway.core.files import digest
from laneway.errors import DataFileError
from laneway.formats.arrow_checks import check_messages
from laneway.formats.arrow_files import MAGIC, find_messages
from laneway.formats.base import FileScan, Format, name_error
from laneway.formats.field_paths import path_of, select_fields
from laneway.formats.messages import (
    CONTINUATION,
    END_OF_STREAM,
    PREFIX_BYTES,
    HeaderParser,
    MessageKind,
    build_metadata,
    parse_dictionary_ids,
    parse_footer,
    parse_header,
)
from laneway.formats.nested_types import text_as_bytes, without_dictionaries
from laneway.formats.record_batches import (
    check_compressed_lengths,
    dictionary_value_types,
    needs_validation,
)
from laneway.metering import current_meter
from laneway.storage.reading import open_local, read_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.formats.arrow_files import Message
    from laneway.formats.base import BlockMatches, PlannedFile
    from laneway.formats.messages import MessageHeader
    from laneway.storage.filesystem import Storage

    _Source = Callable[[Sequence[tuple[int, int]]], list[pa.Buffer]]

_MAP_NORESERVE = 0x4000
_MAX_CONFIRMED: Final = 1 << 16  # files whose contents this process remembers having compared

# Columns of the layout, which has one entry per message in file order, the schema first. The last two are for
# dictionaries; in the entry of the schema, the last one tells whether bodies are big-endian.
_KIND, _OFFSET, _METADATA, _BODY, _DICTIONARY, _FLAG = range(6)
_FOOTER_KIND = 0
"""Kind of a schema that is in the footer only; the others are those of `MessageKind`."""


@final
class ArrowFormat(Format):
    """Reads Arrow IPC by record batch; local files are memory-mapped, without a copy."""

    name = "arrow"
    suffixes = (".arrow", ".arrows", ".ipc", ".feather")
    block_name = "record batch"
    is_mapped = True

    def recognises(self, head: bytes) -> bool:
        """Return whether a file may be an Arrow file or stream, given its first bytes."""
        return head.startswith((MAGIC, CONTINUATION))

    def scan(
        self,
        storage: Storage,
        path: str,
        size: int,
        tail: bytes | None = None,  # noqa: ARG002 - headers are read from the front
        version: str = "",
    ) -> FileScan:
        """Find the messages, and read only their headers and the first and the last KiB of each body.

        The digest covers all of these bytes: headers alone stay equal when fixed-width values are rewritten. Every
        header is checked: it must have the arrays and buffers of its columns, and its body must hold its rows.
        """
        found = find_messages(storage, path, size, version)
        try:
            schema = found.schema.read()
            in_footer = schema if found.footer_schema is None else found.footer_schema.read()
            schema.types, schema.names  # noqa: B018 - read here, because they may raise
        except UnicodeDecodeError as error:
            raise name_error(storage, path, error) from storage.cause(error)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise storage.error_for(path, "has a schema that pyarrow can't read", error) from storage.cause(error)
        if not schema.equals(in_footer):
            message = f"{storage.redact(path)} is damaged: its footer has another schema than its first message"
            raise DataFileError(message)
        if not found.has_end:
            warnings.warn(
                f"{storage.redact(path)} ends without the end marker of an Arrow stream: rows may be missing if its "
                f"writer was interrupted",
                stacklevel=2,
            )
        memory_bytes = check_messages(storage, path, found, schema, version)
        batches = [each.header for each in found.messages if each.header.kind is MessageKind.RECORD_BATCH]
        place = found.schema
        kind = int(MessageKind.SCHEMA) if place.is_message else _FOOTER_KIND
        first = [kind, place.offset, place.length, place.header.body_length, -1, int(place.header.is_big_endian)]
        return FileScan(
            # Built from its fields: it has the byte order of the machine, to which bodies are converted.
            schema=pa.schema(list(schema)).with_metadata(schema.metadata),
            block_rows=[header.num_rows for header in batches],
            block_bytes=[header.body_length for header in batches],
            block_memory_bytes=memory_bytes,
            digest=digest(*found.digest_parts),
            layout=[first, *map(_layout_entry, found.messages)],
        )

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> ArrowBlocks:
        """Open a file, memory-mapped if it is local. Record batches are validated when they are read.

        A local file must have the planned size, and the planned modification time or digest. It must not be truncated
        while it is in use: the operating system kills a process that reads mapped memory beyond the end of a file.
        """
        path = planned.path
        if not storage.is_local:
            if not planned.version:
                # Without a version, reads could not detect that the file has changed.
                _compare_digest(self, storage, planned)

            def fetch(spans: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
                return [pa.py_buffer(span) for span in read_ranges(storage, path, spans, planned.version)]

            return ArrowBlocks(fetch, planned.layout, schema)
        with storage.translate_errors(path), open_local(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size != planned.size:
                difference = f"it had {planned.size:,} bytes and now has {status.st_size:,}"
                raise storage.change_error(path, difference)
            if str(status.st_mtime_ns) != planned.version:
                # Rewritten, or copied: only the contents tell.
                key = (path, planned.digest, status.st_ino, status.st_mtime_ns)
                _confirmed.require(key, lambda: _compare_digest(self, storage, planned))
            try:
                mapped = _map_copy_on_write(file.fileno(), planned.size)
            except OSError as error:
                raise storage.error_for(path, "can't be memory-mapped", error) from storage.cause(error)

        def look_up(spans: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
            if (meter := current_meter()) is not None:
                meter.count_bytes(sum(stop - start for start, stop in spans))
            return [mapped.slice(start, stop - start) for start, stop in spans]

        return ArrowBlocks(look_up, planned.layout, schema)


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
        self._positions = {name: position for position, name in enumerate(schema.names)}
        # Only pyarrow's stream reader applies dictionaries and converts the byte order.
        self._needs_stream = len(self._dictionaries) > 0 or layout[0, _FLAG] != 0
        # As bytes: strings that are not UTF-8 are safe to read, and checking them takes as long as decoding them later.
        self._to_validate = {field.name: text_as_bytes(field.type) for field in schema if needs_validation(field.type)}
        self._parser = HeaderParser()
        self._checked: set[int] = set()
        """Messages whose compressed lengths and dictionary values have been checked."""
        self._validated: set[tuple[int, str]] = set()
        """Messages and columns whose values have been validated."""

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Return the record batches [first, stop) of these columns, in this order.

        Zero-copy for a local file of uncompressed batches without dictionaries. The memory is copy-on-write, so a
        modification in place is not visible outside of this process.

        Raises:
            ValueError, pa.ArrowException: A batch is damaged.
        """
        fields = [(name, path_of(self._schema, name)) for name in columns]
        names = [*dict.fromkeys(path[0] for _, path in fields)]
        is_all = names == [*self._positions]
        schema = self._schema if is_all else pa.schema([self._schema.field(name) for name in names])
        indices = self._batches[first:stop]
        if self._needs_stream:
            batches = self._read_stream(self._with_dictionaries(indices))
        else:
            messages = [self._check(*each) for each in zip(indices.tolist(), self._messages(indices), strict=True)]
            batches = [_decode(each, self._schema) for each in messages]
        if len(batches) != len(indices):
            text = f"it has {len(batches):,} record batches where {len(indices):,} were planned"
            raise ValueError(text)
        # By position: a file that was damaged since it was planned may have other names.
        positions = [self._positions[name] for name in names]
        selected = batches if is_all else [batch.select(positions) for batch in batches]
        if self._needs_stream and names:
            # After the selection: pyarrow can't read the columns of all types.
            selected = [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in selected]
        for index, batch in zip(indices.tolist(), selected, strict=True):
            batch.validate()
            for name in self._to_validate.keys() & names:
                # Once per open file: a batch may be read in many parts.
                if (index, name) not in self._validated:
                    column, as_bytes = batch.column(name), self._to_validate[name]
                    (column if as_bytes is None else column.view(as_bytes)).validate(full=True)
                    self._validated.add((index, name))
        return select_fields(pa.Table.from_batches(selected, schema), fields)

    def matches(self, *_: object) -> BlockMatches | None:
        """Return None: there are no statistics."""
        return None

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

    def _check(self, index: int, message: pa.Buffer) -> pa.Buffer:
        """Return a message, after checking that decompressing it allocates no more than it can hold."""
        if index not in self._checked:
            metadata_bytes = int(self._layout[index, _METADATA])
            metadata = message[PREFIX_BYTES:metadata_bytes].to_pybytes()
            if self._parser.is_compressed_batch(metadata):
                check_compressed_lengths(parse_header(metadata), message.slice(metadata_bytes))
            self._checked.add(index)
        return message

    def _split(self, index: int, message: pa.Buffer) -> tuple[bytes, pa.Buffer]:
        """Return the flatbuffer and the body of a message."""
        metadata_bytes = int(self._layout[index, _METADATA])
        return message.slice(PREFIX_BYTES, metadata_bytes - PREFIX_BYTES).to_pybytes(), message.slice(metadata_bytes)

    def _with_dictionaries(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the schema, of the dictionary messages that these batches need, and of the batches."""
        schema = np.zeros(1, np.int64)
        if self._starts[0] > 0:  # file format: its dictionaries apply to all batches
            return np.concatenate([schema, self._dictionaries, indices])
        before = self._dictionaries[self._dictionaries < indices[0]]
        ids, is_delta = self._layout[before, _DICTIONARY], self._layout[before, _FLAG]
        needed = []
        for dictionary_id in np.unique(ids):
            same = before[ids == dictionary_id]
            replacements = np.flatnonzero(is_delta[ids == dictionary_id] == 0)
            needed.append(same[replacements[-1] if len(replacements) else 0 :])
        between = np.arange(indices[0], indices[-1] + 1)
        return np.concatenate([schema, np.sort(np.concatenate([*needed, []])).astype(np.int64), between])

    def _read_stream(self, indices: NDArray[np.int64]) -> list[pa.RecordBatch]:
        """Return the batches in a stream of these messages, with dictionaries applied and in the schema of the file."""
        stream = pa.BufferOutputStream()
        messages = list(self._messages(indices))
        value_types = self._write_schema(stream, messages[0])
        for index, message in zip(indices[1:].tolist(), messages[1:], strict=True):
            if index not in self._checked and self._layout[index, _KIND] == MessageKind.DICTIONARY:
                self._check_dictionary(index, message, value_types)
            stream.write(self._check(index, message))
        stream.write(END_OF_STREAM)
        with pa.ipc.open_stream(stream.getvalue()) as reader:
            return list(reader)

    def _write_schema(self, stream: pa.BufferOutputStream, message: pa.Buffer) -> Mapping[int, pa.DataType]:
        """Write the schema message, and return the type of the values of each dictionary."""
        if self._layout[0, _KIND] == _FOOTER_KIND:
            flatbuffer = message.to_pybytes()
            header = parse_footer(flatbuffer).schema
        else:
            flatbuffer = self._split(0, message)[0]
            header = parse_header(flatbuffer)
        stream.write(build_metadata(flatbuffer, header, MessageKind.SCHEMA))
        ids = parse_dictionary_ids(flatbuffer, header)
        return dict(zip(ids, dictionary_value_types(self._schema.types), strict=True))

    def _check_dictionary(self, index: int, message: pa.Buffer, value_types: Mapping[int, pa.DataType]) -> None:
        """Validate the values of a dictionary, which pyarrow may concatenate with others before it returns them."""
        metadata, body = self._split(index, message)
        header = parse_header(metadata)
        if header.is_compressed:
            check_compressed_lengths(header, body)
        if self._layout[0, _FLAG]:
            # Only the stream reader converts the byte order. It ignores the values of a dictionary that is replaced.
            if header.is_delta:
                text = "big-endian files whose dictionaries grow can't be read: rewrite them"
                raise ValueError(text)
            return
        values = pa.schema([("values", without_dictionaries(value_types[header.dictionary_id]))])
        stream = pa.BufferOutputStream()
        stream.write(build_metadata(metadata, header, MessageKind.RECORD_BATCH))
        stream.write(body)
        _decode(stream.getvalue(), values).validate(full=True)


@final
class _Confirmed:
    """Files whose contents this process has compared with the plan."""

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._lock = threading.Lock()
        # A child forked while a thread holds the lock would wait for it forever.
        os.register_at_fork(after_in_child=self._after_fork)

    def require(self, key: tuple[object, ...], compare: Callable[[], None]) -> None:
        """Call `compare`, which raises if a file has changed, unless it has not raised for this key before."""
        with self._lock:
            if key in self._keys:
                return
        compare()
        with self._lock:
            self._keys[key] = None
            if len(self._keys) > _MAX_CONFIRMED:
                self._keys.popitem(last=False)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


_confirmed = _Confirmed()


def _compare_digest(format_: ArrowFormat, storage: Storage, planned: PlannedFile) -> None:
    """Raise unless a file still has the contents that were planned."""
    found = format_.scan(storage, planned.path, planned.size, version=planned.version).digest
    if found != planned.digest:
        difference = f"its message headers had the digest {planned.digest} and now have {found}"
        raise storage.change_error(planned.path, difference)


def _decode(message: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """Return the record batch of a message, without a copy unless it is compressed."""
    try:
        return pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)
    except EOFError as error:
        text = "its header is missing"
        raise ValueError(text) from error


def _layout_entry(found: Message) -> list[int]:
    header: MessageHeader = found.header
    size = [found.offset, len(found.metadata), header.body_length]
    return [int(header.kind), *size, header.dictionary_id, int(header.is_delta)]


def _map_copy_on_write(file: int, size: int) -> pa.Buffer:
    """Map a file as writable memory whose modifications are not written to the file."""
    flags = mmap.MAP_PRIVATE
    if sys.platform == "linux":
        # Otherwise a private map of a file larger than memory may be refused.
        flags |= _MAP_NORESERVE
    return pa.py_buffer(mmap.mmap(file, size, flags, mmap.PROT_READ | mmap.PROT_WRITE))

"""Parquet files: blocks are row groups, described by the footer."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, cast, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet.core import ParquetReader

from laneway.core.files import digest
from laneway.errors import DataFileError
from laneway.formats.base import FileScan, Format, name_error
from laneway.formats.fetched_file import FetchedFile
from laneway.formats.field_paths import field_type, path_of, select_fields
from laneway.formats.row_group_matches import row_group_matches
from laneway.formats.row_groups import check_chunks, check_row_counts, chunk_range, leaf_ranges, memory_bytes
from laneway.metering import current_meter
from laneway.storage.entries import file_size
from laneway.storage.ranges import coalesce
from laneway.storage.reading import read_range, read_ranges
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import IOBase

    import pyarrow.compute as pc
    from numpy.typing import NDArray

    from laneway.formats.base import BlockMatches, BlockReader, PlannedFile
    from laneway.formats.field_paths import FieldPath
    from laneway.storage.filesystem import Storage

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_TRAILER_BYTES = 8  # the footer's length, then the magic
_MAX_GAP_BYTES: Final = 1 << 20  # between two ranges: reading it is cheaper than another request
_MAX_SPAN_BYTES: Final = 32 << 20  # of a merged range: a lost connection costs all of it
_FOOTER_EXPANSION: Final = 8  # approximate size of a decoded footer, in multiples of its size in the file
_PIECE_BYTES: Final = 512 << 10
"""Encoded bytes of the rows that are decoded at a time where some of them are selected: what they take in memory, the
next ones find in a cache of the processor, and no page of it is returned to the system in between."""
_MAX_SCHEMAS: Final = 16  # whose columns a process remembers
_MAX_FOOTER_BYTES: Final = 64 << 20  # of all decoded footers of remote files that a process caches
_MAX_LOCAL_FOOTER_BYTES: Final = 8 << 20  # of local ones: each thread opens a file, and each epoch does again


@final
class ParquetFormat(Format):
    """Reads Parquet files with pyarrow, by row group and column."""

    name = "parquet"
    suffixes = (".parquet", ".pq")
    block_name = "row group"
    skips_rows = True
    skips_columns = True
    tail_bytes = 64 * 1024

    def recognises(self, head: bytes) -> bool:
        """Return whether a file may be a Parquet file, given its first bytes."""
        return head.startswith((_MAGIC, _ENCRYPTED_MAGIC))

    def scan(self, storage: Storage, path: str, size: int, tail: bytes | None = None, version: str = "") -> FileScan:
        """Read the footer, in one request unless it is longer than 64 KiB.

        The digest covers the last 64 KiB and the whole footer, so that it changes when a small file is rewritten
        even if the footer stays the same.
        """
        tail = _read_tail(storage, path, size, tail, version)
        reader = _open_footer(storage, path, tail)
        try:
            schema = reader.schema_arrow
            column_paths = reader.column_paths
        except UnicodeDecodeError as error:
            raise name_error(storage, path, error) from storage.cause(error)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise storage.error_for(path, "has columns that pyarrow can't read", error) from storage.cause(error)
        metadata = reader.metadata
        block_rows = _checked_rows(storage, path, metadata)
        return FileScan(
            schema=schema,
            block_rows=block_rows,
            block_bytes=[metadata.row_group(i).total_byte_size for i in range(len(block_rows))],
            block_memory_bytes=memory_bytes(
                metadata, schema, column_paths, tail[-metadata.serialized_size - _TRAILER_BYTES : -_TRAILER_BYTES]
            ),
            digest=digest(tail),
            layout=[],
        )

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> BlockReader:
        """Open a file, and check that its footer has not changed since it was planned.

        Footers are cached in memory, so that each process reads those of remote files once, and parses those of local
        files once.
        """
        footer = _planned_footer(storage, planned)
        if storage.is_local:
            try:
                # Not memory-mapped: a file that is truncated during a read would kill the process.
                source = pa.OSFile(planned.path, mode="r")
                # Not pre-buffered: an open file would keep the bytes of the row groups that were read from it.
                file = pq.ParquetFile(source, metadata=footer, pre_buffer=False, page_checksum_verification=True)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise storage.error_for(planned.path, "can't be opened", error) from storage.cause(error)
            return ParquetBlocks(file, planned, _columns_of(schema))
        return RemoteParquetBlocks(storage, planned, footer, _columns_of(schema))


@final
class ParquetBlocks:
    """An open local Parquet file."""

    def __init__(self, file: pq.ParquetFile, planned: PlannedFile, columns: _Columns) -> None:
        """Store an open file.

        Args:
            file: The file.
            planned: The file as the manifest describes it.
            columns: Its columns.
        """
        self._file = file
        self._planned = planned
        self._columns = columns

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Decode the row groups [first, stop) of these columns, in this order."""
        table = self._columns.decode(self._file, first, stop, columns)
        self._check(first, stop, columns)
        return table

    def read_selected(self, first: int, stop: int, columns: Sequence[str], mask: NDArray[np.bool_]) -> pa.Table:
        """Decode some rows of the row groups [first, stop)."""
        if not columns:
            return self.read(first, stop, columns).slice(0, int(np.count_nonzero(mask)))
        if any(_has_dictionary(self._columns.type_of(name)) for name in columns):
            # Each piece would have a copy of the dictionary.
            return self.read(first, stop, columns).filter(pa.array(mask))
        table = self._columns.decode_selected(self._file, first, stop, columns, mask)
        self._check(first, stop, columns)
        return table

    def _check(self, first: int, stop: int, columns: Sequence[str]) -> None:
        # After decoding, which finds damaged size statistics: pyarrow aborts the process when it is asked for them.
        _, num_bytes = self._columns.check(self._file.metadata, first, stop, columns, self._planned.size)
        if (meter := current_meter()) is not None:
            meter.count_bytes(num_bytes)

    def matches(
        self, conditions: Sequence[pc.Expression], schema: pa.Schema, known: Mapping[str, Any]
    ) -> BlockMatches | None:
        """See BlockReader."""
        return row_group_matches(self._file.metadata, conditions, schema, self._columns.leaves, known)

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)


@final
class RemoteParquetBlocks:
    """A remote Parquet file. It holds nothing open: each read requests all its ranges concurrently."""

    def __init__(self, storage: Storage, planned: PlannedFile, metadata: pq.FileMetaData, columns: _Columns) -> None:
        """Prepare to read.

        Args:
            storage: Where the file is.
            planned: The file as the manifest describes it.
            metadata: Its footer.
            columns: Its columns.
        """
        self._storage = storage
        self._planned = planned
        self._metadata = metadata
        self._columns = columns

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Decode the row groups [first, stop) of these columns, in this order."""
        planned = self._planned
        leaves, _ = self._columns.check(self._metadata, first, stop, columns, planned.size)
        chunks = [chunk_range(self._metadata.row_group(i).column(leaf)) for i in range(first, stop) for leaf in leaves]
        ranges = coalesce(chunks, _MAX_GAP_BYTES, _MAX_SPAN_BYTES)
        parts = read_ranges(self._storage, planned.path, ranges, planned.version)
        fetched = FetchedFile(self._storage, planned.path, planned.size, ranges, parts, version=planned.version)
        file = pq.ParquetFile(
            pa.PythonFile(cast("IOBase", fetched), mode="r"), metadata=self._metadata, page_checksum_verification=True
        )
        return self._columns.decode(file, first, stop, columns)

    def matches(
        self, conditions: Sequence[pc.Expression], schema: pa.Schema, known: Mapping[str, Any]
    ) -> BlockMatches | None:
        """See BlockReader."""
        return row_group_matches(self._metadata, conditions, schema, self._columns.leaves, known)

    def close(self) -> None:
        """Do nothing: no file is open."""


class _Columns:
    """The columns of the files of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.leaves = leaf_ranges(schema)
        self._found: tuple[tuple[str, ...], list[FieldPath], list[int]] = ((), [], [])
        """The latest names, their paths and their leaves; replaced as a whole, because threads share it."""

    def _find(self, names: Sequence[str]) -> tuple[list[FieldPath], list[int]]:
        """Return the paths of some columns, and their leaves."""
        latest, paths, leaves = self._found
        if latest != tuple(names):
            paths = [path_of(self.schema, name) for name in names]
            leaves = [leaf for path in paths for leaf in self._leaves_of(path)]
            self._found = tuple(names), paths, leaves
        return paths, leaves

    def check(
        self, metadata: pq.FileMetaData, first: int, stop: int, names: Sequence[str], size: int
    ) -> tuple[list[int], int]:
        """Check what the footer says about some columns; return the indices of their leaves, and bytes in the file."""
        _, leaves = self._find(names)
        return leaves, sum(check_chunks(metadata, group, leaves, size) for group in range(first, stop))

    def decode(self, file: pq.ParquetFile, first: int, stop: int, names: Sequence[str]) -> pa.Table:
        """Decode the row groups [first, stop) of some columns."""
        # pyarrow interprets names as paths into structs too, but returns these structs, in file order.
        table: pa.Table = file.read_row_groups(
            list(range(first, stop)), columns=list(names), use_threads=_uses_threads()
        )
        paths, _ = self._find(names)
        return select_fields(table, list(zip(names, paths, strict=True)))

    def decode_selected(
        self, file: pq.ParquetFile, first: int, stop: int, names: Sequence[str], mask: NDArray[np.bool_]
    ) -> pa.Table:
        """Decode some rows of the row groups [first, stop), a few of them at a time."""
        groups = [file.metadata.row_group(group) for group in range(first, stop)]
        row_bytes = sum(group.total_byte_size for group in groups) // max(1, len(mask))
        num_rows = max(1, _PIECE_BYTES // max(1, row_bytes))
        pieces: list[pa.RecordBatch] = []
        start = 0
        for piece in file.iter_batches(
            num_rows, row_groups=[*range(first, stop)], columns=list(names), use_threads=_uses_threads()
        ):
            of_piece = mask[start : start + len(piece)]
            start += len(piece)
            if not pieces or of_piece.any():
                pieces.append(piece.filter(pa.array(of_piece)))
        if start != len(mask):
            message = f"{len(mask):,} rows were expected, and {start:,} found"
            raise pa.ArrowInvalid(message)
        paths, _ = self._find(names)
        return select_fields(pa.Table.from_batches(pieces), list(zip(names, paths, strict=True)))

    def type_of(self, name: str) -> pa.DataType:
        """Return the type of a column."""
        return field_type(self.schema, path_of(self.schema, name))

    def _leaves_of(self, path: FieldPath) -> range:
        found, type_ = self.leaves[path[0]], self.schema.field(path[0]).type
        for each in path[1:]:
            found, type_ = leaf_ranges(type_, found.start)[each], type_.field(each).type
        return found


def _uses_threads() -> bool:
    """Return whether to decode in Arrow's thread pool: a pool of one thread only takes memory of its own."""
    return pa.cpu_count() > 1


def _has_dictionary(data_type: pa.DataType) -> bool:
    children = (data_type.field(i).type for i in range(data_type.num_fields))
    return pa.types.is_dictionary(data_type) or any(map(_has_dictionary, children))


_latest_columns: tuple[_Columns, ...] = ()


def _columns_of(schema: pa.Schema) -> _Columns:
    """Return the columns of a file; most files of a dataset have one of a few schemas."""
    global _latest_columns  # noqa: PLW0603 - computing them takes longer than opening a file of many columns
    found = next((each for each in _latest_columns if each.schema is schema or each.schema.equals(schema)), None)
    if found is None:
        found = _Columns(schema)
        _latest_columns = (found, *_latest_columns[: _MAX_SCHEMAS - 1])
    return found


class _FooterCache:
    """The footers that this process has used most recently."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._cached: OrderedDict[tuple[object, ...], pq.FileMetaData] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        # A child forked while a thread holds the lock would wait for it forever.
        os.register_at_fork(after_in_child=self._after_fork)

    def get(self, key: tuple[object, ...]) -> pq.FileMetaData | None:
        with self._lock:
            metadata = self._cached.get(key)
            if metadata is not None:
                self._cached.move_to_end(key)
            return metadata

    def put(self, key: tuple[object, ...], metadata: pq.FileMetaData) -> None:
        with self._lock:
            previous = self._cached.pop(key, None)
            self._cached[key] = metadata
            self._bytes += _memory_bytes(metadata) - (_memory_bytes(previous) if previous else 0)
            while self._bytes > self._max_bytes and len(self._cached) > 1:
                self._bytes -= _memory_bytes(self._cached.popitem(last=False)[1])

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


def _memory_bytes(metadata: pq.FileMetaData) -> int:
    return _FOOTER_EXPANSION * metadata.serialized_size


_remote_footers = _FooterCache(_MAX_FOOTER_BYTES)
_local_footers = _FooterCache(_MAX_LOCAL_FOOTER_BYTES)


def _planned_footer(storage: Storage, planned: PlannedFile) -> pq.FileMetaData:
    """Return the footer of a file, after checking that it has not changed since it was planned."""
    footers = _local_footers if storage.is_local else _remote_footers
    key = (storage.redact(planned.path), planned.size, planned.version, planned.digest)
    cached = footers.get(key)
    # Without a version, later reads of a remote file could not detect that the file has changed.
    if cached is not None and planned.version and not storage.is_local:
        return cached
    try:
        tail = _read_tail(storage, planned.path, planned.size, version=planned.version)
        tail_digest = digest(tail)
        if cached is not None and tail_digest == planned.digest:
            return cached
        metadata = _open_footer(storage, planned.path, tail).metadata
    except DataFileError:
        if planned.version and not storage.is_local:
            # The read has compared versions; don't ask a failing storage again.
            raise
        size = file_size(storage, planned.path)
        if size == planned.size:
            raise
        difference = f"it had {planned.size:,} bytes and now has {size:,}"
        raise storage.change_error(planned.path, difference) from None
    rows = _checked_rows(storage, planned.path, metadata)
    if not np.array_equal(rows, planned.block_rows):
        had, groups = int(planned.block_rows.sum()), counted(len(planned.block_rows), "row group")
        difference = f"it had {counted(had, 'row')} in {groups} and now has {sum(rows):,} in {len(rows):,}"
        raise storage.change_error(planned.path, difference)
    if tail_digest != planned.digest:
        difference = f"its footer had the digest {planned.digest} and now has {tail_digest}"
        raise storage.change_error(planned.path, difference)
    footers.put(key, metadata)
    return metadata


def _checked_rows(storage: Storage, path: str, metadata: pq.FileMetaData) -> list[int]:
    """Return the rows of each row group, after checking that the footer is consistent."""
    try:
        return check_row_counts(metadata)
    except ValueError as error:
        raise storage.error_for(path, "is damaged", error) from error


def _open_footer(storage: Storage, path: str, tail: bytes) -> ParquetReader:
    """Return a reader of the metadata: part of pq.ParquetFile, without its preparations for reading rows."""
    reader = ParquetReader()
    try:
        reader.open(pa.BufferReader(tail))
    except (pa.ArrowException, OSError) as error:
        raise storage.error_for(path, "has a damaged footer", error) from storage.cause(error)
    return reader


def _read_tail(storage: Storage, path: str, size: int, tail: bytes | None = None, version: str = "") -> bytes:
    """Return the tail of a Parquet file, which contains the whole footer; `tail` is the part that was read already."""
    start = max(0, size - ParquetFormat.tail_bytes)
    if tail is None:
        tail = read_range(storage, path, start, size, version)
    magic = tail[-len(_MAGIC) :]
    if size < len(_MAGIC) + _TRAILER_BYTES or magic not in (_MAGIC, _ENCRYPTED_MAGIC):
        end = f"its {size:,} bytes end with {magic!r} instead of {_MAGIC!r}" if size else "it is empty"
        message = f"{storage.redact(path)} is not a Parquet file, or it is truncated: {end}"
        raise DataFileError(message)
    if magic == _ENCRYPTED_MAGIC:
        message = f"{storage.redact(path)} has an encrypted footer, which laneway can't read: decrypt it"
        raise DataFileError(message)
    footer_bytes = int.from_bytes(tail[-_TRAILER_BYTES : -len(_MAGIC)], "little") + _TRAILER_BYTES
    if footer_bytes > size - len(_MAGIC):
        message = f"{storage.redact(path)} is damaged: its footer claims to have {footer_bytes:,} of the {size:,} bytes"
        raise DataFileError(message)
    if footer_bytes > len(tail):
        tail = read_range(storage, path, size - footer_bytes, start, version) + tail
    return tail

"""Parquet files: blocks are row groups, and the footer tells everything about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet.core import ParquetReader

from laneway.errors import DataFileError
from laneway.files import digest
from laneway.formats.base import FileScan, changed_since_planned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.formats.base import PlannedFile
    from laneway.storage import Storage

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_TRAILER_BYTES = 8  # the footer's length, then the magic


@final
class ParquetFormat:
    """Reads Parquet files through pyarrow, by row group and column."""

    name = "parquet"
    suffixes = (".parquet", ".pq")
    block_name = "row group"
    tail_bytes = 64 * 1024

    def recognises(self, head: bytes) -> bool:
        """Return whether a file that begins with `head` may be a Parquet file."""
        return head.startswith((_MAGIC, _ENCRYPTED_MAGIC))

    def scan(self, storage: Storage, path: str, size: int, tail: bytes | None = None) -> FileScan:
        """Read the footer, with one request unless it is longer than 64 KiB.

        The digest covers the last 64 KiB and the whole footer, so it sees a small file that was rewritten
        even where the footer stays the same.
        """
        tail = _read_tail(storage, path, size, tail)
        # What pq.ParquetFile is made of, without what it prepares for reading: there may be 100,000 files.
        reader = ParquetReader()
        try:
            reader.open(pa.BufferReader(tail))
        except (pa.ArrowException, OSError) as error:
            raise storage.problem(path, "has a damaged footer", error) from storage.cause(error)
        try:
            schema = reader.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise storage.problem(path, "has columns that pyarrow can't read", error) from storage.cause(error)
        metadata = reader.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return FileScan(
            schema=schema,
            block_rows=[group.num_rows for group in groups],
            block_bytes=[group.total_byte_size for group in groups],
            digest=digest(tail),
            layout=[],
        )

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> ParquetBlocks:  # noqa: ARG002
        """Open a file whose footer is still the one that the manifest was made of."""
        try:
            metadata, tail_digest = _read_footer(storage, planned.path, planned.size)
        except DataFileError:
            size = storage.size(planned.path)
            if size == planned.size:
                raise
            difference = f"it had {planned.size:,} bytes and now has {size:,}"
            raise changed_since_planned(storage, planned, difference) from None
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if not np.array_equal(rows, planned.block_rows):
            had, num_groups = int(planned.block_rows.sum()), len(planned.block_rows)
            difference = f"it had {had:,} rows in {num_groups:,} row groups and now has {sum(rows):,} in {len(rows):,}"
            raise changed_since_planned(storage, planned, difference)
        if tail_digest != planned.digest:
            difference = f"its footer had the digest {planned.digest} and now has {tail_digest}"
            raise changed_since_planned(storage, planned, difference)
        try:
            if storage.is_local:
                # Not memory-mapped: a file that is cut short while it is read would kill the process.
                source: pa.NativeFile = pa.OSFile(planned.path, mode="r")
            else:
                source = pa.PythonFile(storage.open(planned.path, planned.size), mode="r")
            file = pq.ParquetFile(
                source,
                metadata=metadata,
                pre_buffer=not storage.is_local,
                page_checksum_verification=True,
            )
            return ParquetBlocks(file)
        except (pa.ArrowException, OSError) as error:
            raise storage.problem(planned.path, "can't be opened", error) from storage.cause(error)


@final
class ParquetBlocks:
    """An open Parquet file."""

    def __init__(self, file: pq.ParquetFile) -> None:
        """Take over an open file."""
        self._file = file

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Decode the row groups [first, stop) of these columns, in this order."""
        table: pa.Table = self._file.read_row_groups(list(range(first, stop)), columns=list(columns))
        # pyarrow takes names for paths into nested columns and returns the file's order: be exact.
        return table.select(list(columns))

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)


def _read_footer(storage: Storage, path: str, size: int) -> tuple[pq.FileMetaData, str]:
    """Return the footer of a Parquet file and the digest of the bytes at its end."""
    tail = _read_tail(storage, path, size)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError) as error:
        raise storage.problem(path, "has a damaged footer", error) from storage.cause(error)
    return metadata, digest(tail)


def _read_tail(storage: Storage, path: str, size: int, tail: bytes | None = None) -> bytes:
    """Return the end of a Parquet file, at least its whole footer; `tail` is what has been read of it."""
    start = max(0, size - ParquetFormat.tail_bytes)
    if tail is None:
        tail = storage.read_range(path, start, size)
    magic = tail[-len(_MAGIC) :]
    if size < len(_MAGIC) + _TRAILER_BYTES or magic not in (_MAGIC, _ENCRYPTED_MAGIC):
        end = f"its {size:,} bytes end with {magic!r} instead of {_MAGIC!r}" if size else "it is empty"
        message = f"{storage.display(path)} is no Parquet file, or a truncated one: {end}"
        raise DataFileError(message)
    if magic == _ENCRYPTED_MAGIC:
        message = f"{storage.display(path)} has an encrypted footer, which laneway can't read: decrypt it"
        raise DataFileError(message)
    footer_bytes = int.from_bytes(tail[-_TRAILER_BYTES : -len(_MAGIC)], "little") + _TRAILER_BYTES
    if footer_bytes > size - len(_MAGIC):
        message = f"{storage.display(path)} is damaged: its footer claims {footer_bytes:,} of the {size:,} bytes"
        raise DataFileError(message)
    if footer_bytes > len(tail):
        tail = storage.read_range(path, size - footer_bytes, start) + tail
    return tail

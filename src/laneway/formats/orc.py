"""ORC files: blocks are stripes, described by the footer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, final

import numpy as np
import pyarrow as pa
from pyarrow import orc

from laneway.core.files import digest
from laneway.errors import DataFileError
from laneway.formats.base import FileScan, Format
from laneway.formats.fetched_file import FetchedFile
from laneway.formats.field_paths import path_of, select_fields
from laneway.formats.orc_footer import OrcFooter
from laneway.storage.entries import file_size
from laneway.storage.reading import read_range, read_ranges
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import IOBase

    from laneway.formats.base import BlockMatches, BlockReader, PlannedFile
    from laneway.storage.filesystem import Storage

_MAGIC: Final = b"ORC"
# pyarrow is partly typed here.
_open_orc: Any = orc.ORCFile


@final
class OrcFormat(Format):
    """Reads ORC files with pyarrow, by stripe and column."""

    name = "orc"
    suffixes = (".orc",)
    block_name = "stripe"
    tail_bytes = 64 * 1024

    def recognises(self, head: bytes) -> bool:
        """Return whether a file may be an ORC file, given its first bytes."""
        return head.startswith(_MAGIC)

    def scan(self, storage: Storage, path: str, size: int, tail: bytes | None = None, version: str = "") -> FileScan:
        """Read the footer, in one request unless it is longer than 64 KiB.

        The digest covers the last 64 KiB and the whole footer.
        """
        start = max(0, size - self.tail_bytes)
        if tail is None:
            tail = read_range(storage, path, start, size, version)
        source = FetchedFile(storage, path, size, [(start, size)], [tail], version=version)
        try:
            file = _open_orc(pa.PythonFile(cast("IOBase", source), mode="r"))
            serialized = file.reader.serialized_file_tail()
            footer = OrcFooter.parse(serialized)
            schema = file.schema
        except DataFileError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise storage.error_for(path, "is not an ORC file, or it is damaged", error) from storage.cause(error)
        for each in footer.stripes:
            if each.offset < len(_MAGIC) or each.offset + each.length > size:
                message = (
                    f"{storage.redact(path)} is damaged: a stripe claims to end at byte {each.offset + each.length:,}"
                )
                raise DataFileError(message)
        rows = [each.rows for each in footer.stripes]
        total = max(1, sum(rows))
        return FileScan(
            schema=schema,
            block_rows=rows,
            block_bytes=[each.length for each in footer.stripes],
            block_memory_bytes=[footer.memory_bytes * each // total for each in rows],
            digest=digest(tail, serialized),
            layout=[[each.offset, each.length] for each in footer.stripes],
        )

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> BlockReader:
        """Open a file, and check that its footer has not changed since it was planned."""
        size = file_size(storage, planned.path) if storage.is_local else planned.size
        if size != planned.size:
            difference = f"it had {planned.size:,} bytes and now has {size:,}"
            raise storage.change_error(planned.path, difference)
        found = self.scan(storage, planned.path, planned.size, version=planned.version)
        if not np.array_equal(found.block_rows, planned.block_rows):
            had, stripes = int(planned.block_rows.sum()), counted(len(planned.block_rows), "stripe")
            now = f"{sum(found.block_rows):,} in {len(found.block_rows):,}"
            raise storage.change_error(planned.path, f"it had {counted(had, 'row')} in {stripes} and now has {now}")
        if found.digest != planned.digest:
            difference = f"its footer had the digest {planned.digest} and now has {found.digest}"
            raise storage.change_error(planned.path, difference)
        return OrcBlocks(storage, planned, found.layout, schema)


@final
class OrcBlocks:
    """An open ORC file. A remote one holds nothing open: each read requests the stripes as a whole."""

    def __init__(
        self, storage: Storage, planned: PlannedFile, layout: Sequence[Sequence[int]], schema: pa.Schema
    ) -> None:
        """Prepare to read.

        Args:
            storage: Where the file is.
            planned: The file as the manifest describes it.
            layout: Offset and length of each stripe.
            schema: Its columns.
        """
        self._storage = storage
        self._planned = planned
        self._layout = layout
        self._schema = schema
        self._file: Any = None
        if storage.is_local:
            try:
                # Not memory-mapped: a file that is truncated during a read would kill the process.
                self._file = _open_orc(pa.OSFile(planned.path, mode="r"))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise storage.error_for(planned.path, "can't be opened", error) from storage.cause(error)

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Decode the stripes [first, stop) of these columns, in this order."""
        rows = self._planned.block_rows[first:stop].tolist()
        fields = [(name, path_of(self._schema, name)) for name in columns]
        if not fields:
            return pa.table({"rows": pa.nulls(sum(rows))}).select([])
        file = self._file or self._fetch(first, stop)
        # Paths into structs: pyarrow decodes only these fields of them.
        paths = [".".join(path) for _, path in fields]
        batches = [file.read_stripe(index, columns=paths) for index in range(first, stop)]
        for batch, num_rows in zip(batches, rows, strict=True):
            batch.validate(full=True)
            if batch.num_rows != num_rows:
                message = f"a stripe has {batch.num_rows:,} rows where {num_rows:,} were planned"
                raise ValueError(message)
        return select_fields(pa.Table.from_batches(batches), fields)

    def _fetch(self, first: int, stop: int) -> Any:  # noqa: ANN401 - as _open_orc
        """Return the file with some of its stripes and its footer in memory."""
        planned = self._planned
        start, last = self._layout[first][0], self._layout[stop - 1]
        tail_start = max(last[0] + last[1], planned.size - OrcFormat.tail_bytes)
        ranges = [(start, last[0] + last[1]), (tail_start, planned.size)]
        parts = read_ranges(self._storage, planned.path, ranges, planned.version)
        source = FetchedFile(self._storage, planned.path, planned.size, ranges, parts, version=planned.version)
        return _open_orc(pa.PythonFile(cast("IOBase", source), mode="r"))

    def matches(self, *_: object) -> BlockMatches | None:
        """Return None: pyarrow doesn't tell the statistics of stripes."""
        return None

    def close(self) -> None:
        """Close the file."""
        self._file = None

"""Rewriting data as Parquet files of a size that is right for training."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laneway.arguments import parse_bytes
from laneway.convert.arrays import record_batch, take_rows
from laneway.core.files import digest
from laneway.dataset import StatefulShardedDataset
from laneway.errors import DataFileError
from laneway.manifest import Manifest, open_source
from laneway.mds import MdsSamples, find_index
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files
from laneway.storage.reading import RangeFile
from laneway.storage.writing import write_file
from laneway.tables.opening import is_table_url
from laneway.webdataset import SUFFIX, TarSamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PART: Final = re.compile(r"part-(\d{6})\.parquet")
_PLACE: Final = b"laneway.rewritten"
_BATCH_BYTES: Final = 1 << 20
_BATCHES_PER_GROUP: Final = 8
_MAX_BATCH_ROWS: Final = 4096
_TAR_BATCH_ROWS: Final = 16


class _Rows(NamedTuple):
    """What is rewritten."""

    identity: str
    """Digest of the source, and of what decides which rows it has."""
    schema: pa.Schema
    batches: Callable[[int], Iterator[pa.RecordBatch]]
    """Returns record batches from a row on. All but the last one have the same number of rows."""


def to_parquet(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Manifest,
    dest: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the name that users know
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    row_group_bytes: int | str = "8MiB",
    file_bytes: int | str = "256MiB",
    storage_options: Mapping[str, Any] | None = None,
) -> Manifest:
    """Rewrite data as Parquet files whose row groups are sized for training, and return their manifest.

    Rows keep their order. They are streamed, so memory holds one file of `dest`. Files are written one after the other,
    each at once, with statistics and page checksums. If the call is interrupted, the next one with the same arguments
    continues after the files that are complete, and the result is the same as without the interruption.

    Args:
        source: Files of any format that laneway reads, or a `Manifest`, such as that of a table: for row groups that
            are huge or tiny, or text that is read often. Or a tar file of WebDataset, or a directory or glob of them:
            a row for each sample, with its `__key__` and a column for each extension, as text (`txt`, `text`,
            `caption`, `json`, `cls`) or as bytes. Or the directory of a dataset that MosaicML Streaming has written
            (MDS), or its `index.json`: images and bytes as they are, JSON as text, arrays as lists.
        dest: A directory or URL, which is empty or holds files of an earlier call. It is created.
        format: Name of the format of the source; None: detected. "webdataset" for tar files, "mds" for MDS.
        columns: Names of the columns to keep; None: all. Not for tar files.
        schema: Types to write, as for `StatefulShardedDataset`. Not for tar files and MDS.
        row_group_bytes: About as many bytes does a row group have in memory.
        file_bytes: About as many bytes does a file have.
        storage_options: Arguments for the filesystem of the source if it is a URL, and of `dest` if it has the same
            protocol.

    Raises:
        DataFileError: A file can't be read or written; or `dest` holds other files, or those of another call.
        SchemaMismatchError: The columns of the files differ; or a tar file has other members than the first one; or MDS
            has Python objects.
        ValueError: A size is not positive, or `columns` or `schema` are given for tar files, or `schema` for MDS.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import to_parquet
        >>> source, dest = tempfile.mkdtemp(), tempfile.mkdtemp()
        >>> for part in range(10):
        ...     pq.write_table(pa.table({"id": [part]}), f"{source}/part-{part}.parquet")
        >>> to_parquet(source, dest).files.paths[0]
        'part-000000.parquet'
    """
    group_bytes, part_bytes = parse_bytes(row_group_bytes), parse_bytes(file_bytes)
    rows = _rows_of(source, format, columns, schema, storage_options, group_bytes=group_bytes)
    options = storage_options if "://" in str(dest) else None
    target = Storage(dest, storage_options=options)
    identity = digest(rows.identity.encode(), str(rows.schema).encode(), f"{group_bytes} {part_bytes}".encode())
    number, start = _find_parts(target, identity)
    batches = rows.batches(start)
    while True:
        data, num_rows = _make_part(batches, rows.schema, group_bytes, part_bytes, f"{identity} {start}")
        # Without any row, one file keeps the columns.
        if num_rows == 0 and number > 0:
            break
        if target.is_local:
            with target.translate_errors(target.root, "written"):
                target.filesystem.makedirs(target.root, exist_ok=True)
        write_file(target, target.join(f"part-{number:06}.parquet"), data)
        number, start = number + 1, start + num_rows
        if num_rows == 0:
            break
    return Manifest.scan(dest, format="parquet", storage_options=options)


def _rows_of(
    source: Any,  # noqa: ANN401 - see to_parquet
    format_: str | None,
    columns: Sequence[str] | None,
    schema: pa.Schema | None,
    storage_options: Mapping[str, Any] | None,
    *,
    group_bytes: int,
) -> _Rows:
    batch_bytes = max(1, min(_BATCH_BYTES, group_bytes // _BATCHES_PER_GROUP))
    is_path = isinstance(source, (str, os.PathLike)) and not is_table_url(source)
    if format_ == "webdataset" or (format_ is None and is_path and _is_tar(source, storage_options)):
        if columns is not None or schema is not None:
            message = "columns= and schema= are not for tar files: give them when the Parquet files are read"
            raise ValueError(message)
        samples = TarSamples(source, storage_options)

        def batches_of_samples(start: int) -> Iterator[pa.RecordBatch]:
            rows = islice(samples.rows(), start, None)
            while batch := list(islice(rows, _TAR_BATCH_ROWS)):
                yield pa.RecordBatch.from_pylist(batch, schema=samples.schema)

        return _Rows(samples.identity, samples.schema, batches_of_samples)
    index = None
    if format_ == "mds" or (format_ is None and is_path):
        index = find_index(source, storage_options, is_required=format_ == "mds")
    if index is not None:
        if schema is not None:
            message = "schema= is not for MDS: give it when the Parquet files are read"
            raise ValueError(message)
        mds = MdsSamples(index, columns, batch_bytes)
        return _Rows(mds.identity, mds.schema, mds.batches)
    manifest, _ = open_source(source, format=format_, storage_options=storage_options)
    num_bytes = int(manifest.files.block_memory_bytes.sum())
    batch_rows = min(_MAX_BATCH_ROWS, max(1, batch_bytes * manifest.num_rows // max(1, num_bytes)))
    dataset = StatefulShardedDataset(
        manifest,
        columns=columns,
        schema=schema,
        batch_size=batch_rows,
        output="arrow",
        storage_options=storage_options,
        rank=0,
        world_size=1,
    )

    num_rows = dataset.definition.identity.selected.num_rows

    def batches_of_files(start: int) -> Iterator[pa.RecordBatch]:
        return iter(dataset.skip(start) if start else dataset) if start < num_rows else iter(())

    # Other rows of the same files may belong to another version of a table.
    table = manifest.table
    of_table = "" if table is None else f" of {table.version} without {table.deleted.digest}"
    return _Rows(f"{manifest.fingerprint}{of_table}", dataset.schema, batches_of_files)


def _is_tar(source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> bool:
    if str(source).endswith(SUFFIX):
        return True
    storage = Storage(source, storage_options=storage_options)
    entry = get_entry(storage, storage.root)
    if entry is None or entry.kind != "directory":
        return False
    return any(found.path.endswith(SUFFIX) for found in find_files(storage, storage.root))


def _find_parts(target: Storage, identity: str) -> tuple[int, int]:
    """Return how many files of an interrupted call there are, and their rows.

    Raises:
        DataFileError: There are other files, or files of another call.
    """
    is_there = not target.is_local or target.filesystem.isdir(target.root)
    names = {entry.path.rpartition("/")[2]: entry for entry in find_files(target, target.root)} if is_there else {}
    visible = sorted(name for name in names if not name.startswith("."))
    number = start = 0
    for name in visible:
        found = _PART.fullmatch(name)
        place = None
        if found is not None and int(found[1]) == number:
            entry = names[name]
            try:
                metadata = pq.read_metadata(cast("IO[Any]", RangeFile(target, entry.path, entry.size)))
            except (pa.ArrowException, OSError) as error:
                raise target.error_for(entry.path, "is no Parquet file", error) from target.cause(error)
            place = (metadata.metadata or {}).get(_PLACE, b"").decode()
        if place != f"{identity} {start}":
            message = (
                f"{target.redact(target.root)} holds {name}, which is of another source, or was written with other "
                f"arguments: give an empty directory"
            )
            raise DataFileError(message)
        number, start = number + 1, start + metadata.num_rows
    return number, start


def _make_part(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, group_bytes: int, part_bytes: int, place: str
) -> tuple[bytes, int]:
    """Return a Parquet file of the next rows, and how many these are."""
    sink = pa.BufferOutputStream()
    schema = schema.with_metadata({_PLACE: place.encode()})
    group: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:

        def write_group() -> None:
            table = pa.Table.from_batches(group, schema)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            group.clear()

        for given in batches:
            batch = _copied(given.cast(schema))
            group.append(batch)
            num_rows += batch.num_rows
            num_bytes += pa.ipc.get_record_batch_size(batch)
            if num_bytes >= group_bytes:
                write_group()
                num_bytes = 0
                if sink.tell() >= part_bytes:
                    break
        if group:
            write_group()
    return sink.getvalue().to_pybytes(), num_rows


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a copy, whose size as a message of Arrow depends on its rows alone, and not on what they were cut from.

    So a call that continues an interrupted one ends row groups where that would have ended them. `nbytes` would not do:
    it has the whole dictionary of a column, and bits for nulls that only rows nearby have.
    """
    order = cast("pa.Int64Array", pa.array(np.arange(batch.num_rows)))
    return record_batch([take_rows([column], column.type, order) for column in batch.columns], batch.schema)

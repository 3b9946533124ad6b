"""Iceberg tables in a local catalog, with what pyiceberg reads but doesn't write: deletes of rows."""

from __future__ import annotations

import json
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate
from pyiceberg.typedef import Record
from pyroaring import BitMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyiceberg.table import Table

_PUFFIN_MAGIC = b"PFA1"
_VECTOR_MAGIC = bytes([0xD1, 0xD3, 0x39, 0x64])


def local_catalog(folder: Path) -> SqlCatalog:
    """Return a catalog whose tables are below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    catalog = SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace_if_not_exists("ns")
    return catalog


class _DeletesWriter(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def delete_rows(
    table: Table, deleted: Mapping[str, Sequence[int]], *, vectors: bool = False, equality: bool = False
) -> None:
    """Commit a snapshot without some rows of data files.

    Args:
        table: The table, which is not partitioned.
        deleted: Path of a data file -> numbers of its rows.
        vectors: Whether to write deletion vectors instead of a file of positions.
        equality: Whether to say that the file is one of equality deletes.
    """
    folder = table.location().removeprefix("file://") + "/data"
    number = len(table.metadata.snapshots)
    if vectors:
        path = f"{folder}/deletes-{number}.puffin"
        size = _write_puffin(path, deleted)
    else:
        path = f"{folder}/deletes-{number}.parquet"
        columns = [(each, row) for each in sorted(deleted) for row in sorted(deleted[each])]
        schema = pa.schema([_numbered("file_path", pa.string(), 2147483546), _numbered("pos", pa.int64(), 2147483545)])
        rows = pa.Table.from_arrays([pa.array(each) for each in zip(*columns, strict=True)], schema=schema)
        pq.write_table(rows, path)
        size = Path(path).stat().st_size
    count = sum(map(len, deleted.values()))
    _commit(table, f"file://{path}", size, count, vectors=vectors, equality=equality)


def _numbered(name: str, type_: pa.DataType, number: int) -> Any:
    return pa.field(name, type_, nullable=False, metadata={b"PARQUET:field_id": str(number).encode()})


def _write_puffin(path: str, deleted: Mapping[str, Sequence[int]]) -> int:
    blobs, data = [], _PUFFIN_MAGIC
    for file_path, rows in deleted.items():
        vector = _VECTOR_MAGIC + struct.pack("<QI", 1, 0) + BitMap(rows).serialize()
        blob = struct.pack(">I", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
        properties = {"referenced-data-file": file_path, "cardinality": str(len(rows))}
        place = {"snapshot-id": -1, "sequence-number": -1, "offset": len(data), "length": len(blob)}
        blobs.append({"type": "deletion-vector-v1", "fields": [2147483546], **place, "properties": properties})
        data += blob
    footer = json.dumps({"blobs": blobs, "properties": {}}).encode()
    data += _PUFFIN_MAGIC + footer + struct.pack("<I", len(footer)) + bytes(4) + _PUFFIN_MAGIC
    return Path(path).write_bytes(data)


def _commit(table: Table, path: str, size: int, count: int, *, vectors: bool, equality: bool) -> None:
    metadata, parent = table.metadata, table.current_snapshot()
    if parent is None:
        message = "the table has no snapshot"
        raise ValueError(message)
    snapshot_id = metadata.new_snapshot_id()
    sequence_number = metadata.next_sequence_number()
    content = DataFileContent.EQUALITY_DELETES if equality else DataFileContent.POSITION_DELETES
    file = DataFile.from_args(
        _table_format_version=2,
        content=content,
        file_path=path,
        file_format=FileFormat.PUFFIN if vectors else FileFormat.PARQUET,
        partition=Record(),
        record_count=count,
        file_size_in_bytes=size,
        equality_ids=[1] if equality else None,
    )
    file.spec_id = metadata.default_spec_id
    base = f"{table.location()}/metadata"
    output = table.io.new_output(f"{base}/deletes-{snapshot_id}.avro")
    with _DeletesWriter(table.spec(), table.schema(), output, snapshot_id, "deflate") as writer:
        writer.add_entry(
            ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=snapshot_id, data_file=file)
        )
    manifests = [*parent.manifests(table.io), writer.to_manifest_file()]
    list_path = f"{base}/snap-{snapshot_id}.avro"
    with write_manifest_list(
        2, table.io.new_output(list_path), snapshot_id, parent.snapshot_id, sequence_number, "deflate"
    ) as list_writer:
        list_writer.add_manifests(manifests)
    make: Any = Snapshot
    snapshot = make(
        snapshot_id=snapshot_id,
        parent_snapshot_id=parent.snapshot_id,
        sequence_number=sequence_number,
        timestamp_ms=max(int(time.time() * 1000), metadata.last_updated_ms),
        manifest_list=list_path,
        summary=Summary(Operation.DELETE),
        schema_id=metadata.current_schema_id,
    )
    refer: Any = SetSnapshotRefUpdate
    reference = refer(**{"ref-name": "main", "type": "branch", "snapshot-id": snapshot_id})
    table._do_commit((AddSnapshotUpdate(snapshot=snapshot), reference), ())

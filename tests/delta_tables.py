"""Delta tables with what deltalake reads but doesn't write: deletion vectors, and columns that were renamed."""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_MAGIC = 1681511377


def add_version(table: Path, *actions: Mapping[str, Any]) -> int:
    """Write the next version of a table into its log, and return its number."""
    log = table / "_delta_log"
    log.mkdir(parents=True, exist_ok=True)
    version = len(list(log.glob("*.json")))
    (log / f"{version:020}.json").write_text("\n".join(map(json.dumps, actions)))
    return version


def protocol(*features: str) -> dict[str, Any]:
    """Return the action that says which features a reader needs."""
    versions = {"minReaderVersion": 3, "minWriterVersion": 7}
    return {"protocol": {**versions, "readerFeatures": [*features], "writerFeatures": [*features]}}


def metadata(fields: Sequence[Mapping[str, Any]], configuration: Mapping[str, str]) -> dict[str, Any]:
    """Return the action that says which columns a table has."""
    schema = json.dumps({"type": "struct", "fields": fields})
    values = {"id": "0f0e0d0c", "format": {"provider": "parquet", "options": {}}, "schemaString": schema}
    return {"metaData": {**values, "partitionColumns": [], "configuration": configuration, "createdTime": 0}}


def field(name: str, type_: object, physical: str | None = None, number: int = 0) -> dict[str, Any]:
    """Return a column, or a field of a struct, as a log has it."""
    mapping = {"delta.columnMapping.physicalName": physical, "delta.columnMapping.id": number}
    return {"name": name, "type": type_, "nullable": True, "metadata": mapping if physical else {}}


def add(table: Path, name: str, rows: pa.Table, deleted: Sequence[int] = ()) -> dict[str, Any]:
    """Write a data file, and return the action that adds it, without some rows."""
    pq.write_table(rows, table / name, row_group_size=10)
    return added(table, name, rows.num_rows, deleted)


def added(table: Path, name: str, num_rows: int, deleted: Sequence[int] = ()) -> dict[str, Any]:
    """Return the action that adds a data file that exists, without some rows."""
    values = {"path": name, "partitionValues": {}, "size": (table / name).stat().st_size, "modificationTime": 0}
    action: dict[str, Any] = {**values, "dataChange": True, "stats": json.dumps({"numRecords": num_rows})}
    if len(deleted):
        action["deletionVector"] = _write_vector(table, deleted)
    return {"add": action}


def removed(table: Path, name: str) -> dict[str, Any]:
    """Return the action that removes a data file, as the first version added it."""
    lines = (table / "_delta_log" / f"{0:020}.json").read_text().splitlines()
    action = next(each["add"] for each in map(json.loads, lines) if each.get("add", {}).get("path") == name)
    kept = {key: action[key] for key in ("path", "deletionVector", "partitionValues", "size") if key in action}
    return {"remove": {**kept, "dataChange": True, "deletionTimestamp": 0, "extendedFileMetadata": True}}


def _write_vector(table: Path, deleted: Sequence[int]) -> dict[str, Any]:
    bitmap = BitMap(deleted).serialize()
    data = struct.pack("<IQI", _MAGIC, 1, 0) + bitmap
    path = table / f"deletion_vector_{uuid.uuid4()}.bin"
    path.write_bytes(b"\1" + struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data)))
    place = {"storageType": "p", "pathOrInlineDv": path.as_uri(), "offset": 1}
    return {**place, "sizeInBytes": len(data), "cardinality": len(deleted)}

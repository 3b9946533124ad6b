"""Manifests for tests: as earlier releases wrote them, and crafted ones whose digest is right."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.catalog.encoding import HEAD, encode_schema
from laneway.catalog.signature import MAGIC
from laneway.core.files import digest

if TYPE_CHECKING:
    from laneway.catalog.contents import ManifestContents

HEAD_BYTES = 64


def as_json(contents: ManifestContents) -> dict[str, Any]:
    """Return the body of a manifest of format 2."""
    import pyarrow as pa  # noqa: PLC0415 - only here

    files = contents.files
    return {
        "root": contents.root,
        "format": contents.format,
        "paths": list(files.paths),
        "sizes": files.sizes.tolist(),
        "digests": list(files.digests),
        "block_starts": files.block_starts.tolist(),
        "block_rows": files.block_rows.tolist(),
        "block_bytes": files.block_bytes.tolist(),
        "block_memory_bytes": files.block_memory_bytes.tolist(),
        "schema_digest": files.schema_digest,
        "schema": encode_schema(contents.schemas.union),
        "partition_schema": encode_schema(pa.schema(contents.partitions.fields)),
        "partition_values": [list(values) for values in contents.partitions.values],
        "layout": contents.layout.tolist(),
        "layout_starts": contents.layout_starts.tolist(),
        "versions": list(contents.versions),
    }


def json_manifest(body: Any) -> bytes:
    """Return a manifest of format 2 whose digest is right, whatever its body."""
    text = json.dumps(body, separators=(",", ":"))
    head = json.dumps({"laneway_manifest": 2, "digest": digest(text.encode())}, separators=(",", ":"))
    return b'%s,"body":%s}\n' % (head[:-1].encode(), text.encode())


def sealed(rest: bytes) -> bytes:
    """Return a manifest of format 3 whose length and digest are right, whatever follows its head."""
    return HEAD.pack(MAGIC, 3, len(rest), hashlib.sha256(rest).digest()) + rest


def opened(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return the short values and the columns of a manifest of format 3."""
    rest = data[HEAD_BYTES:]
    length = int.from_bytes(rest[:8], "little")
    values = json.loads(rest[8 : 8 + length])
    start = 8 + length + -(8 + length) % 64
    spans = values.pop("columns")
    columns = {
        name: np.frombuffer(rest[start + at : start + at + size], np.uint8 if name.endswith(".data") else "<i8").copy()
        for name, (at, size) in spans.items()
    }
    return values, columns


def closed(values: dict[str, Any], columns: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the manifest of format 3 that has these values and columns."""
    body, spans = b"", {}
    for name, column in columns.items():
        spans[name] = [len(body), column.nbytes]
        body += column.tobytes() + bytes(-column.nbytes % 64)
    text = json.dumps({**values, "columns": spans}).encode()
    return sealed(len(text).to_bytes(8, "little") + text + bytes(-(8 + len(text)) % 64) + body)

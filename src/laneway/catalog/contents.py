"""The contents of a manifest as a value, and their encoding as JSON."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from laneway.catalog.partitions import Partitions
from laneway.core.files import FileTable, digest
from laneway.errors import DataFileError
from laneway.formats import FileScan, PlannedFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from laneway.storage.filesystem import Storage

FORMAT_VERSION: Final = 2
"""Version of the encoding."""
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, eq=False, repr=False)
class ManifestContents:
    """The data files of a dataset, and the metadata that a reader needs to find their rows."""

    root: str
    """Directory or URL that the paths are relative to, without credentials."""
    format: str
    """"parquet" or "arrow"."""
    files: FileTable
    """The files, sorted by path: the part that determines the fingerprint."""
    file_schema: pa.Schema
    """The columns in each file, without metadata and all nullable."""
    partitions: Partitions
    """The columns derived from directory names."""
    layout: NDArray[np.int64]
    """Positions of the blocks in the files, as the format understands them, shape (entries, values per entry)."""
    layout_starts: NDArray[np.int64]
    """Index of each file's first entry in `layout`, shape (num_files + 1,)."""
    versions: tuple[str, ...]
    """`Entry.version` of each file when it was listed, "" if unknown.

    Not part of the fingerprint: a copy of a dataset has other versions.
    """

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the dataset: those in the files, then those derived from directory names."""
        return pa.schema([*self.file_schema, *self.partitions.fields])

    @property
    def num_rows(self) -> int:
        """Number of rows of all files."""
        return self.files.num_rows

    @property
    def fingerprint(self) -> str:
        """Identity of the dataset: 32 hexadecimal digits that do not depend on its location."""
        return self.files.fingerprint

    def planned(self, storage: Storage, file_index: int) -> PlannedFile:
        """Return the file at `file_index` as it was scanned, for a reader."""
        files = self.files
        return PlannedFile(
            path=storage.join(files.paths[file_index]),
            size=int(files.sizes[file_index]),
            digest=files.digests[file_index],
            block_rows=files.block_rows[files.block_starts[file_index] : files.block_starts[file_index + 1]],
            layout=self.layout[self.layout_starts[file_index] : self.layout_starts[file_index + 1]],
            version=self.versions[file_index],
        )

    def file_scan(self, file_index: int) -> FileScan:
        """Return the metadata of the file at `file_index`, as it was scanned."""
        files = self.files
        blocks = slice(files.block_starts[file_index], files.block_starts[file_index + 1])
        return FileScan(
            schema=self.file_schema,
            block_rows=files.block_rows[blocks].tolist(),
            block_bytes=files.block_bytes[blocks].tolist(),
            block_memory_bytes=files.block_memory_bytes[blocks].tolist(),
            digest=files.digests[file_index],
            layout=self.layout[self.layout_starts[file_index] : self.layout_starts[file_index + 1]].tolist(),
        )


def layout_table(entries: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return layout entries as an array of shape (entries, values per entry)."""
    return np.array(entries, np.int64).reshape(len(entries), len(entries[0]) if entries else 0)


def encode(contents: ManifestContents) -> bytes:
    """Encode the contents of a manifest as JSON, with a digest."""
    files = contents.files
    body = {
        "root": contents.root,
        "format": contents.format,
        "paths": files.paths,
        "sizes": files.sizes.tolist(),
        "digests": files.digests,
        "block_starts": files.block_starts.tolist(),
        "block_rows": files.block_rows.tolist(),
        "block_bytes": files.block_bytes.tolist(),
        "block_memory_bytes": files.block_memory_bytes.tolist(),
        "schema_digest": files.schema_digest,
        "schema": _encode_schema(contents.file_schema),
        "partition_schema": _encode_schema(pa.schema(contents.partitions.fields)),
        "partition_values": contents.partitions.values,
        "layout": contents.layout.tolist(),
        "layout_starts": contents.layout_starts.tolist(),
        "versions": contents.versions,
    }
    text = json.dumps(body, separators=(",", ":"))
    head = json.dumps({"laneway_manifest": FORMAT_VERSION, "digest": digest(text.encode())}, separators=(",", ":"))
    return b'%s,"body":%s}\n' % (head[:-1].encode(), text.encode())


def decode(data: bytes, name: str) -> ManifestContents:
    """Decode the contents of a manifest, gzipped or not.

    Args:
        data: The bytes that `encode` returned.
        name: Name of the file, for messages.

    Raises:
        DataFileError: `data` is damaged, not a manifest, or of a format version that this release can't read.
    """
    try:
        document = json.loads(gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data)
        version = document["laneway_manifest"]
    except (ValueError, EOFError, OSError, zlib.error, KeyError, TypeError) as error:
        reason = type(error).__name__
        message = f"{name} is not a laneway manifest, or it is damaged ({reason}): scan the dataset again"
        raise DataFileError(message) from error
    if version != FORMAT_VERSION:
        message = (
            f"{name} is a manifest of format {version}, but this release of laneway reads format {FORMAT_VERSION}: "
            f"update laneway or scan the dataset again"
        )
        raise DataFileError(message)
    body = document.get("body")
    text = json.dumps(body, separators=(",", ":"))
    found, expected = digest(text.encode()), document.get("digest")
    if found != expected:
        message = f"{name} is damaged: its digest is {found} and should be {expected}; scan the dataset again"
        raise DataFileError(message)
    return ManifestContents(
        root=body["root"],
        format=body["format"],
        files=FileTable(
            paths=tuple(body["paths"]),
            sizes=np.array(body["sizes"], np.int64),
            digests=tuple(body["digests"]),
            block_starts=np.array(body["block_starts"], np.int64),
            block_rows=np.array(body["block_rows"], np.int64),
            block_bytes=np.array(body["block_bytes"], np.int64),
            # Manifests of earlier releases don't have it.
            block_memory_bytes=np.array(body.get("block_memory_bytes", body["block_bytes"]), np.int64),
            schema_digest=body["schema_digest"],
        ),
        file_schema=_decode_schema(body["schema"]),
        partitions=Partitions(
            tuple(_decode_schema(body["partition_schema"])), tuple(map(tuple, body["partition_values"]))
        ),
        layout=layout_table(body["layout"]),
        layout_starts=np.array(body["layout_starts"], np.int64),
        versions=tuple(body["versions"]),
    )


def _encode_schema(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def _decode_schema(encoded: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))

"""The manifest: the data files of a dataset, read once, and what a reader needs to find their rows."""

from __future__ import annotations

import base64
import gzip
import json
import time
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from laneway.catalog.caching import CacheEntry
from laneway.catalog.footers import read_footers
from laneway.catalog.partitions import Partitions
from laneway.catalog.sources import DataFiles, find_data_files
from laneway.core.files import FileTable, digest
from laneway.errors import DataFileError, SchemaMismatchError
from laneway.formats import FileScan, PlannedFile
from laneway.storage.entries import file_size
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files
from laneway.storage.reading import read_range
from laneway.storage.writing import write_file

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.catalog.caching import CacheDir
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy

    Source: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_VERSION = 2
_SETTLED_AFTER_NS = 2 * 10**9
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """The data files of a dataset: their sizes, blocks and columns.

    Its `fingerprint` is the identity of the dataset. A manifest that was saved spares later runs the scan.

    Example:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> directory = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"id": [1, 2, 3]}), f"{directory}/part-0.parquet")
        >>> manifest = Manifest.scan(directory)
        >>> manifest.num_rows, manifest.files.paths
        (3, ('part-0.parquet',))
    """

    root: str
    """Directory or URL that the paths are relative to, without credentials."""
    format: str
    """"parquet" or "arrow"."""
    files: FileTable
    """The files, sorted by path: the part that makes the fingerprint."""
    file_schema: pa.Schema
    """The columns that each file holds, without metadata and all nullable."""
    partitions: Partitions
    """The columns that the names of directories add."""
    layout: NDArray[np.int64]
    """Where the blocks are in the files, as the format understands it, shape (entries, values per entry)."""
    layout_starts: NDArray[np.int64]
    """Index of each file's first entry in `layout`, shape (num_files + 1,)."""
    versions: tuple[str, ...]
    """Version of each file when it was listed: its ETag, else its time of writing in ns; empty where unknown.

    No part of the fingerprint: a copy of a dataset has other versions.
    """

    @classmethod
    def scan(
        cls,
        source: Source,
        *,
        format: str | None = None,  # noqa: A002 - the name that users know
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
        progress: bool | None = None,
        cache_dir: CacheDir = None,
    ) -> Manifest:
        """Find the data files of a dataset and read what they say about themselves, concurrently.

        A directory is searched recursively; of its files and those of a glob, the ones with a suffix of the
        format count, or all if none has one; a directory that matches a glob is searched as well. Names below
        the root that begin with `_` or `.` are no data. A file that is named itself is taken whatever its
        name. Paths become relative to the directory, to the deepest directory of a glob without wildcard, to
        a file's parent, or for several sources to the deepest directory that holds all of them.

        Args:
            source: A directory, a glob, a file, any URL of these that fsspec knows, or a sequence of them.
            format: "parquet" or "arrow"; None finds out by suffix, else by the first bytes.
            filesystem: The filesystem, of fsspec or pyarrow, that `source` is a path of.
            storage_options: Arguments for the filesystem that the URL names: credentials, endpoints.
            retries: What is tried again when the storage fails, and for how long; None: `RetryPolicy()`.
            progress: True shows a bar, False does not, None does if it takes longer than 2 s.
            cache_dir: Directory or URL where the result is kept, so that the next scan lists the files and reads
                only those that are new or changed. None: for remote storage the user's cache directory, for local
                files none; True: the user's cache directory; False: none.

        Raises:
            DataFileError: A file or directory is missing, unreadable, damaged, of another format or given
                twice, or there is no data file.
            SchemaMismatchError: The files differ in their columns.
        """
        return scan_source(
            source,
            format=format,
            filesystem=filesystem,
            storage_options=storage_options,
            retries=retries,
            progress=progress,
            cache_dir=cache_dir,
        )[0]

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> Manifest:
        """Return a manifest that `save` wrote.

        Args:
            path: Path or URL of the saved manifest.
            root: Where the dataset is now, if it moved.
            filesystem: The filesystem that `path` (and `root`) is a path of.
            storage_options: Arguments for the filesystem that `path` (and `root`) names.
            retries: What is tried again when the storage fails, and for how long; None: `RetryPolicy()`.

        Raises:
            DataFileError: The file is missing, unreadable, damaged, no manifest, or one of a later release.
        """
        storage = Storage(path, filesystem, storage_options, retries)
        data = read_range(storage, storage.root, 0, file_size(storage, storage.root))
        manifest = _decode(data, storage.redact(storage.root))
        if root is None:
            return manifest
        moved = Storage(root, filesystem, storage_options, retries)
        return replace(manifest, root=moved.redact(moved.root), versions=_versions_now(manifest, moved))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Write the manifest as JSON, gzipped if the name ends with `.gz`, whole or not at all.

        Args:
            path: Path or URL of the file to write.
            filesystem: The filesystem that `path` is a path of.
            storage_options: Arguments for the filesystem that `path` names.
            retries: What is tried again when the storage fails, and for how long; None: `RetryPolicy()`.

        Raises:
            DataFileError: The file can't be written.
        """
        storage = Storage(path, filesystem, storage_options, retries)
        data = _encode(self)
        write_file(storage, storage.root, gzip.compress(data, mtime=0) if storage.root.endswith(".gz") else data)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the dataset: those of the files, then those that the directories add."""
        return pa.schema([*self.file_schema, *self.partitions.fields])

    @property
    def num_rows(self) -> int:
        """Number of rows of all files."""
        return self.files.num_rows

    @property
    def fingerprint(self) -> str:
        """Identity of the dataset: 32 hexadecimal digits that do not depend on where it is."""
        return self.files.fingerprint

    def storage(
        self,
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> Storage:
        """Return the storage that holds the files, made of `root`: credentials have to be given anew."""
        return Storage(self.root, filesystem, storage_options, retries)

    def planned(self, storage: Storage, file_index: int) -> PlannedFile:
        """Return what a reader should find in the file at `file_index`."""
        files = self.files
        return PlannedFile(
            path=storage.join(files.paths[file_index]),
            size=int(files.sizes[file_index]),
            digest=files.digests[file_index],
            block_rows=files.block_rows[files.block_starts[file_index] : files.block_starts[file_index + 1]],
            layout=self.layout[self.layout_starts[file_index] : self.layout_starts[file_index + 1]],
            version=self.versions[file_index],
        )

    def scan_of(self, file_index: int) -> FileScan:
        """Return what the file at `file_index` said about itself when it was scanned."""
        files = self.files
        blocks = slice(files.block_starts[file_index], files.block_starts[file_index + 1])
        return FileScan(
            schema=self.file_schema,
            block_rows=files.block_rows[blocks].tolist(),
            block_bytes=files.block_bytes[blocks].tolist(),
            digest=files.digests[file_index],
            layout=self.layout[self.layout_starts[file_index] : self.layout_starts[file_index + 1]].tolist(),
        )

    def __repr__(self) -> str:
        facts = f"{self.files.num_files:,} files, {self.num_rows:,} rows, {len(self.schema):,} columns"
        return f"<Manifest of {self.root}: {self.format}, {facts}, fingerprint {self.fingerprint[:8]}>"


def scan_source(
    source: Source,
    *,
    format: str | None = None,  # noqa: A002 - the name that users know
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
    progress: bool | None = None,
    cache_dir: CacheDir = None,
) -> tuple[Manifest, Storage]:
    """Return what `Manifest.scan` returns, and the storage it used, which knows the credentials in a URL."""
    began_ns = time.time_ns()
    found = find_data_files(
        source, format=format, filesystem=filesystem, storage_options=storage_options, retries=retries
    )
    entry = CacheEntry.find(cache_dir, found.storage, (f"format {_VERSION}", found.format.name, *found.sources))
    cached = None if entry is None else _cached(entry)
    manifest = _update(found, cached, progress=progress)
    if entry is not None and manifest is not cached:
        # A file that was written just now may be written again without another time: its version can't be relied on.
        newest = began_ns - _SETTLED_AFTER_NS
        settled = tuple("" if text.isdigit() and int(text) > newest else text for text in manifest.versions)
        if any(settled):
            entry.write(gzip.compress(_encode(replace(manifest, versions=settled)), compresslevel=1, mtime=0))
    return manifest, found.storage


def _cached(entry: CacheEntry) -> Manifest | None:
    data = entry.read()
    if data is None:
        return None
    try:
        return _decode(data, entry.redacted_path)
    except DataFileError as error:
        entry.warn_damaged(error)
        return None


def _update(found: DataFiles, cached: Manifest | None, *, progress: bool | None) -> Manifest:
    """Return the manifest of the files that were found: `cached` itself, if none of them is new, changed or gone."""
    known: dict[int, FileScan] = {}
    if cached is not None:
        listed = tuple(found.paths), found.sizes, tuple(found.versions)
        if listed == (cached.files.paths, cached.files.sizes.tolist(), cached.versions) and all(cached.versions):
            return cached
        index_of = {path: index for index, path in enumerate(cached.files.paths)}
        facts = zip(found.paths, found.sizes, found.versions, strict=True)
        for index, (path, size, version) in enumerate(facts):
            old = index_of.get(path)
            if old is not None and version and (size, version) == (int(cached.files.sizes[old]), cached.versions[old]):
                known[index] = cached.scan_of(old)
    missing = [index for index in range(len(found.paths)) if index not in known]
    known.update(zip(missing, read_footers(found, missing, progress=progress), strict=True))
    scans = [known[index] for index in range(len(found.paths))]
    schema = _common_schema(found, scans)
    lines = "\n".join(f"{field.name}: {field.type}" for field in schema)
    files = FileTable.build(
        found.paths,
        found.sizes,
        [scan.digest for scan in scans],
        [(scan.block_rows, scan.block_bytes) for scan in scans],
        digest(lines.encode()),
    )
    return Manifest(
        root=found.storage.redact(found.storage.root),
        format=found.format.name,
        files=files,
        file_schema=schema,
        partitions=Partitions.parse(files.paths, schema),
        layout=_table([place for scan in scans for place in scan.layout]),
        layout_starts=np.array([0, *accumulate(len(scan.layout) for scan in scans)], np.int64),
        versions=tuple(found.versions),
    )


def _versions_now(manifest: Manifest, storage: Storage) -> tuple[str, ...]:
    """Return the versions of files that moved: without one, no read would find out that a file changes."""
    found = {} if storage.is_local else {entry.path: entry.version for entry in find_files(storage, storage.root)}
    return tuple(found.get(storage.join(path), "") for path in manifest.files.paths)


def _common_schema(found: DataFiles, scans: Sequence[FileScan]) -> pa.Schema:
    """Return the columns that all files have, without what may differ: metadata and nullability."""
    first = scans[0].schema
    if len(set(first.names)) < len(first.names):
        name = next(name for name in first.names if first.names.count(name) > 1)
        message = f"{found.paths[0]} has the column {name!r} twice: rename one"
        raise SchemaMismatchError(message)
    expected = list(zip(first.names, first.types, strict=True))
    for path, scan in zip(found.paths, scans, strict=True):
        schema = scan.schema
        if schema.equals(first) or list(zip(schema.names, schema.types, strict=True)) == expected:
            continue
        difference = _difference(first, schema)
        message = f"the files differ in their columns: in {path} {difference}, unlike in {found.paths[0]}"
        raise SchemaMismatchError(message)
    return pa.schema(expected)


def _difference(first: pa.Schema, other: pa.Schema) -> str:
    """Say in which field, and how, `other` differs first."""
    for name, type_ in zip(first.names, first.types, strict=True):
        if name not in other.names:
            return f"the column {name!r} ({type_}) is missing"
        if other.names.count(name) == 1 and other.field(name).type != type_:
            return f"the column {name!r} is {other.field(name).type} instead of {type_}"
    extra = [name for name in other.names if name not in first.names]
    if extra:
        return f"the column {extra[0]!r} ({other.field(extra[0]).type}) is one too many"
    return f"the columns are in the order {', '.join(other.names)}"


def _table(entries: list[list[int]]) -> NDArray[np.int64]:
    return np.array(entries, np.int64).reshape(len(entries), len(entries[0]) if entries else 0)


def _encode(manifest: Manifest) -> bytes:
    files = manifest.files
    body = {
        "root": manifest.root,
        "format": manifest.format,
        "paths": files.paths,
        "sizes": files.sizes.tolist(),
        "digests": files.digests,
        "block_starts": files.block_starts.tolist(),
        "block_rows": files.block_rows.tolist(),
        "block_bytes": files.block_bytes.tolist(),
        "schema_digest": files.schema_digest,
        "schema": _encode_schema(manifest.file_schema),
        "partition_schema": _encode_schema(pa.schema(manifest.partitions.fields)),
        "partition_values": manifest.partitions.values,
        "layout": manifest.layout.tolist(),
        "layout_starts": manifest.layout_starts.tolist(),
        "versions": manifest.versions,
    }
    text = json.dumps(body, separators=(",", ":"))
    head = json.dumps({"laneway_manifest": _VERSION, "digest": digest(text.encode())}, separators=(",", ":"))
    return b'%s,"body":%s}\n' % (head[:-1].encode(), text.encode())


def _decode(data: bytes, name: str) -> Manifest:
    try:
        document = json.loads(gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data)
        version = document["laneway_manifest"]
    except (ValueError, EOFError, OSError, zlib.error, KeyError, TypeError) as error:
        reason = type(error).__name__
        message = f"{name} is no manifest of laneway, or a damaged one ({reason}): scan the dataset again"
        raise DataFileError(message) from error
    if version != _VERSION:
        message = (
            f"{name} is a manifest of format {version}, and this release of laneway knows {_VERSION}: "
            f"update laneway or scan the dataset again"
        )
        raise DataFileError(message)
    body = document.get("body")
    text = json.dumps(body, separators=(",", ":"))
    found, expected = digest(text.encode()), document.get("digest")
    if found != expected:
        message = f"{name} is damaged: its digest is {found} and should be {expected}; scan the dataset again"
        raise DataFileError(message)
    return Manifest(
        root=body["root"],
        format=body["format"],
        files=FileTable(
            paths=tuple(body["paths"]),
            sizes=np.array(body["sizes"], np.int64),
            digests=tuple(body["digests"]),
            block_starts=np.array(body["block_starts"], np.int64),
            block_rows=np.array(body["block_rows"], np.int64),
            block_bytes=np.array(body["block_bytes"], np.int64),
            schema_digest=body["schema_digest"],
        ),
        file_schema=_decode_schema(body["schema"]),
        partitions=Partitions(
            tuple(_decode_schema(body["partition_schema"])), tuple(map(tuple, body["partition_values"]))
        ),
        layout=_table(body["layout"]),
        layout_starts=np.array(body["layout_starts"], np.int64),
        versions=tuple(body["versions"]),
    )


def _encode_schema(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def _decode_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))

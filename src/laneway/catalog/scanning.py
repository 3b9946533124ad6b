"""Scanning: from the data files of a source to the contents of its manifest, reusing cached metadata."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from laneway.catalog.caching import CacheEntry
from laneway.catalog.contents import ManifestContents, layout_table
from laneway.catalog.decoding import decode, pack
from laneway.catalog.encoding import FORMAT_VERSION, encode, head_of, is_plain
from laneway.catalog.footers import read_footers
from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.catalog.sources import SETTLED_AFTER_NS
from laneway.core.files import FileTable
from laneway.core.strings import Strings
from laneway.errors import DataFileError, SchemaMismatchError
from laneway.storage.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.sources import DataFiles
    from laneway.catalog.table_facts import TableFacts
    from laneway.formats import FileScan


def scan_files(found: DataFiles, *, progress: bool | None, cache_dir: CacheDir) -> ManifestContents:
    """Return the contents of the manifest of data files, and cache them.

    Args:
        found: The data files.
        progress: True shows a progress bar, False does not, None does if the scan takes longer than 2 s.
        cache_dir: Where manifests are cached; see `Manifest.scan`.

    Raises:
        DataFileError: A file is missing, unreadable, damaged or of another format.
        SchemaMismatchError: A file has a column twice, or the files are in directories of different keys.
    """
    key = (f"format {FORMAT_VERSION}", found.format.name, *found.sources)
    entry = CacheEntry.find(cache_dir, found.storage, key)
    cached = None if entry is None else _read_cache(entry, found)
    contents = _update(found, cached, progress=progress)
    if entry is not None and contents is not cached:
        # Nor is the time of a file of a remote storage trusted, if it was modified moments ago.
        newest = found.listed_at_ns - SETTLED_AFTER_NS
        settled = ["" if version.isdigit() and int(version) > newest else version for version in contents.versions]
        if any(settled):
            write_contents(entry, replace(contents, versions=Strings.of(settled)))
    return contents


def read_scans(
    found: DataFiles, cached: ManifestContents | None, *, are_fixed: bool, progress: bool | None
) -> list[FileScan]:
    """Return the metadata of data files, which is read unless it is cached.

    Args:
        found: The data files.
        cached: The cached metadata; None: there is none.
        are_fixed: Whether files are never rewritten, so that one whose version is unknown is what it was.
        progress: See `scan_files`.

    Raises:
        DataFileError: See `scan_files`.
    """
    known: dict[int, FileScan] = {}
    if cached is not None:
        index_of = {path: index for index, path in enumerate(cached.files.paths)}
        listing = zip(found.paths, found.sizes, found.versions, strict=True)
        for index, (path, size, version) in enumerate(listing):
            old = index_of.get(path)
            if old is None or not (version or are_fixed):
                continue
            if (size, version) == (int(cached.files.sizes[old]), cached.versions[old]):
                known[index] = cached.file_scan(old)
    missing = [index for index in range(len(found.paths)) if index not in known]
    known.update(zip(missing, read_footers(found, missing, progress=progress), strict=True))
    return [known[index] for index in range(len(found.paths))]


def combine(
    found: DataFiles,
    scans: Sequence[FileScan],
    schemas: FileSchemas,
    partitions: Partitions,
    table: TableFacts | None = None,
) -> ManifestContents:
    """Return the contents for data files.

    Args:
        found: The data files.
        scans: The metadata of each.
        schemas: Their columns.
        partitions: The columns that are not in them.
        table: The table whose catalog lists them; None: they were found in directories.
    """
    return ManifestContents(
        root=found.storage.redact(found.storage.root),
        format=found.format.name,
        files=FileTable.build(
            found.paths,
            found.sizes,
            [scan.digest for scan in scans],
            [(scan.block_rows, scan.block_bytes) for scan in scans],
            schemas.digest,
            memory_bytes=[scan.block_memory_bytes for scan in scans],
        ),
        schemas=schemas,
        partitions=partitions,
        layout=layout_table([entry for scan in scans for entry in scan.layout]),
        layout_starts=np.array([0, *accumulate(len(scan.layout) for scan in scans)], np.int64),
        versions=Strings.of(found.versions),
        table=table,
    )


def is_unchanged(found: DataFiles, cached: ManifestContents) -> bool:
    """Return whether the same files were listed, of the same versions."""
    return (
        len(found.paths) == cached.files.num_files
        and np.array_equal(found.sizes, cached.files.sizes)
        and Strings.of(found.versions) == cached.versions
        and Strings.of(found.paths) == cached.files.paths
    )


def write_contents(entry: CacheEntry, contents: ManifestContents) -> None:
    """Cache the contents of a manifest."""
    data = encode(contents)
    # A local entry is mapped into memory.
    entry.write(data if entry.local_path else pack(data, "zstd"))


def _read_cache(entry: CacheEntry, found: DataFiles) -> ManifestContents | None:
    def contents_of(data: memoryview) -> ManifestContents:
        contents = decode(data, entry.redacted_path)
        _check_place(contents, found, entry.redacted_path)
        if is_plain(data):
            contents.shared_file.remember(entry.local_path, head_of(data))
        return contents

    return entry.load(contents_of)


def _check_place(contents: ManifestContents, found: DataFiles, name: str) -> None:
    """Check that a cached manifest is that of these files."""
    root, format_ = found.storage.redact(found.storage.root), found.format.name
    if (contents.root, contents.format) != (root, format_):
        message = (
            f"{name} is of {contents.format} files in {redact(contents.root)!s:.200}, not of {format_} files in {root}"
        )
        raise DataFileError(message)


def _update(found: DataFiles, cached: ManifestContents | None, *, progress: bool | None) -> ManifestContents:
    """Return the contents for the files that were found: `cached` itself if no file is new, changed or gone."""
    if cached is not None and "" not in found.versions and is_unchanged(found, cached):
        return cached
    scans = read_scans(found, cached, are_fixed=False, progress=progress)
    schemas = FileSchemas.of(scan.schema for scan in scans)
    _check_names(found, schemas)
    inference = found.format.inference
    readable = schemas if inference is None else schemas.joined(inference)
    return combine(found, scans, schemas, Partitions.parse(found.paths, readable))


def _check_names(found: DataFiles, schemas: FileSchemas) -> None:
    for index, schema in enumerate(schemas.distinct):
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            message = f"{found.paths[schemas.first_file(index)]} has the column {twice[0]!r} twice: rename one"
            raise SchemaMismatchError(message)

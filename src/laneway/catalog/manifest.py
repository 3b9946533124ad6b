"""The manifest: the data files of a dataset, scanned once, with the metadata that a reader needs to find their rows."""

from __future__ import annotations

import gzip
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias, final

from laneway.catalog.contents import ManifestContents, decode, encode
from laneway.catalog.scanning import scan_files
from laneway.catalog.sources import find_data_files
from laneway.storage.entries import file_size
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files
from laneway.storage.reading import read_range
from laneway.storage.writing import write_file

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from laneway.catalog.caching import CacheDir
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy

    Source: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@final
class Manifest(ManifestContents):
    """The data files of a dataset: their sizes, blocks and columns.

    Its `fingerprint` is the identity of the dataset. A saved manifest lets later runs skip the scan.

    Example:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> directory = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"id": [1, 2, 3]}), f"{directory}/part-0.parquet")
        >>> manifest = Manifest.scan(directory)
        >>> manifest.num_rows, manifest.files.paths
        (3, ('part-0.parquet',))
    """

    @classmethod
    def of(cls, contents: ManifestContents) -> Manifest:
        """Return the manifest that has these contents."""
        return cls(**{field.name: getattr(contents, field.name) for field in fields(contents)})

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
        """Find the data files of a dataset and read their metadata, concurrently.

        A directory is searched recursively, and so is a directory that matches a glob. Of the files in a directory or
        glob, those with a suffix of the format are data, or all of them if none has one. Names below the root that
        begin with `_` or `.` are skipped. A file given by its own path is data whatever its name. Paths become
        relative to the directory, to the deepest directory of the glob that has no wildcard, to the parent of a file,
        or for several sources to the deepest directory that contains all of them.

        Args:
            source: A directory, a glob, a file, any URL of these that fsspec supports, or a sequence of them.
            format: "parquet" or "arrow"; None: detected by suffix, else by the first bytes.
            filesystem: The filesystem, of fsspec or pyarrow, of the path `source`.
            storage_options: Arguments for the filesystem of a URL: credentials, endpoints.
            retries: Limits of the retries when the storage fails; None: `RetryPolicy()`.
            progress: True shows a progress bar, False does not, None does if the scan takes longer than 2 s.
            cache_dir: Directory or URL where the result is cached, so that the next scan lists the files and reads
                only those that are new or changed. None: the user's cache directory for remote storage, no cache for
                local files; True: the user's cache directory; False: no cache.

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
        """Load a manifest written by `save`.

        Args:
            path: Path or URL of the saved manifest.
            root: Current path or URL of the dataset, if it moved.
            filesystem: The filesystem of the path `path` (and `root`).
            storage_options: Arguments for the filesystem of the URL `path` (and `root`).
            retries: Limits of the retries when the storage fails; None: `RetryPolicy()`.

        Raises:
            DataFileError: The file is missing, unreadable, damaged, not a manifest, or of a later release.
        """
        storage = Storage(path, filesystem, storage_options, retries)
        data = read_range(storage, storage.root, 0, file_size(storage, storage.root))
        manifest = cls.of(decode(data, storage.redact(storage.root)))
        if root is None:
            return manifest
        moved = Storage(root, filesystem, storage_options, retries)
        return replace(manifest, root=moved.redact(moved.root), versions=_current_versions(manifest, moved))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Write the manifest atomically, as JSON, gzipped if the name ends with `.gz`.

        Args:
            path: Path or URL of the file to write.
            filesystem: The filesystem of the path `path`.
            storage_options: Arguments for the filesystem of the URL `path`.
            retries: Limits of the retries when the storage fails; None: `RetryPolicy()`.

        Raises:
            DataFileError: The file can't be written.
        """
        storage = Storage(path, filesystem, storage_options, retries)
        data = encode(self)
        write_file(storage, storage.root, gzip.compress(data, mtime=0) if storage.root.endswith(".gz") else data)

    def storage(
        self,
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> Storage:
        """Return the storage of the files, created from `root`: credentials have to be given again."""
        return Storage(self.root, filesystem, storage_options, retries)

    def __repr__(self) -> str:
        summary = f"{self.files.num_files:,} files, {self.num_rows:,} rows, {len(self.schema):,} columns"
        return f"<Manifest of {self.root}: {self.format}, {summary}, fingerprint {self.fingerprint[:8]}>"


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
    """Return the result of `Manifest.scan`, and the storage it used, which holds the credentials of a URL."""
    found = find_data_files(
        source, format=format, filesystem=filesystem, storage_options=storage_options, retries=retries
    )
    return Manifest.of(scan_files(found, progress=progress, cache_dir=cache_dir)), found.storage


def open_source(
    source: Source | Manifest,
    *,
    format: str | None = None,  # noqa: A002 - the name that users know
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
    cache_dir: CacheDir = None,
) -> tuple[Manifest, Storage]:
    """Return the manifest of a source, scanned unless it is a manifest itself, and the storage of its files."""
    if isinstance(source, Manifest):
        return source, source.storage(filesystem=filesystem, storage_options=storage_options, retries=retries)
    return scan_source(
        source,
        format=format,
        filesystem=filesystem,
        storage_options=storage_options,
        retries=retries,
        cache_dir=cache_dir,
    )


def _current_versions(manifest: Manifest, storage: Storage) -> tuple[str, ...]:
    """Return the versions of files that moved: without them, reads could not detect that a file changes."""
    found = {} if storage.is_local else {entry.path: entry.version for entry in find_files(storage, storage.root)}
    return tuple(found.get(storage.join(path), "") for path in manifest.files.paths)

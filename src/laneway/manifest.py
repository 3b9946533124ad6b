"""The manifest: the data files of a dataset, scanned once, with the metadata that a reader needs to find their rows."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

from laneway.catalog.contents import ManifestContents
from laneway.catalog.decoding import decode, pack
from laneway.catalog.encoding import decode_columns, encode, head_of, is_plain
from laneway.catalog.scanning import scan_files
from laneway.catalog.sharing import MIN_SHARED_BYTES, map_descriptor, read_local
from laneway.catalog.sources import find_data_files
from laneway.core.strings import Strings
from laneway.errors import DataFileError
from laneway.reading.expressions import filter_of
from laneway.reading.selecting import Planner
from laneway.storage.entries import file_size
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files
from laneway.storage.reading import read_range
from laneway.storage.redaction import redact
from laneway.storage.writing import write_file
from laneway.tables.opening import catalog_of
from laneway.tables.scanning import scan_table
from laneway.wording import counted

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa
    import pyarrow.compute as pc

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.contents import Vocabulary
    from laneway.core.selection import Selection
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy
    from laneway.tables.opening import Table

    Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    Source: TypeAlias = Paths | Table


@final
class Manifest(ManifestContents):
    """The data files of a dataset: their sizes, blocks and columns.

    Its `fingerprint` is the identity of the dataset. A saved manifest lets later runs skip the scan.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> directory = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"id": [1, 2, 3]}), f"{directory}/part-0.parquet")
        >>> manifest = Manifest.scan(directory)
        >>> manifest.num_rows, manifest.files.paths[0]
        (3, 'part-0.parquet')
    """

    @classmethod
    def of(cls, contents: ManifestContents) -> Manifest:
        """Return the manifest that has these contents."""
        manifest = cls(**{field.name: getattr(contents, field.name) for field in fields(contents) if field.init})
        return manifest.shared_with(contents)

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
            source: A directory, a glob, a file, any URL of these that fsspec supports, or a sequence of them; or a
                table, as for `StatefulShardedDataset`, which lists its files itself.
            format: Name of a format, such as "parquet" or "jsonl"; None: detected by suffix, else by the first bytes.
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
            SchemaMismatchError: A file has a column twice, or the files are in directories of different keys.
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
        """Load a manifest written by `save`, of this or an earlier release.

        A large local file is mapped into memory, which the processes of a host share; it must not be overwritten while
        it is used, other than by `save`, which replaces it.

        Args:
            path: Path or URL of the saved manifest.
            root: Current path or URL of the dataset: if it moved, or is on another storage than the manifest. If it
                moved to a remote storage, this lists its files.
            filesystem: The filesystem of the path `path` (and `root`).
            storage_options: Arguments for the filesystem of the URL `path` (and `root`).
            retries: Limits of the retries when the storage fails; None: `RetryPolicy()`.

        Raises:
            DataFileError: The file is missing, unreadable, damaged, malformed, not a manifest, or of a later release;
                or its files are on another storage and no `root` is given.
        """
        storage = Storage(path, filesystem, storage_options, retries)
        manifest = cls.of(_read(storage))
        if root is None:
            _check_root(manifest.root, storage, given=filesystem)
            return manifest
        moved = Storage(root, filesystem, storage_options, retries)
        moved = moved.at(*moved.pinned([moved.root]))
        location = moved.redact(moved.root)
        # Where it was scanned, the files have the versions that it holds.
        if location == manifest.root:
            return manifest
        return replace(manifest, root=location, versions=_current_versions(manifest, moved))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Write the manifest atomically, gzipped if the name ends with `.gz`; such a file can't be mapped into memory.

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
        write_file(storage, storage.root, pack(data, "gzip") if storage.root.endswith(".gz") else data)

    def storage(
        self,
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
    ) -> Storage:
        """Return the storage of the files, created from `root`: credentials must be given again."""
        return Storage(self.root, filesystem, storage_options, retries)

    def select(
        self,
        condition: pc.Expression | Sequence[Any],
        *,
        filesystem: FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
        progress: bool | None = None,
        cache_dir: CacheDir = None,
    ) -> Manifest:
        """Return the manifest with the counts of a filter, so that datasets of it with this `filter=` count nothing.

        It still has all rows. `save` doesn't save the counts: to count only once for several runs, use `cache_dir`.

        Args:
            condition: An expression of pyarrow, or tuples, as for `StatefulShardedDataset`.
            filesystem: The filesystem, of fsspec or pyarrow, of the files.
            storage_options: Arguments for the filesystem of the files: credentials, endpoints.
            retries: Limits of the retries when the storage fails; None: `RetryPolicy()`.
            progress: True shows a progress bar, False does not, None does if counting takes longer than 2 s.
            cache_dir: Directory or URL where the counts are cached, as for `scan`.

        Raises:
            TypeError: The condition is neither.
            SchemaMismatchError: A column doesn't exist, or the condition doesn't fit its type.
            DataFileError: A file can't be read, or the condition can't be computed for its rows.
        """
        storage = self.storage(filesystem=filesystem, storage_options=storage_options, retries=retries)
        return select_rows(self, storage, condition, cache_dir, progress=progress)

    def with_selections(self, selections: Iterable[Selection]) -> Manifest:
        """Return the manifest with selections that were planned; datasets that select the same rows count nothing."""
        return replace(self, selections=tuple(selections)).shared_with(self)

    def with_selection(self, selection: Selection) -> Manifest:
        """Return the manifest with one more selection."""
        others = (each for each in self.selections if each.text != selection.text)
        return self.with_selections([*others, selection])

    def with_vocabularies(self, vocabularies: Iterable[Vocabulary]) -> Manifest:
        """Return the manifest with vocabularies that were collected; datasets with these columns collect nothing."""
        return replace(self, vocabularies=tuple(vocabularies)).shared_with(self)

    def shared_with(self, contents: ManifestContents) -> Manifest:
        """Return this manifest, which has the same encoding as some contents, with their file."""
        object.__setattr__(self, "shared_file", contents.shared_file)
        return self

    def __reduce__(self) -> tuple[Callable[..., Manifest], tuple[object, ...]]:
        """Pickle the encoding; a spawned worker of this host maps the file of a large manifest instead."""
        fingerprint = self.files.known_fingerprint
        if self.num_bytes >= MIN_SHARED_BYTES and sys.platform != "win32" and get_spawning_popen() is not None:
            try:
                descriptor = self.shared_file.descriptor(lambda: encode(self))
            except OSError as error:
                message = f"the manifest can't be written to a temporary file for workers: {error}; set TMPDIR"
                raise DataFileError(message) from error
            return _of_descriptor, (reduction.DupFd(descriptor), fingerprint, self.selections, self.vocabularies)
        return _of_bytes, (pack(encode(self), "zstd"), fingerprint, self.selections, self.vocabularies)

    def __repr__(self) -> str:
        summary = ", ".join(
            [
                counted(self.files.num_files, "file"),
                counted(self.num_rows, "row"),
                counted(len(self.schema), "column"),
            ]
        )
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
    condition: object = None,
    schema: pa.Schema | None = None,
) -> tuple[Manifest, Storage]:
    """Return the result of `Manifest.scan`, and the storage it used, which holds the credentials of a URL.

    Of a table, files in which a condition can't match a row are left out; `schema` are given types of its columns.
    """
    catalog = catalog_of(source, storage_options, has_filesystem=filesystem is not None)
    if catalog is not None:
        if format is not None:
            message = f"format is {format!r}, but a table says itself of which format its files are: omit it"
            raise ValueError(message)
        contents, storage = scan_table(
            catalog,
            condition=condition,
            schema=schema,
            filesystem=filesystem,
            storage_options=storage_options,
            retries=retries,
            progress=progress,
            cache_dir=cache_dir,
        )
        return Manifest.of(contents), storage
    found = find_data_files(
        cast("Paths", source), format=format, filesystem=filesystem, storage_options=storage_options, retries=retries
    )
    return Manifest.of(scan_files(found, progress=progress, cache_dir=cache_dir)), found.storage


def select_rows(
    manifest: Manifest, storage: Storage, condition: object, cache_dir: CacheDir, *, progress: bool | None
) -> Manifest:
    """Return the result of `Manifest.select`, for files whose storage is known."""
    step = filter_of(condition, manifest, None)
    planner = Planner(manifest, storage, cache_dir, progress=progress)
    (selection,) = planner.extend(None, [step], step.schema)
    return manifest.with_selection(selection.rows)


def open_source(
    source: Source | Manifest,
    *,
    format: str | None = None,  # noqa: A002 - the name that users know
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
    cache_dir: CacheDir = None,
    condition: object = None,
    schema: pa.Schema | None = None,
) -> tuple[Manifest, Storage]:
    """Return the manifest of a source, scanned unless it is one itself, and the storage; see `scan_source`."""
    if isinstance(source, Manifest):
        return source, source.storage(filesystem=filesystem, storage_options=storage_options, retries=retries)
    return scan_source(
        source,
        format=format,
        filesystem=filesystem,
        storage_options=storage_options,
        retries=retries,
        cache_dir=cache_dir,
        condition=condition,
        schema=schema,
    )


def _of_bytes(
    data: bytes,
    fingerprint: str | None,
    selections: tuple[Selection, ...],
    vocabularies: tuple[Vocabulary, ...],
) -> Manifest:
    manifest = Manifest.of(decode(memoryview(data), "a pickled manifest"))
    manifest.files.adopt_fingerprint(fingerprint)
    return manifest.with_selections(selections).with_vocabularies(vocabularies)


def _of_descriptor(
    descriptor: Any,  # noqa: ANN401 - the standard library's
    fingerprint: str | None,
    selections: tuple[Selection, ...],
    vocabularies: tuple[Vocabulary, ...],
) -> Manifest:
    # Not checked again: the process that started this one has read it, or written it.
    manifest = Manifest.of(decode_columns(map_descriptor(descriptor.detach())))
    manifest.files.adopt_fingerprint(fingerprint)
    return manifest.with_selections(selections).with_vocabularies(vocabularies)


def _read(storage: Storage) -> ManifestContents:
    """Return the contents of the manifest at the root of a storage."""
    name = storage.redact(storage.root)
    if not storage.is_local:
        data = memoryview(read_range(storage, storage.root, 0, file_size(storage, storage.root)))
        return decode(data, name)
    with storage.translate_errors(storage.root):
        data = read_local(storage.root)
    contents = decode(data, name)
    if is_plain(data):
        contents.shared_file.remember(storage.root, head_of(data))
    return contents


def _check_root(root: str, storage: Storage, *, given: FileSystem | None) -> None:
    """Check that the root that a manifest names is on the storage of the manifest.

    Otherwise, a manifest from someone else could make laneway read any file, or send credentials to any server.
    """
    protocol, mark, _ = root.partition("://")
    if given is None:
        is_same = _place_of(root) == _place_of(storage.redact(storage.root))
    else:
        protocols = storage.filesystem.protocol
        is_same = not mark or protocol in ((protocols,) if isinstance(protocols, str) else protocols)
    if not is_same:
        message = (
            f"{storage.redact(storage.root)} says that its data files are in {redact(root)!s:.200}, on another storage "
            "than the manifest: pass root= to say where they are"
        )
        raise DataFileError(message)


def _place_of(url: str) -> tuple[str, str]:
    """Return the protocol of a URL, and its host or bucket; both are empty for a local path."""
    protocol, mark, path = url.partition("://")
    return (protocol, path.split("/", 1)[0]) if mark else ("", "")


def _current_versions(manifest: Manifest, storage: Storage) -> Strings:
    """Return the versions of files that moved: without them, reads could not detect that a file changes."""
    found = {} if storage.is_local else {entry.path: entry.version for entry in find_files(storage, storage.root)}
    return Strings.of(found.get(storage.join(path), "") for path in manifest.files.paths)

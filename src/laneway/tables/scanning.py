"""The manifest of a table: the files that its catalog lists, those left out in which a filter can't match a row."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from laneway.catalog.caching import CacheEntry
from laneway.catalog.decoding import decode
from laneway.catalog.encoding import TABLE_FORMAT_VERSION
from laneway.catalog.partitions import Partitions
from laneway.catalog.scanning import combine, is_unchanged, read_scans, write_contents
from laneway.catalog.schemas import FileSchemas
from laneway.catalog.sources import DataFiles, common_directory, settled_version
from laneway.catalog.table_facts import DeletedRows, TableFacts
from laneway.errors import DataFileError, SchemaMismatchError
from laneway.formats import FORMATS
from laneway.reading.expressions import filter_on
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.tables.pruning import files_that_may_match
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.contents import ManifestContents
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy
    from laneway.tables.base import Catalog, TableFiles


def scan_table(
    catalog: Catalog,
    *,
    condition: object = None,
    schema: pa.Schema | None = None,
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
    progress: bool | None = None,
    cache_dir: CacheDir = None,
) -> tuple[ManifestContents, Storage]:
    """Return the contents of the manifest of a table, and the storage of its files.

    Args:
        catalog: The table.
        condition: The filter that the dataset begins with: files in which it can't match a row are left out.
        schema: Types of columns that the user gave; None: those of the table.
        filesystem: The filesystem of the files; None: the one that `Catalog.root` names.
        storage_options: Its arguments; None: those of the catalog.
        retries: Limits of the retries when the storage fails.
        progress: Whether to show a progress bar; see `Manifest.scan`.
        cache_dir: Where manifests are cached; see `Manifest.scan`.

    Raises:
        DataFileError: The table has no files, or one is listed twice, missing, unreadable, damaged or of another
            format.
        SchemaMismatchError: The filter doesn't fit the columns, or a constant has no place in a manifest.
    """
    format_ = FORMATS[catalog.format]
    if filesystem is not None and format_.reads_by_itself:
        message = f"{_name(catalog)} is read by its own library, not by filesystem=: give storage_options= instead"
        raise ValueError(message)
    if filesystem is None and storage_options is None:
        storage_options = catalog.storage_options
    storage = Storage(catalog.root, filesystem, storage_options, retries)
    files = catalog.files()
    if not files.paths:
        message = f"{_name(catalog)} has no data files: write rows to it before you read it"
        raise DataFileError(message)
    left_out_by, kept = None, np.arange(len(files.paths))
    if condition is not None:
        step = filter_on(condition, catalog.schema, schema)
        is_kept = files_that_may_match(catalog, step, len(kept))
        if not is_kept.all():
            # A manifest has at least one file; of this one, its own statistics will leave out all rows.
            is_kept[0] |= not is_kept.any()
            left_out_by, kept = step.text, np.flatnonzero(is_kept)
    storage, kept, paths = _place(storage, files, kept)
    listed_at_ns = time.time_ns()
    found = DataFiles(
        storage=storage,
        sources=(storage.root,),
        format=format_,
        paths=paths,
        sizes=[files.sizes[index] for index in kept.tolist()],
        versions=(
            _versions(catalog, storage, paths, listed_at_ns)
            if files.versions is None
            else [files.versions[index] for index in kept.tolist()]
        ),
        listed_at_ns=listed_at_ns,
    )
    entry = CacheEntry.find(cache_dir, storage, (f"table {TABLE_FORMAT_VERSION}", catalog.format))
    cached = None if entry is None else entry.load(lambda data: decode(data, entry.redacted_path))
    # The files of a table don't change, so a path and a size identify what was cached, unless a version is known.
    none_deleted = TableFacts(catalog.version, catalog.schema, DeletedRows.of({}, len(paths)))
    try:
        scans = read_scans(found, cached, are_fixed=True, progress=progress)
    except DataFileError as error:
        raise none_deleted.explain(error) from error.__cause__
    schemas = FileSchemas.renamed((scan.schema for scan in scans), catalog.rename)
    contents = combine(found, scans, schemas, _constants(catalog, files, kept, schemas), none_deleted)
    if entry is not None and left_out_by is None and not (cached is not None and is_unchanged(found, cached)):
        write_contents(entry, contents)
    deleted = catalog.deleted_rows(kept.tolist())
    at = {index: place for place, index in enumerate(kept.tolist())}
    rows = DeletedRows.of({at[index]: rows for index, rows in deleted.items()}, len(paths))
    table = TableFacts(catalog.version, catalog.schema, _within(rows, contents), left_out_by)
    return replace(contents, table=table), storage


def _place(
    storage: Storage, files: TableFiles, kept: NDArray[np.int64]
) -> tuple[Storage, NDArray[np.int64], list[str]]:
    """Return the storage at the directory that contains all files, and the files sorted by their paths below it."""
    given = [files.paths[index] for index in kept.tolist()]
    if any(path.startswith("/") or "://" in path for path in given):
        # To ask fsspec for each path takes long.
        whole = [storage.path_of(path) if "://" in path else path for path in given]
        whole = [
            path if path.startswith("/") or "://" in given[at] else storage.join(path) for at, path in enumerate(whole)
        ]
        storage = storage.at(common_directory([path.rpartition("/")[0] or "/" for path in whole]))
        root = storage.join("")
        given = [path.removeprefix(root) for path in whole]
    twice = [path for path, count in Counter(given).items() if count > 1]
    if twice:
        message = f"{storage.redact(storage.join(twice[0]))} is listed twice ({len(twice):,} such files)"
        msg = f"{message}: the rows of a table come once, so its catalog must list each file once"
        raise DataFileError(msg)
    order = sorted(range(len(given)), key=given.__getitem__)
    return storage, kept[order], [given[index] for index in order]


def _versions(catalog: Catalog, storage: Storage, paths: Sequence[str], listed_at_ns: int) -> list[str]:
    """Return the versions of the files of a table that has none, if they are local: no request is made for them."""
    if catalog.version is not None or not storage.is_local:
        return [""] * len(paths)
    entries = [get_entry(storage, storage.join(path)) for path in paths]
    return ["" if entry is None else settled_version(storage, entry, listed_at_ns) for entry in entries]


def _constants(catalog: Catalog, files: TableFiles, kept: NDArray[np.int64], schemas: FileSchemas) -> Partitions:
    """Return the constants as partition keys, which are integers or strings that are cast to the types of the table."""
    fields, columns = [], []
    for name, values in files.constants.items():
        if all(name in schema.names for schema in schemas.distinct):
            continue
        type_ = catalog.schema.field(name).type
        try:
            given: Any = pa.array([values[index] for index in kept.tolist()], type_)
            is_integer = pa.types.is_integer(type_) and not pa.types.is_uint64(type_)
            column = given.cast(pa.int64() if is_integer else pa.string())
            column.cast(type_)
        except pa.ArrowException as error:
            message = f"{name!r} is constant in the files of {_name(catalog)}, and of type {type_}, which has no text"
            msg = f"{message}: {error}"
            raise SchemaMismatchError(msg) from error
        fields.append(pa.field(name, column.type))
        columns.append(tuple(column.to_pylist()))
    return Partitions(tuple(fields), tuple(columns))


def _within(deleted: DeletedRows, contents: ManifestContents) -> DeletedRows:
    """Check that each deleted row is in its file."""
    files, owners = contents.files, deleted.owners
    wrong = np.flatnonzero((deleted.ranges[:, 0] < 0) | (deleted.ranges[:, 1] > files.rows[owners]))
    if len(wrong):
        index, row = int(owners[wrong[0]]), int(deleted.ranges[wrong[0], 1]) - 1
        message = (
            f"the table says that row {row:,} of {files.paths[index]} is deleted, which has "
            f"{counted(int(files.rows[index]), 'row')}: the file, or the metadata of the table, is damaged"
        )
        raise DataFileError(message)
    return deleted


def _name(catalog: Catalog) -> str:
    return catalog.version or f"the table of {type(catalog).__name__}"

"""The data files of a source: a directory, a glob, a file, or several of them."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laneway.catalog.partitions import partition_key
from laneway.catalog.signature import SIGNATURE_BYTES, SavedManifestError, is_manifest
from laneway.errors import DataFileError
from laneway.formats import FORMATS, Format, format_of_content, format_of_suffix
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.hub import is_fixed
from laneway.storage.listing import find_files, glob_files, glob_root, has_wildcards, is_hidden, lists_recursively
from laneway.storage.reading import read_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laneway.storage.entries import Entry
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy

SETTLED_AFTER_NS = 2 * 10**9
"""A file modified less than this before a listing may be rewritten without a new modification time."""
_THREADS = 32
_IS_METADATA = re.compile(r"^/?(_delta_log/.*\.json|metadata/[^/]*\.metadata\.json(\.gz)?)$")
"""What the path of a file below a directory is if the directory is a Delta or an Iceberg table."""


@dataclass(frozen=True, slots=True, eq=False)
class DataFiles:
    """The data files of a source."""

    storage: Storage
    """Where they are; its root is the deepest directory that contains all of them."""
    sources: tuple[str, ...]
    """The sources, as paths of the storage."""
    format: Format
    """Format of all of them."""
    paths: list[str]
    """Paths relative to the root, sorted and distinct."""
    sizes: list[int]
    """Bytes of each file."""
    versions: list[str]
    """`Entry.version` of each file when it was listed; "" if unknown, or if a local file was modified just before."""
    listed_at_ns: int
    """Time just before the listing, in ns since the epoch."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files of one source, before a format is chosen."""

    root: str
    files: dict[str, Entry]
    """Listed files by path."""
    is_named: bool
    """Whether the source is the path of a file, which is data whatever its name."""
    table: str = ""
    """The metadata of a table that lie beside these files; "" if there are none."""


def find_data_files(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    format: str | None = None,  # noqa: A002 - the name that users know
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
) -> DataFiles:
    """Return the data files of a source; see `Manifest.scan` for the rules and errors."""
    if format is not None and not (isinstance(format, str) and format in FORMATS):
        message = f"format is {format!r}: give one of {', '.join(map(repr, FORMATS))}, or None to detect it"
        raise ValueError(message)
    sources = [source] if isinstance(source, (str, os.PathLike)) else source
    is_sequence = isinstance(sources, Sequence) and not isinstance(sources, (bytes, bytearray))
    if not is_sequence or not all(isinstance(each, (str, os.PathLike)) for each in sources):
        message = f"source must be a path or URL, a sequence of them, or a Manifest, not {source!r:.200}"
        raise TypeError(message)
    if "" in sources and filesystem is None:
        message = "source is an empty path; give '.' for the working directory"
        raise ValueError(message)
    if not sources:
        message = "no source is given: the sequence of paths is empty"
        raise DataFileError(message)
    storage = Storage(sources[0], filesystem, storage_options, retries)
    requested = storage.pinned([storage.path_of(each) for each in sources])
    listed_at_ns = time.time_ns()
    listings = _list_all(storage, requested)
    storage = storage.at(_above_partitions(common_directory([listing.root for listing in listings])))

    counts = Counter(path for listing in listings for path in listing.files) if len(listings) > 1 else {}
    twice = sorted(path for path, count in counts.items() if count > 1)
    if twice:
        message = f"{storage.redact(twice[0])} is given twice ({len(twice):,} such files): name each file once"
        raise DataFileError(message)

    chosen = FORMATS[format] if format else _choose_format(storage, listings)
    files = {path: entry for listing in listings for path, entry in _select(listing, chosen).items()}
    for listing in listings:
        _warn_of_table(storage, listing)
    if chosen is None or not files:
        raise _nothing_found(storage, sources, listings, chosen)
    root = storage.join("")
    ordered = sorted(files)
    _check_names(ordered)
    return DataFiles(
        storage,
        tuple(requested),
        chosen,
        paths=[path.removeprefix(root) for path in ordered],
        sizes=[files[path].size for path in ordered],
        versions=[settled_version(storage, files[path], listed_at_ns) for path in ordered],
        listed_at_ns=listed_at_ns,
    )


def settled_version(storage: Storage, entry: Entry, listed_at_ns: int) -> str:
    """Return the version of a file, unless the file may change without a new one."""
    is_recent = storage.is_local and entry.version.isdigit() and int(entry.version) > listed_at_ns - SETTLED_AFTER_NS
    return "" if is_recent else entry.version


def _check_names(paths: Sequence[str]) -> None:
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        bad = next(path for path in paths if path != path.encode(errors="ignore").decode())
        message = f"the name of {os.fsencode(bad)!r} is not UTF-8: rename the file or directory"
        raise DataFileError(message) from None


def _above_partitions(directory: str) -> str:
    """Return the directory above those at the end of a path that are named `key=value`.

    So a source that is a single partition, or inside one, has the same columns as one of several.
    """
    top = "/" if directory.startswith("/") else ""
    while partition_key(directory.rpartition("/")[2]) is not None:
        directory = directory.rpartition("/")[0] or top
    return directory


def _list_all(storage: Storage, paths: Sequence[str]) -> list[_Listing]:
    # Of a commit, a listing answers for all files of its directory.
    if storage.is_local or len(paths) == 1 or is_fixed(storage.filesystem, paths[0]):
        return [_list(storage, path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_list, storage), paths))


def _list(storage: Storage, path: str) -> _Listing:
    # A recursive listing shows whether the path exists, so no request precedes it, unless the path looks like a file.
    is_recursive = lists_recursively(storage) and "[" not in path
    files: dict[str, Entry] = {}
    if is_recursive and not has_wildcards(path) and not format_of_suffix(path):
        files = _by_path(find_files(storage, path))
        if files and path not in files:
            return _below(path, files)
    elif is_recursive and has_wildcards(path):
        files = _by_path(glob_files(storage, path))
        if path not in files:
            return _below(glob_root(path), files)
    entry = files.get(path) or get_entry(storage, path)
    if entry is None and has_wildcards(path):
        return _below(glob_root(path), _by_path(glob_files(storage, path)))
    if entry is None:
        message = f"{storage.redact(path)} does not exist: give a directory, a glob or a data file"
        raise DataFileError(message)
    if entry.kind == "file":
        return _Listing(_parent(path), {path: entry}, is_named=True)
    if entry.kind != "directory":
        message = f"{storage.redact(path)} is neither a file nor a directory"
        raise DataFileError(message)
    return _below(path, _by_path(find_files(storage, path)))


def _below(root: str, files: dict[str, Entry]) -> _Listing:
    return _Listing(root, _visible(root, files), is_named=False, table=_table_metadata(root, files))


def _table_metadata(root: str, files: Iterable[str]) -> str:
    """Return a file in a directory that says that the directory is a table; "" if there is none."""
    return next((path for path in files if _IS_METADATA.search(path[len(root) :])), "")


def _warn_of_table(storage: Storage, listing: _Listing) -> None:
    path, is_delta = listing.table, "_delta_log" in listing.table
    if not path and storage.is_local and not listing.is_named:
        path, is_delta = _local_metadata(listing.root)
    if path:
        table, way = ("a Delta table", "a DeltaTable") if is_delta else ("an Iceberg table", "one of pyiceberg")
        message = (
            f"{storage.redact(path)} says that {storage.redact(listing.root)} is {table}, or in one: a directory is "
            "read with all files in it, also those that the table no longer has, and with rows that were deleted; pass "
            f"the table itself, as {way} or by its URL"
        )
        warnings.warn(message, stacklevel=5)


def _local_metadata(root: str) -> tuple[str, bool]:
    """Return what says that a directory is, or is in, a table, "" if nothing does, and whether of Delta."""
    for directory in (Path(root), Path(root).parent):
        if (directory / "_delta_log").is_dir():
            return str(directory / "_delta_log"), True
        found = next((directory / "metadata").glob("*.metadata.json"), None)
        if found is not None:
            return str(found), False
    return "", False


def _by_path(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.path: entry for entry in entries}


def _visible(root: str, files: dict[str, Entry]) -> dict[str, Entry]:
    """Return the files without hidden names below the root."""
    cut = len(root.rstrip("/"))

    def is_visible(path: str) -> bool:
        below = f"/{path[cut:].lstrip('/')}"
        # Object stores list directories as empty files.
        if below.endswith("/"):
            return False
        may_be_hidden = "/_" in below or "/." in below
        return not (may_be_hidden and any(map(is_hidden, below.split("/"))))

    return {path: entry for path, entry in files.items() if is_visible(path)}


def _choose_format(storage: Storage, listings: Sequence[_Listing]) -> Format | None:
    paths = sorted(path for listing in listings for path in listing.files)
    known = [(path, found) for path in paths if (found := format_of_suffix(path)) is not None]
    for path, found in known:
        first, expected = known[0]
        if found is not expected:
            message = (
                f"{storage.redact(path)} is of format {found.name!r}, but {storage.redact(first)} is of format "
                f"{expected.name!r}: choose one with format="
            )
            raise DataFileError(message)
    if known:
        return known[0][1]
    if not paths:
        return None
    sizes = {path: entry.size for listing in listings for path, entry in listing.files.items()}
    path = paths[0]
    head, name = bytes(read_range(storage, path, 0, min(sizes[path], SIGNATURE_BYTES))), storage.redact(path)
    if is_manifest(head):
        message = f"{name} is a saved manifest, not data: pass Manifest.load({name!r})"
        if len(listings) == 1 and listings[0].is_named:
            raise SavedManifestError(message)
        raise DataFileError(message)
    return format_of_content(head, name)


def _select(listing: _Listing, chosen: Format | None) -> dict[str, Entry]:
    """Return the files of a format: those with its suffix, or all files without a known suffix if there are none."""
    if listing.is_named or chosen is None:
        return listing.files
    formats = {path: format_of_suffix(path) for path in listing.files}
    selected = chosen if chosen in formats.values() else None
    return {path: entry for path, entry in listing.files.items() if formats[path] is selected}


def _nothing_found(
    storage: Storage, sources: Sequence[object], listings: Sequence[_Listing], chosen: Format | None
) -> DataFileError:
    searched = storage.redact(storage.path_of(str(sources[0])))
    more = f" and {len(sources) - 1:,} more sources" if len(sources) > 1 else ""
    formats = [chosen] if chosen else FORMATS.values()
    suffixes = ", ".join(suffix for each in formats for suffix in each.suffixes)
    others = sum(len(listing.files) for listing in listings)
    return DataFileError(
        f"no data file found in {searched}{more}: searched for names that end with {suffixes} and do not "
        f"begin with '_' or '.'; found {others:,} other files"
    )


def _parent(path: str) -> str:
    head, slash, _ = path.rpartition("/")
    return head or slash


def common_directory(roots: Sequence[str]) -> str:
    """Return the deepest directory that contains all of some directories."""
    if len(set(roots)) == 1:
        return roots[0]
    levels = zip(*(root.split("/") for root in roots), strict=False)
    common = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return "/".join(common) or ("/" if roots[0].startswith("/") else "")

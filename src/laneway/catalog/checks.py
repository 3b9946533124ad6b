"""Checks of a manifest that was read from a file: it may be damaged, or crafted to have other files read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.formats import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.catalog.contents import ManifestContents
    from laneway.core.strings import Strings

_MAX_TOTAL: Final = 1 << 62
_LOOKED_AT_ONCE = 1 << 18
_ABOVE_THE_ROOT = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|(^|::)[A-Za-z][A-Za-z0-9+.-]*://|^[A-Za-z]:[/\\]")


def check_contents(contents: ManifestContents) -> None:
    """Check that the columns fit together, and that each path is below the root.

    Raises:
        ValueError: They don't; the message says what is wrong.
    """
    files = contents.files
    _require(all(isinstance(each, str) for each in (contents.root, contents.format, files.schema_digest)), "its names")
    _require(contents.format in FORMATS, f"the format {contents.format!r:.40}")
    num_files, num_blocks = len(files.sizes), len(files.block_rows)
    _require(num_files > 0, "it has no files")
    for name, column in (("paths", files.paths), ("digests", files.digests), ("versions", contents.versions)):
        _check_strings(column, num_files, name)
    _check_paths(files.paths)
    _require(len(files.block_bytes) == len(files.block_memory_bytes) == num_blocks, "its blocks")
    _check_starts(files.block_starts, num_files, num_blocks, "block_starts")
    _check_starts(contents.layout_starts, num_files, len(contents.layout), "layout_starts")
    _check_counts(files.sizes, "sizes")
    _check_counts(files.block_rows, "block_rows")
    _check_counts(files.block_bytes, "block_bytes")
    if files.block_memory_bytes is not files.block_bytes:
        _check_counts(files.block_memory_bytes, "block_memory_bytes")
    _check_columns(contents, num_files)
    _check_table(contents, num_files)


def _check_table(contents: ManifestContents, num_files: int) -> None:
    schemas, table = contents.schemas, contents.table
    if schemas.stored:
        pairs = [*zip(schemas.stored, schemas.distinct, strict=False)]
        _require(len(schemas.stored) == len(schemas.distinct), "the names of its columns")
        _require(all(len(stored) == len(each) for stored, each in pairs), "the names of its columns")
    if table is None:
        return
    _require(all(each is None or isinstance(each, str) for each in (table.version, table.filter)), "its table")
    _require(len(set(table.schema.names)) == len(table.schema.names), "a column of its table has the name of another")
    deleted = table.deleted
    _check_starts(deleted.starts, num_files, len(deleted.ranges), "deleted_starts")
    owners, first, stop = deleted.owners, deleted.ranges[:, 0], deleted.ranges[:, 1]
    is_inside = (first >= 0) & (first < stop) & (stop <= contents.files.rows[owners])
    _require(bool(is_inside.all()), "its deleted rows")
    is_ascending = (first[1:] > stop[:-1]) | (np.diff(owners) > 0)
    _require(bool(is_ascending.all()), "the order of its deleted rows")


def _check_columns(contents: ManifestContents, num_files: int) -> None:
    partitions, schemas = contents.partitions, contents.schemas
    _require(len(schemas.indices) == num_files, "the schemas of its files")
    _require(schemas.indices.min() >= 0 and schemas.indices.max() < len(schemas.distinct), "the schemas of its files")
    of_files = [schema.names for schema in schemas.distinct]
    readable = [schema.names for schema in contents.readable.distinct]
    for names in (*of_files, [field.name for field in partitions.fields]):
        _require(len(set(names)) == len(names), "a column has the name of another")
    # A key that all files have as a column adds none.
    in_all = set(readable[0]).intersection(*readable)
    _require(not any(field.name in in_all for field in partitions.fields), "a column has the name of another")
    _require(len(partitions.values) == len(partitions.fields), "its partition keys")
    for field, values in zip(partitions.fields, partitions.values, strict=True):
        _require(field.type in {pa.int64(), pa.string()}, f"the type of the partition key {field.name!r:.40}")
        _require(len(values) == num_files, f"the values of the partition key {field.name!r:.40}")


def check_codes(codes: NDArray[np.int64], num_values: int) -> None:
    """Check that codes refer to one of `num_values` values, or are -1.

    Raises:
        ValueError: One does not.
    """
    _require(len(codes) == 0 or (codes.min() >= -1 and codes.max() < num_values), "the values of a partition key")


def check_strings(column: Strings, name: str) -> None:
    """Check that each string of a column is UTF-8, followed by a NUL byte.

    Raises:
        ValueError: One is not.
    """
    _check_starts(column.offsets, len(column), len(column.data), name)
    if len(column) == 0:
        return
    ends = column.offsets[1:] - 1
    _require(bool((ends >= column.offsets[:-1]).all()) and not column.data[ends].any(), name)
    # As one string: none of its characters can contain a NUL byte, so each begins and ends with a character.
    bounds = pa.py_buffer(np.array([0, len(column.data)], np.int64).data)
    pa.Array.from_buffers(pa.large_string(), 1, [None, bounds, pa.py_buffer(column.data.data)]).validate(full=True)


def _check_strings(column: Strings, num_files: int, name: str) -> None:
    _require(len(column.offsets) == num_files + 1, f"the number of {name}")
    check_strings(column, name)


def _check_paths(paths: Strings) -> None:
    buffers = [None, pa.py_buffer(paths.offsets.data), pa.py_buffer(paths.data.data)]
    column = pa.Array.from_buffers(pa.large_string(), len(paths), buffers)
    _require(len(paths) == 1 or pc.all(pc.less(column[:-1], column[1:])).as_py(), "its paths are not sorted")
    first = paths.data[paths.offsets[:-1]]
    rooted = np.flatnonzero((first == 0) | (first == ord("/")) | (first == ord("\\")))
    for index in {*rooted.tolist(), *_suspects(paths)}:
        path = paths[index]
        _require(path != "" and not _ABOVE_THE_ROOT.search(path), f"the path {path!r:.200} is not below the root")


def _suspects(paths: Strings) -> set[int]:
    """Return the paths with two dots in a row or a colon: a regular expression over all paths takes far longer.

    Raises:
        ValueError: A path holds a NUL byte.
    """
    found, num_zeros = set(), 0
    # In pieces that fit into the cache: new memory would take longer than the comparisons.
    for start in range(0, len(paths.data), _LOOKED_AT_ONCE):
        piece = paths.data[start : start + _LOOKED_AT_ONCE + 1]
        dots = piece == ord(".")
        positions = np.flatnonzero(dots[:-1] & dots[1:] | (piece[:-1] == ord(":")))
        num_zeros += len(piece) - int(np.count_nonzero(piece)) - int(len(piece) > _LOOKED_AT_ONCE and piece[-1] == 0)
        found.update(np.searchsorted(paths.offsets, positions + start, side="right").tolist())
    # Each path ends with one.
    _require(num_zeros == len(paths), "a path holds a NUL byte")
    return {index - 1 for index in found}


def _check_starts(starts: NDArray[np.int64], num_owners: int, total: int, name: str) -> None:
    is_whole = len(starts) == num_owners + 1 and starts[0] == 0 and starts[-1] == total
    _require(bool(is_whole and (starts[1:] >= starts[:-1]).all()), name)


def _check_counts(counts: NDArray[np.integer], name: str) -> None:
    if len(counts) == 0:
        return
    largest = int(counts.max())
    _require(int(counts.min()) >= 0, f"{name} has a negative number")
    # The largest number times the count nearly always shows that the sum fits.
    fits = largest * len(counts) < _MAX_TOTAL or float(counts.sum(dtype=np.float64)) < _MAX_TOTAL
    _require(fits, f"the sum of {name} is too large")


def _require(condition: bool, reason: str) -> None:  # noqa: FBT001 - what is required
    if not condition:
        raise ValueError(reason)

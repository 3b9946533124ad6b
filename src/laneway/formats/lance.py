"""Fragments of Lance datasets, read by pylance at one version of the dataset: blocks are runs of its rows."""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa

from laneway.core.files import digest
from laneway.errors import DataFileError, LanewayError
from laneway.formats.base import FileScan, Format
from laneway.formats.field_paths import path_of, select_fields
from laneway.formats.nested_types import child_types, storage_type
from laneway.storage.object_stores import for_object_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lance import LanceDataset, LanceFragment
    from numpy.typing import NDArray

    from laneway.formats.base import BlockMatches, PlannedFile
    from laneway.storage.filesystem import Storage

_BLOCK_BYTES: Final = 4 << 20
"""About as many bytes of the files of a fragment does a block have."""
_TEXT_PER_STORED: Final = 2
"""A guess at how much longer strings and lists are in memory than in files. Their order depends on it."""
_SOURCE: Final = re.compile(r",? ?\S*\.rs:\d+:\d+")
"""Where in its source Lance says that an error was raised."""
_OPEN_DATASETS: Final = 8


@final
class LanceFormat(Format):
    """Reads fragments of Lance datasets, whose catalog names them: a data file alone doesn't say what its rows are."""

    name = "lance"
    suffixes = (".lance",)
    block_name = "block"
    reads_by_itself = True

    def scan(
        self,
        storage: Storage,
        path: str,
        size: int,
        tail: bytes | None = None,  # noqa: ARG002 - see Format
        version: str = "",
    ) -> FileScan:
        """Return what the dataset says of a fragment. No data is read."""
        if not version:
            message = (
                f"{storage.redact(path)} is of a Lance dataset, in which files may be of other versions, and have rows "
                "that were deleted: pass the dataset, as one of lance.dataset() or by its URL, lance://path@version"
            )
            raise DataFileError(message)
        number, _, fragment_id = version.partition("/")
        opened = _open_once(storage, int(number))
        fragment = opened.fragment(storage, path, int(fragment_id))
        rows, fields = _block_rows(fragment, size), opened.schema
        total = max(1, fragment.physical_rows)
        stored = [size * each // total for each in rows]
        widths = [_width(each.type) for each in fields]
        in_text = _TEXT_PER_STORED if None in widths else 0
        fixed_bits = sum(each or 0 for each in widths)
        return FileScan(
            schema=fields,
            block_rows=rows,
            block_bytes=stored,
            block_memory_bytes=[
                fixed_bits * each // 8 + in_text * share for each, share in zip(rows, stored, strict=True)
            ],
            digest=_digest(fragment),
            layout=[[int(number), int(fragment_id)]],
        )

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> LanceBlocks:
        """Open a fragment, and check that it is the one that was planned."""
        if planned.layout.shape != (1, 2):
            message = (
                f"the manifest doesn't say which fragment {storage.redact(planned.path)} is: scan the dataset again"
            )
            raise DataFileError(message)
        version, fragment_id = planned.layout[0].tolist()
        fragment = _open_once(storage, version).fragment(storage, planned.path, fragment_id)
        found = _digest(fragment)
        if found != planned.digest:
            difference = f"its fragment had the digest {planned.digest} and now has {found}"
            raise storage.change_error(planned.path, difference)
        return LanceBlocks(fragment, storage, planned, schema)


@final
class LanceBlocks:
    """An open fragment."""

    def __init__(self, fragment: LanceFragment, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> None:
        """Prepare to read.

        Args:
            fragment: The fragment, at the version that was planned.
            storage: Where it is.
            planned: The fragment as the manifest describes it.
            schema: Its columns.
        """
        self._fragment = fragment
        self._storage = storage
        self._planned = planned
        self._schema = schema
        self._bounds: NDArray[np.int64] = np.concatenate([[0], np.cumsum(planned.block_rows, dtype=np.int64)])

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Read the blocks [first, stop) of these columns, in this order.

        Raises:
            DataFileError: They can't be read.
        """
        start, end = int(self._bounds[first]), int(self._bounds[stop])
        fields = [(name, path_of(self._schema, name)) for name in columns]
        if not fields:
            return pa.table({"rows": pa.nulls(end - start)}).select([])
        names = [*dict.fromkeys(path[0] for _, path in fields)]
        try:
            # Of rows with an offset, Lance reads no others; those that were deleted don't count.
            scanner = self._fragment.scanner(
                columns=names, offset=start, limit=end - start, batch_size=end - start, blob_handling="all_binary"
            )
            table = scanner.to_table()
        except Exception as error:  # noqa: BLE001 - those of the library have no common base
            raise lance_error(self._storage, self._planned.path, "can't be read by Lance", error) from None
        stored = pa.schema([(each.name, storage_type(each.type)) for each in table.schema])
        return select_fields(table if stored.equals(table.schema) else table.cast(stored), fields)

    def matches(self, *_: object) -> BlockMatches | None:
        """Return None: Lance doesn't tell statistics."""
        return None

    def close(self) -> None:
        """Do nothing: the dataset stays open for other fragments."""


def fragment_version(version: int, fragment_id: int) -> str:
    """Return what identifies a fragment of a dataset, as the version of a file, which `scan` is passed."""
    return f"{version}/{fragment_id}"


def open_dataset(url: str, version: int | None, options: Mapping[str, str] | None) -> LanceDataset:
    """Open a version of a dataset; None: the latest one.

    Raises:
        LanewayError: Lance is not installed, or can't work in this process.
        Exception: The dataset can't be opened.
    """
    if _Inherited.is_unsafe:
        message = (
            "Lance doesn't work reliably in a process that was forked after its use: start workers with "
            "multiprocessing_context='forkserver' or 'spawn'"
        )
        raise DataFileError(message)
    try:
        import lance  # noqa: PLC0415 - only where it is used
    except ImportError as error:
        message = f"the dataset needs pylance: pip install 'laneway[lance]' ({error})"
        raise LanewayError(message) from error
    return lance.dataset(url, version=version, storage_options=None if options is None else {**options})


def lance_error(storage: Storage, path: str, problem: str, error: Exception) -> DataFileError:
    """Return the error for something that Lance can't do."""
    return storage.error_for(path, problem, ValueError(lance_message(error)))


def lance_message(error: Exception) -> str:
    """Return the message of an exception of Lance."""
    return _SOURCE.sub("", str(error))


def scanned_schema(dataset: LanceDataset) -> pa.Schema:
    """Return the columns that rows are read with, as they are stored."""
    scanner: Any = dataset.scanner(blob_handling="all_binary")
    return pa.schema([(each.name, storage_type(each.type)) for each in scanner.projected_schema])


class _Opened(NamedTuple):
    """A version of a dataset, which stays open for its fragments."""

    version: int
    schema: pa.Schema
    fragments: Mapping[int, LanceFragment]
    """By their numbers."""

    def fragment(self, storage: Storage, path: str, fragment_id: int) -> LanceFragment:
        """Return a fragment, whose path is for the message if there is none."""
        found = self.fragments.get(fragment_id)
        if found is None:
            difference = f"version {self.version} of the Lance dataset has no fragment {fragment_id}"
            raise storage.change_error(path, difference)
        return found


@lru_cache(_OPEN_DATASETS)
def _open(url: str, version: int, options: tuple[tuple[str, str], ...]) -> _Opened:
    dataset = open_dataset(url, version, dict(options))
    fragments = {each.fragment_id: each for each in dataset.get_fragments()}
    return _Opened(version, scanned_schema(dataset), fragments)


def _open_once(storage: Storage, version: int) -> _Opened:
    """Return a version of the dataset at the root of a storage."""
    options = for_object_store(storage.options) if storage.options else {}
    try:
        return _open(storage.url, version, tuple(sorted(options.items())))
    except LanewayError:
        raise
    except Exception as error:  # noqa: BLE001 - those of the library have no common base
        problem = f"can't be opened at version {version}, which may have been cleaned up"
        raise lance_error(storage, storage.root, problem, error) from None


def _block_rows(fragment: LanceFragment, size: int) -> list[int]:
    num_rows = fragment.physical_rows - fragment.num_deletions
    num_blocks = min(num_rows, max(1, size // _BLOCK_BYTES))
    if not num_blocks:
        return []
    bounds = [number * num_rows // num_blocks for number in range(num_blocks + 1)]
    return [stop - start for start, stop in pairwise(bounds)]


def _digest(fragment: LanceFragment) -> str:
    """Return the digest of the names of all files of a fragment, which are random."""
    deletions = fragment.deletion_file() or ""
    return digest("\n".join([*(each.path for each in fragment.data_files()), deletions]).encode())


def _width(type_: pa.DataType) -> int | None:
    """Return the bits that a value takes in memory, or None if that depends on the value."""
    if pa.types.is_struct(type_):
        widths = [_width(each) for each in child_types(type_)]
        return None if None in widths else sum(each or 0 for each in widths)
    if pa.types.is_fixed_size_list(type_):
        width = _width(type_.value_type)
        return None if width is None else width * type_.list_size
    if pa.types.is_null(type_):
        return 0
    try:
        return type_.bit_width
    except ValueError:
        return None


class _Inherited:
    """What a forked process has from its parent."""

    is_unsafe = False
    """Whether the parent had loaded Lance, whose threads and locks a fork doesn't copy as they should be."""

    @classmethod
    def note(cls) -> None:
        """Look, in the child."""
        cls.is_unsafe = "lance" in sys.modules
        _open.cache_clear()


os.register_at_fork(after_in_child=_Inherited.note)

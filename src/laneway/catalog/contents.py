"""The contents of a manifest as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from laneway.catalog.caching import CacheEntry
from laneway.catalog.sharing import SharedFile
from laneway.core.files import digest
from laneway.formats import FORMATS, FileScan, PlannedFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.partitions import Partitions
    from laneway.catalog.schemas import FileSchemas
    from laneway.catalog.table_facts import TableFacts
    from laneway.core.files import FileTable
    from laneway.core.selection import Selection
    from laneway.core.strings import Strings
    from laneway.storage.filesystem import Storage


class Vocabulary(NamedTuple):
    """The values of a column in the files."""

    name: str
    """The column."""
    type: pa.DataType
    """Its type in the files."""
    values: Any
    """Its values as an array: sorted, of which none is null."""


@dataclass(frozen=True, eq=False, repr=False)
class ManifestContents:
    """The data files of a dataset, and the metadata that a reader needs to find their rows."""

    root: str
    """Directory or URL that the paths are relative to, without credentials."""
    format: str
    """Name of the format of the files, such as "parquet"."""
    files: FileTable
    """The files, sorted by path: the part that determines the fingerprint."""
    schemas: FileSchemas
    """The columns in each file, as it was scanned."""
    partitions: Partitions
    """The columns derived from directory names."""
    layout: NDArray[np.int64]
    """Positions of the blocks in the files, as the format understands them, shape (entries, values per entry)."""
    layout_starts: NDArray[np.int64]
    """Index of each file's first entry in `layout`, shape (num_files + 1,)."""
    versions: Strings
    """`Entry.version` of each file when it was listed, "" if unknown.

    Not part of the fingerprint: a copy of a dataset has other versions.
    """
    table: TableFacts | None = None
    """The table whose catalog lists these files; None: they were found in directories."""
    selections: tuple[Selection, ...] = ()
    """Selections that were planned already, which datasets need not plan again. Not part of a saved manifest."""
    vocabularies: tuple[Vocabulary, ...] = ()
    """Vocabularies that were collected already, likewise."""
    shared_file: SharedFile = field(default_factory=SharedFile, init=False)
    """A file with the same contents, which spawned workers map. A changed copy has none yet."""

    @cached_property
    def readable(self) -> FileSchemas:
        """The columns that can be read from each file: those in it, or in any file where types are inferred."""
        inference = FORMATS[self.format].inference
        return self.schemas if inference is None else self.schemas.joined(inference)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the dataset: those in any file, then those derived from directory names.

        A column that differs from file to file has its type in the first file that has it, or the type that all its
        values have, where types are inferred. A table says itself which columns it has.
        """
        if self.table is not None:
            return self.table.schema
        in_files = self.readable.union
        keys = (field for field in self.partitions.fields if in_files.get_field_index(field.name) < 0)
        return pa.schema([*in_files, *keys])

    @property
    def num_rows(self) -> int:
        """Number of rows of all files."""
        return self.files.num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the largest columns."""
        columns = (self.files.paths.data, self.versions.data, self.files.block_starts, self.layout)
        return sum(column.nbytes for column in columns) + 3 * self.files.block_rows.nbytes

    @property
    def fingerprint(self) -> str:
        """Identity of the dataset: 32 hexadecimal digits that do not depend on its location."""
        return self.files.fingerprint

    @cached_property
    def _rows_key(self) -> tuple[str, ...] | None:
        """What tells these rows from others with the same fingerprint; None: nothing does."""
        columns: list[str] = []
        if self.table is not None:
            # The fingerprint is that of the files: there, a column may have another name than in the table, or none.
            constants = digest(repr([*map(list, self.partitions.values)]).encode())
            columns = [constants, *map(str, (self.table.schema, *self.schemas.distinct))]
            if self.table.version is not None:
                # Its files don't change.
                return self.table.version, *columns
        lengths = np.diff(self.versions.offsets)
        # Each ends with a NUL byte.
        return None if (lengths == 1).any() else (digest(bytes(self.versions.joined())), *columns)

    def cache_entry(
        self,
        cache_dir: CacheDir,
        storage: Storage,
        key: Sequence[str],
        kind: Literal["selection", "vocabulary", "lengths"],
    ) -> CacheEntry | None:
        """Return the entry of what was found in the rows of the files, or None if it is not to be cached.

        It belongs to these versions of the files, since rows may change where the footers don't, and to the names that
        a table gives to their columns. If the version of a file is unknown, and that of its table, nothing is cached.

        Args:
            cache_dir: The option of the user.
            storage: Where the files are.
            key: What was found.
            kind: What is cached.
        """
        rows = self._rows_key
        return None if rows is None else CacheEntry.find(cache_dir, storage, (self.fingerprint, *rows, *key), kind)

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
            schema=self.schemas.of_file(file_index),
        )

    def file_scan(self, file_index: int) -> FileScan:
        """Return the metadata of the file at `file_index`, as it was scanned."""
        files = self.files
        blocks = slice(files.block_starts[file_index], files.block_starts[file_index + 1])
        return FileScan(
            schema=self.schemas.stored_in(file_index),
            block_rows=files.block_rows[blocks].tolist(),
            block_bytes=files.block_bytes[blocks].tolist(),
            block_memory_bytes=files.block_memory_bytes[blocks].tolist(),
            digest=files.digests[file_index],
            layout=self.layout[self.layout_starts[file_index] : self.layout_starts[file_index + 1]].tolist(),
        )


def layout_table(entries: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return layout entries as an array of shape (entries, values per entry)."""
    return np.array(entries, np.int64).reshape(len(entries), len(entries[0]) if entries else 0)

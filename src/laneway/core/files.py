"""The file table: the data files of a dataset and their contents, independent of their location.

The table identifies a dataset. Its fingerprint covers everything that determines the place of each row, and nothing
else: a dataset that is moved keeps its fingerprint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from laneway.core.saved_files import FileColumns, encode_files
from laneway.core.strings import Strings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_DIGEST_BYTES = 8


def digest(*parts: bytes) -> str:
    """Return a digest of `parts` as 16 hexadecimal digits, which also depends on the boundaries between the parts."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


@dataclass(frozen=True, eq=False)
class FileTable:
    """The data files of a dataset, sorted by path, and their blocks.

    A block is decoded as a whole: a row group of a Parquet file, a record batch of an Arrow file, a stripe of an ORC
    file, or some lines of a text.
    """

    paths: Strings
    """Paths relative to the dataset's root, with forward slashes, sorted and distinct."""
    sizes: NDArray[np.int64]
    """Size of each file in bytes, shape (num_files,)."""
    digests: Strings
    """Digest of each file's footer or message headers, to detect a file that was rewritten with the same size."""
    block_starts: NDArray[np.int64]
    """Index of each file's first block, shape (num_files + 1,)."""
    block_rows: NDArray[np.integer]
    """Rows of each block, shape (num_blocks,)."""
    block_bytes: NDArray[np.int64]
    """Uncompressed size of each block in bytes, as it is encoded in the file, shape (num_blocks,)."""
    block_memory_bytes: NDArray[np.int64]
    """Estimated size of each block in bytes once it is decoded, shape (num_blocks,)."""
    schema_digest: str
    """Digest of the column names and types that all files share."""

    @classmethod
    def build(
        cls,
        paths: Sequence[str],
        sizes: Sequence[int],
        digests: Sequence[str],
        blocks: Sequence[tuple[Sequence[int], Sequence[int]]],
        schema_digest: str,
        *,
        memory_bytes: Sequence[Sequence[int]] | None = None,
    ) -> FileTable:
        """Build a table from the metadata of each file.

        Args:
            paths: Relative paths in any order.
            sizes: Size of each file in bytes.
            digests: Digest of each file.
            blocks: For each file, the row counts and the uncompressed sizes in bytes of its blocks.
            schema_digest: Digest of the common schema.
            memory_bytes: For each file, the estimated bytes of its decoded blocks; None: as they are encoded.
        """
        order = sorted(range(len(paths)), key=paths.__getitem__)
        counts = [len(blocks[i][0]) for i in order]
        decoded = [sizes for _, sizes in blocks] if memory_bytes is None else memory_bytes
        return cls(
            paths=Strings.of(paths[i] for i in order),
            sizes=np.array([sizes[i] for i in order], np.int64),
            digests=Strings.of(digests[i] for i in order),
            block_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            block_rows=np.array([rows for i in order for rows in blocks[i][0]], np.int64),
            block_bytes=np.array([size for i in order for size in blocks[i][1]], np.int64),
            block_memory_bytes=np.array([size for i in order for size in decoded[i]], np.int64),
            schema_digest=schema_digest,
        )

    @property
    def num_files(self) -> int:
        """Number of data files, including empty ones."""
        return len(self.paths)

    @cached_property
    def num_rows(self) -> int:
        """Total number of rows."""
        return int(self.block_rows.sum())

    @cached_property
    def block_row_starts(self) -> NDArray[np.int64]:
        """Number of rows before each block, counted over all files, shape (num_blocks + 1,)."""
        starts = np.zeros(len(self.block_rows) + 1, np.int64)
        np.cumsum(self.block_rows, out=starts[1:])
        return starts

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """Number of rows before each file, counted over all files, shape (num_files + 1,)."""
        return self.block_row_starts[self.block_starts]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each file, shape (num_files,)."""
        starts = self.block_starts[:-1]
        has_blocks = self.block_starts[1:] > starts
        rows = np.zeros(self.num_files, np.int64)
        if has_blocks.any():
            rows[has_blocks] = np.add.reduceat(self.block_rows, starts[has_blocks], dtype=np.int64)
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the dataset: 32 hexadecimal digits over everything in this table."""
        return self._digest(self.block_bytes, self.block_memory_bytes)

    @cached_property
    def fingerprint_v1(self) -> str:
        """Identity of the dataset in order version 1, which doesn't depend on decoded sizes."""
        return self._digest(self.block_bytes)

    def _digest(self, *block_sizes: NDArray[np.int64]) -> str:
        state = hashlib.blake2b(digest_size=16)
        for text in (memoryview(self.schema_digest.encode()), self.paths.joined(), self.digests.joined()):
            state.update(len(text).to_bytes(8, "little"))
            state.update(text)
        for array in (self.sizes, self.block_starts, self.block_rows, *block_sizes):
            state.update(np.ascontiguousarray(array, "<i8").data)
        return state.hexdigest()

    @property
    def known_fingerprint(self) -> str | None:
        """The fingerprint if it has been computed, which takes a while for a million files."""
        return vars(self).get("fingerprint")

    def adopt_fingerprint(self, fingerprint: str | None) -> None:
        """Use the fingerprint that another process has computed for the same table, if it has."""
        if fingerprint is not None:
            vars(self)["fingerprint"] = fingerprint

    @property
    def columns(self) -> FileColumns:
        """What states say of each file."""
        return FileColumns(self.paths, self.sizes, self.rows, self.digests)

    @cached_property
    def encoded(self) -> str:
        """The table as states hold it, which error messages about other files need; see `encode_files`."""
        return encode_files(self.columns)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what follows from the columns, except for the fingerprint."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return state if self.known_fingerprint is None else {**state, "fingerprint": self.known_fingerprint}

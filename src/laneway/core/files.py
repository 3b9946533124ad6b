"""The file table: the data files of a dataset and their contents, independent of their location.

The table identifies a dataset. Its fingerprint covers everything that determines the place of each row, and nothing
else: a dataset that is moved keeps its fingerprint.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from laneway.errors import StateFormatError

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

    A block is decoded as a whole: a row group of a Parquet file, or a record batch of an Arrow file.
    """

    paths: tuple[str, ...]
    """Paths relative to the dataset's root, with forward slashes, sorted and distinct."""
    sizes: NDArray[np.int64]
    """Size of each file in bytes, shape (num_files,)."""
    digests: tuple[str, ...]
    """Digest of each file's footer or message headers, to detect a file that was rewritten with the same size."""
    block_starts: NDArray[np.int64]
    """Index of each file's first block, shape (num_files + 1,)."""
    block_rows: NDArray[np.int64]
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
            paths=tuple(paths[i] for i in order),
            sizes=np.array([sizes[i] for i in order], np.int64),
            digests=tuple(digests[i] for i in order),
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
        return np.concatenate([[0], np.cumsum(self.block_rows)]).astype(np.int64)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each file, shape (num_files,)."""
        return np.diff(self.block_row_starts[self.block_starts])

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
        for text in (self.schema_digest, "\0".join(self.paths), "\0".join(self.digests)):
            state.update(len(text.encode()).to_bytes(8, "little"))
            state.update(text.encode())
        for array in (self.sizes, self.block_starts, self.block_rows, *block_sizes):
            state.update(array.astype("<i8").tobytes())
        return state.hexdigest()

    @cached_property
    def encoded(self) -> str:
        """The part of the table that error messages about other files need, compressed; see `decode_files`."""
        facts = [self.paths, self.sizes.tolist(), self.rows.tolist(), self.digests]
        text = json.dumps(facts, separators=(",", ":"))
        return base64.b85encode(zlib.compress(text.encode(), 9)).decode("ascii")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The metadata of one data file in a state."""

    size: int
    """Bytes."""
    rows: int
    """Number of rows."""
    digest: str
    """Digest of the footer or message headers."""


def decode_files(encoded: str) -> dict[str, FileFacts]:
    """Return path -> metadata from `FileTable.encoded`.

    Raises:
        StateFormatError: `encoded` is damaged.
    """
    try:
        paths, sizes, rows, digests = json.loads(zlib.decompress(base64.b85decode(encoded)))
        facts = map(FileFacts, sizes, rows, digests)
        return dict(zip(paths, facts, strict=True))
    except (ValueError, TypeError, zlib.error) as error:
        message = f"the file table of this state can't be read ({error}): the state is truncated or damaged"
        raise StateFormatError(message) from error

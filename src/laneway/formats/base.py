"""The interface of a file format: a scan of the metadata of a file, and a reader of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from laneway.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from numpy.typing import NDArray

    from laneway.storage.filesystem import Storage


@dataclass(frozen=True, slots=True, eq=False)
class FileScan:
    """The metadata of a data file, read without decoding any row."""

    schema: pa.Schema
    """Columns of the file."""
    block_rows: list[int]
    """Rows of each block, such as a row group or a record batch."""
    block_bytes: list[int]
    """Uncompressed bytes of each block; for a compressed record batch, the compressed bytes of its body."""
    block_memory_bytes: list[int]
    """Estimated bytes of each block in memory, once it is decoded."""
    digest: str
    """Digest that changes when the file is rewritten with the same size."""
    layout: list[list[int]]
    """Positions of the blocks, and what else the format must know of each, such as a checksum; empty if they are read
    when the file is opened."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedFile:
    """A data file as it was scanned."""

    path: str
    """Path as the storage understands it."""
    size: int
    """Bytes."""
    digest: str
    """`FileScan.digest`."""
    block_rows: NDArray[np.integer]
    """Rows of each block, shape (num_blocks,)."""
    layout: NDArray[np.int64]
    """`FileScan.layout`, shape (entries, values per entry)."""
    version: str = ""
    """`Entry.version` when it was listed, "" if unknown."""
    schema: pa.Schema | None = None
    """`FileScan.schema`, without metadata."""
    is_closed: bool = False
    """Whether a field that is in none of the columns is an error, if types are inferred; otherwise it is left out."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockMatches:
    """What is known of conditions on the rows of each block of a file, without reading them."""

    possible: list[NDArray[np.bool_]]
    """For each condition, whether it may be true for a row of the block, shape (num_blocks,)."""
    has_nulls: NDArray[np.bool_]
    """Whether a column that they look at may have a null, shape (num_blocks,)."""


class BlockReader(Protocol):
    """An open data file."""

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Decode the blocks [first, stop), first < stop, of these columns, in this order.

        A table without columns still has the right number of rows. Damaged files raise exceptions of pyarrow.
        """

    def matches(
        self, conditions: Sequence[pc.Expression], schema: pa.Schema, known: Mapping[str, Any]
    ) -> BlockMatches | None:
        """Return what statistics tell of conditions, or None if there are none. NaN is not in statistics.

        Args:
            conditions: The conditions.
            schema: The columns that they look at, of the types that they have in the file.
            known: Column -> the scalar that is its value in all rows, for those that are not in the file.
        """

    def close(self) -> None:
        """Close the file. Tables read from it stay valid."""


class SelectiveBlockReader(BlockReader, Protocol):
    """An open data file of which some rows can be read in less memory than all of them."""

    def read_selected(self, first: int, stop: int, columns: Sequence[str], mask: NDArray[np.bool_]) -> pa.Table:
        """Decode some rows of the blocks [first, stop); see `read`.

        Args:
            first: The first block.
            stop: One past the last block.
            columns: The columns.
            mask: Which of the rows, of shape (rows of the blocks,).
        """


class TypeInference(Protocol):
    """What follows from the values of files that don't say which types their columns have."""

    def join(self, first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
        """Return the type of a column in which values of both types were found, or None if they don't fit together."""

    def parsed(self, inferred: pa.DataType | None, delivered: pa.DataType) -> pa.DataType:
        """Return the type as which a column is to be parsed; it is cast to `delivered` afterwards.

        Args:
            inferred: The type that was inferred; None: no value of it was found.
            delivered: The type that is wanted.
        """


class Format(Protocol):
    """A file format. Implementations are stateless and thread-safe.

    A class that derives from this one need not define the properties that have a default here.
    """

    @property
    def name(self) -> str:
        """Name of the format, for users and states."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes of this format, in lower case."""

    @property
    def block_name(self) -> str:
        """Name of a block, for messages, such as "row group"."""

    @property
    def is_mapped(self) -> bool:
        """Whether local files are memory-mapped, so that most reads cost nothing."""
        return False

    @property
    def skips_rows(self) -> bool:
        """Whether readers of local files are `SelectiveBlockReader`."""
        return False

    @property
    def skips_columns(self) -> bool:
        """Whether reading some of the columns takes memory for these only."""
        return False

    @property
    def inference(self) -> TypeInference | None:
        """How types are inferred; None if a file says which types its columns have."""
        return None

    @property
    def scans_all(self) -> bool:
        """Whether `scan` reads the whole file, so that scanning takes threads even if the file is local."""
        return False

    @property
    def reads_by_itself(self) -> bool:
        """Whether a library finds and reads the data, which is not a file of the storage alone.

        Then the versions of files are those that the catalog of a table gives them, and `scan` is passed them.
        """
        return False

    def recognises(self, head: bytes) -> bool:
        """Return whether a file may be of this format, given its first 8 bytes (fewer for a smaller file)."""
        del head
        return False

    @property
    def tail_bytes(self) -> int:
        """Bytes at the end of a file that `scan` reads first; 0 if it reads from the front."""
        return 0

    def scan(self, storage: Storage, path: str, size: int, tail: bytes | None = None, version: str = "") -> FileScan:
        """Read the metadata of a file.

        Args:
            storage: Where the file is.
            path: Path as the storage understands it.
            size: Bytes of the file.
            tail: Its last `tail_bytes`, or all of a smaller file, if they have been read already.
            version: Required version of the file; "" for any.

        Raises:
            DataFileError: The file is missing, unreadable, truncated or not of this format.
        """

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> BlockReader:
        """Open a file for reading.

        Args:
            storage: Where the file is.
            planned: The file as the manifest describes it.
            schema: Its columns, without metadata; where types are inferred, all columns of the dataset, in the types
                to parse.

        Raises:
            DataFileError: The file is missing or unreadable, or changed since it was planned.
        """


def name_error(storage: Storage, path: str, error: UnicodeDecodeError) -> DataFileError:
    """Return the error for a file whose schema has a name that can't be decoded."""
    message = f"{storage.redact(path)} has a column, or a field of one, named {error.object!r}, which is not UTF-8"
    return DataFileError(f"{message}: rename it")

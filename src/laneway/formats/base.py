"""What a file format has to offer: a scan that tells what a file holds, and a reader of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from laneway.errors import DataFileError
    from laneway.storage.filesystem import Storage


@dataclass(frozen=True, slots=True, eq=False)
class FileScan:
    """What a data file says about itself, read without decoding any row."""

    schema: pa.Schema
    """Columns of the file."""
    block_rows: list[int]
    """Rows of each block: row group or record batch."""
    block_bytes: list[int]
    """Uncompressed bytes of each block. The body of a compressed record batch counts as compressed."""
    digest: str
    """Digest that differs, with the same size, for a file that was rewritten."""
    layout: list[list[int]]
    """Where the blocks are, as the format understands it; empty where the file tells when it is opened."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedFile:
    """A data file as the manifest describes it: what a reader expects to find."""

    path: str
    """Path as the storage understands it."""
    size: int
    """Bytes."""
    digest: str
    """`FileScan.digest`."""
    block_rows: NDArray[np.int64]
    """Rows of each block, shape (num_blocks,)."""
    layout: NDArray[np.int64]
    """`FileScan.layout`, shape (entries, values per entry)."""
    version: str = ""
    """`Entry.version` when it was listed: ETag, else time of writing in ns; empty if unknown."""


class BlockReader(Protocol):
    """An open data file."""

    def read(self, first: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Decode the blocks [first, stop), first < stop, of these columns, in this order.

        A table without columns still has the right number of rows. Damage raises what pyarrow makes of it.
        """

    def close(self) -> None:
        """Let go of the file. Tables that were read stay valid."""


class Format(Protocol):
    """A file format. Its objects hold no state and may be used from several threads."""

    @property
    def name(self) -> str:
        """What users and states call the format."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of file names, in lower case, that mean this format."""

    @property
    def block_name(self) -> str:
        """What messages call a block: "row group" or "record batch"."""

    @property
    def is_mapped(self) -> bool:
        """Whether local files are memory-mapped, so that reading most of them costs nothing."""

    def recognises(self, head: bytes) -> bool:
        """Return whether a file that begins with `head`, 8 bytes or fewer, may be of this format."""

    @property
    def tail_bytes(self) -> int:
        """How much of a file's end `scan` reads first; 0 if it begins elsewhere."""

    def scan(self, storage: Storage, path: str, size: int, tail: bytes | None = None, version: str = "") -> FileScan:
        """Read what the file at `path`, of `size` bytes, says about itself.

        Args:
            storage: Where it is.
            path: Path as the storage understands it.
            size: Its bytes.
            tail: Its last `tail_bytes`, or all of it, where they have been read already.
            version: What it must be the version of; "": any.

        Raises:
            DataFileError: The file is missing, unreadable, truncated or not of this format.
        """

    def open(self, storage: Storage, planned: PlannedFile, schema: pa.Schema) -> BlockReader:
        """Open a file for reading.

        Args:
            storage: Where it is.
            planned: What the manifest says about it.
            schema: The columns that all files of the dataset share.

        Raises:
            DataFileError: The file is missing or unreadable, or no longer what the manifest says.
        """


def changed_since_planned(storage: Storage, planned: PlannedFile, difference: str) -> DataFileError:
    """Return the error for a file that is no longer what the manifest says."""
    return storage.change_error(planned.path, difference)

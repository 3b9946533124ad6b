"""What reads rows of data files: all of them, or those of a selection as if there were no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class Rows(Protocol):
    """Reads rows of data files."""

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a storage."""

    @property
    def is_instant(self) -> bool:
        """Whether a read only looks up addresses."""

    def read(self, file_index: int, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of a data file, of those that there are."""

    def row_in_file(self, file_index: int, row: int) -> int:
        """Return the number in its file of a row, counted as for `read`."""

    def close(self) -> None:
        """Close the files. The reader can still be used, and opens them again."""

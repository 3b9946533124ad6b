"""What reads rows: those of data files, all or some of them, and those of lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from laneway.convert.open_rows import OpenRows
    from laneway.core.cursor import LaneRange


class Rows(Protocol):
    """Reads rows of data files."""

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a storage."""

    @property
    def is_instant(self) -> bool:
        """Whether a read only looks up addresses."""

    def row_bits(self, file_index: int) -> int | None:
        """Return the bits that a row of a file takes in memory while its columns are read.

        None: that depends on the row, or all columns of the file are read.
        """

    def read(self, file_index: int, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of a data file, of those that there are."""

    def row_in_file(self, file_index: int, row: int) -> int:
        """Return the number in its file of a row, counted as for `read`."""

    def close(self) -> None:
        """Close the files. The reader can still be used, and opens them again."""


class LaneRows(Protocol):
    """Reads rows of lanes."""

    def read(self, wanted: LaneRange) -> list[OpenRows]:
        """Return rows of a lane, in one or several parts."""

    def read_on(self, lane: int, start: int, stop: int) -> OpenRows:
        """Return the first rows of [start, stop) of a lane, as many as are in memory together; at least one."""

    def locate(self, wanted: list[LaneRange], row_index: int) -> str:
        """Return where row `row_index` of these ranges comes from, for a message."""

    def close(self) -> None:
        """Release rows in memory and close files; the next read opens them again."""

    def end(self) -> None:
        """Release everything and end the threads; the reader can't be used any more."""

"""The interface of a catalog: which data files a table consists of, with which columns, and which of their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from laneway.convert.columns import Output


@dataclass(frozen=True, kw_only=True, eq=False)
class TableFiles:
    """The data files that a table consists of."""

    paths: Sequence[str]
    """Paths relative to `Catalog.root`, or whole paths or URLs. Each file is listed once."""
    sizes: Sequence[int]
    """Size of each file in bytes."""
    constants: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Column -> its value in all rows of each file, or None for null. It counts where a file lacks the column."""
    versions: Sequence[str] | None = None
    """For a format that reads by itself, what it needs to know of each file; otherwise None."""


def at_version(location: str) -> tuple[str, int | None]:
    """Return the path and the version of `path@version`; without a version, the path and None."""
    path, at, version = location.rpartition("@")
    return (path, int(version)) if at and version.isdigit() else (location, None)


class Bounds(NamedTuple):
    """What a catalog knows of the values of a column in each file."""

    least: pa.Array[Any]
    """A value that none is below; null: unknown."""
    greatest: pa.Array[Any]
    """A value that none is above; null: unknown. NaN counts in neither."""
    has_nulls: NDArray[np.bool_]
    """Whether there may be nulls."""
    is_null: NDArray[np.bool_]
    """Whether there are only nulls."""


class Catalog(ABC):
    """A table, as it is at one time: a source of `StatefulShardedDataset` and `Manifest.scan`.

    A subclass says which data files there are. It is asked once, where the dataset is planned; workers get the answers.
    The data files must not change: a table that changes has other files.
    """

    format: str = "parquet"
    """"parquet" or "arrow"."""
    output: Output | None = None
    """What columns are delivered as, unless the user says; None: as by default."""
    storage_options: Mapping[str, Any] | None = None
    """Arguments of the fsspec filesystem of the files, such as credentials; those that the user gives come first."""

    @property
    @abstractmethod
    def root(self) -> str:
        """Path or URL of a directory on the storage of the files."""

    @property
    def version(self) -> str | None:
        """The version of the table, which states name; None: its files are all that identifies it.

        It contains neither a path nor a secret. A state of another version is refused.
        """
        return None

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns of the table. Values of files are cast to their types; a column that a file lacks is null."""

    @abstractmethod
    def files(self) -> TableFiles:
        """Return the data files."""

    def rename(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of a file with the names that they have in the table.

        Args:
            schema: The columns as they are in the file, with the metadata of the fields (b"PARQUET:field_id").

        Returns:
            The same fields in the same places, also those inside of lists, maps and structs. What the table doesn't
            have gets a name that it doesn't have, either.
        """
        return schema

    def bounds(self, name: str) -> Bounds | None:  # noqa: ARG002 - a catalog without statistics
        """Return what is known of the values of a column, for each file of `files`; None: nothing.

        Files in which `filter=` can't match any row are left out before their footers are read.

        Args:
            name: A column of `schema`.
        """
        return None

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:  # noqa: ARG002 - none
        """Return the rows of the files that don't belong to the table, such as those that were deleted.

        Args:
            indices: The files to consider, by their places in `files`.

        Returns:
            Place in `files` -> numbers of rows in the file, shape (num_rows,), or ranges [start, stop) of them, shape
            (num_ranges, 2), for those files that have some.
        """
        return {}

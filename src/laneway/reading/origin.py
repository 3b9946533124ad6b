"""Columns that tell where each row comes from: its data file, its number in the file, and the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The stubs of pyarrow accept fewer types here.
_repeat: Any = pa.repeat
_schema: Any = pa.schema

PATH, ROW, EPOCH = "_path", "_row", "_epoch"
PROVENANCE: Final[pa.Schema] = _schema({PATH: pa.string(), ROW: pa.int64(), EPOCH: pa.int64()})
"""The columns that users ask for."""

FILE_INDEX, FILE_ROW = "\0file", "\0row"
HIDDEN: Final[pa.Schema] = _schema({FILE_INDEX: pa.int64(), FILE_ROW: pa.int64()})
"""The columns from which the context of a row is made. They are removed before the row is delivered."""

SOURCE_INDEX, ROW_EPOCH = "\0source", "\0epoch"
HIDDEN_IN_MIXTURES: Final[pa.Schema] = _schema([*HIDDEN, (SOURCE_INDEX, pa.int64()), (ROW_EPOCH, pa.int64())])
"""The same for rows of several sources and epochs."""


@final
@dataclass(frozen=True, slots=True)
class Origin:
    """Makes the columns above, for the rows of an epoch."""

    epoch: int
    """The epoch that is read."""
    names: frozenset[str]
    """The columns to make."""
    source_index: int = 0
    """In a mixture, the index of the source."""

    def column(self, name: str, path: str, file_index: int, rows: NDArray[np.int64]) -> Any:  # noqa: ANN401 - an array
        """Return a column for rows of a file.

        Args:
            name: One of `names`.
            path: The file, relative to the dataset's root.
            file_index: Its index in the manifest.
            rows: Row numbers in the file, int64 of shape (rows,).
        """
        if name in {ROW, FILE_ROW}:
            return pa.array(rows)
        epoch, source_index = self.epoch, self.source_index
        values = {PATH: path, EPOCH: epoch, ROW_EPOCH: epoch, FILE_INDEX: file_index, SOURCE_INDEX: source_index}
        value: Any = values[name]
        data_type = pa.string() if name == PATH else pa.int64()
        return _repeat(pa.scalar(value, data_type), len(rows))

"""Rows in memory, which reading passes to conversion window by window and which are sliced without a copy."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyarrow as pa

from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError
from laneway.convert.nested import copy_array

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from laneway.convert.columns import ToStored


class OpenRows(NamedTuple):
    """Rows [start, stop) of columns in memory: numeric columns are numpy arrays already, all others are Arrow."""

    numbers: dict[str, NDArray[Any]]
    """Column -> its values, shape (rows in memory, *shape of one value)."""
    rest: pa.RecordBatch | None
    """All other columns, and possibly some of `numbers`; None if every column is in `numbers`.

    A column may be of a wider type than the schema's, which holds more bytes, values or distinct values.
    """
    start: int
    """First row."""
    stop: int
    """One past the last row."""

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch, vectorized: Mapping[str, ToStored]) -> OpenRows:
        """Return the rows of a record batch.

        Args:
            batch: The rows.
            vectorized: Column -> converter to apply once, to the whole batch. A column with a value that can't be
                converted stays in `rest`, so that only the slice that contains it fails.
        """
        numbers = {}
        for name, to_array in vectorized.items():
            with suppress(NullFoundError, *CONVERSION_ERRORS):
                numbers[name] = to_array(batch.column(name))
        return cls(numbers, None if numbers and len(numbers) == batch.num_columns else batch, 0, len(batch))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def column(self, name: str) -> pa.Array[Any]:
        """Return these rows of a column that is in `rest`."""
        return cast("pa.RecordBatch", self.rest).column(name).slice(self.start, self.stop - self.start)

    def slice(self, start: int, stop: int) -> OpenRows:
        """Return rows [start, stop) of these rows, without a copy."""
        return OpenRows(self.numbers, self.rest, self.start + start, self.start + stop)

    def copy_row(self, index: int) -> OpenRows:
        """Return a single row, in memory of its own."""
        row = self.start + index
        numbers = {name: values[[row]] for name, values in self.numbers.items()}
        if self.rest is None:
            return OpenRows(numbers, None, 0, 1)
        rest = [copy_array(column.slice(row, 1)) for column in self.rest.columns]
        return OpenRows(numbers, pa.RecordBatch.from_arrays(rest, schema=self.rest.schema), 0, 1)

"""Rows in memory, which reading passes to conversion window by window and which are sliced without a copy."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from laneway.convert.columns import CONVERSION_ERRORS, NullFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from laneway.convert.columns import ToStored


@dataclass(frozen=True, slots=True, eq=False)
class OpenRows:
    """Rows whose numeric columns are already numpy arrays; all other columns are Arrow."""

    num_rows: int
    """Number of rows."""
    numbers: dict[str, NDArray[Any]]
    """Column -> its values, shape (num_rows, *shape of one value)."""
    rest: pa.RecordBatch | None
    """All other columns, and possibly some of `numbers`; None if every column is in `numbers`."""

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
        return cls(len(batch), numbers, None if numbers and len(numbers) == batch.num_columns else batch)

    def slice(self, start: int, stop: int) -> OpenRows:
        """Return rows [start, stop), as views."""
        numbers = {name: values[start:stop] for name, values in self.numbers.items()}
        return OpenRows(stop - start, numbers, None if self.rest is None else self.rest.slice(start, stop - start))

    def copy_row(self, index: int) -> OpenRows:
        """Return a single row, in memory of its own."""
        numbers = {name: values[[index]] for name, values in self.numbers.items()}
        if self.rest is None:
            return OpenRows(1, numbers, None)
        rest = [copy_array(column.slice(index, 1)) for column in self.rest.columns]
        return OpenRows(1, numbers, pa.RecordBatch.from_arrays(rest, schema=self.rest.schema))


def copy_array(array: pa.Array[Any]) -> pa.Array[Any]:
    """Return the values of an array in memory of their own."""
    return pa.concat_arrays([array, array.slice(0, 0)])

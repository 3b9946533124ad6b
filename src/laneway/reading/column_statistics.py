"""Statistics of columns, from one pass over the rows of a dataset."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from laneway.catalog.progress_bar import ProgressBar, progress_bar
from laneway.convert.arrays import decode
from laneway.convert.column_types import decoded_type
from laneway.reading.block_runs import block_runs, num_reading_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.core.files import FileTable
    from laneway.reading.rows import Rows

_STAND_INS: Final[tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...]] = (
    (kinds.is_float16, pa.float32()),
    (kinds.is_duration, pa.int64()),
    (kinds.is_string_view, pa.large_string()),
    (kinds.is_binary_view, pa.large_binary()),
)
"""Types for which pyarrow can't compare values, and others that it can cast them to."""

_NUMBERS: Final = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean)

# The stubs of pyarrow don't know all functions, and accept fewer types.
_compute: Any = pc


@final
@dataclass(frozen=True)
class ColumnStatistics:
    """Facts about the values of a column."""

    count: int
    """Values that are neither null nor NaN. All that follow are about these."""
    nulls: int
    """Nulls."""
    nans: int
    """NaNs."""
    min: Any
    """Least value; None if there is none, or if values have no order."""
    max: Any
    """Greatest value, likewise."""
    mean: float | None
    """Mean of numbers, and for bools the share of True; None if there is no value, or if values are no numbers."""
    std: float | None
    """Standard deviation of numbers, that of a whole population as numpy computes it; None as for `mean`."""
    distinct: int | None
    """Number of distinct values; None if there are more than `max_distinct`, or if values can't be compared."""


class Moments(NamedTuple):
    """Sums from which mean and standard deviation follow."""

    num_values: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    @classmethod
    def of(cls, values: Any) -> Moments:  # noqa: ANN401 - an array of numbers without nulls
        """Return those of some values."""
        if not len(values):
            return cls()
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        mean = float(numbers.mean())
        with np.errstate(invalid="ignore"):  # of infinite values
            return cls(len(numbers), mean, float(np.square(numbers - mean).sum()))

    def plus(self, other: Moments) -> Moments:
        """Return those of the values of both: the update of Chan, Golub and LeVeque (1979)."""
        num_values = self.num_values + other.num_values
        if not self.num_values or not other.num_values:
            return self if self.num_values else other
        gap = other.mean - self.mean
        squares = self.squares + other.squares + gap * gap * self.num_values * other.num_values / num_values
        return Moments(num_values, self.mean + gap * other.num_values / num_values, squares)


def compared_type(type_: pa.DataType) -> pa.DataType | None:
    """Return a type with the same values which pyarrow can compare, or None if there is none."""
    plain = decoded_type(type_) or type_
    stands_for = next((other for is_kind, other in _STAND_INS if is_kind(plain)), plain)
    if kinds.is_decimal32(plain) or kinds.is_decimal64(plain):
        stands_for = pa.decimal128(plain.precision, plain.scale)
    return None if kinds.is_nested(plain) or kinds.is_null(plain) or kinds.is_interval(plain) else stands_for


def with_one_zero(values: Any) -> Any:  # noqa: ANN401 - arrays
    """Return floats with 0.0 for -0.0, which is another value to pyarrow though they are equal."""
    return _compute.add(values, pa.scalar(0.0, values.type))


class _Part:
    """The statistics of a column in some of the rows."""

    def __init__(self, type_: pa.DataType, max_distinct: int) -> None:
        self._type = compared_type(type_)
        self._max_distinct = max_distinct
        self.count = self.nulls = self.nans = 0
        self.bounds: tuple[Any, Any] | None = None
        self.moments = Moments()
        self.distinct: Any = None if self._type is None else pa.array([], self._type)
        """The distinct values as an array; None if there are too many, or they can't be compared."""

    def add(self, column: Any) -> None:  # noqa: ANN401 - an array
        """Add rows."""
        values = decode(column)
        self.nulls += values.null_count
        type_ = self._type
        if type_ is None:
            self.count += len(values) - values.null_count
            return
        plain = values.type
        values = _compute.drop_null(values.cast(type_))
        if kinds.is_floating(type_):
            is_nan = _compute.is_nan(values)
            self.nans += _compute.sum(is_nan).as_py() or 0
            values = with_one_zero(values.filter(_compute.invert(is_nan)))
        self.count += len(values)
        if not len(values):
            return
        found = _compute.min_max(values)
        self._extend(*(found[name].cast(plain).as_py() for name in ("min", "max")))
        if any(is_kind(plain) for is_kind in _NUMBERS):
            self.moments = self.moments.plus(Moments.of(values))
        self._add_distinct(_compute.unique(values) if self.distinct is not None else None)

    def merge(self, other: _Part) -> None:
        """Add the rows of another part."""
        self.count += other.count
        self.nulls += other.nulls
        self.nans += other.nans
        if other.bounds is not None:
            self._extend(*other.bounds)
        self.moments = self.moments.plus(other.moments)
        self._add_distinct(other.distinct)

    def _extend(self, least: Any, greatest: Any) -> None:  # noqa: ANN401 - values of the column
        first, last = self.bounds or (least, greatest)
        self.bounds = min(first, least), max(last, greatest)

    def _add_distinct(self, found: Any) -> None:  # noqa: ANN401 - an array, or None if there are too many
        if self.distinct is not None:
            both = None if found is None else _compute.unique(pa.concat_arrays([self.distinct, found]))
            self.distinct = None if both is None or len(both) > self._max_distinct else both

    def statistics(self) -> ColumnStatistics:
        """Return the statistics."""
        count, mean, squares = self.moments
        least, greatest = self.bounds or (None, None)
        return ColumnStatistics(
            count=self.count,
            nulls=self.nulls,
            nans=self.nans,
            min=least,
            max=greatest,
            mean=mean if count else None,
            std=math.sqrt(squares / count) if count else None,
            distinct=None if self.distinct is None else len(self.distinct),
        )


def column_statistics(
    rows: Rows, schema: pa.Schema, files: FileTable, *, max_distinct: int, progress: bool | None
) -> dict[str, ColumnStatistics]:
    """Return statistics of each column.

    Args:
        rows: Reads the rows.
        schema: Their columns.
        files: The data files as if they had only these rows.
        max_distinct: How many distinct values are counted at most.
        progress: True shows a progress bar, False does not, None does if it takes longer than 2 s.

    Raises:
        DataFileError: A file can't be read.
    """
    bar = progress_bar(files.num_rows, "statistics", " rows", progress=progress)
    total = _collect(rows, schema, files, bar, max_distinct=max_distinct)
    return {name: column.statistics() for name, column in zip(schema.names, total, strict=True)}


def distinct_values(rows: Rows, schema: pa.Schema, files: FileTable, blocks: slice | None = None) -> dict[str, Any]:
    """Return the distinct values of each column as an array, in no order; neither null nor NaN is among them.

    Args:
        rows: Reads the rows.
        schema: Their columns, for which `compared_type` returns a type.
        files: The data files.
        blocks: The blocks to read; None: all.

    Raises:
        DataFileError: A file can't be read.
    """
    num_rows = int(files.block_rows[slice(None) if blocks is None else blocks].sum())
    bar = progress_bar(num_rows, "collecting categories", " rows", progress=None)
    total = _collect(rows, schema, files, bar, max_distinct=sys.maxsize, blocks=blocks)
    return {name: column.distinct for name, column in zip(schema.names, total, strict=True)}


def _collect(
    rows: Rows,
    schema: pa.Schema,
    files: FileTable,
    bar: ProgressBar,
    *,
    max_distinct: int,
    blocks: slice | None = None,
) -> list[_Part]:
    """Return the statistics of each column in the rows of some blocks, or of all."""
    is_wanted = files.block_rows > 0
    if blocks is not None:
        is_wanted[: blocks.start] = is_wanted[blocks.stop :] = False

    def empty() -> list[_Part]:
        return [_Part(field.type, max_distinct) for field in schema]

    def read(run: tuple[int, int, int]) -> tuple[int, list[_Part]]:
        file_index, first, stop = run
        base = files.block_starts[file_index]
        starts = files.block_row_starts[base : base + stop + 1] - files.block_row_starts[base]
        table, found = rows.read(file_index, int(starts[first]), int(starts[stop])), empty()
        for part, column in zip(found, table.columns, strict=True):
            for chunk in column.chunks:
                part.add(chunk)
        return table.num_rows, found

    total, runs = empty(), [*block_runs(files, schema, is_wanted)]
    with ThreadPoolExecutor(num_reading_threads(is_remote=rows.is_remote)) as pool, bar:
        try:
            for num_rows, found in pool.map(read, runs):
                for column, part in zip(total, found, strict=True):
                    column.merge(part)
                bar.update(num_rows)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            rows.close()
    return total

"""The steps of a selection: each says which of the rows that are left belong to the dataset.

A step is a function of the rows and of their place in the files, so whoever reads a block selects the same rows of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.core.order import split_bits
from laneway.errors import DataFileError
from laneway.reading.hashing import bits_of_text, bits_of_values
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from laneway.catalog.contents import ManifestContents

    Mask = NDArray[np.bool_]
    Bound = int | float | None

# The stubs of pyarrow accept fewer types here.
_array: Any = pa.array


class Run(NamedTuple):
    """Consecutive blocks of a data file."""

    path: str
    """The file, relative to the dataset's root."""
    first_block: int
    """The first block, counted over all files."""
    first_row: int
    """Its first row, counted in the file."""
    bounds: NDArray[np.int64]
    """Bounds of the blocks, counted from that row, shape (num_blocks + 1,)."""

    @classmethod
    def of(cls, manifest: ManifestContents, file_index: int, first: int, stop: int) -> Run:
        """Return the blocks [first, stop) of a data file."""
        files = manifest.files
        base = int(files.block_starts[file_index])
        starts = files.block_row_starts[base + first : base + stop + 1]
        first_row = int(starts[0] - files.block_row_starts[base])
        return cls(files.paths[file_index], base + first, first_row, starts - starts[0])

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.bounds[-1])

    @property
    def rows(self) -> NDArray[np.int64]:
        """Number of each row in the file, int64 of shape (rows,)."""
        return np.arange(self.first_row, self.first_row + self.num_rows)

    def count_by_block(self, mask: Mask) -> NDArray[np.int64]:
        """Return how many rows of each block a mask selects, shape (num_blocks,)."""
        before = np.zeros(len(mask) + 1, np.int64)
        np.cumsum(mask, out=before[1:])
        found: NDArray[np.int64] = np.diff(before[self.bounds])
        return found


class Step(Protocol):
    """A step of a selection."""

    @property
    def text(self) -> str:
        """What it selects: equal texts select equal rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it looks at."""

    @property
    def is_named(self) -> bool:
        """Whether its text says all of it, so that what it selects may be cached."""

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:
        """Return which rows of a run belong to the dataset, bool of shape (rows,).

        Args:
            rows: At least `columns`, of all rows of the run; without columns, it need not have rows.
            run: Where the rows are.
            left: Which of them the earlier steps have left, bool of shape (rows,).
        """


@final
@dataclass(frozen=True)
class FunctionFilter:
    """Selects the rows for which a Python function says so."""

    function: Callable[[pa.RecordBatch], Any]
    """A pure function of a record batch, which returns one bool for each row; null: the row is not selected."""
    columns: tuple[str, ...]
    """The columns that it looks at."""
    version: str | None
    """Tells the function from earlier versions of it."""

    @property
    def is_named(self) -> bool:
        """Whether it has a version: a function that was edited may keep its name."""
        return self.version is not None

    @property
    def text(self) -> str:
        """Its name, version and columns."""
        function: Any = self.function
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        version = "" if self.version is None else f" version {self.version!r}"
        return f"filter {name}{version} of {', '.join(self.columns)}"

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:
        """See Step. The function is called for each block: what it returns may depend on all rows of the batch."""
        schema = pa.schema([rows.schema.field(name) for name in self.columns])
        arrays = [one_array(rows[name]) for name in self.columns]
        found = left.copy()
        for start, stop in pairwise(run.bounds.tolist()):
            if start < stop:
                batch = pa.RecordBatch.from_arrays([each.slice(start, stop - start) for each in arrays], schema=schema)
                found[start:stop] &= self._call(batch, run.path)
        return found

    def _call(self, batch: pa.RecordBatch, path: str) -> Mask:
        try:
            answer = self.function(batch)
        except Exception as error:
            error.add_note(f"{self.text} was called for {len(batch):,} rows of {path}")
            raise
        try:
            # Tensors, too, are arrays to numpy.
            is_plain = isinstance(answer, (list, tuple, pa.Array, pa.ChunkedArray))
            values = _array(answer if is_plain else np.asarray(answer))
        except (pa.ArrowException, TypeError, ValueError) as error:
            message = f"{self.text} returned {type(answer).__name__}, not one bool for each row: {error}"
            raise TypeError(message) from error
        if not (pa.types.is_boolean(values.type) or pa.types.is_null(values.type)):
            message = f"{self.text} returned values of type {values.type}, not one bool for each row"
            raise TypeError(message)
        if len(values) != len(batch):
            message = f"{self.text} returned {counted(len(values), 'bool')} for {counted(len(batch), 'row')} of {path}"
            raise ValueError(message)
        return mask_of(values)


@final
@dataclass(frozen=True)
class Part:
    """Selects the rows whose hash, of a row, its file or the value of a column, lies in a range."""

    start: int
    """First hash, in [0, 2**64]."""
    stop: int
    """One past the last hash."""
    seed: int
    """Any int in [0, 2**63)."""
    by: str
    """"row", "file" or "column"."""
    columns: tuple[str, ...] = ()
    """The column, if any."""
    num_before: int = 0
    """Earlier parts of such a split with the same seed: their rows must not all have the same hash once more."""
    is_named: bool = field(default=True, init=False)
    """See Step."""

    @property
    def text(self) -> str:
        """What is hashed, and the range."""
        what = f"column {self.columns[0]!r}" if self.columns else self.by
        again = f" after {self.num_before} such" if self.num_before else ""
        return f"part {self.start:016x} to {self.stop:016x} by {what} with seed {self.seed}{again}"

    @property
    def _key(self) -> int:
        """The seed of the hashes, in [0, 2**63)."""
        return bits_of_text(f"split/{self.seed}/{self.num_before}") >> 1 if self.num_before else self.seed

    def has_file(self, path: str) -> bool:
        """Return whether the part has a data file, if files are split."""
        return self.start <= bits_of_text(f"file/{self._key}/{path}") < self.stop

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:
        """See Step. A part may be empty."""
        if self.by == "file":
            return left & self.has_file(run.path)
        if self.by == "row":
            bits = split_bits(run.rows, seed=self._key, path=run.path)
        else:
            bits = bits_of_values(one_array(rows[self.columns[0]]), seed=self._key)
        if self.start == self.stop:
            return left & False
        # 2**64 is not a uint64.
        return left & (bits >= np.uint64(self.start)) & (bits <= np.uint64(self.stop - 1))


@final
@dataclass(frozen=True)
class Slice:
    """Selects consecutive rows of those that are left, in the order of the files."""

    text: str
    """The rows, as they were asked for."""
    start: int
    """First row, counted over all that are left."""
    stop: int
    """One past the last row."""
    first: tuple[int, int]
    """The block with the first row, and how many of the rows of it that are left come before."""
    last: tuple[int, int]
    """The block with the last row, and how many of the rows of it that are left come up to it."""
    columns: tuple[str, ...] = field(default=(), init=False)
    """None."""
    is_named: bool = field(default=True, init=False)
    """See Step."""

    @classmethod
    def of(cls, block_rows: NDArray[np.integer], start: Bound, stop: Bound) -> Slice:
        """Return the step that selects rows [start, stop).

        Args:
            block_rows: Rows of each block that are left, shape (num_blocks,).
            start: First row; as a float, the share of the rows that come before.
            stop: One past the last row, likewise; None: the end.
        """
        ends = np.cumsum(block_rows, dtype=np.int64)
        num_rows = int(ends[-1]) if len(ends) else 0
        begin, end = (_row_of(bound, num_rows) for bound in (start, stop))
        text = f"rows {_bound_text(start)} to {_bound_text(stop)}"
        if begin >= end:
            return cls(text, begin, begin, (len(ends), 0), (-1, 0))
        starts = np.concatenate([[0], ends])
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, end, side="left"))
        return cls(text, begin, end, (first, begin - int(starts[first])), (last, end - int(starts[last])))

    def counts(self, block_rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return how many rows of each block it selects of those that are left, shape (num_blocks,)."""
        ends = np.cumsum(block_rows, dtype=np.int64)
        starts = ends - block_rows
        found: NDArray[np.int64] = np.clip(ends, self.start, self.stop) - np.clip(starts, self.start, self.stop)
        return found

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:  # noqa: ARG002 - see Step
        """See Step."""
        found = left.copy()
        num_blocks = len(run.bounds) - 1
        first, last = self.first[0] - run.first_block, self.last[0] - run.first_block
        found[: run.bounds[min(max(first, 0), num_blocks)]] = False
        found[run.bounds[min(max(last + 1, 0), num_blocks)] :] = False
        for block in {first, last}.intersection(range(num_blocks)):
            start, stop = run.bounds[block : block + 2].tolist()
            places = start + np.flatnonzero(left[start:stop])
            found[places[self.last[1] if block == last else len(places) :]] = False
            found[places[: self.first[1] if block == first else 0]] = False
        return found


def _row_of(bound: Bound, num_rows: int) -> int:
    if bound is None:
        return num_rows
    return min(round(bound * num_rows) if isinstance(bound, float) else bound, num_rows)


def _bound_text(bound: Bound) -> str:
    if bound is None:
        return "the end"
    return f"{bound:,}" if isinstance(bound, int) else f"the share {bound!r}"


def parts_of(shares: Sequence[float], *, seed: int, by: str, before: Sequence[Step] = ()) -> list[Part]:
    """Return a part for each share, disjoint and complete.

    Args:
        shares: Their sum is 1.
        seed: Any int in [0, 2**63).
        by: "row", "file" or the name of a column.
        before: The steps whose rows are split.
    """
    kind, columns = (by, ()) if by in {"row", "file"} else ("column", (by,))
    same = [
        each
        for each in before
        if isinstance(each, Part) and (each.seed, each.by, each.columns) == (seed, kind, columns)
    ]
    ends = np.minimum(np.cumsum(shares), 1.0)
    bounds = [0, *(int(end * 2**64) for end in ends[:-1].tolist()), 2**64]
    return [Part(start, stop, seed, kind, columns, len(same)) for start, stop in pairwise(bounds)]


def select(steps: Sequence[Step], rows: pa.Table, run: Run, left: Mask | None = None) -> Mask:
    """Return which rows of a run all steps select, bool of shape (rows,).

    Args:
        steps: The steps.
        rows: The columns that they look at, of all rows of the run.
        run: Where the rows are.
        left: Which rows earlier steps have left; None: all.

    Raises:
        DataFileError: A step can't be computed; the message names it and the file.
    """
    found: Mask = np.ones(run.num_rows, bool) if left is None else left
    for step in steps:
        try:
            found = step.select(rows, run, found)
        except pa.ArrowException as error:
            message = f"{step.text} fails for rows of {run.path}: {error}"
            raise DataFileError(message) from error
    return found


def mask_of(values: Any) -> Mask:  # noqa: ANN401 - an array or a column
    """Return bools as numpy, null as False."""
    values = pc.fill_null(values.cast(pa.bool_()), False)  # noqa: FBT003 - the replacement
    found: Mask = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    return found


def one_array(column: Any) -> Any:  # noqa: ANN401 - a column, and its array
    """Return a column as one array."""
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined

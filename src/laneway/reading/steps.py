"""The steps of a selection: each says which of the rows that are left belong to the dataset.

A step is a function of the rows and of their place in the files, so whoever reads a block selects the same rows of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from laneway.core.order import split_bits
from laneway.errors import DataFileError, SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from laneway.catalog.manifest import Manifest
    from laneway.core.selection import Selection

    Mask = NDArray[np.bool_]

_in_memory: Any = pads.InMemoryDataset
_SCAN_ERRORS = (pa.ArrowException, TypeError, ValueError, KeyError)


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
    def of(cls, manifest: Manifest, file_index: int, first: int, stop: int) -> Run:
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


class Step(Protocol):
    """A step of a selection."""

    @property
    def text(self) -> str:
        """What it selects: equal texts select equal rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it looks at."""

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:
        """Return which rows of a run belong to the dataset, bool of shape (rows,).

        Args:
            rows: At least `columns`, of all rows of the run.
            run: Where the rows are.
            left: Which of them the earlier steps have left, bool of shape (rows,).
        """


@final
@dataclass(frozen=True)
class Filter:
    """Selects the rows for which an expression is true. It is not true where it is null."""

    expression: pc.Expression
    """The expression."""
    columns: tuple[str, ...]
    """The columns that it looks at."""

    @property
    def text(self) -> str:
        """The expression, as pyarrow writes it."""
        return f"filter {self.expression}"

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:  # noqa: ARG002 - see Step
        """See Step."""
        dataset = _in_memory(rows.select(list(self.columns)))
        found = dataset.scanner(columns={"mask": self.expression}, use_threads=False).to_table()["mask"]
        return left & _mask_of(found)


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
    def text(self) -> str:
        """Its name, version and columns."""
        function: Any = self.function
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        version = "" if self.version is None else f" version {self.version!r}"
        return f"filter {name}{version} of {', '.join(self.columns)}"

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:
        """See Step."""
        batch = pa.RecordBatch.from_arrays(
            [_one_array(rows[name]) for name in self.columns],
            schema=pa.schema([rows.schema.field(name) for name in self.columns]),
        )
        answer = self.function(batch)
        try:
            found = _mask_of(answer if isinstance(answer, (pa.Array, pa.ChunkedArray)) else pa.array(answer))
        except _SCAN_ERRORS as error:
            message = f"{self.text} returned {type(answer).__name__}, not one bool for each row: {error}"
            raise TypeError(message) from error
        if len(found) != run.num_rows:
            message = f"{self.text} returned {len(found):,} bools for {run.num_rows:,} rows of {run.path}"
            raise ValueError(message)
        return left & found


@final
@dataclass(frozen=True)
class Part:
    """Selects the rows whose hash, of a row, its file or the value of a column, lies in a range."""

    name: str
    """Name of the part."""
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

    @property
    def text(self) -> str:
        """The part, its share and what is hashed."""
        what = f"column {self.columns[0]!r}" if self.columns else self.by
        return f"split by {what} with seed {self.seed}, {self.start:x} to {self.stop:x}"

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:
        """See Step."""
        if self.by == "column":
            encoded = _one_array(rows[self.columns[0]]).dictionary_encode("encode")
            is_in = np.array([self._has(_bits_of(self.seed, value.as_py())) for value in encoded.dictionary], bool)
            return left & (is_in[encoded.indices.to_numpy(zero_copy_only=False)] if len(is_in) else left)
        if self.by == "file":
            return left & self._has(_bits_of(self.seed, run.path))
        bits = split_bits(run.rows, seed=self.seed, path=run.path)
        last = np.uint64(min(self.stop, 2**64) - 1)
        return left & (bits >= np.uint64(self.start)) & (bits <= last) if self.start < self.stop else left & False

    def _has(self, bits: int) -> bool:
        return self.start <= bits < self.stop


@final
@dataclass(frozen=True)
class Slice:
    """Selects consecutive rows of those that are left, in the order of the files."""

    start: int
    """First row, counted over all that are left."""
    stop: int
    """One past the last row."""
    first: tuple[int, int] = field(compare=False)
    """The block with the first row, and how many of the rows of it that are left come before."""
    last: tuple[int, int] = field(compare=False)
    """The block with the last row, and how many of the rows of it that are left are selected."""
    columns: tuple[str, ...] = ()
    """None."""

    @property
    def text(self) -> str:
        """The rows."""
        return f"rows {self.start:,} to {self.stop:,}"

    def select(self, rows: pa.Table, run: Run, left: Mask) -> Mask:  # noqa: ARG002 - see Step
        """See Step."""
        found = left.copy()
        first, last = self.first[0] - run.first_block, self.last[0] - run.first_block
        num_blocks = len(run.bounds) - 1
        if 0 <= last < num_blocks:
            start, stop = run.bounds[last : last + 2].tolist()
            places = start + np.flatnonzero(left[start:stop])
            found[places[self.last[1] :]] = False
        if 0 <= first < num_blocks:
            start, stop = run.bounds[first : first + 2].tolist()
            places = start + np.flatnonzero(left[start:stop])
            found[places[: self.first[1]]] = False
        found[: run.bounds[min(max(first, 0), num_blocks)]] = False
        found[run.bounds[min(max(last + 1, 0), num_blocks)] :] = False
        return found


def select(steps: tuple[Step, ...], rows: pa.Table, run: Run) -> Mask:
    """Return which rows of a run all steps select, bool of shape (rows,).

    Raises:
        DataFileError: A step can't be computed; the message names it and the file.
    """
    found: Mask = np.ones(run.num_rows, bool)
    for step in steps:
        try:
            found = step.select(rows, run, found)
        except _SCAN_ERRORS as error:
            message = f"{step.text} fails for rows of {run.path}: {error}"
            raise DataFileError(message) from error
    return found


def filter_of(expression: object, schema: pa.Schema) -> Filter:
    """Return the step for an expression, or for tuples as pyarrow takes them, after checking it against a schema.

    Raises:
        TypeError: It is neither.
        SchemaMismatchError: It names a column that doesn't exist, or compares what can't be compared.
    """
    if not isinstance(expression, pc.Expression):
        expression = _expression_of(expression)
    problem = _problem(expression, schema)
    if problem is not None:
        message = f"filter {expression} doesn't fit the columns {', '.join(schema.names)}: {problem}"
        raise SchemaMismatchError(message)
    return Filter(expression, tuple(_needed(expression, schema, schema.names)))


def _expression_of(tuples: object) -> pc.Expression:
    from pyarrow.parquet import filters_to_expression  # noqa: PLC0415 - slow to import, and few need it

    try:
        found: pc.Expression = filters_to_expression([tuples] if isinstance(tuples, tuple) else tuples)  # type: ignore[arg-type]
    except (ValueError, TypeError, IndexError) as error:
        message = (
            f"filter must be a pyarrow expression, such as pc.field('price') > 10, or tuples, such as "
            f"[('price', '>', 10)], not {tuples!r:.200} ({error})"
        )
        raise TypeError(message) from error
    return found


def _problem(expression: pc.Expression, schema: pa.Schema) -> str | None:
    """Return why an expression can't be computed for a schema, or None if it is a condition on its columns."""
    dataset = _in_memory(schema.empty_table())
    try:
        data_type = dataset.scanner(columns={"mask": expression}).projected_schema.field(0).type
    except _SCAN_ERRORS as error:
        return str(error).split("\n", 1)[0]
    is_condition = pa.types.is_boolean(data_type) or pa.types.is_null(data_type)
    return None if is_condition else f"its values are of type {data_type}, not bool"


def _needed(expression: pc.Expression, schema: pa.Schema, names: list[str]) -> list[str]:
    """Return which of some columns an expression looks at; pyarrow doesn't say, so they are left out by halves."""
    rest = pa.schema([each for each in schema if each.name not in set(names)])
    if _problem(expression, rest) is None:
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return _needed(expression, schema, names[:half]) + _needed(expression, schema, names[half:])


def _mask_of(values: Any) -> Mask:  # noqa: ANN401 - an array or a column
    if not pa.types.is_boolean(values.type):
        values = values.cast(pa.bool_())
    values = pc.fill_null(values, False)  # noqa: FBT003 - the replacement
    found: Mask = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    return found


def _one_array(column: Any) -> Any:  # noqa: ANN401 - a column, and its array
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _bits_of(seed: int, value: object) -> int:
    text = f"split/{seed}/{type(value).__name__}/{value!r}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


@final
@dataclass(frozen=True, eq=False)
class RowSelection:
    """The rows that belong to a dataset: how many of each block, and how to find them."""

    steps: tuple[Step, ...]
    """In this order."""
    schema: pa.Schema
    """The columns that they look at."""
    counts: Selection
    """Selected rows of each block."""

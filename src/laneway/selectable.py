"""Copies of a dataset that have some of its rows: filtered, split, sliced, and without rows that spoilt a run."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from laneway.arguments import check_columns, check_seed, plain_int
from laneway.core.consistency import MAX_COUNT
from laneway.core.gaps import EpochGap, overlap, parse_gaps
from laneway.described import DescribedDataset
from laneway.errors import LanewayError, SchemaMismatchError
from laneway.reading.expressions import columns_of, filter_of
from laneway.reading.hashing import is_hashable
from laneway.reading.projection import warn_of_missing
from laneway.reading.selecting import Planner
from laneway.reading.steps import FunctionFilter, Slice, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.core.plan import Identity
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.reading.steps import Step


class SelectableDataset(DescribedDataset):
    """A dataset of which there can be copies with some of its rows."""

    def filter(
        self,
        condition: pa.compute.Expression | Sequence[Any] | Callable[[pa.RecordBatch], Any],
        *,
        columns: Sequence[str] | None = None,
        version: str | None = None,
    ) -> Self:
        """Return a copy with only the rows for which a condition is true, at the start of epoch 0.

        The matching rows are counted now. Directory names and row group statistics decide what they can; of the other
        row groups, only the columns of the condition are read. So `len`, batches, ranks and states are as if the files
        had no other rows. Row groups without matching rows are never read. The condition sees the columns as they are
        in the files, before `map` and `transform`.

        Args:
            condition: A pyarrow expression, such as `pc.field("price") > 10`; tuples, such as
                `[("price", ">", 10)]`, all of which must be true, or a list of such lists, one of which must be true;
                or a function of a `pyarrow.RecordBatch` that returns one bool for each row. The function must depend
                on nothing but the batch, and several threads may call it at once. A row for which the condition is
                null is left out.
            columns: The columns of the batches that a function gets.
            version: Names this version of a function: change it whenever the function changes. Without it, counts are
                not cached.

        Raises:
            TypeError: `condition` is none of these, or the function returns something else.
            ValueError: `columns` is missing, or given without a function.
            SchemaMismatchError: A column doesn't exist, or the expression doesn't fit its type, or needs to see several
                rows at once.
            DataFileError: A file can't be read, or the condition can't be computed for its rows.

        Examples:
            >>> import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": range(100)}), f"{folder}/part-0.parquet")
            >>> len(StatefulShardedDataset(folder).filter(pc.field("x") >= 70))
            30
        """
        (changed,) = self._selected(*self._filter(condition, columns, version))
        return changed

    def split(self, shares: Mapping[str, float], *, seed: int = 0, by: str = "row") -> Any:  # noqa: ANN401 - a new class
        """Return a copy for each part of the rows, at the start of epoch 0. The parts are disjoint and complete.

        A hash decides which part a row is in. It is the same part in every epoch and on any number of ranks, and stays
        so when files are added. To split a part again is another split, also with the same seed.

        Args:
            shares: Name of each part -> its share of the rows, which it gets on average. The sum is 1.
            seed: Any int in [0, 2**63): another split.
            by: "row"; "file": all rows of a file are in the same part; or the name of a column: all rows with the same
                value are, such as those of a user.

        Returns:
            A named tuple of datasets, with the names and the order of `shares`.

        Raises:
            TypeError: `shares` is not a dict, or `by` not a string.
            ValueError: `shares` don't sum to 1, a name can't be that of a field, or `seed` is out of its range.
            SchemaMismatchError: There is no such column, or its values have no hash.
            DataFileError: A file can't be read.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": range(1000)}), f"{folder}/part-0.parquet")
            >>> train, val = StatefulShardedDataset(folder).split({"train": 0.9, "val": 0.1})
            >>> len(train) + len(val)
            1000
        """
        _check_shares(shares)
        if not isinstance(by, str):
            message = f'by must be "row", "file" or the name of a column, not {by!r}'
            raise TypeError(message)
        selection = self.definition.selection
        before = () if selection is None else selection.steps
        parts = parts_of([*shares.values()], seed=check_seed(seed), by=by, before=before)
        schema = columns_of(self.definition.manifest, [*parts[0].columns], self._given_schema)
        for field in schema:
            if not is_hashable(field.type):
                message = f"the rows can't be split by column {field.name!r}, which is of type {field.type}"
                raise SchemaMismatchError(message)
        return _named(tuple(shares), self._selected(parts, schema))

    def take(self, rows: int | float) -> Self:  # noqa: PYI041 - 1 and 1.0 differ
        """Return a copy with the first rows, in the order of the files, at the start of epoch 0.

        Args:
            rows: Number of rows, >= 0; as a float in [0, 1], a share of the rows.

        Raises:
            ValueError: `rows` is out of its range.
        """
        return self.slice(0, _checked_bound("rows", rows))

    def skip(self, rows: int | float) -> Self:  # noqa: PYI041 - 1 and 1.0 differ
        """Return a copy without the first rows, in the order of the files, at the start of epoch 0.

        Args:
            rows: Number of rows, >= 0; as a float in [0, 1], a share of the rows.

        Raises:
            ValueError: `rows` is out of its range.
        """
        return self.slice(_checked_bound("rows", rows), None)

    def slice(self, start: int | float, stop: int | float | None = None) -> Self:  # noqa: PYI041 - 1 and 1.0 differ
        """Return a copy with the rows [start, stop) in the order of the files, at the start of epoch 0.

        Args:
            start: Row number, >= 0; as a float in [0, 1], a share of the rows of this dataset.
            stop: One past the last row, likewise; None: to the end.

        Raises:
            ValueError: An argument is out of its range.
        """
        start, stop = _checked_bound("start", start), None if stop is None else _checked_bound("stop", stop)
        block_rows = self.definition.identity.selected.block_rows
        (changed,) = self._selected([Slice.of(block_rows, start, stop)], pa.schema([]))
        return changed

    def without(self, rows: Iterable[Sequence[int]]) -> Self:
        """Return a copy that skips ranges of rows in the order of some epochs, at the start of epoch 0.

        The rows of an epoch are numbered from 0 in the order in which the whole job delivers them. So step `s` of an
        epoch delivers the rows from `s * batch_size * world_size` up to `(s + 1) * batch_size * world_size`. Skipped
        rows keep their numbers, and so do all others.

        The other rows keep their order, on any number of ranks. A state from before the skipped rows can be loaded: a
        run goes back to a checkpoint, and skips what spoilt it. A state from after them is refused.

        Args:
            rows: (epoch, start, stop) for each range: rows [start, stop) of that epoch. Both are multiples of
                `turn_rows`, by default the batch size, or 256 in a `SavableLoader` of single rows; or `stop` is the end
                of the epoch. The first batch, or loading a state, fails with a `ValueError` otherwise.

        Raises:
            TypeError: `rows` is something else.
            ValueError: Some of the rows don't exist, or ranges overlap, or no row of an epoch would be left.
        """
        if self.definition.stages is not None:
            message = "how far a step with flat_map() or pack() gets depends on the data: take rows out with filter()"
            raise ValueError(message)
        gaps = _checked_gaps(rows, self.definition.identity)
        return self._changed(self.definition.with_gaps(gaps))

    def _filter(
        self, condition: object, columns: Sequence[str] | None, version: str | None
    ) -> tuple[list[Step], pa.Schema]:
        """Return the step of a filter, and the columns that it looks at."""
        manifest = self.definition.manifest
        if not callable(condition):
            if columns is not None or version is not None:
                message = "columns= and version= are for filters that are functions: an expression names its columns"
                raise ValueError(message)
            step = filter_of(condition, manifest, self._given_schema)
            return [step], step.schema
        names = check_columns(columns)
        if names is None:
            message = "a filter that is a function needs columns=, the names of the columns that it gets"
            raise ValueError(message)
        if version is not None and not isinstance(version, str):
            message = f"version must be a string, not {version!r}"
            raise TypeError(message)
        return [FunctionFilter(condition, names, version)], columns_of(manifest, [*names], self._given_schema)

    def _selected(self, steps: Sequence[Step], schema: pa.Schema) -> list[Self]:
        """Return a copy for each step."""
        return [self._changed(definition) for definition in self._definitions(steps, schema)]

    def _definitions(self, steps: Sequence[Step], schema: pa.Schema) -> list[DatasetDefinition]:
        """Return the definition of the rows that each step leaves."""
        definition = self.definition
        if definition.stages is not None:
            message = "what filters, splits or slices selects rows of the files: call it before flat_map() and pack()"
            raise ValueError(message)
        if definition.lengths is not None:
            message = "a filter, split or slice leaves other rows than those of count_lengths(): call that afterwards"
            raise ValueError(message)
        self._check_has_no_gaps("a filter, split or slice")
        # There was a warning of those that are delivered.
        others = [name for name in schema.names if name not in definition.columns.schema.names]
        warn_of_missing(definition.manifest, others, self._given_schema, stacklevel=4)
        planner = Planner(definition.manifest, definition.storage, self._cache_dir)
        return [definition.with_selection(each) for each in planner.extend(definition.selection, steps, schema)]

    def _check_has_no_gaps(self, change: str) -> None:
        text = self.definition.identity.settings.without
        if text is not None:
            message = f"{change} would give other numbers to the rows that without() left out, {text}: call it last"
            raise LanewayError(message)


def _checked_gaps(rows: object, identity: Identity) -> list[EpochGap]:
    """Return the rows that a user wants to leave out, with those that are left out already."""
    gaps = [*parse_gaps(identity.settings.without)]
    num_rows = identity.selected.num_rows
    for each in rows if isinstance(rows, Iterable) and not isinstance(rows, (str, Mapping)) else [rows]:
        triple = [*each] if isinstance(each, Iterable) and not isinstance(each, (str, Mapping)) else []
        numbers = [number for number in map(plain_int, triple) if number is not None]
        if len(triple) != 3 or len(numbers) != 3:  # noqa: PLR2004 - epoch, start and stop
            message = f"rows must be a list of (epoch, start, stop), three ints each, not {each!r}"
            raise TypeError(message)
        gap = EpochGap(*numbers)
        if not (0 <= gap.epoch < MAX_COUNT and 0 <= gap.start < gap.stop <= num_rows):
            message = f"there are no {gap.text}: an epoch in [0, {MAX_COUNT}) has rows 0 to {num_rows}"
            raise ValueError(message)
        gaps.append(gap)
    both = overlap(gaps)
    if both is not None:
        message = f"{both[0].text} and {both[1].text} overlap: give each row once"
        raise ValueError(message)
    for epoch in {gap.epoch for gap in gaps}:
        if sum(gap.stop - gap.start for gap in gaps if gap.epoch == epoch) == num_rows:
            message = f"no row of epoch {epoch} would be left: choose another epoch with set_epoch() instead"
            raise ValueError(message)
    return gaps


def _named(names: tuple[str, ...], parts: Iterable[Any]) -> Any:  # noqa: ANN401 - a new class
    """Return a named tuple of parts."""

    def reduce(split: Any) -> Any:  # noqa: ANN401 - see __reduce__
        """Pickle by the names: the class is in no module."""
        return _named, (names, tuple(split))

    plain: Any = namedtuple("Split", names)  # type: ignore[misc]  # noqa: PYI024 - the names are not known before
    made: Any = type("Split", (plain,), {"__slots__": (), "__reduce__": reduce})
    return made(*parts)


def _check_shares(shares: Mapping[str, float]) -> None:
    if not isinstance(shares, Mapping):
        message = f"shares must be a dict, name of a part -> its share of the rows, not {shares!r:.200}"
        raise TypeError(message)
    values = [*shares.values()]
    is_wrong = any(
        isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each <= 1 for each in values
    )
    if is_wrong or not math.isclose(sum(values), 1.0, abs_tol=1e-9):
        total = "" if is_wrong else f", whose sum is {sum(values)!r}"
        message = f"shares must be numbers in [0, 1] with the sum 1, not {dict(shares)!r}{total}"
        raise ValueError(message)
    for name in shares:
        if not isinstance(name, str) or not name.isidentifier() or iskeyword(name) or name.startswith("_"):
            message = f"a part must have a name that can be an attribute, such as 'train', not {name!r}"
            raise ValueError(message)


def _checked_bound(name: str, bound: float) -> int | float:
    """Return a number of rows as an int, or a share of them as a float; both may be numbers of numpy."""
    number = plain_int(bound)  # type: ignore[arg-type]  # returns None for a float
    if number is not None and number >= 0:
        return number
    is_share = isinstance(bound, (float, np.floating)) and 0 <= bound <= 1
    if not is_share:
        message = f"{name} must be a number of rows >= 0, or a share of them as a float in [0, 1], not {bound!r}"
        raise ValueError(message)
    return float(bound)

"""Changed copies of a dataset: shuffled, sharded, mapped, and of some of its rows."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from laneway.arguments import check_columns, check_seed
from laneway.core.plan import Settings
from laneway.errors import SchemaMismatchError
from laneway.reading.expressions import columns_of, filter_of
from laneway.reading.hashing import is_hashable
from laneway.reading.selecting import Planner
from laneway.reading.selection_summary import SelectionSummary
from laneway.reading.steps import FunctionFilter, Slice, parts_of
from laneway.staged import StageableDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from laneway.catalog.caching import CacheDir
    from laneway.core.plan import Identity
    from laneway.delivery.definition import DatasetDefinition
    from laneway.reading.steps import Step


class ChangeableDataset(StageableDataset):
    """A dataset of which there can be changed copies."""

    definition: DatasetDefinition
    _given_schema: pa.Schema | None
    _cache_dir: CacheDir

    @property
    def selection(self) -> SelectionSummary | None:
        """The filters, splits and slices that select the rows of this dataset; None: it has all rows of its files."""
        selection = self.definition.selection
        return None if selection is None else SelectionSummary.of(self.definition.manifest, selection)

    def shuffle(self, seed: int = 0) -> Self:
        """Return a copy that is shuffled, at the start of epoch 0.

        Args:
            seed: Any int in [0, 2**63).

        Raises:
            ValueError: `seed` is out of its range.
        """
        identity: Identity = self.definition.identity
        settings = replace(identity.settings, shuffle=True, seed=check_seed(seed))
        return self._changed(replace(self.definition, identity=replace(identity, settings=settings)))

    def filter(
        self,
        condition: pa.compute.Expression | Sequence[Any] | Callable[[pa.RecordBatch], Any],
        *,
        columns: Sequence[str] | None = None,
        version: str | None = None,
    ) -> Self:
        """Return a copy with those rows for which a condition is true, at the start of epoch 0.

        The rows are counted at once, from the names of directories, then the statistics of row groups, then the columns
        of the condition in the row groups that these don't decide. So `len`, batches, ranks and states are as for files
        that have no other rows. Row groups without such rows are never read.

        Args:
            condition: An expression of pyarrow, such as `pc.field("price") > 10`; tuples such as
                `[("price", ">", 10)]`, of which all must be true, or lists of such lists, of which one must be; or a
                function of a `pyarrow.RecordBatch`, which returns one bool for each row, depends on nothing else, and
                may be called by several threads at once.
                Where a condition is null, the row is left out.
            columns: The columns of the batches that a function gets.
            version: Name of this version of a function. Change it whenever the function changes; without it, counts
                are not cached.

        Raises:
            TypeError: `condition` is none of these, or the function returns something else.
            ValueError: `columns` is missing, or given without a function.
            SchemaMismatchError: A column doesn't exist, or the expression doesn't fit its type.
            DataFileError: A file can't be read, or the condition can't be computed for its rows.
        """
        (changed,) = self._selected(*self._filter(condition, columns, version))
        return changed

    def split(self, shares: Mapping[str, float], *, seed: int = 0, by: str = "row") -> Any:  # noqa: ANN401 - a new class
        """Return a copy for each part of the rows, at the start of epoch 0: disjoint, and together all rows.

        Which part a row is in follows from a hash, and is the same in every epoch and for any number of ranks. It
        stays the same when files are added.

        Args:
            shares: Name of each part -> its share of the rows, which is met on average. The sum is 1.
            seed: Any int in [0, 2**63): another split.
            by: "row"; "file": all rows of a file are in the same part; or the name of a column: all rows with the same
                value are, such as those of a user.

        Returns:
            A named tuple of datasets, with the names and the order of `shares`.

        Raises:
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
        parts = parts_of([*shares.values()], seed=check_seed(seed), by=by)
        schema = columns_of(self.definition.manifest, [*parts[0].columns], self._given_schema)
        for field in schema:
            if not is_hashable(field.type):
                message = f"the rows can't be split by column {field.name!r}, which is of type {field.type}"
                raise SchemaMismatchError(message)
        # Fields have the names of the parts.
        return namedtuple("Split", [*shares])(*self._selected(parts, schema))  # noqa: PYI024 - the names are not known before

    def take(self, rows: int | float) -> Self:  # noqa: PYI041 - 1 and 1.0 differ
        """Return a copy with the first rows, in the order of the files, at the start of epoch 0.

        Args:
            rows: Number of rows, >= 0; as a float in [0, 1], a share of the rows.

        Raises:
            ValueError: `rows` is out of its range.
        """
        _check_bound("rows", rows)
        return self.slice(0, rows)

    def skip(self, rows: int | float) -> Self:  # noqa: PYI041 - 1 and 1.0 differ
        """Return a copy without the first rows, in the order of the files, at the start of epoch 0.

        Args:
            rows: Number of rows, >= 0; as a float in [0, 1], a share of the rows.

        Raises:
            ValueError: `rows` is out of its range.
        """
        _check_bound("rows", rows)
        return self.slice(rows, None)

    def slice(self, start: int | float, stop: int | float | None = None) -> Self:  # noqa: PYI041 - 1 and 1.0 differ
        """Return a copy with the rows [start, stop) in the order of the files, at the start of epoch 0.

        Args:
            start: Row number, >= 0; as a float in [0, 1], a share of the rows of this dataset.
            stop: One past the last row, likewise; None: to the end.

        Raises:
            ValueError: An argument is out of its range.
        """
        for name, bound in (("start", start), ("stop", stop)):
            _check_bound(name, bound)
        block_rows = self.definition.identity.selected.block_rows
        (changed,) = self._selected([Slice.of(block_rows, start, stop)], pa.schema([]))
        return changed

    def extend(self, grown: Self) -> Self:
        """Return a copy with more files, for a mixture that has begun with these: its next epoch has all of them.

        A mixture that resumes finishes the epochs that had begun with the files that they began with. Keep those in a
        saved `Manifest`.

        Args:
            grown: The dataset with more files, created as this one was, with the same filters and functions.

        Raises:
            ValueError: A setting differs, or a file of this dataset is gone or was changed.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import Manifest, StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
            >>> begun_with = Manifest.scan(folder)
            >>> pq.write_table(pa.table({"x": range(10, 15)}), f"{folder}/part-1.parquet")
            >>> web = StatefulShardedDataset(begun_with).extend(StatefulShardedDataset(folder))
            >>> len(web)
            15
        """
        before, after = self.definition, grown.definition
        lines = [
            f"{field.name} is {old!r} before, and {new!r} now"
            for field in fields(Settings)
            for old, new in [[getattr(each.identity.settings, field.name) for each in (before, after)]]
            if old != new
        ]
        facts = [_facts_of(each.identity) for each in (before, after)]
        changed = [path for path, fact in facts[0].items() if facts[1].get(path) != fact]
        if changed:
            what = "was changed" if changed[0] in facts[1] else "is gone"
            lines.append(f"{changed[0]} {what}")
        if lines:
            message = f"this dataset can't be extended by the other one: {'; '.join(lines)}"
            raise ValueError(message)
        return self._changed(replace(after, place=before.place, former=(*before.former, before)))

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
        if self.definition.stages is not None:
            message = "what filters, splits or slices selects rows of the files: call it before flat_map() and pack()"
            raise ValueError(message)
        return [self._changed(definition) for definition in self._definitions(steps, schema)]

    def _definitions(self, steps: Sequence[Step], schema: pa.Schema) -> list[DatasetDefinition]:
        """Return the definition of the rows that each step leaves."""
        definition = self.definition
        planner = Planner(definition.manifest, definition.storage, self._cache_dir)
        return [definition.with_selection(each) for each in planner.extend(definition.selection, steps, schema)]


def _facts_of(identity: Identity) -> dict[str, tuple[int, int, str]]:
    """Return path -> size, rows and digest of each file."""
    files = identity.files
    facts = zip(files.sizes.tolist(), files.rows.tolist(), files.digests, strict=True)
    return dict(zip(files.paths, facts, strict=True))


def _check_shares(shares: Mapping[str, float]) -> None:
    values = [*shares.values()]
    is_wrong = any(
        isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each <= 1 for each in values
    )
    if is_wrong or not math.isclose(sum(values), 1.0, abs_tol=1e-9):
        total = "" if is_wrong else f", whose sum is {sum(values)!r}"
        message = f"shares must be numbers in [0, 1] with the sum 1, not {dict(shares)!r}{total}"
        raise ValueError(message)
    for name in shares:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            message = f"a part must have a name that can be an attribute, such as 'train', not {name!r}"
            raise ValueError(message)


def _check_bound(name: str, bound: float | None) -> None:
    if bound is None and name == "stop":
        return
    is_number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    if not is_number or not 0 <= bound <= (1 if isinstance(bound, float) else math.inf):  # type: ignore[operator]
        message = f"{name} must be a number of rows >= 0, or a share of them as a float in [0, 1], not {bound!r}"
        raise ValueError(message)

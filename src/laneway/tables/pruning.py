"""Which files of a table a filter can match, as far as the statistics of its catalog tell: no file is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from laneway.tables.base import Bounds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from laneway.reading.expressions import Filter
    from laneway.tables.base import Catalog

_GROUP: Final = 32  # files that are looked at together first


def files_that_may_match(catalog: Catalog, step: Filter, num_files: int) -> NDArray[np.bool_]:
    """Return for each file of a table whether a filter may select a row of it, bool of shape (num_files,)."""
    is_kept = np.ones(num_files, bool)
    # Statistics leave NaN out. Where x is 1 to 3, a row with x != 2 may still be NaN.
    if step.has_nan and not step.is_monotone:
        return is_kept
    types = {each.name: each.type for each in catalog.schema}
    known: dict[str, _Known] = {}
    for each in step.schema:
        # Bounds of values that are cast to another type may not be bounds of what they become.
        found = catalog.bounds(each.name) if each.type.equals(types.get(each.name)) else None
        if found is not None:
            known[each.name] = _Known(each, found)
    is_decided = np.zeros(num_files, bool)
    if len(known) == len(step.schema):
        is_decided = np.logical_and.reduce([each.is_constant for each in known.values()])
        try:
            # As for the files of a partition. All of them at once take as long as a few others.
            is_kept[is_decided] = step.matches(
                pa.table({name: each.values(is_decided) for name, each in known.items()})
            )
        except pa.ArrowException:
            is_decided = np.zeros(num_files, bool)
    left = np.flatnonzero(~is_decided)
    if len(left) > _GROUP and known:
        # Files beside each other often have values beside each other: a filter may exclude all of them at once.
        grouped = {name: group for name, each in known.items() if (group := each.grouped()) is not None}
        num_groups = -(-num_files // _GROUP)
        groups = _possible(step.expression, step.schema, grouped, num_groups)
        is_kept[left] = groups[left // _GROUP]
        # Where the opposite is excluded, all rows match.
        is_open = _possible(~step.expression, step.schema, grouped, num_groups)
        left = left[is_kept[left] & is_open[left // _GROUP]]
    is_kept[left] = _possible(step.expression, step.schema, known, num_files, left)[left]
    return is_kept


def _possible(
    expression: pc.Expression,
    schema: pa.Schema,
    known: Mapping[str, _Known],
    num_files: int,
    files: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Return for each file whether an expression may be true for a row of it, True for those other than `files`."""
    import pyarrow.dataset as pads  # noqa: PLC0415 - it imports pandas, and only filters need it

    chosen = np.arange(num_files) if files is None else files
    facts: dict[int, Any] = {}
    for column in known.values():
        for index, fact in column.facts(chosen):
            facts[index] = facts[index] & fact if index in facts else fact
    told = [*facts]
    # A dataset of pyarrow learns from what is known of its files which of them a filter excludes, and opens none.
    from_paths: Any = pads.FileSystemDataset.from_paths
    dataset = from_paths(
        [str(index) for index in told],
        schema=schema,
        format=pads.ParquetFileFormat(),
        filesystem=pyarrow.fs.LocalFileSystem(),
        partitions=[*facts.values()],
    )
    is_possible = np.ones(num_files, bool)
    try:
        found = [int(fragment.path) for fragment in dataset.get_fragments(expression)]
    except pa.ArrowException:
        # It can't be computed for a value, which the file that has it will tell.
        return is_possible
    is_possible[told] = False
    is_possible[found] = True
    return is_possible


class _Known:
    """What is known of the values of a column in each file."""

    def __init__(self, field: pa.Field[Any], bounds: Bounds) -> None:
        self._field, self._bounds = field, bounds
        self._least, self._greatest = (_cast(each, field.type) for each in (bounds.least, bounds.greatest))
        self._has_range = np.asarray(self._least.is_valid()) & np.asarray(self._greatest.is_valid()) & ~bounds.is_null
        is_same = np.asarray(pc.fill_null(pc.equal(self._least, self._greatest), False))  # noqa: FBT003 - the replacement
        self._is_same = self._has_range & is_same
        self.is_constant = bounds.is_null | (self._is_same & ~bounds.has_nulls)
        """Whether all rows of a file have the same value, or null; bool of shape (num_files,)."""

    def values(self, files: NDArray[np.bool_]) -> Any:  # noqa: ANN401 - an array
        """Return the value of those files in which the column is constant."""
        values: Any = pc.if_else(pa.array(self._bounds.is_null), pa.scalar(None, self._field.type), self._least)
        return values.filter(pa.array(files))

    def grouped(self) -> _Known | None:
        """Return what is known of each `_GROUP` consecutive files together; None: values of this type have no order."""
        bounds, has_range = self._bounds, self._has_range
        starts = np.arange(0, len(has_range), _GROUP)
        ranges = {
            name: pc.if_else(pa.array(has_range), values, pa.scalar(None, self._field.type))
            for name, values in (("least", self._least), ("greatest", self._greatest))
        }
        table = pa.table({"group": np.arange(len(has_range)) // _GROUP, **ranges})
        try:
            found: Any = table.group_by("group", use_threads=False).aggregate([("least", "min"), ("greatest", "max")])
        except pa.ArrowNotImplementedError:
            return None
        is_known = pa.array(np.logical_and.reduceat(has_range | bounds.is_null, starts))
        none = pa.scalar(None, self._field.type)
        least, greatest = (
            pc.if_else(is_known, found[name].combine_chunks(), none) for name in ("least_min", "greatest_max")
        )
        has_nulls = np.logical_or.reduceat(bounds.has_nulls | bounds.is_null, starts)
        return _Known(self._field, Bounds(least, greatest, has_nulls, np.logical_and.reduceat(bounds.is_null, starts)))

    def facts(self, files: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        """Yield what holds for all rows of a file, as an expression, for each of some files of which it is known."""
        column, has_nulls = pc.field(self._field.name), self._bounds.has_nulls
        for index in files[self._bounds.is_null[files]].tolist():
            yield index, column.is_null()
        for index in files[self._has_range[files]].tolist():
            low, high = self._least[index], self._greatest[index]
            fact = column == low if self._is_same[index] else (column >= low) & (column <= high)
            yield index, fact | column.is_null() if has_nulls[index] else fact


def _cast(values: Any, type_: pa.DataType) -> Any:  # noqa: ANN401 - arrays
    values = values.cast(type_)
    if pa.types.is_floating(type_):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, type_), values)
    return values

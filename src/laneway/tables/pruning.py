"""Which files of a table a filter can match, as far as the statistics of its catalog tell: no file is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.reading.expressions import Filter
    from laneway.tables.base import Bounds, Catalog


def files_that_may_match(catalog: Catalog, step: Filter, num_files: int) -> NDArray[np.bool_]:
    """Return for each file of a table whether a filter may select a row of it, bool of shape (num_files,)."""
    is_kept = np.ones(num_files, bool)
    # Statistics leave NaN out. Where x is 1 to 3, a row with x != 2 may still be NaN.
    if step.has_nan and not step.is_monotone:
        return is_kept
    types = {each.name: each.type for each in catalog.schema}
    facts: list[Any] = [None] * num_files
    for each in step.schema:
        # Bounds of values that are cast to another type may not be bounds of what they become.
        if not each.type.equals(types.get(each.name)):
            continue
        found = catalog.bounds(each.name)
        if found is not None:
            for index, fact in _facts_of(each, found):
                facts[index] = fact if facts[index] is None else facts[index] & fact
    told = [index for index, fact in enumerate(facts) if fact is not None]
    # A dataset of pyarrow learns from what is known of its files which of them a filter excludes, and opens none.
    format_, local = pads.ParquetFileFormat(), pyarrow.fs.LocalFileSystem()
    fragments = [format_.make_fragment(str(index), local, partition_expression=facts[index]) for index in told]
    dataset = pads.FileSystemDataset(fragments, step.schema, format_, local)
    is_kept[told] = False
    is_kept[[int(fragment.path) for fragment in dataset.get_fragments(step.expression)]] = True
    return is_kept


def _facts_of(field: pa.Field[Any], bounds: Bounds) -> list[tuple[int, Any]]:
    """Return what holds for all rows of a file, as an expression, for each file of which something is known."""
    column = pc.field(field.name)
    least, greatest = (_cast(each, field.type) for each in (bounds.least, bounds.greatest))
    found: list[tuple[int, Any]] = [(index, column.is_null()) for index in np.flatnonzero(bounds.is_null).tolist()]
    is_known = np.asarray(least.is_valid()) & np.asarray(greatest.is_valid()) & ~bounds.is_null
    same: dict[object, Any] = {}
    for index in np.flatnonzero(is_known).tolist():
        low, high, has_nulls = least[index], greatest[index], bool(bounds.has_nulls[index])
        if not low.equals(high):
            fact = (column >= low) & (column <= high)
        else:
            # All files of a partition have the same: to build an expression takes most of the time.
            value = low.as_py()
            fact = same[value] if value in same else same.setdefault(value, column == low)
        found.append((index, fact | column.is_null() if has_nulls else fact))
    return found


def _cast(values: Any, type_: pa.DataType) -> Any:  # noqa: ANN401 - arrays
    values = values.cast(type_)
    if pa.types.is_floating(type_):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, type_), values)
    return values

"""Which blocks a filter selects as a whole, or not at all, as far as directory names and statistics tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from laneway.formats.field_paths import find_field
from laneway.reading.steps import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.catalog.contents import ManifestContents
    from laneway.catalog.partitions import PartitionValue
    from laneway.reading.expressions import Filter
    from laneway.reading.reader import RowReader
    from laneway.reading.steps import Step

_nulls: Any = pa.nulls

NONE: Final = 0
"""No row of the block is selected."""
ALL: Final = 1
"""All rows of the block are."""
UNKNOWN: Final = 2
"""Only its rows tell."""


def keys_only(manifest: ManifestContents, step: Step) -> bool:
    """Return whether a step looks only at columns that are in the names of directories, and in no file."""
    return bool(step.columns) and not any(
        find_field(schema, name) for schema in manifest.readable.distinct for name in step.columns
    )


def by_keys(manifest: ManifestContents, step: Step, schema: pa.Schema) -> NDArray[np.int8]:
    """Return for each file whether a step that looks only at keys of directories selects all its rows or none.

    Args:
        manifest: The files.
        step: The step.
        schema: The columns that it looks at.
    """
    num_files = manifest.files.num_files
    names = [field.name for field in manifest.partitions.fields]
    columns: list[Any] = []
    for field in schema:
        if field.name in names:
            index = names.index(field.name)
            values = pa.array(manifest.partitions.values[index], manifest.partitions.fields[index].type)
            columns.append(values.cast(field.type))
        else:  # a column that no file has
            columns.append(_nulls(num_files, field.type))
    table = pa.Table.from_arrays(columns, schema=schema)
    run = Run("", 0, 0, np.array([0, num_files]))
    return step.select(table, run, np.ones(num_files, bool)).astype(np.int8)


def by_known_keys(manifest: ManifestContents, step: Filter) -> NDArray[np.int8]:
    """Return for each file whether a filter selects none of its rows, since the keys of its directories exclude it."""
    found = np.full(manifest.files.num_files, UNKNOWN, np.int8)
    keys = [(index, each) for index, each in enumerate(manifest.partitions.fields) if each.name in step.columns]
    if not keys:
        return found
    # Some files may have the column itself.
    in_files = [any(find_field(schema, each.name) for _, each in keys) for schema in manifest.readable.distinct]
    values = zip(*(manifest.partitions.values[index] for index, _ in keys), strict=True)
    is_excluded: dict[tuple[PartitionValue, ...], bool] = {}
    for file_index, (each, schema_index) in enumerate(zip(values, manifest.readable.indices.tolist(), strict=True)):
        if in_files[schema_index]:
            continue
        if each not in is_excluded:
            is_excluded[each] = _excludes(manifest, step, [key.name for _, key in keys], file_index)
        if is_excluded[each]:
            found[file_index] = NONE
    return found


def _excludes(manifest: ManifestContents, step: Filter, names: list[str], file_index: int) -> bool:
    """Return whether a filter selects no row of a file, whatever its other columns are."""
    import pyarrow.dataset as pads  # noqa: PLC0415 - it imports pandas, and only filters need it

    facts: Any = pc.scalar(True)  # noqa: FBT003 - a value
    for name in names:
        value = manifest.partitions.value(name, file_index, step.schema.field(name).type)
        facts = facts & (pc.field(name) == value if value.is_valid else pc.field(name).is_null())
    # No file is opened to learn which fragments of a dataset a filter excludes.
    format_, local = pads.ParquetFileFormat(), pyarrow.fs.LocalFileSystem()
    fragment = format_.make_fragment("unread", local, partition_expression=facts)
    dataset = pads.FileSystemDataset([fragment], step.schema, format_, local)
    return not any(True for _ in dataset.get_fragments(step.expression))


def by_statistics(reader: RowReader, file_index: int, step: Filter) -> NDArray[np.int8] | None:
    """Return for each block of a file what its statistics tell of a filter; None: there are no statistics."""
    # Statistics leave NaN out. Where x is 1 to 3, a row with x != 2 may still be NaN.
    if step.has_nan and not step.is_monotone:
        return None
    conditions = [step.expression]
    if step.is_null_only_for_nulls and not step.has_nan:
        conditions.append(~step.expression)
    matches = reader.matches(file_index, conditions, step.schema)
    if matches is None:
        return None
    found = np.full(len(matches.has_nulls), UNKNOWN, np.int8)
    for can_be_false in matches.possible[1:]:
        found[~can_be_false & ~matches.has_nulls] = ALL
    found[~matches.possible[0]] = NONE
    return found

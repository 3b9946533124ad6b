"""What the statistics of row groups tell of a condition on their rows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.formats.base import BlockMatches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow.parquet as pq


def row_group_matches(
    metadata: pq.FileMetaData,
    conditions: Sequence[pc.Expression],
    schema: pa.Schema,
    leaves: Mapping[str, range],
    known: Mapping[str, Any],
) -> BlockMatches:
    """Return what the statistics of each row group tell; see `BlockReader.matches`.

    Args:
        metadata: The footer.
        conditions: The conditions.
        schema: The columns that they look at.
        leaves: Indices of the leaf columns of each column in the file.
        known: See `BlockReader.matches`.
    """
    import pyarrow.dataset as pads  # noqa: PLC0415 - it imports pandas, and only filters need it

    footer = io.BytesIO()
    metadata.write_metadata_file(footer)
    facts: pc.Expression | None = None
    for name, value in known.items():
        fact = pc.field(name) == value if value.is_valid else pc.field(name).is_null()
        facts = fact if facts is None else facts & fact
    make: Any = pads.ParquetFileFormat().make_fragment
    options = {} if facts is None else {"partition_expression": facts}
    fragment = make(pa.py_buffer(footer.getvalue()), **options)
    num_groups = metadata.num_row_groups

    def possible(expression: pc.Expression) -> np.ndarray[Any, np.dtype[np.bool_]]:
        found = np.zeros(num_groups, bool)
        found[[group.id for group in fragment.subset(expression, schema=schema).row_groups]] = True
        return found

    indices = [leaf for name in schema.names if name in leaves for leaf in leaves[name]]
    has_nulls = [
        any(_may_have_nulls(metadata.row_group(group).column(leaf)) for leaf in indices) for group in range(num_groups)
    ]
    return BlockMatches([*map(possible, conditions)], np.array(has_nulls, bool))


def _may_have_nulls(chunk: Any) -> bool:  # noqa: ANN401 - pyarrow does not export the class
    statistics = chunk.statistics
    return statistics is None or not statistics.has_null_count or statistics.null_count > 0

"""Columns that tell where rows come from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from laneway.reading.origin import EPOCH, HIDDEN, PATH, PROVENANCE, Origin


def test_each_column_has_the_type_that_the_schema_says() -> None:
    fields = [*PROVENANCE, *HIDDEN]
    origin = Origin(4, frozenset(field.name for field in fields))
    columns = {field.name: origin.column(field.name, "a.parquet", 9, np.array([7, 3])) for field in fields}
    assert all(columns[field.name].type == field.type for field in fields)
    assert pa.table(columns).to_pylist() == [
        {PATH: "a.parquet", "_row": row, EPOCH: 4, "\0file": 9, "\0row": row} for row in (7, 3)
    ]

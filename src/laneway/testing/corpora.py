"""Small tables for tests of formats: rows that number themselves, in blocks of unequal sizes."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

UNEQUAL_BLOCKS: Final = (5, 1, 7, 3, 3, 4, 2, 9, 13)
"""Rows of each block: 47 rows."""


def corpus_schema() -> pa.Schema:
    """Return the schema of `corpus_tables`: columns of types that most formats have."""
    types: dict[str, pa.DataType] = {"id": pa.int64(), "text": pa.string(), "x": pa.float64(), "flag": pa.bool_()}
    return pa.schema(list(types.items()))


def corpus_tables(sizes: tuple[int, ...] = UNEQUAL_BLOCKS, start: int = 0) -> list[pa.Table]:
    """Return tables of these numbers of rows. `id` numbers the rows, and the other columns derive from it.

    Args:
        sizes: Rows of each table.
        start: `id` of the first row.
    """
    tables = []
    for num_rows in sizes:
        ids = range(start, start + num_rows)
        columns = {
            "id": ids,
            # Delimiters, quotes, newlines and letters beyond ASCII: a format must keep them.
            "text": [f'row {i}, "quoted"\nline é{"雪" * (i % 3)}' for i in ids],
            "x": [i / 2 + 0.25 for i in ids],
            "flag": [i % 3 == 0 for i in ids],
        }
        tables.append(pa.table({name: list(values) for name, values in columns.items()}, schema=corpus_schema()))
        start += num_rows
    return tables

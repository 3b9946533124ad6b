"""Small datasets of real files for many tests: files of unequal size, empty files, irregular row groups."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["parquet", "arrow-file", "arrow-stream"]
"""Format of the files; HF `datasets` writes "arrow-stream", with the suffix `.arrow`."""

KINDS: tuple[Kind, ...] = get_args(Kind)
FORMAT_OF: dict[Kind, str] = {"parquet": "parquet", "arrow-file": "arrow", "arrow-stream": "arrow"}
SUFFIX_OF: dict[Kind, str] = {"parquet": ".parquet", "arrow-file": ".arrow", "arrow-stream": ".arrow"}

UNEQUAL_FILES: tuple[tuple[int, ...], ...] = ((5, 1, 7), (), (1,), (3, 3, 0, 4), (), (2, 9), (13,))
"""Rows of each block of each file: 48 rows in 7 files, two of them empty, one with a single row."""


def schema_of(**types: Any) -> pa.Schema:
    """Return a schema of columns of these types."""
    return pa.schema(types)


SCHEMA = schema_of(id=pa.int64(), text=pa.string(), x=pa.float32())


def rows(start: int, stop: int) -> pa.Table:
    """Return the rows [start, stop) of the corpus: `id` is the row number, and the other columns derive from it."""
    ids = np.arange(start, stop)
    text = [f"row {i} " + "é" * (i % 4) for i in ids]
    return pa.table([pa.array(ids), pa.array(text, pa.string()), pa.array(ids / 2, pa.float32())], schema=SCHEMA)


def write_corpus(
    directory: Path,
    kind: Kind = "parquet",
    files: tuple[tuple[int, ...], ...] = UNEQUAL_FILES,
    *,
    names: tuple[str, ...] | None = None,
) -> int:
    """Write a dataset whose column `id` numbers the rows in the order of the sorted paths.

    Args:
        directory: Where to write; created if missing.
        kind: Format of the files.
        files: Rows of each block (row group or record batch) of each file.
        names: File names below `directory`, sorted, without suffix; by default part-000, part-001...

    Returns:
        The number of rows.
    """
    names = names or tuple(f"part-{index:03}" for index in range(len(files)))
    start = 0
    for name, blocks in zip(names, files, strict=True):
        path = directory / f"{name}{SUFFIX_OF[kind]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = []
        for num_rows in blocks:
            tables.append(rows(start, start + num_rows))
            start += num_rows
        write_blocks(path, kind, tables, SCHEMA)
    return start


def write_blocks(path: Path, kind: Kind, tables: list[pa.Table], schema: pa.Schema) -> None:
    """Write one data file, each table as a block; a Parquet file has no empty row groups."""
    if kind == "parquet":
        with pq.ParquetWriter(path, schema) as writer:
            for table in tables:
                if table.num_rows:
                    writer.write_table(table, row_group_size=table.num_rows)
        return
    new = pa.ipc.new_file if kind == "arrow-file" else pa.ipc.new_stream
    with new(str(path), schema) as writer:
        for table in tables:
            # A table without rows has no batches: give the writer an empty one.
            batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=schema)]
            for batch in batches:
                writer.write_batch(batch)


def settle(directory: Path, seconds: int = 1) -> None:
    """Give files an old modification time, which tells them from later versions: those of recent files are unknown.

    Args:
        directory: Where they are.
        seconds: The time, after 1970.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            os.utime(path, (seconds, seconds))

"""Columns of every type, through files, windows and batches, in every output: each value belongs to its row."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from laneway import StatefulShardedDataset
from laneway.convert.columns import Output
from tests.corpora import KINDS, Kind

if TYPE_CHECKING:
    from pathlib import Path


def table(start: int, stop: int, step: int) -> pa.Table:
    """Return rows with columns of all types; `step` determines the values of the dictionary and their order."""
    ids = range(start, stop)
    first = dt.datetime(2020, 1, 1)  # noqa: DTZ001 - a timestamp without a zone
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "dictionary": pa.array([f"k{i * step % 5}" for i in ids]).dictionary_encode(),
            "texts": pa.array([[f"k{i % 3}"] * (i % 3) for i in ids], pa.list_(pa.string())),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(start * 4, stop * 4), pa.int32()), 4),
            "ragged": pa.array([list(range(i % 4)) for i in ids], pa.list_(pa.float32())),
            "time": pa.array([first + dt.timedelta(seconds=i) for i in ids], pa.timestamp("us")),
            "flag": pa.array([i % 2 == 0 for i in ids]),
            "bytes": pa.array([bytes([i % 256]) for i in ids], pa.binary()),
            "decimal": pa.array([decimal.Decimal(i) for i in ids], pa.decimal128(10, 2)),
            "struct": pa.array([{"x": i, "y": str(i)} for i in ids]),
            "half": pa.array(np.array(ids, np.float16)),
            "large": pa.array(["L" * (i % 5) for i in ids], pa.large_string()),
        }
    )


def write(directory: Path, kind: Kind) -> dict[int, dict[str, Any]]:
    """Write four files of three unequal blocks, and return the rows by id."""
    start, rows = 0, {}
    for index in range(4):
        tables = []
        for block in range(3):
            tables.append(table(start, start + 13 + index + block, index + block + 1))
            start += len(tables[-1])
            rows.update({row["id"]: row for row in tables[-1].to_pylist()})
        if kind == "parquet":
            with pq.ParquetWriter(directory / f"{index}.parquet", tables[0].schema) as writer:
                for each in tables:
                    writer.write_table(each)
        elif kind == "arrow-file":
            # A file has one dictionary for all of its record batches.
            whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            with pa.ipc.new_file(str(directory / f"{index}.arrow"), whole.schema) as writer:
                writer.write_table(whole, max_chunksize=13)
        else:
            with pa.ipc.new_stream(str(directory / f"{index}.arrow"), tables[0].schema) as writer:
                for each in tables:
                    writer.write_table(each)
    return rows


def plain(value: Any, column: str) -> Any:
    """Return a value of any output as the Python value that Arrow converts it to."""
    if column == "time":
        return np.asarray(value).astype("M8[us]").item() if not isinstance(value, dt.datetime) else value
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("output", get_args(Output))
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_every_type_is_that_of_its_row(
    tmp_path: Path, kind: Kind, shuffle: bool, batch_size: int | None, output: Output
) -> None:
    rows = write(tmp_path, kind)
    dataset = StatefulShardedDataset(
        tmp_path, shuffle=shuffle, batch_size=batch_size, output=output, shard_rows=10, window_bytes=6000
    )
    seen = []
    for item in dataset:
        columns = item.to_pydict() if output == "arrow" else item
        if batch_size is None and output != "arrow":
            columns = {name: [value] for name, value in item.items()}
        for index, row_id in enumerate(map(int, columns["id"])):
            seen.append(row_id)
            assert {name: plain(values[index], name) for name, values in columns.items()} == rows[row_id]
    assert sorted(seen) == list(rows)

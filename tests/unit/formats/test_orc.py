"""ORC files: every compression, types of all kinds, and files that changed since they were scanned."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pytest

from laneway import DataFileError, Manifest, StatefulShardedDataset
from laneway.formats.orc_footer import OrcFooter

if TYPE_CHECKING:
    from pathlib import Path

write_orc: Any = pyarrow.orc.write_table
COMPRESSIONS = ["uncompressed", "zlib", "snappy", "lz4", "zstd"]


def corpus(num_rows: int = 6_000) -> pa.Table:
    ids = range(num_rows)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "text": [None if i % 7 == 0 else f"row {i}" for i in ids],
            "point": [{"x": i / 2, "tags": ["a"] * (i % 3)} for i in ids],
            "when": pa.array(ids, pa.timestamp("ns")),
            "flag": [i % 2 == 0 for i in ids],
            "bytes": pa.array([bytes([i % 256]) for i in ids], pa.binary()),
            "small": pa.array(np.arange(num_rows) % 100, pa.int8()),
        }
    )


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_rows_of_stripes_are_those_that_pyarrow_reads(tmp_path: Path, compression: str) -> None:
    table = corpus()
    write_orc(table, tmp_path / "part.orc", compression=compression, stripe_size=65_536, batch_size=1000)
    manifest = Manifest.scan(tmp_path)
    stripes = pyarrow.orc.ORCFile(tmp_path / "part.orc")
    expected = [stripes.read_stripe(index).num_rows for index in range(stripes.nstripes)]
    assert manifest.files.block_rows.tolist() == expected
    assert len(expected) > 1 or compression != "uncompressed"
    assert 0.5 < manifest.files.block_memory_bytes.sum() / table.nbytes < 2
    found = pa.Table.from_batches(StatefulShardedDataset(manifest, output="arrow", batch_size=900))
    assert found.equals(stripes.read())


def test_fields_of_structs_are_read_by_path(tmp_path: Path) -> None:
    write_orc(corpus(10), tmp_path / "part.orc")
    rows = list(StatefulShardedDataset(tmp_path, columns=["point.x", "id"], output="python"))
    assert rows[3] == {"point.x": 1.5, "id": 3}


def test_files_that_changed_since_they_were_planned_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "part.orc"
    table = corpus(100)
    write_orc(table, path)
    manifest = Manifest.scan(tmp_path)
    write_orc(table.slice(1), path)
    with pytest.raises(DataFileError, match=r"part.orc changed since it was planned: it had [\d,]+ bytes and now has"):
        list(StatefulShardedDataset(manifest))
    ids = pa.array([*range(99), 98], pa.int64())
    write_orc(table.set_column(0, "id", ids), path)
    with pytest.raises(DataFileError, match=r"part.orc changed since it was planned"):
        list(StatefulShardedDataset(manifest))


def test_what_is_no_orc_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "part.orc"
    write_orc(corpus(100), path)
    data = path.read_bytes()
    for content in (b"", b"ORC", data[:-1], data[: len(data) // 2], data[:-20] + os.urandom(19) + data[-1:]):
        path.write_bytes(content)
        with pytest.raises(DataFileError, match=r"part.orc is not an ORC file, or it is damaged"):
            Manifest.scan(tmp_path)


@pytest.mark.parametrize("tail", [b"\x12", b"\x12\x05\x00", b"\x12\x02\x30\x05", b"\x13", b"\xff" * 12, b"\x10\x01"])
def test_a_footer_that_contradicts_itself_is_an_error(tail: bytes) -> None:
    with pytest.raises(ValueError, match=r"a (field|number|message) |its stripes"):
        OrcFooter.parse(tail)

"""Writers of files of every format, for the conformance kit and other tests."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.orc
import pyarrow.parquet as pq

from laneway.testing import corpus_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Write = Any
write_orc: Any = pyarrow.orc.ORCWriter


def parquet(path: Path, tables: list[pa.Table]) -> None:
    with pq.ParquetWriter(path, corpus_schema()) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def arrow(path: Path, tables: list[pa.Table]) -> None:
    with pa.ipc.new_file(str(path), corpus_schema()) as writer:
        for table in tables:
            writer.write_table(table)


def orc(path: Path, tables: list[pa.Table]) -> None:
    with write_orc(str(path)) as writer:
        for table in tables or [corpus_schema().empty_table()]:
            writer.write(table)


def json_lines(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()


def csv(table: pa.Table, *, delimiter: str, header: bool) -> bytes:
    sink = pa.BufferOutputStream()
    options = pyarrow.csv.WriteOptions(include_header=header, delimiter=delimiter)
    pyarrow.csv.write_csv(table, sink, options)
    return sink.getvalue().to_pybytes()


def text(
    encode: Callable[[pa.Table], bytes], *, compress: Callable[[bytes], bytes] = bytes, header: bytes = b""
) -> Write:
    """Return what writes each table as a part that is compressed by itself."""

    def write(path: Path, tables: list[pa.Table]) -> None:
        parts = [header, *map(encode, tables)]
        path.write_bytes(b"".join(compress(part) for part in parts if part))

    return write


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


def delimited(delimiter: str, compress: Callable[[bytes], bytes] = bytes) -> Write:
    header = csv(corpus_schema().empty_table(), delimiter=delimiter, header=True)
    return text(lambda table: csv(table, delimiter=delimiter, header=False), compress=compress, header=header)


WRITERS: dict[str, tuple[str, Write]] = {
    "parquet": ("parquet", parquet),
    "arrow": ("arrow", arrow),
    "orc": ("orc", orc),
    "jsonl": ("jsonl", text(json_lines)),
    "jsonl in gzip members": ("jsonl", text(json_lines, compress=gzip.compress)),
    "jsonl in zstd frames": ("jsonl", text(json_lines, compress=zstd)),
    "csv": ("csv", delimited(",")),
    "csv in zstd frames": ("csv", delimited(",", zstd)),
    "tsv": ("tsv", delimited("\t")),
}

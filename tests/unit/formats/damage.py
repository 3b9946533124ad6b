"""Reads damaged data files, one after the other, in a process that may be killed.

Run as `python -m tests.unit.formats.damage KIND FIRST STOP DIRECTORY`: for each case it prints a line when it begins,
and a line when it ends. What is read of a file is counted in rows, because most damages of values leave no trace.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import warnings
from contextlib import suppress
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from laneway.errors import DataFileError
from laneway.manifest import scan_source
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["parquet", "arrow-file", "arrow-stream"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_MEMORY_BYTES: Final = 6 << 30
MAX_SECONDS_PER_CASE: Final = 20
MAX_MESSAGE: Final = 4096
_ROWS = 60
_BLOCK_ROWS = 25
_LONG_AGO = (10**9, 10**9)
_EXTREMES = (0, 1, -1, 127, 128, 2**15, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, -(2**63))


def columns(length: int, *, for_parquet: bool) -> dict[str, Any]:
    """Return columns of all kinds of types, with nulls, empty and repeated values."""
    source = random.Random(3)
    numbers = [None if i % 7 == 0 else source.randrange(-(2**31), 2**31) for i in range(length)]
    texts = [None if i % 5 == 0 else source.choice(["", "a", "é" * (i % 9), "word " * (i % 11)]) for i in range(length)]
    lists = [None if i % 6 == 0 else numbers[: i % 4] for i in range(length)]
    labels = pa.array(["x", "yy", "x", None] * (length // 4))
    found: dict[str, Any] = {
        "id": pa.array(range(length), pa.int64()),
        "int32": pa.array(numbers, pa.int32()),
        "float": pa.array([i / 3 for i in range(length)], pa.float64()),
        "bool": pa.array([None if i % 4 == 0 else i % 3 == 0 for i in range(length)], pa.bool_()),
        "text": pa.array(texts, pa.string()),
        "large": pa.array(texts, pa.large_string()),
        "bytes": pa.array([b"\0\xff" * (i % 5) for i in range(length)], pa.binary()),
        "fixed": pa.array([bytes([i % 256]) * 3 for i in range(length)], pa.binary(3)),
        "list": pa.array(lists, pa.list_(pa.int64())),
        "large_list": pa.array(lists, pa.large_list(pa.int64())),
        "tokens": pa.array([[i, i + 1, i + 2] for i in range(length)], pa.list_(pa.int32(), 3)),
        "lists": pa.array([[["a", None], []], None, [], [[], ["é"]]] * (length // 4)),
        "struct": pa.array([{"a": i, "b": {"c": "z" * (i % 3)}} if i % 8 else None for i in range(length)]),
        "map": pa.array(
            [[("k", 1), ("l", None)], [], None, [("m", 3)]] * (length // 4), pa.map_(pa.string(), pa.int8())
        ),
        "decimal": pa.array([Decimal(i) / 4 for i in range(length)], pa.decimal128(12, 2)),
        "time": pa.array(range(length), pa.timestamp("us")),
        "date": pa.array(range(length), pa.date32()),
        "label": labels.dictionary_encode(),
    }
    if for_parquet:
        return found
    ids = pa.array([i % 2 for i in range(length)], pa.int8())
    places = pa.array([i // 2 for i in range(length)], pa.int32())
    members: list[Any] = [pa.array(range(length)), pa.array([str(i) for i in range(length)])]
    inner = pa.array(["p", "q", "p"] * (length // 3)).dictionary_encode()
    return found | {
        "text_view": pa.array(
            [None, "short", "a text of more than twelve bytes", ""] * (length // 4), pa.string_view()
        ),
        "bytes_view": pa.array([b"x" * (i % 30) for i in range(length)], pa.binary_view()),
        "list_view": pa.array(lists, pa.list_view(pa.int64())),
        "dense": pa.UnionArray.from_dense(ids, places, members),
        "sparse": pa.UnionArray.from_sparse(ids, members),
        "runs": pc.call_function("run_end_encode", [pa.array(["one"] * 7 + ["two"] * (length - 7))]),
        "null": pa.nulls(length),
        "interval": pa.array([(1, 2, 3)] * length, pa.month_day_nano_interval()),
        "nested_label": pa.DictionaryArray.from_arrays(
            pa.array(range(length), pa.int16()), pa.StructArray.from_arrays([inner], ["s"])
        ),
    }


def write_files(kind: Kind, directory: Path) -> list[Path]:
    """Write files of a kind in all variants, each with `_ROWS` rows."""
    table = pa.table(columns(_ROWS, for_parquet=kind == "parquet"))
    writers = _parquet_writers(table) if kind == "parquet" else _arrow_writers(kind, table)
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    paths = [directory / f"{number:02}{suffix}" for number in range(len(writers))]
    for path, write in zip(paths, writers, strict=True):
        write(str(path))
    return paths


def _parquet_writers(table: pa.Table) -> list[Callable[[str], None]]:
    encodings = {
        "int32": "DELTA_BINARY_PACKED",
        "float": "BYTE_STREAM_SPLIT",
        "text": "DELTA_BYTE_ARRAY",
        "bytes": "DELTA_LENGTH_BYTE_ARRAY",
    }
    variants: list[dict[str, Any]] = [
        {"compression": codec, "data_page_version": version, "use_dictionary": repeats, "write_page_checksum": has_crc}
        for codec in ("none", "snappy", "zstd", "gzip", "lz4")
        for version, repeats, has_crc in (("1.0", True, False), ("2.0", False, False), ("2.0", True, True))
    ]
    variants.append({"compression": "none", "use_dictionary": False, "column_encoding": encodings})

    def write(variant: dict[str, Any], path: str) -> None:
        pq.write_table(table, path, row_group_size=_BLOCK_ROWS, **variant)

    return [partial(write, variant) for variant in variants]


def _arrow_writers(kind: Kind, table: pa.Table) -> list[Callable[[str], None]]:
    new: Callable[..., Any] = pa.ipc.new_file if kind == "arrow-file" else pa.ipc.new_stream

    def write(batches: list[pa.RecordBatch], options: pa.ipc.IpcWriteOptions, path: str) -> None:
        with new(path, batches[0].schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)

    plain = [name for name in table.column_names if "label" not in name]
    writers: list[Callable[[str], None]] = []
    for names in (plain, table.column_names, ["id", "text", "tokens"], ["int32"]):
        # The writer can't write some slices of these types, so each batch is a copy.
        tables = [table.select(names).slice(start, _BLOCK_ROWS) for start in range(0, _ROWS, _BLOCK_ROWS)]
        batches = [batch for each in tables for batch in each.combine_chunks().to_batches()]
        writers += [
            partial(write, batches, pa.ipc.IpcWriteOptions(compression=codec)) for codec in (None, "lz4", "zstd")
        ]
    sizes = ((3, _BLOCK_ROWS), (9, _BLOCK_ROWS), (10, _ROWS - 2 * _BLOCK_ROWS))
    labels = [pa.array([f"value {i % count}" for i in range(length)]).dictionary_encode() for count, length in sizes]
    growing = [pa.record_batch({"label": each}) for each in labels]
    return [*writers, partial(write, growing, pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True))]


def damage(data: bytes, source: random.Random) -> bytes:
    """Return a damaged copy: cut short, or with changed bits, bytes or integers, preferably near the metadata."""
    kind = source.choice(("truncate", "bit", "bit", "bits", "byte", "integer", "integer", "swap"))
    if kind == "truncate":
        return data[: source.randrange(len(data))]
    changed = bytearray(data)

    def position(width: int = 1) -> int:
        near_end = source.random() < 0.4
        return source.randrange(max(0, len(data) - 4000) if near_end else 0, len(data) - width)

    if kind in {"bit", "bits"}:
        for _ in range(1 if kind == "bit" else source.randrange(2, 9)):
            changed[position()] ^= 1 << source.randrange(8)
    elif kind == "byte":
        changed[position()] = source.randrange(256)
    elif kind == "integer":
        width = source.choice((4, 8))
        start = position(width) // 4 * 4
        value = source.choice(_EXTREMES) % (1 << 8 * width)
        changed[start : start + width] = value.to_bytes(width, "little")
    else:
        first, second, length = position(64), position(64), source.randrange(1, 64)
        changed[first : first + length] = data[second : second + length]
    return bytes(changed)


def read(path: Path, content: bytes, *, is_planned: bool) -> str:
    """Read a damaged file and return "rows", or "error" for a DataFileError; anything else is raised.

    Args:
        path: A sound file, which is damaged and restored.
        content: Its damaged content.
        is_planned: Whether the file is damaged after it was planned, without a new modification time.
    """
    sound = path.read_bytes()
    os.utime(path, _LONG_AGO)
    try:
        planned = scan_source(path) if is_planned and len(content) == len(sound) else None
        path.write_bytes(content)
        os.utime(path, _LONG_AGO)
        manifest, storage = planned or scan_source(path)
        reader = RowReader(manifest, storage, select_columns(manifest))
        rows = 0
        starts = [0, *np.cumsum(manifest.files.block_rows).tolist()]
        for start, stop in pairwise(starts):
            table = reader.read(0, start, stop)
            _touch(table)
            rows += table.num_rows
    except DataFileError as error:
        return "error" if len(str(error)) < MAX_MESSAGE else f"other: a message of {len(str(error)):,} characters"
    finally:
        path.write_bytes(sound)
    # The start of a stream is a stream: it has fewer rows and no end marker, which is a warning.
    is_prefix = path.suffix == ".arrow" and sound.startswith(content) and not sound.startswith(b"ARROW1")
    assert rows == _ROWS or (is_prefix and rows in {0, _BLOCK_ROWS, 2 * _BLOCK_ROWS}), f"{rows} rows"
    return "rows"


def _touch(table: pa.Table) -> None:
    """Use every value: a reference out of bounds must not be followed."""
    table.validate()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_temporal(column.type):
            # Text that is not UTF-8 is a damage of values: it becomes an error where it is converted.
            with suppress(UnicodeDecodeError):
                column.to_pylist()
        if name not in {"text_view", "bytes_view", "runs", "list_view", "dense", "sparse"}:
            column.take(pa.array(range(len(column) - 1, -1, -1)))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(kind: Kind, first: int, stop: int, directory: Path) -> None:
    """Read the cases [first, stop)."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    paths = write_files(kind, directory)
    for path in paths:
        if read(path, path.read_bytes(), is_planned=True) != "rows":
            message = f"{path} is sound and can't be read"
            raise ValueError(message)
    for number in range(first, stop):
        source = random.Random(f"{kind} {number}")
        path = source.choice(paths)
        _say(f"begin {number} {path.name}")
        content = damage(path.read_bytes(), source)
        signal.alarm(MAX_SECONDS_PER_CASE)
        try:
            result = read(path, content, is_planned=source.random() < 0.4)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
            result = f"other {type(error).__name__}: {str(error)[:300]}".replace("\n", " ")
        signal.alarm(0)
        _say(f"end {number} {result}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))  # type: ignore[arg-type]

"""The encoding of a manifest: columns of a file that can be mapped into memory, without a Python object per file.

A head of 64 bytes holds the format version and the digest of the rest. A JSON object follows: short values, and the
offset and length of each column. The columns are little-endian integers of 64 bits, or the bytes of strings. A damaged
length allocates nothing, because each column is a view of the file. Manifests of format 2 were JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final, overload

import numpy as np
import pyarrow as pa

from laneway.catalog.checks import check_codes, check_strings
from laneway.catalog.contents import ManifestContents
from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.catalog.sharing import HEAD_BYTES
from laneway.catalog.signature import MAGIC
from laneway.catalog.table_facts import DeletedRows, TableFacts
from laneway.core.files import FileTable
from laneway.core.strings import Strings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from laneway.catalog.partitions import PartitionValue

FORMAT_VERSION: Final = 3
"""Version of the encoding."""
TABLE_FORMAT_VERSION: Final = 4
"""Version of the encoding of files that a table lists: earlier releases would read its deleted rows."""
HEAD: Final = struct.Struct("<8sI4xQ32s8x")
"""Magic, format version, length and SHA-256 of the rest."""
_ALIGNMENT = 64
_MAX_VALUES_BYTES = 64 << 20
"""Limit of the JSON object: it is short, and JSON takes many times its length in memory."""


@final
class CodedValues(Sequence["PartitionValue"]):
    """The value of a partition key for each file, as a code that refers to the distinct values."""

    def __init__(self, codes: NDArray[np.int64], distinct: Sequence[PartitionValue]) -> None:
        """Create the sequence.

        Args:
            codes: Index of the value of each file in `distinct`, -1 for null, shape (num_files,).
            distinct: The values other than null.
        """
        self._codes = codes
        self._distinct = distinct

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> PartitionValue: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PartitionValue, ...]: ...
    def __getitem__(self, index: int | slice) -> PartitionValue | tuple[PartitionValue, ...]:
        """Return the value of a file, or a tuple of values for a slice."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        code = int(self._codes[index])
        return None if code < 0 else self._distinct[code]


def encode(contents: ManifestContents) -> bytes:
    """Return the encoding of a manifest."""
    values, columns = _split(contents)
    position, spans = 0, {}
    for name, column in columns.items():
        spans[name] = [position, column.nbytes]
        position += column.nbytes + -column.nbytes % _ALIGNMENT
    text = json.dumps({**values, "columns": spans}, separators=(",", ":")).encode()
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text, bytes(-(8 + len(text)) % _ALIGNMENT)]
    for column in columns.values():
        parts += [column.data.cast("B") if column.nbytes else b"", bytes(-column.nbytes % _ALIGNMENT)]
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    version = FORMAT_VERSION if contents.table is None else TABLE_FORMAT_VERSION
    head = HEAD.pack(MAGIC, version, sum(map(len, parts)), state.digest())
    return b"".join([head, *parts])


def _split(contents: ManifestContents) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the short values of a manifest, and its columns."""
    files, partitions = contents.files, contents.partitions
    values = {
        "root": contents.root,
        "format": contents.format,
        "schema_digest": files.schema_digest,
        "partition_schema": encode_schema(pa.schema(partitions.fields)),
        "layout_width": contents.layout.shape[1],
    }
    columns = {
        "sizes": files.sizes,
        "block_starts": files.block_starts,
        "block_rows": files.block_rows,
        "block_bytes": files.block_bytes,
        "layout": contents.layout.reshape(-1),
        "layout_starts": contents.layout_starts,
    }
    if not np.array_equal(files.block_memory_bytes, files.block_bytes):
        columns["block_memory_bytes"] = files.block_memory_bytes
    if len(contents.schemas.distinct) > 1:
        columns["schema_indices"] = contents.schemas.indices
    texts = {
        "paths": files.paths,
        "digests": files.digests,
        "versions": contents.versions,
        "schemas": Strings.of(map(encode_schema, contents.schemas.distinct)),
    }
    for index, (field, key) in enumerate(zip(partitions.fields, partitions.values, strict=True)):
        codes = {value: code for code, value in enumerate(dict.fromkeys(value for value in key if value is not None))}
        columns[f"partition_{index}"] = np.fromiter(
            (-1 if value is None else codes[value] for value in key), np.int64, len(key)
        )
        if pa.types.is_integer(field.type):
            columns[f"partition_{index}_values"] = np.array(list(codes), np.int64)
        else:
            texts[f"partition_{index}_values"] = Strings.of(map(str, codes))
    if contents.schemas.stored:
        texts["stored_schemas"] = Strings.of(map(encode_schema, contents.schemas.stored))
    table = contents.table
    if table is not None:
        values["table"] = [table.version, encode_schema(table.schema), table.filter]
        columns |= {"deleted_starts": table.deleted.starts, "deleted_ranges": table.deleted.ranges.reshape(-1)}
    columns = {name: np.ascontiguousarray(column, "<i8") for name, column in columns.items()}
    for name, column in texts.items():
        columns[f"{name}.offsets"] = np.ascontiguousarray(column.offsets, "<i8")
        columns[f"{name}.data"] = np.ascontiguousarray(column.data)
    return values, columns


def is_plain(data: memoryview) -> bool:
    """Return whether data is an encoded manifest that is not compressed."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def head_of(data: memoryview) -> bytes:
    """Return the head of a manifest, which identifies it."""
    return bytes(data[:HEAD_BYTES])


def digests_of(data: memoryview) -> tuple[str, str]:
    """Return the digest of an encoded manifest, and the one that its head says it should have, both as hexadecimal.

    Raises:
        ValueError or struct.error: It is truncated.
    """
    head, rest = head_of(data), data[HEAD_BYTES:]
    magic, version, length, expected = HEAD.unpack(head)
    if len(rest) != length or head != HEAD.pack(magic, version, length, expected):
        message = f"{len(rest):,} bytes instead of {length:,}"
        raise ValueError(message)
    return hashlib.sha256(rest).hexdigest(), expected.hex()


def version_of(data: memoryview) -> int:
    """Return the format version of data that begins with `MAGIC`."""
    return int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")


def decode_columns(data: memoryview) -> ManifestContents:
    """Return the contents of an encoded manifest, whose columns are views of `data`.

    Raises:
        ValueError, TypeError, KeyError, RecursionError or pa.ArrowException: `data` is malformed. What it says must
            still be checked.
    """
    rest = data[HEAD_BYTES:]
    length = int.from_bytes(rest[:8], "little")
    if length > min(_MAX_VALUES_BYTES, len(rest) - 8):
        message = f"short values of {length:,} bytes"
        raise ValueError(message)
    values = json.loads(bytes(rest[8 : 8 + length]))
    return _join(values, _Columns(rest[8 + length + -(8 + length) % _ALIGNMENT :], values["columns"]))


def _join(values: Mapping[str, Any], columns: _Columns) -> ManifestContents:
    block_bytes = columns.integers("block_bytes")
    fields = tuple(decode_schema(values["partition_schema"]))
    width, layout = values["layout_width"], columns.integers("layout")
    if type(width) is not int or width < 0 or len(layout) % max(width, 1):
        message = "the width of its layout"
        raise ValueError(message)
    return ManifestContents(
        root=values["root"],
        format=values["format"],
        files=FileTable(
            paths=columns.strings("paths"),
            sizes=columns.integers("sizes"),
            digests=columns.strings("digests"),
            block_starts=columns.integers("block_starts"),
            block_rows=columns.integers("block_rows"),
            block_bytes=block_bytes,
            block_memory_bytes=columns.integers("block_memory_bytes")
            if columns.has("block_memory_bytes")
            else block_bytes,
            schema_digest=values["schema_digest"],
        ),
        schemas=columns.schemas(),
        partitions=Partitions(fields, tuple(columns.coded(index, field) for index, field in enumerate(fields))),
        layout=layout.reshape(len(layout) // width if width else 0, width),
        layout_starts=columns.integers("layout_starts"),
        versions=columns.strings("versions"),
        table=None if "table" not in values else _table(values["table"], columns),
    )


def _table(values: Sequence[Any], columns: _Columns) -> TableFacts:
    version, schema, condition = values
    deleted = DeletedRows(columns.integers("deleted_starts"), columns.integers("deleted_ranges").reshape(-1, 2))
    return TableFacts(version, decode_schema(schema), deleted, condition)


class _Columns:
    """The columns of an encoded manifest by name."""

    def __init__(self, data: memoryview, spans: Mapping[str, Sequence[int]]) -> None:
        self._data = data
        self._spans = spans

    def has(self, name: str) -> bool:
        return name in self._spans

    def integers(self, name: str) -> NDArray[np.int64]:
        return self._view(name, np.dtype("<i8")).astype(np.int64, copy=False)

    def strings(self, name: str) -> Strings:
        return Strings(self.integers(f"{name}.offsets"), self._view(f"{name}.data", np.dtype(np.uint8)))

    def schemas(self) -> FileSchemas:
        distinct = tuple(map(decode_schema, self._checked("schemas")))
        stored = tuple(map(decode_schema, self._checked("stored_schemas"))) if self.has("stored_schemas.data") else ()
        if not self.has("schema_indices"):
            return FileSchemas(distinct, np.zeros(len(self.integers("sizes")), np.int64), stored)
        return FileSchemas(distinct, self.integers("schema_indices"), stored)

    def coded(self, index: int, field: pa.Field[Any]) -> Sequence[PartitionValue]:
        name = f"partition_{index}_values"
        # Read here, so that only its type decides what the values are.
        is_integer = pa.types.is_integer(field.type)
        distinct: Sequence[PartitionValue] = self.integers(name).tolist() if is_integer else self._checked(name)
        codes = self.integers(f"partition_{index}")
        check_codes(codes, len(distinct))
        return CodedValues(codes, distinct)

    def _checked(self, name: str) -> Strings:
        column = self.strings(name)
        check_strings(column, name)
        return column

    def _view(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        start, length = self._spans[name]
        if not 0 <= start <= start + length <= len(self._data) or start % _ALIGNMENT or length % dtype.itemsize:
            message = f"the column {name} is out of bounds, or misaligned"
            raise ValueError(message)
        # np.frombuffer refuses an empty buffer.
        return np.frombuffer(self._data[start : start + length], dtype) if length else np.zeros(0, dtype)


def encode_schema(schema: pa.Schema) -> str:
    """Return a schema as text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def decode_schema(encoded: str) -> pa.Schema:
    """Return the schema of a text that `encode_schema` returned.

    Raises:
        ValueError, TypeError or pa.ArrowException: It is malformed.
    """
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded, validate=True)))

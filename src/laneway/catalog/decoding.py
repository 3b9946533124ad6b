"""Decoding of manifests of every format version, compressed or not, in bounded memory; anything else is refused."""

from __future__ import annotations

import json
import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from laneway.catalog.checks import check_contents
from laneway.catalog.contents import ManifestContents, layout_table
from laneway.catalog.encoding import (
    FORMAT_VERSION,
    TABLE_FORMAT_VERSION,
    decode_columns,
    decode_schema,
    digests_of,
    is_plain,
    version_of,
)
from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.catalog.signature import MAGIC
from laneway.core.files import FileTable, digest
from laneway.core.strings import Strings
from laneway.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from laneway.catalog.partitions import PartitionValue

    Compression: TypeAlias = Literal["gzip", "zstd"]

_JSON_VERSION: Final = 2
_COMPRESSIONS: Final[Mapping[bytes, Compression]] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# JSON takes up to twelve times its length in memory, so less of it may be unpacked. `pack` stays within the limits.
_MIN_UNPACKED_BYTES, _MAX_RATIO = 256 << 20, 100
_MIN_UNPACKED_JSON_BYTES, _MAX_JSON_RATIO = 32 << 20, 32
_CHARACTERS_PER_BRACKET = 8
_UNPACKED_AT_ONCE = 16 << 20
_MALFORMED = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, OSError),
    *(struct.error, pa.ArrowException),
)


def pack(data: bytes, compression: Compression) -> bytes:
    """Compress an encoded manifest, unless it would then be refused because it unpacks to too much.

    Args:
        data: What `encode` returned.
        compression: "gzip" or "zstd".
    """
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(data)
    packed = sink.getvalue().to_pybytes()
    return packed if len(data) <= max(_MIN_UNPACKED_BYTES, _MAX_RATIO * len(packed)) else data


def decode(data: memoryview, name: str) -> ManifestContents:
    """Return the contents of a manifest, and check them.

    Args:
        data: What `encode` returned, plain or compressed, or a manifest of an earlier release. Columns are views of it
            if it is plain.
        name: Name of the file, for messages.

    Raises:
        DataFileError: `data` is damaged, malformed, not a manifest, unpacks to too many bytes, or is of a format
            version that this release can't read.
    """
    data = _unpack(data, name)
    if not is_plain(data):
        return _decode_json(data, name)
    _check_version(version_of(data), name)
    try:
        found, expected = digests_of(data)
    except _MALFORMED as error:
        raise _no_manifest(name, error) from error
    _check_digest(found, expected, name)
    return _checked(lambda: decode_columns(data), name)


def _checked(read: Callable[[], ManifestContents], name: str) -> ManifestContents:
    """Return the contents that `read` returns, after checking them."""
    try:
        contents = read()
        check_contents(contents)
    except _MALFORMED as error:
        message = f"{name} is malformed ({type(error).__name__}: {error!s:.300}): scan the dataset again"
        raise DataFileError(message) from error
    return contents


def _unpack(data: memoryview, name: str) -> memoryview:
    compression = next((each for magic, each in _COMPRESSIONS.items() if bytes(data[: len(magic)]) == magic), None)
    if compression is None:
        return data
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), compression) as stream:
            head = stream.read(len(MAGIC))
            is_json = head != MAGIC
            smallest = _MIN_UNPACKED_JSON_BYTES if is_json else _MIN_UNPACKED_BYTES
            limit = max(smallest, len(data) * (_MAX_JSON_RATIO if is_json else _MAX_RATIO))
            unpacked = head + _read(stream, limit)
    except _MALFORMED as error:
        raise _no_manifest(name, error) from error
    if len(unpacked) > limit:
        message = (
            f"{name} has {len(data):,} bytes and unpacks to more than {limit:,}: scan the dataset again, or unpack it "
            "yourself if you trust it"
        )
        raise DataFileError(message)
    return memoryview(unpacked)


def _read(stream: pa.NativeFile, limit: int) -> bytes:
    """Return the rest of a stream, but stop soon after `limit` bytes."""
    parts, total = [], 0
    while total <= limit and (part := stream.read(_UNPACKED_AT_ONCE)):
        parts.append(part)
        total += len(part)
    return b"".join(parts)


def _decode_json(data: memoryview, name: str) -> ManifestContents:
    """Return the contents of a manifest of format 2."""
    text = bytes(data)
    try:
        # Lists cost the most memory for their length, and a manifest has few.
        if text.count(b"[") + text.count(b"{") > 64 + len(text) // _CHARACTERS_PER_BRACKET:
            raise ValueError
        document = json.loads(text)
        version = document["laneway_manifest"]
    except _MALFORMED as error:
        raise _no_manifest(name, error) from error
    if version != _JSON_VERSION or type(version) is not int:
        _check_version(version, name)
    body = document.get("body")
    _check_digest(digest(json.dumps(body, separators=(",", ":")).encode()), document.get("digest"), name)
    return _checked(lambda: _from_json(body), name)


def _from_json(body: Mapping[str, Any]) -> ManifestContents:
    fields = tuple(decode_schema(body["partition_schema"]))
    keys = body["partition_values"]
    entries = body["layout"]
    _integers(list(chain.from_iterable(entries)))
    return ManifestContents(
        root=body["root"],
        format=body["format"],
        files=FileTable(
            paths=_strings(body["paths"]),
            sizes=_integers(body["sizes"]),
            digests=_strings(body["digests"]),
            block_starts=_integers(body["block_starts"]),
            block_rows=_integers(body["block_rows"]),
            block_bytes=_integers(body["block_bytes"]),
            # Manifests of earlier releases don't have it.
            block_memory_bytes=_integers(body.get("block_memory_bytes", body["block_bytes"])),
            schema_digest=body["schema_digest"],
        ),
        schemas=FileSchemas.same(decode_schema(body["schema"]), len(body["paths"])),
        partitions=Partitions(
            fields, tuple(_partition_values(key, field) for key, field in zip(keys, fields, strict=True))
        ),
        layout=layout_table(entries),
        layout_starts=_integers(body["layout_starts"]),
        versions=_strings(body["versions"]),
    )


def _integers(values: Any) -> NDArray[np.int64]:  # noqa: ANN401 - any JSON value
    # numpy would take True for 1 and 1.5 for 1.
    _require_types(values, int)
    return np.array(values, np.int64)


def _strings(values: Any) -> Strings:  # noqa: ANN401 - any JSON value
    _require_types(values, str)
    return Strings.of(values)


def _partition_values(values: Any, field: pa.Field[Any]) -> tuple[PartitionValue, ...]:  # noqa: ANN401 - any JSON value
    present = [value for value in values if value is not None]
    if pa.types.is_integer(field.type):
        _integers(present)
    else:
        _strings(present)
    return tuple(values)


def _require_types(values: Any, expected: type) -> None:  # noqa: ANN401 - any JSON value
    if type(values) is not list or set(map(type, values)) - {expected}:
        message = f"a list of {expected.__name__} is expected"
        raise TypeError(message)


def _check_version(version: object, name: str) -> None:
    if version not in {FORMAT_VERSION, TABLE_FORMAT_VERSION}:
        message = (
            f"{name} is a manifest of format {version!r:.40}, but this release of laneway reads formats "
            f"{_JSON_VERSION} to {TABLE_FORMAT_VERSION}: update laneway or scan the dataset again"
        )
        raise DataFileError(message)


def _check_digest(found: str, expected: object, name: str) -> None:
    if found != expected:
        message = f"{name} is damaged: its digest is {found} and should be {expected!s:.80}; scan the dataset again"
        raise DataFileError(message)


def _no_manifest(name: str, error: BaseException) -> DataFileError:
    reason = type(error).__name__
    return DataFileError(f"{name} is not a laneway manifest, or it is damaged ({reason}): scan the dataset again")

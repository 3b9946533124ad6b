"""Checks of all messages of an Arrow file when it is scanned, and the memory that its record batches take."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from laneway.errors import DataFileError
from laneway.formats.messages import MessageKind, parse_dictionary_ids
from laneway.formats.record_batches import LENGTH_BYTES, MAX_RATIO, BatchError, BatchShape, dictionary_value_types
from laneway.storage.reading import read_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from laneway.formats.arrow_files import FoundMessages, Message
    from laneway.storage.filesystem import Storage


def check_messages(storage: Storage, path: str, found: FoundMessages, schema: pa.Schema, version: str) -> list[int]:
    """Check the header of each message, and return the estimated memory of each record batch in bytes.

    Args:
        storage: Where the file is.
        path: The file.
        found: Its messages.
        schema: Its columns.
        version: Required version of the file; "" for any.

    Raises:
        DataFileError: A header does not agree with the columns, or its body can't hold its rows.
    """
    columns = _Columns.of(schema, found.schema.header.version)
    batches = [each for each in found.messages if each.header.kind is MessageKind.RECORD_BATCH]
    if len(batches) < len(found.messages):
        _check_dictionaries(storage, path, found, columns)
    _check(storage, path, batches, columns.shape)
    if not any(each.header.is_compressed for each in batches):
        return [each.header.body_length for each in batches]
    expansion = _expansion(storage, path, [batches[0], batches[-1]], columns.shape, version)
    return [columns.shape.memory_bytes(each.header, expansion) for each in batches]


@final
class _Columns:
    """What the columns of a file require of its messages."""

    _latest: _Columns | None = None

    def __init__(self, schema: pa.Schema, version: int) -> None:
        self.key = schema, version
        self.shape = BatchShape(schema.types, version)
        self.dictionaries = [BatchShape([type_], version) for type_ in dictionary_value_types(schema.types)]
        """Shape of each dictionary, in the order of `parse_dictionary_ids`."""

    @classmethod
    def of(cls, schema: pa.Schema, version: int) -> _Columns:
        """Return it for a schema, which is usually that of the previous file."""
        found = cls._latest
        if found is None or found.key[1] != version or not found.key[0].equals(schema):
            found = cls._latest = cls(schema, version)
        return found


def _check_dictionaries(storage: Storage, path: str, found: FoundMessages, columns: _Columns) -> None:
    try:
        ids = parse_dictionary_ids(found.schema.flatbuffer, found.schema.header)
        shapes = dict(zip(ids, columns.dictionaries, strict=True))
    except ValueError as error:
        raise storage.error_for(path, "has a damaged schema", error) from error
    for each in found.messages:
        if each.header.kind is MessageKind.DICTIONARY:
            shape = shapes.get(each.header.dictionary_id)
            if shape is None:
                number, name = each.header.dictionary_id, storage.redact(path)
                message = f"{name} is damaged: no column has the dictionary {number} at byte {each.offset:,}"
                raise DataFileError(message)
            _check(storage, path, [each], shape)


def _check(storage: Storage, path: str, messages: Sequence[Message], shape: BatchShape) -> None:
    try:
        shape.check([each.header for each in messages])
    except BatchError as error:
        problem = f"can't be read (message at byte {messages[error.index].offset:,})"
        raise storage.error_for(path, problem, error) from error


def _expansion(
    storage: Storage, path: str, batches: Sequence[Message], shape: BatchShape, version: str
) -> Mapping[int, float]:
    """Return how many times larger the buffers of variable size are when uncompressed, from two record batches.

    The length of each buffer stands in front of it. To read it from every batch would take many requests.
    """
    spans, keys = [], []
    for each in batches:
        for index in shape.variable_buffers(each.header) if each.header.is_compressed else []:
            offset, length = each.header.buffers[index].tolist()
            spans.append((each.body_offset + offset, each.body_offset + offset + LENGTH_BYTES))
            keys.append((index, length))
    found: dict[int, float] = {}
    for (index, length), data in zip(keys, read_ranges(storage, path, spans, version), strict=True):
        ratio = int.from_bytes(data, "little", signed=True) / length
        found[index] = max(found.get(index, 1.0), min(ratio, MAX_RATIO))
    return found

"""The sizes of the column chunks of a Parquet file, read from its footer.

pyarrow doesn't return `unencoded_byte_array_data_bytes`, the exact size of strings once they are decoded,
and it aborts the process when it is asked for a column chunk whose size statistics are damaged. The footer is in
Thrift's compact protocol, whose structs can only be read from front to back. Here the footer is searched for the name
of a column: parsing all of it in Python would take longer than pyarrow takes for everything else.
Format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# Fields of ColumnMetaData, of the structs in it, and an encoding.
_PATH, _NUM_VALUES, _UNCOMPRESSED_SIZE, _DATA_PAGE, _DICTIONARY_PAGE = 3, 5, 6, 9, 11
_STATISTICS, _ENCODING_STATS, _SIZE_STATISTICS = 12, 13, 16
_MAX_VALUE, _MIN_VALUE = 5, 6
_ENCODING, _DELTA_BYTE_ARRAY = 2, 7
_UNENCODED_BYTES = 1
# Types of fields and elements in the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_INTEGERS: Final = frozenset({_I16, _I32, _I64})
_SIZES: Final = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8}
_LONG_LIST: Final = 15
"""Length of a list whose true length follows."""
_MAX_DEPTH: Final = 8
_MAX_VARINT_BYTES: Final = 10
_MORE_FOLLOWS: Final = 1 << 7


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """The sizes of a column chunk, as far as the footer gives them."""

    num_values: int
    """Values, including nulls and empty lists."""
    encoded_bytes: int
    """Bytes of its pages, uncompressed."""
    decoded_bytes: int | None
    """Bytes of its strings or byte strings, without offsets."""
    is_repetitive: bool
    """Whether a value, or a prefix of it, may be stored once for many values."""
    value_length: float | None
    """Mean of the lengths of the least and the greatest value."""


def find_chunks(footer: bytes, path: Sequence[str]) -> list[ChunkSizes]:
    """Return the sizes of the chunks of a leaf column, one for each row group.

    Args:
        footer: The footer of the file.
        path: Names of the leaf column and of the columns that it is in, the outermost first.

    Raises:
        ValueError: The footer is damaged, or its writer encoded it in an unusual way.
    """
    names = [name.encode() for name in path]
    if len(names) >= _LONG_LIST:
        message = f"{path} is nested too deeply"
        raise ValueError(message)
    pattern = bytes([1 << 4 | _LIST, len(names) << 4 | _BINARY])
    pattern += b"".join(_encode_varint(len(name)) + name for name in names)
    # The next field of a column chunk is the codec.
    pattern += bytes([1 << 4 | _I32])
    found = []
    start = footer.find(pattern)
    while start >= 0:
        try:
            values = _read_struct(footer, start + len(pattern) - 1, _PATH, 0)[0]
            found.append(_sizes(values))
        except (AttributeError, LookupError, TypeError) as error:
            # A field of another type than it should be.
            message = f"the column chunk of {path} is damaged"
            raise ValueError(message) from error
        start = footer.find(pattern, start + 1)
    return found


def _sizes(values: dict[int, Any]) -> ChunkSizes:
    """Return the sizes in the fields of a ColumnMetaData.

    Raises:
        LookupError: A required field is missing.
    """
    statistics = values.get(_STATISTICS, {})
    lengths = [len(statistics[key]) for key in (_MIN_VALUE, _MAX_VALUE) if key in statistics]
    encodings = [each[_ENCODING] for each in values.get(_ENCODING_STATS, [])]
    has_dictionary = 0 < values.get(_DICTIONARY_PAGE, 0) < values[_DATA_PAGE]
    return ChunkSizes(
        num_values=max(0, values[_NUM_VALUES]),
        encoded_bytes=max(0, values[_UNCOMPRESSED_SIZE]),
        decoded_bytes=values.get(_SIZE_STATISTICS, {}).get(_UNENCODED_BYTES),
        is_repetitive=has_dictionary or _DELTA_BYTE_ARRAY in encodings,
        value_length=sum(lengths) / len(lengths) if lengths else None,
    )


def _read_struct(data: bytes, position: int, field: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct after number `field`, and the position after the struct."""
    values: dict[int, Any] = {}
    while data[position]:
        field, type_, position = _read_field(data, position, field)
        values[field], position = _read_value(data, position, type_, depth)
    return values, position + 1


def _read_value(data: bytes, position: int, type_: int, depth: int) -> tuple[Any, int]:
    """Return a value and the position after it; None for a value that is not needed."""
    if type_ in _INTEGERS:
        return _read_integer(data, position)
    if type_ == _BINARY:
        length, position = _read_varint(data, position)
        return data[position : position + length], position + length
    if depth >= _MAX_DEPTH:
        message = "structs are nested too deeply"
        raise LookupError(message)
    if type_ == _STRUCT:
        return _read_struct(data, position, 0, depth + 1)
    if type_ in {_LIST, _SET}:
        length, element = data[position] >> 4, data[position] & 15
        position += 1
        if length == _LONG_LIST:
            length, position = _read_varint(data, position)
        # A boolean takes a byte in a list, and none in a struct.
        element = _BYTE if element in {_TRUE, _FALSE} else element
        values = []
        for _ in range(length):
            value, position = _read_value(data, position, element, depth + 1)
            values.append(value)
        return values, position
    return None, position + _SIZES[type_]


def _read_field(data: bytes, position: int, previous: int) -> tuple[int, int, int]:
    """Return the number and type of the field at a position, and the position of its value."""
    header = data[position]
    if header >> 4:
        return previous + (header >> 4), header & 15, position + 1
    number, position = _read_integer(data, position + 1)
    return number, header & 15, position


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= _MORE_FOLLOWS:
        encoded.append(value % _MORE_FOLLOWS | _MORE_FOLLOWS)
        value //= _MORE_FOLLOWS
    return bytes([*encoded, value])


def _read_integer(data: bytes, position: int) -> tuple[int, int]:
    value, position = _read_varint(data, position)
    return (value >> 1) ^ -(value & 1), position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[position]
        position += 1
        value |= byte % _MORE_FOLLOWS << shift
        if byte < _MORE_FOLLOWS:
            return value, position
    message = "a varint is too long"
    raise LookupError(message)

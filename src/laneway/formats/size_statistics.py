"""The size statistics of the column chunks of a Parquet file, which pyarrow writes but doesn't return.

`unencoded_byte_array_data_bytes` is the exact size of the texts or byte strings of a column chunk once they are
decoded, which the encoded size doesn't tell where values repeat. The footer is in Thrift's compact protocol, whose
structs have to be read from front to back. Here a column chunk is searched by numbers that are known of it: reading the
whole footer in Python would take longer than pyarrow takes for everything else.
Format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Final

# Fields of ColumnMetaData.
_TOTAL_COMPRESSED_SIZE, _DATA_PAGE_OFFSET, _SIZE_STATISTICS = 7, 9, 16
# Types of fields and elements in the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_INTEGERS: Final = frozenset({_I16, _I32, _I64})
_SIZES: Final = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8}
_LONG_LIST: Final = 15
"""Length of a list whose true length follows."""
_NEXT_I64: Final = bytes([1 << 4 | _I64])
"""Header of an int64 field whose number is one more than that of the field before it."""
_MAX_DEPTH: Final = 8
_MAX_VARINT_BYTES: Final = 10
_MORE_FOLLOWS: Final = 1 << 7


def unencoded_bytes(
    footer: bytes, num_values: int, uncompressed_size: int, compressed_size: int, data_page_offset: int
) -> int | None:
    """Return the bytes of all decoded values of a column chunk, without offsets; None if the footer doesn't say it.

    Args:
        footer: The footer of the file; other bytes may surround it.
        num_values: `num_values` of the column chunk.
        uncompressed_size: `total_uncompressed_size` of it.
        compressed_size: `total_compressed_size` of it.
        data_page_offset: `data_page_offset` of it.
    """
    # These three are consecutive fields. Together with the offset, which is checked below, they identify a chunk.
    sizes = (num_values, uncompressed_size, compressed_size)
    pattern = b"".join(_NEXT_I64 + _encode_integer(each) for each in sizes)
    start = footer.find(pattern)
    while start >= 0:
        try:
            found = _read_chunk(footer, start + len(pattern), data_page_offset)
        except (IndexError, KeyError, ValueError):
            found = None
        if found is not None:
            return found if found >= 0 else None
        start = footer.find(pattern, start + 1)
    return None


def _read_chunk(data: bytes, position: int, data_page_offset: int) -> int | None:
    """Return the wanted number from the end of a ColumnMetaData; None if it is another chunk, -1 if there is none."""
    field, is_right = _TOTAL_COMPRESSED_SIZE, False
    while data[position]:
        field, type_, position = _read_field(data, position, field)
        if field == _DATA_PAGE_OFFSET and type_ == _I64:
            value, position = _read_integer(data, position)
            if value != data_page_offset:
                return None
            is_right = True
        elif field == _SIZE_STATISTICS and type_ == _STRUCT:
            number, type_, position = _read_field(data, position, 0)
            return _read_integer(data, position)[0] if is_right and (number, type_) == (1, _I64) else -1
        else:
            position = _skip(data, position, type_, 0)
    return -1 if is_right else None


def _read_field(data: bytes, position: int, previous: int) -> tuple[int, int, int]:
    """Return the number and type of the field at a position, and the position of its value."""
    header = data[position]
    if header >> 4:
        return previous + (header >> 4), header & 15, position + 1
    number, position = _read_integer(data, position + 1)
    return number, header & 15, position


def _skip(data: bytes, position: int, type_: int, depth: int) -> int:
    """Return the position behind a value."""
    if depth > _MAX_DEPTH:
        message = "structs are nested too deeply"
        raise ValueError(message)
    if type_ in _INTEGERS:
        while data[position] >= _MORE_FOLLOWS:
            position += 1
        return position + 1
    if type_ == _BINARY:
        length, position = _read_varint(data, position)
        return position + length
    if type_ == _STRUCT:
        while data[position]:
            _, inner, position = _read_field(data, position, 0)
            position = _skip(data, position, inner, depth + 1)
        return position + 1
    if type_ in {_LIST, _SET}:
        length, element = data[position] >> 4, data[position] & 15
        position += 1
        if length == _LONG_LIST:
            length, position = _read_varint(data, position)
        # A boolean takes a byte in a list, and none in a struct.
        element = _BYTE if element in {_TRUE, _FALSE} else element
        for _ in range(length):
            position = _skip(data, position, element, depth + 1)
        return position
    return position + _SIZES[type_]


def _encode_integer(value: int) -> bytes:
    """Encode an int64 >= 0 as a varint of its zigzag encoding."""
    encoded = bytearray()
    rest = value << 1
    while rest >= _MORE_FOLLOWS:
        encoded.append(rest % _MORE_FOLLOWS | _MORE_FOLLOWS)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


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
    raise ValueError(message)

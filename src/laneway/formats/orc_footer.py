"""The footer of an ORC file, which pyarrow returns as a protocol buffer: stripes, types and statistics of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, final

if TYPE_CHECKING:
    from collections.abc import Mapping

    Fields: TypeAlias = dict[int, list[int | bytes]]

# Numbers of fields, as orc_proto.proto names them.
_TAIL_FOOTER: Final = 2
_STRIPES, _TYPES, _NUMBER_OF_ROWS, _STATISTICS = 3, 4, 6, 7
_OFFSET, _INDEX_LENGTH, _DATA_LENGTH, _FOOTER_LENGTH, _ROWS = range(1, 6)
_KIND, _SUBTYPES = 1, 2
_NUM_VALUES, _STRING_STATISTICS, _BINARY_STATISTICS = 1, 4, 8
_STRING_SUM, _BINARY_SUM = 3, 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_OF_KIND: Final[Mapping[int, int]] = dict(
    enumerate((1, 1, 2, 4, 8, 4, 8, 4, 4, 8, 4, 4, 0, 5, 16, 4, 4, 4, 8)),
)
"""Bytes in memory of a value of each kind of type, in the order of their numbers; text and lists have more."""


@final
@dataclass(frozen=True, slots=True)
class Stripe:
    """Where a stripe is."""

    offset: int
    """Its first byte."""
    length: int
    """Its bytes: indexes, data and footer."""
    rows: int


@final
@dataclass(frozen=True, slots=True)
class OrcFooter:
    """What a reader needs of the footer."""

    stripes: list[Stripe]
    memory_bytes: int
    """Estimated bytes of all rows in memory."""

    @classmethod
    def parse(cls, tail: bytes) -> OrcFooter:
        """Parse a serialized FileTail.

        Raises:
            ValueError: It is malformed.
        """
        footer = _message(_parse(tail), _TAIL_FOOTER)
        stripes = []
        for each in footer.get(_STRIPES, []):
            fields = _parse(_as_bytes(each))
            length = sum(_integer(fields, number) for number in (_INDEX_LENGTH, _DATA_LENGTH, _FOOTER_LENGTH))
            stripes.append(Stripe(_integer(fields, _OFFSET), length, _integer(fields, _ROWS)))
        num_rows = _integer(footer, _NUMBER_OF_ROWS)
        if sum(each.rows for each in stripes) != num_rows:
            message = f"the footer has {num_rows:,} rows, and its stripes {sum(each.rows for each in stripes):,}"
            raise ValueError(message)
        return cls(stripes, _memory_bytes(footer, num_rows))


def _memory_bytes(footer: Fields, num_rows: int) -> int:
    types = [_parse(_as_bytes(each)) for each in footer.get(_TYPES, [])]
    statistics = [_parse(_as_bytes(each)) for each in footer.get(_STATISTICS, [])]
    total = 0
    for index, type_ in enumerate(types):
        of_type = statistics[index] if index < len(statistics) else {}
        text = _integer(_message(of_type, _STRING_STATISTICS), _STRING_SUM)
        binary = _integer(_message(of_type, _BINARY_STATISTICS), _BINARY_SUM)
        # The items of lists are more than the rows, and null values are not counted.
        num_values = max(num_rows, _integer(of_type, _NUM_VALUES))
        # The sums are zigzag-encoded.
        total += num_values * _BYTES_OF_KIND.get(_integer(type_, _KIND), 8) + (text >> 1) + (binary >> 1)
    return total


def _parse(data: bytes) -> Fields:
    """Return the fields of a protocol buffer by number."""
    fields: Fields = {}
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind == _BYTES:
            length, position = _varint(data, position)
            value, position = _slice(data, position, length)
        elif kind in {_FIXED64, _FIXED32}:
            value, position = _slice(data, position, 8 if kind == _FIXED64 else 4)
        else:
            message = f"a field has the unknown wire type {kind}"
            raise ValueError(message)
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:  # noqa: PLR2004 - bits of the largest number
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 - the last byte of a number
            return value, position
        shift += 7
    message = "a number is cut off"
    raise ValueError(message)


def _slice(data: bytes, position: int, length: int) -> tuple[bytes, int]:
    if position + length > len(data):
        message = "a field is cut off"
        raise ValueError(message)
    return data[position : position + length], position + length


def _integer(fields: Fields, number: int) -> int:
    """Return the last value of a field, 0 if it has none."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        message = f"field {number} is no number"
        raise ValueError(message)  # noqa: TRY004 - of a damaged file
    return value


def _message(fields: Fields, number: int) -> Fields:
    """Return the fields of a field that is a message, none if it is missing."""
    return _parse(_as_bytes(fields[number][-1])) if number in fields else {}


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        message = "a message is a number"
        raise ValueError(message)  # noqa: TRY004 - of a damaged file
    return value

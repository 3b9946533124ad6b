"""The row groups of a Parquet file: whether the footer is consistent, and how much memory they take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa

from laneway.formats.column_chunks import find_chunks
from laneway.formats.nested_types import child_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow.parquet as pq

    from laneway.formats.column_chunks import ChunkSizes

# Assumptions where only the encoded size of repetitive values is known: how many distinct ones there are, and the
# maximum length of a value.
_ASSUMED_VALUES: Final = 4
_ASSUMED_LENGTH: Final = 4096
_INDEX_BITS: Final = 32
_MAX_BYTES: Final = 1 << 48
"""Largest estimate: damaged numbers must not overflow sums."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A column of a Parquet file, which is a column without children, or one inside a column of the schema."""

    bits: int
    """Bits of each value in memory; for a value of variable size, of its offset."""
    lists: int
    """Number of lists of variable size that it is in, unless they are counted for a leaf before it."""
    is_repeated: bool
    """Whether it is in a list of any kind, so that a row may have any number of values."""
    is_variable: bool = False
    """Whether its values are strings or byte strings."""
    is_dictionary: bool = False
    """Whether it stays dictionary-encoded in memory."""


def leaf_ranges(fields: Iterable[pa.Field[Any]], start: int = 0) -> dict[str, range]:
    """Return the range of leaf columns of each field.

    Args:
        fields: The columns of a schema, or the fields of a struct.
        start: The first leaf column.
    """
    named = [*fields]
    counts = (len(list(_leaves_of(field.type, 0, is_repeated=False))) for field in named)
    stops = [*accumulate(counts, initial=start)]
    return {field.name: range(*bounds) for field, bounds in zip(named, pairwise(stops), strict=True)}


def check_row_counts(metadata: pq.FileMetaData) -> list[int]:
    """Return the rows of each row group.

    Raises:
        ValueError: They are negative, or the footer gives another sum of them.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")  # noqa: PLR2004
        message = f"the footer claims {metadata.num_rows} rows in all, and in its row groups {listed or 'none'}"
        raise ValueError(message)
    negative = next((index for index, group in enumerate(groups) if group.total_byte_size < 0), None)
    if negative is not None:
        message = f"the footer claims that row group {negative} has {groups[negative].total_byte_size} bytes"
        raise ValueError(message)
    return rows


def check_chunks(metadata: pq.FileMetaData, group_index: int, indices: Iterable[int], size: int) -> int:
    """Return the bytes of some column chunks of a row group in the file, after checking the footer's numbers for them.

    They must agree with its rows and with the file.

    Args:
        metadata: The footer.
        group_index: The row group.
        indices: Leaf columns to check.
        size: Bytes of the file.

    Raises:
        ValueError: They don't.
    """
    group = metadata.row_group(group_index)
    rows, num_bytes = group.num_rows, 0
    for index in indices:
        chunk = group.column(index)
        values = chunk.num_values
        start, stop = chunk_range(chunk)
        is_repeated = metadata.schema.column(index).max_repetition_level > 0
        if values < rows or (values != rows and not is_repeated):
            message = f"the footer claims {values} values of {chunk.path_in_schema!r} in {rows} rows"
            raise ValueError(message)
        if not 0 <= start <= stop <= size or chunk.total_uncompressed_size < 0:
            message = f"the footer places {chunk.path_in_schema!r} at bytes {start} to {stop} of {size}"
            raise ValueError(message)
        num_bytes += stop - start
    return num_bytes


def chunk_range(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Return the byte range of a column chunk."""
    start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    return start, start + chunk.total_compressed_size


def memory_bytes(
    metadata: pq.FileMetaData, schema: pa.Schema, column_paths: Sequence[Sequence[str]], footer: bytes
) -> list[int]:
    """Return an estimate of the bytes of each row group once it is decoded.

    It follows from the numbers of rows and values, and for strings and byte strings from the size statistics. Without
    these, it is the encoded size, or for repetitive values an estimate that errs on the high side.

    Args:
        metadata: The footer.
        schema: The columns as pyarrow decodes them.
        column_paths: For each leaf column, the names of the columns that it is in and its own.
        footer: The bytes of the footer.
    """
    columns = _Leaves.of(schema)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    total = [columns.fixed_bits * group.num_rows // 8 for group in groups]
    for index, leaf in columns.varying:
        try:
            found = find_chunks(footer, column_paths[index])
            for group, sizes in enumerate(found):
                total[group] += _chunk_memory(sizes, leaf, groups[group].num_rows)
        except (ValueError, IndexError):
            found = []
        if len(found) != len(groups) or columns.count != metadata.num_columns:
            # A footer that is encoded in an unusual way; damage shows when the columns are read.
            return [group.total_byte_size for group in groups]
    return [min(each, _MAX_BYTES) for each in total]


@final
class _Leaves:
    """The leaf columns of a schema, in the order of the file."""

    _latest: _Leaves | None = None

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        found = [leaf for field in schema for leaf in _leaves_of(field.type, 0, is_repeated=False)]
        self.count = len(found)
        # Only these need a look at each column chunk: there may be thousands of columns of numbers.
        self.varying = [
            (i, leaf) for i, leaf in enumerate(found) if leaf.is_variable or leaf.is_dictionary or leaf.is_repeated
        ]
        varying = {i for i, _ in self.varying}
        self.fixed_bits = sum(leaf.bits + 1 for i, leaf in enumerate(found) if i not in varying)

    @classmethod
    def of(cls, schema: pa.Schema) -> _Leaves:
        """Return them for a schema, which is usually that of the previous file."""
        found = cls._latest
        if found is None or not found.schema.equals(schema):
            found = cls._latest = cls(schema)
        return found


def _chunk_memory(sizes: ChunkSizes, leaf: Leaf, num_rows: int) -> int:
    """Return the decoded bytes of a column chunk that don't follow from the number of its rows."""
    # A bit of each value tells whether it is null. The outermost list has an offset for each row.
    total = sizes.num_values * (leaf.bits + 1) // 8
    if leaf.lists:
        total += (num_rows + (leaf.lists - 1) * sizes.num_values) * _INDEX_BITS // 8
    if leaf.is_dictionary:
        return total + sizes.encoded_bytes
    return total + (_variable_bytes(sizes) if leaf.is_variable else 0)


def _variable_bytes(sizes: ChunkSizes) -> int:
    """Return the bytes of all strings or byte strings of a column chunk."""
    if sizes.decoded_bytes is not None and sizes.decoded_bytes >= 0:
        return sizes.decoded_bytes
    if not sizes.is_repetitive:
        return sizes.encoded_bytes
    # Writers omit the statistics of long values.
    length = sizes.value_length or min(sizes.encoded_bytes / _ASSUMED_VALUES, _ASSUMED_LENGTH)
    return max(sizes.encoded_bytes, int(sizes.num_values * length))


def _leaves_of(type_: pa.DataType, lists: int, *, is_repeated: bool) -> Iterator[Leaf]:
    if isinstance(type_, pa.BaseExtensionType):
        yield from _leaves_of(type_.storage_type, lists, is_repeated=is_repeated)
    elif pa.types.is_dictionary(type_):
        for leaf in _leaves_of(type_.value_type, lists, is_repeated=is_repeated):
            bits = type_.index_type.bit_width
            yield replace(leaf, bits=bits, is_variable=False, is_dictionary=True)
    elif pa.types.is_struct(type_):
        for index, child in enumerate(child_types(type_)):
            yield from _leaves_of(child, 0 if index else lists, is_repeated=is_repeated)
    elif pa.types.is_nested(type_):
        inner = lists + (not pa.types.is_fixed_size_list(type_))
        for child in child_types(type_):
            yield from _leaves_of(child, inner, is_repeated=True)
    else:
        yield _simple_leaf(type_, lists, is_repeated=is_repeated)


def _simple_leaf(type_: pa.DataType, lists: int, *, is_repeated: bool) -> Leaf:
    if pa.types.is_null(type_):
        return Leaf(bits=0, lists=lists, is_repeated=is_repeated)
    if pa.types.is_primitive(type_) or pa.types.is_decimal(type_) or pa.types.is_fixed_size_binary(type_):
        return Leaf(bits=type_.bit_width, lists=lists, is_repeated=is_repeated)
    is_large = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
    is_view = pa.types.is_string_view(type_) or pa.types.is_binary_view(type_)
    bits = 128 if is_view else 64 if is_large else 32
    return Leaf(bits=bits, lists=lists, is_repeated=is_repeated, is_variable=True)

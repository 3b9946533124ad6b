"""The arrays and buffers of a record batch of Arrow IPC: which ones there must be, and their minimum sizes.

A record batch lists its arrays in depth-first order, and the buffers of each array. The columns decide how many there
are, and the rows how large they must be, so a damaged header contradicts its columns or the length of its body.
Format: https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa

from laneway.formats.messages import VERSION_5
from laneway.formats.nested_types import child_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from laneway.formats.messages import MessageHeader

LENGTH_BYTES: Final = 8
"""Bytes in front of a compressed buffer: its uncompressed length, or -1 if the rest is not compressed."""
_NOT_COMPRESSED: Final = -1
MAX_RATIO: Final = 1 << 15
"""How many times larger a compressed buffer can become: 4 bytes of zstd are at most 128 KiB. LZ4 compresses less."""
_VALIDITY, _OFFSETS, _FIXED, _VARIABLE = range(4)
_VIEW_BITS: Final = 128


class BatchError(ValueError):
    """The header of a record batch is damaged."""

    def __init__(self, index: int, problem: str) -> None:
        """Create the error.

        Args:
            index: Of the record batch, among those that were checked.
            problem: What the header has or claims.
        """
        super().__init__(f"its header is damaged: it {problem}")
        self.index = index


@final
class BatchShape:
    """The arrays and buffers of a record batch with given columns."""

    def __init__(self, types: Iterable[pa.DataType], version: int) -> None:
        """Derive them from the types of the columns.

        Args:
            types: The columns.
            version: Metadata version of the message.
        """
        self._has_union_validity = version < VERSION_5
        self._num_nodes = 0
        self._buffers: list[tuple[int, int, int]] = []
        """For each buffer, index of its array, its purpose, and bits per value."""
        self._views: list[int] = []
        """Number of buffers before the data buffers of each array of views."""
        self._columns: list[int] = []
        """Index of the array of each column."""
        for each in types:
            self._columns.append(self._num_nodes)
            self._add(each)
        none = np.zeros(len(self._views), np.int64)
        self._expanded = none.tobytes(), self._expand(none)
        """The buffers of the latest batch, by the number of data buffers of its arrays of views."""

    def check(self, headers: Sequence[MessageHeader]) -> None:
        """Raise unless the headers of record batches agree with the columns, and their bodies can hold their rows.

        Raises:
            BatchError: The first one that does not.
        """
        for index, header in enumerate(headers):
            if (len(header.nodes), len(header.num_view_buffers)) != (self._num_nodes, len(self._views)):
                message = f"has {len(header.nodes):,} arrays, and its columns {self._num_nodes:,}"
                raise BatchError(index, message)
            expected = self._buffers_of(header)
            if len(header.buffers) != len(expected):
                message = f"has {len(header.buffers):,} buffers, unlike its columns"
                raise BatchError(index, message)
        start = 0
        # All batches with the same buffers at once: a file may have many small ones.
        for _, same in groupby(headers, lambda header: (header.num_view_buffers.tobytes(), header.is_compressed)):
            found = list(same)
            self._check_sizes(found, start)
            start += len(found)

    def _check_sizes(self, headers: Sequence[MessageHeader], start: int) -> None:
        """Check the sizes of batches that have equally many buffers; `start` is the index of the first one."""
        nodes = np.array([header.nodes for header in headers])
        buffers = np.array([header.buffers for header in headers])
        rows = np.array([header.num_rows for header in headers])[:, None]
        bodies = np.array([header.body_length for header in headers])[:, None]
        offsets, lengths = buffers[..., 0], buffers[..., 1]
        # As floats: damaged counts overflow int64.
        limits = lengths * float(MAX_RATIO if headers[0].is_compressed else 1)
        expected = self._buffers_of(headers[0])
        problems = (
            ("claims {} rows, but its columns have other lengths", (nodes[:, self._columns, 0] != rows).any(axis=1)),
            ("claims {} rows, but its arrays have negative lengths", (nodes[..., 0] < 0).any(axis=1)),
            (
                "claims {} rows in buffers outside of its {} bytes",
                ((offsets < 0) | (lengths < 0) | (lengths > bodies - offsets)).any(axis=1),
            ),
            ("claims {} rows, which its {} bytes can't hold", (_needed_bytes(expected, nodes) > limits).any(axis=1)),
        )
        for text, is_wrong in problems:
            if is_wrong.any():
                index = int(is_wrong.argmax())
                raise BatchError(start + index, text.format(headers[index].num_rows, headers[index].body_length))

    def memory_bytes(self, header: MessageHeader, expansion: Mapping[int, float]) -> int:
        """Return an estimate of the uncompressed bytes of a record batch that `check` accepts.

        Args:
            header: Of a record batch.
            expansion: Index of a buffer -> how many times larger it is when uncompressed. Only buffers whose size does
                not follow from the number of values are looked up.
        """
        if not header.is_compressed:
            return header.body_length
        expected = self._buffers_of(header)
        lengths = header.buffers[:, 1]
        sizes = np.where(lengths > 0, _needed_bytes(expected, header.nodes), 0.0)
        validity = (expected[:, 1] == _VALIDITY) & (lengths > 0)
        sizes[validity] = np.ceil(header.nodes[expected[validity, 0], 0] / 8)
        for index in np.flatnonzero((expected[:, 1] == _VARIABLE) & (lengths > 0)).tolist():
            sizes[index] = float(lengths[index]) * expansion.get(index, 1.0)
        return int(sizes.sum())

    def variable_buffers(self, header: MessageHeader) -> list[int]:
        """Return the indices of the buffers that are not empty and whose size does not follow from the values."""
        is_variable = (self._buffers_of(header)[:, 1] == _VARIABLE) & (header.buffers[:, 1] > LENGTH_BYTES)
        return [int(index) for index in np.flatnonzero(is_variable)]

    def _add(self, type_: pa.DataType) -> None:
        """Add the arrays and buffers of a type."""
        if isinstance(type_, pa.BaseExtensionType):
            self._add(type_.storage_type)
            return
        node = self._num_nodes
        self._num_nodes += 1
        is_union = pa.types.is_union(type_)
        has_validity = not (pa.types.is_null(type_) or pa.types.is_run_end_encoded(type_))
        if has_validity and (self._has_union_validity or not is_union):
            self._buffers.append((node, _VALIDITY, 1))
        self._buffers += [(node, purpose, bits) for purpose, bits in _buffers_of_values(type_)]
        if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
            self._views.append(len(self._buffers))
        for child in child_types(type_):
            self._add(child)

    def _buffers_of(self, header: MessageHeader) -> NDArray[np.int64]:
        """Return array, purpose and bits per value of each buffer of a batch, shape (num_buffers, 3)."""
        counts = header.num_view_buffers
        key = counts.tobytes()
        # One tuple: threads share this object.
        known, buffers = self._expanded
        if known != key:
            # A damaged count allocates nothing: the number of buffers then differs from that of the header.
            is_possible = bool(np.all(counts >= 0)) and counts.sum() <= len(header.buffers)
            buffers = self._expand(counts if is_possible else np.zeros_like(counts))
            self._expanded = key, buffers
        return buffers

    def _expand(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        buffers = np.array(self._buffers, np.int64).reshape(-1, 3)
        data = [[buffers[position - 1, 0], _VARIABLE, 0] for position in self._views]
        return (
            np.insert(buffers, np.repeat(self._views, counts), np.repeat(data, counts, axis=0), axis=0)
            if data
            else buffers
        )


def dictionary_value_types(types: Iterable[pa.DataType]) -> Iterator[pa.DataType]:
    """Yield the type of the values of each dictionary, depth first, a dictionary before those in its values."""
    for type_ in types:
        storage = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
        if pa.types.is_dictionary(storage):
            yield storage.value_type
            storage = storage.value_type
        yield from dictionary_value_types(child_types(storage))


def check_compressed_lengths(header: MessageHeader, body: pa.Buffer) -> None:
    """Raise if a compressed buffer claims to be longer than it can be: decompressing it would allocate that.

    Raises:
        ValueError: It does.
    """
    data = memoryview(body)
    for offset, length in header.buffers[header.buffers[:, 1] > 0].tolist():
        prefix = data[offset : offset + LENGTH_BYTES] if length >= LENGTH_BYTES else b""
        claimed = int.from_bytes(prefix, "little", signed=True)
        if len(prefix) < LENGTH_BYTES or not _NOT_COMPRESSED <= claimed <= MAX_RATIO * length:
            message = f"it is damaged: a buffer of {length:,} compressed bytes claims to hold {claimed:,}"
            raise ValueError(message)


def needs_validation(type_: pa.DataType) -> bool:
    """Return whether values of a type refer to others, so that damage can be out of bounds."""
    if isinstance(type_, pa.BaseExtensionType):
        return needs_validation(type_.storage_type)
    if pa.types.is_fixed_size_list(type_) or pa.types.is_struct(type_):
        return any(needs_validation(child) for child in child_types(type_))
    return not (pa.types.is_primitive(type_) or _is_fixed_width(type_) or pa.types.is_null(type_))


def _needed_bytes(expected: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the smallest possible size of each buffer in bytes, for the arrays of one batch or of several."""
    values, nulls = nodes[..., expected[:, 0], 0].astype(np.float64), nodes[..., expected[:, 0], 1]
    purposes = expected[:, 1]
    values[(purposes == _VALIDITY) & (nulls == 0)] = 0
    values[(purposes == _OFFSETS) & (values > 0)] += 1
    needed: NDArray[np.float64] = np.ceil(values * expected[:, 2] / 8)
    return needed


def _buffers_of_values(type_: pa.DataType) -> list[tuple[int, int]]:
    """Return purpose and bits per value of the buffers of a type, without its validity bitmap."""
    if pa.types.is_dictionary(type_):
        return _buffers_of_values(type_.index_type)
    if pa.types.is_union(type_):
        return [(_FIXED, 8)] + [(_FIXED, 32)] * (type_.mode == "dense")
    for kinds, buffers in _BUFFERS:
        if any(is_kind(type_) for is_kind in kinds):
            return buffers
    return [] if pa.types.is_nested(type_) else [(_FIXED, type_.bit_width)]


_BUFFERS: Final[tuple[tuple[tuple[Callable[[Any], bool], ...], list[tuple[int, int]]], ...]] = (
    ((pa.types.is_null,), []),
    ((pa.types.is_string, pa.types.is_binary), [(_OFFSETS, 32), (_VARIABLE, 0)]),
    ((pa.types.is_large_string, pa.types.is_large_binary), [(_OFFSETS, 64), (_VARIABLE, 0)]),
    ((pa.types.is_string_view, pa.types.is_binary_view), [(_FIXED, _VIEW_BITS)]),
    ((pa.types.is_list, pa.types.is_map), [(_OFFSETS, 32)]),
    ((pa.types.is_large_list,), [(_OFFSETS, 64)]),
    ((pa.types.is_list_view,), [(_FIXED, 32)] * 2),
    ((pa.types.is_large_list_view,), [(_FIXED, 64)] * 2),
)


def _is_fixed_width(type_: pa.DataType) -> bool:
    return pa.types.is_decimal(type_) or pa.types.is_fixed_size_binary(type_)

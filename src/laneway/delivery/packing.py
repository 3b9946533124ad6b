"""Batches that cross from a worker to the main process as one buffer.

PyTorch sends each tensor between processes by a handle of its own, which costs more than most columns. A packed batch
is a dict as long as it stays in its process; a queue between processes takes it as one buffer, and gives out a plain
dict whose tensors and arrays are views of that buffer. Small columns are in the message itself.
"""

from __future__ import annotations

import math
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from laneway.delivery.buffers import Ticket, lend, receive

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from laneway.delivery.buffers import Memory

_ALIGNMENT = 64
"""Bytes: every dtype may begin there."""
_MAX_INLINE_BYTES = 1 << 14
"""Columns of one dtype and shape that take no more together travel through the pipe, others in shared memory."""
_SMALL_SHARE = 8
_MAX_SMALL_BYTES = 1 << 17
"""So do columns up to this size that take less than such a share of the batch."""


_KINDS: list[Any] = [
    *(np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64),
    *(np.float16, np.float32, np.float64),
]
_DTYPES = {torch.from_numpy(np.empty(0, kind)).dtype: np.dtype(kind) for kind in _KINDS} | {
    torch.bfloat16: np.dtype(np.int16)
}
"""dtype of tensors that are nothing but their values -> numpy's, which lacks bfloat16; others are sent as PyTorch
sends them."""
_NUMPY_DTYPES = frozenset(map(np.dtype, _KINDS))
"""Of arrays that can be tensors; others are pickled."""


class _Block(NamedTuple):
    """Neighbouring columns of one dtype and shape."""

    keys: tuple[Any, ...]
    """Columns."""
    is_numpy: bool
    """Whether they are arrays, and not tensors."""
    dtype: torch.dtype
    """Of their values."""
    shape: tuple[int, ...]
    """Of each of them."""
    is_inline: bool
    """Whether they travel through the pipe."""
    start: int
    """Byte of the buffer at which the first one begins; the others follow it."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return len(self.keys) * math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: bytearray | Memory) -> NDArray[Any]:
        """Return all of them, in a buffer, as one array (columns, *shape); of bfloat16, the bytes as int16."""
        shape, dtype = (len(self.keys), *self.shape), _DTYPES[self.dtype]
        if not self.num_bytes:
            return np.empty(shape, dtype)
        array: NDArray[Any] = np.frombuffer(buffer, dtype, math.prod(shape), self.start)
        return array.reshape(shape)


class PackedBatch(dict[Any, Any]):
    """A batch that is sent between processes as one buffer, and received as a plain dict."""

    def __copy__(self) -> PackedBatch:
        """Return a shallow copy, which is sent as one buffer too."""
        return PackedBatch(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a plain dict is made of it, wherever it is pickled to."""
        return dict, (dict(self),)


def packed(item: Any) -> Any:  # noqa: ANN401 - a user's transform may return anything
    """Return what a worker sends for an item: a packed batch for a dict, and any other item as it is."""
    return PackedBatch(item) if type(item) is dict else item


def _reduced(batch: PackedBatch) -> tuple[Any, ...]:
    """Return how the plain dict is made in another process that a queue leads to."""
    try:
        return _unpacked, _packed(batch)
    except Exception:  # noqa: BLE001 - an error here would be lost, and the receiver would wait for ever
        # No shared memory is left, say.
        return dict, (dict(batch),)


ForkingPickler.register(PackedBatch, _reduced)


def _packed(batch: dict[Any, Any]) -> tuple[Any, ...]:
    """Return the keys, the blocks, both buffers, and the values that are in no block."""
    groups: list[tuple[bool, list[Any], list[torch.Tensor]]] = []
    rest: dict[Any, Any] = {}
    last: tuple[bool, torch.dtype, torch.Size] | None = None
    for key, value in batch.items():
        is_numpy = type(value) is np.ndarray
        tensor = _as_tensor(value) if is_numpy else value
        if type(tensor) is not torch.Tensor or not _can_be_copied(tensor):
            rest[key] = value
            continue
        kind = (is_numpy, tensor.dtype, tensor.shape)
        if kind != last:
            groups.append((is_numpy, [], []))
            last = kind
        groups[-1][1].append(key)
        groups[-1][2].append(tensor)
    blocks = _laid_out(groups)
    sizes = {True: 0, False: 0} | {block.is_inline: block.start + block.num_bytes for block in blocks}
    inline = bytearray(sizes[True])
    shared, ticket = lend(sizes[False]) if sizes[False] else (None, None)
    for block, (_, _, tensors) in zip(blocks, groups, strict=True):
        into = inline if block.is_inline or shared is None else shared
        torch.stack(tensors, out=torch.from_numpy(block.view(into)).view(block.dtype))
    return tuple(batch), tuple(blocks), inline, ticket, rest


def _laid_out(groups: list[tuple[bool, list[Any], list[torch.Tensor]]]) -> list[_Block]:
    """Return a block for each group of columns: where it lies in which buffer."""
    total = sum(len(tensors) * tensors[0].nbytes for _, _, tensors in groups)
    stops = {True: 0, False: 0}
    blocks = []
    for is_numpy, keys, tensors in groups:
        num_bytes = len(tensors) * tensors[0].nbytes
        # Small beside the others, it is apart from them: who keeps all labels should not keep all batches.
        is_inline = num_bytes <= max(_MAX_INLINE_BYTES, min(total // _SMALL_SHARE, _MAX_SMALL_BYTES))
        start = -(-stops[is_inline] // _ALIGNMENT) * _ALIGNMENT
        stops[is_inline] = start + num_bytes
        blocks.append(_Block(tuple(keys), is_numpy, tensors[0].dtype, tuple(tensors[0].shape), is_inline, start))
    return blocks


def _unpacked(
    keys: tuple[Any, ...], blocks: tuple[_Block, ...], inline: bytearray, ticket: Ticket | None, rest: dict[Any, Any]
) -> dict[Any, Any]:
    """Return the batch; what `_packed` returned is given."""
    values = dict(rest)
    shared = receive(ticket) if ticket else None
    for block in blocks:
        whole = block.view(inline if block.is_inline or shared is None else shared)
        # With the dots it is an array also where a column is a single number.
        columns: Iterable[Any] = [whole[i, ...] for i in range(len(whole))]
        if not block.is_numpy:
            # Faster than unbind, and each tensor's storage ends where its own values end.
            columns = map(torch.from_numpy, columns)
        if block.dtype is torch.bfloat16:
            columns = [column.view(torch.bfloat16) for column in columns]
        values.update(zip(block.keys, columns, strict=True))
    return {key: values[key] for key in keys}


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor | None:
    is_like_a_tensor = array.dtype in _NUMPY_DTYPES and array.flags.writeable
    return torch.from_numpy(array) if is_like_a_tensor and min(array.strides, default=0) >= 0 else None


def _can_be_copied(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _DTYPES and tensor.is_cpu and not tensor.requires_grad and tensor.layout is torch.strided

"""Batches that cross from a worker to the main process as one buffer.

PyTorch sends each tensor between processes by a handle of its own, which costs more than most columns. A packed batch
is a dict as long as it stays in its process; pickled, it is one buffer, and what is unpickled is a plain dict whose
tensors and arrays are views of that buffer.
"""

from __future__ import annotations

import math
import operator
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from laneway.buffers import Ticket, lend, receive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.gather import Block

_ALIGNMENT = 64
"""Bytes: every dtype may begin there."""
_MAX_INLINE_BYTES = 1 << 14
"""A buffer up to this size travels through the pipe, a larger one in shared memory."""


_DTYPES = frozenset(
    [
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    ]
)
"""Of tensors that are nothing but their values; others are sent as PyTorch sends them."""


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
    start: int
    """Byte of the buffer at which the first one begins; the others follow it."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return len(self.keys) * math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: bytearray | torch.Tensor) -> torch.Tensor:
        """Return all of them, in a buffer, as one tensor (columns, *shape)."""
        shape, num_bytes = (len(self.keys), *self.shape), self.num_bytes
        if isinstance(buffer, torch.Tensor):
            return buffer[self.start : self.start + num_bytes].view(self.dtype).view(shape)
        if not num_bytes:
            return torch.empty(shape, dtype=self.dtype)
        count = num_bytes // self.dtype.itemsize
        return torch.frombuffer(buffer, dtype=self.dtype, count=count, offset=self.start).view(shape)


class PackedBatch(dict[Any, Any]):
    """A batch that is sent between processes as one buffer, and received as a plain dict."""

    def __init__(self, batch: dict[Any, Any], blocks: Sequence[Block] = ()) -> None:
        """Take over a batch.

        Args:
            batch: The batch.
            blocks: Columns of it that lie together, in one piece each.
        """
        super().__init__(batch)
        self._blocks = blocks
        self._values = tuple(batch.values()) if blocks else ()

    def __copy__(self) -> PackedBatch:
        """Return a shallow copy, which is sent as one buffer too."""
        return PackedBatch(self, self.known_blocks)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a plain dict is made of it, wherever it is pickled to."""
        return dict, (dict(self),)

    @property
    def known_blocks(self) -> Sequence[Block]:
        """The columns that lie together, unless somebody has put another value into the dict."""
        is_as_made = len(self) == len(self._values) and all(map(operator.is_, self.values(), self._values))
        return self._blocks if is_as_made else ()


def packed(item: Any, blocks: Sequence[Block] = ()) -> Any:  # noqa: ANN401 - a user's transform may return anything
    """Return what a worker sends for an item: a packed batch for a dict, and any other item as it is.

    Args:
        item: What is sent.
        blocks: Columns of it that lie together, in one piece each.
    """
    return PackedBatch(item, blocks) if type(item) is dict else item


def _reduced(batch: PackedBatch) -> tuple[Any, ...]:
    """Return how the plain dict is made in another process that a queue leads to."""
    return _unpacked, _packed(batch, batch.known_blocks)


ForkingPickler.register(PackedBatch, _reduced)


class _Group(NamedTuple):
    """What becomes a block."""

    keys: list[Any]
    """Columns."""
    is_numpy: bool
    """Whether they are arrays, and not tensors."""
    columns: list[torch.Tensor] | torch.Tensor
    """Each of them, or all as one tensor of one dimension more."""


def _packed(batch: dict[Any, Any], known: Sequence[Block]) -> tuple[Any, ...]:
    """Return the keys, the blocks, the buffer, and the values that are in no block."""
    groups, rest = _grouped(batch, known)
    blocks, stop = [], 0
    for keys, is_numpy, columns in groups:
        start = -(-stop // _ALIGNMENT) * _ALIGNMENT
        block = _Block(tuple(keys), is_numpy, columns[0].dtype, tuple(columns[0].shape), start)
        blocks.append(block)
        stop = start + block.num_bytes
    into: bytearray | torch.Tensor
    sent: bytearray | Ticket
    if stop <= _MAX_INLINE_BYTES:
        into = sent = bytearray(stop)
    else:
        into, sent = lend(stop)
    for block, group in zip(blocks, groups, strict=True):
        if isinstance(group.columns, torch.Tensor):
            block.view(into).copy_(group.columns)
        else:
            torch.stack(group.columns, out=block.view(into))
    return tuple(batch), tuple(blocks), sent, rest


def _grouped(batch: dict[Any, Any], known: Sequence[Block]) -> tuple[list[_Group], dict[Any, Any]]:
    """Return what becomes a block each, and the values that become none."""
    groups = [
        _Group(list(names), type(batch[names[0]]) is np.ndarray, torch.from_numpy(values)) for names, values in known
    ]
    others = batch.items()
    if known:
        covered = {name for names, _ in known for name in names}
        others = {key: value for key, value in batch.items() if key not in covered}.items()
    rest: dict[Any, Any] = {}
    last: tuple[bool, torch.dtype, torch.Size] | None = None
    for key, value in others:
        is_numpy = type(value) is np.ndarray
        tensor = _as_tensor(value) if is_numpy else value
        if type(tensor) is not torch.Tensor or not _can_be_copied(tensor):
            rest[key] = value
            continue
        kind = (is_numpy, tensor.dtype, tensor.shape)
        if kind != last:
            groups.append(_Group([], is_numpy, columns := []))
            last = kind
        groups[-1].keys.append(key)
        columns.append(tensor)
    return groups, rest


def _unpacked(
    keys: tuple[Any, ...], blocks: tuple[_Block, ...], sent: bytearray | Ticket, rest: dict[Any, Any]
) -> dict[Any, Any]:
    """Return the batch; what `_packed` returned is given."""
    values = dict(rest)
    buffer = sent if isinstance(sent, bytearray) else receive(sent)
    for block in blocks:
        whole = block.view(buffer)
        if block.is_numpy:
            values.update(zip(block.keys, whole.numpy(), strict=True))
        elif block.dtype is not torch.bfloat16:
            # Faster than unbind; and numpy lacks only that dtype.
            values.update(zip(block.keys, map(torch.from_numpy, whole.numpy()), strict=True))
        else:
            values.update(zip(block.keys, whole.unbind(), strict=True))
    return {key: values[key] for key in keys}


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor | None:
    is_like_a_tensor = array.dtype.kind in "biuf" and array.dtype.isnative and array.flags.writeable
    return torch.from_numpy(array) if is_like_a_tensor and min(array.strides, default=0) >= 0 else None


def _can_be_copied(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _DTYPES and tensor.is_cpu and not tensor.requires_grad and tensor.layout is torch.strided

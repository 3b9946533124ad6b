"""Batches that cross from a worker to the main process as one buffer.

PyTorch sends each tensor between processes by a handle of its own, which costs more than most columns. A packed batch
is a dict as long as it stays in its process; pickled, it is one buffer, and what is unpickled is a plain dict whose
tensors and arrays are views of that buffer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

_ALIGNMENT = 64
"""Bytes: every dtype may begin there."""
_MAX_INLINE_BYTES = 1 << 17
"""A buffer up to this size travels through the pipe; a larger one in shared memory, for which a handle is sent."""


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


class PackedBatch(dict[Any, Any]):
    """A batch that is sent between processes as one buffer, and received as a plain dict."""

    def __copy__(self) -> PackedBatch:
        """Return a shallow copy, which is sent as one buffer too."""
        return PackedBatch(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the plain dict is made in the receiver."""
        return _unpacked, _packed(self)


def packed(item: Any) -> Any:  # noqa: ANN401 - a user's transform may return anything
    """Return what a worker sends for an item: a packed batch for a dict, and any other item as it is."""
    return PackedBatch(item) if type(item) is dict else item


def _packed(batch: dict[Any, Any]) -> tuple[Any, ...]:
    """Return the keys, the blocks, the buffer, and the values that are in no block."""
    found: list[tuple[tuple[bool, torch.dtype, torch.Size], list[Any], list[torch.Tensor]]] = []
    rest: dict[Any, Any] = {}
    for key, value in batch.items():
        is_numpy = type(value) is np.ndarray
        tensor = _as_tensor(value) if is_numpy else value
        if type(tensor) is not torch.Tensor or not _can_be_copied(tensor):
            rest[key] = value
            continue
        kind = (is_numpy, tensor.dtype, tensor.shape)
        if not found or found[-1][0] != kind:
            found.append((kind, [], []))
        found[-1][1].append(key)
        found[-1][2].append(tensor)
    blocks, stop = [], 0
    for (is_numpy, dtype, shape), keys, tensors in found:
        start = -(-stop // _ALIGNMENT) * _ALIGNMENT
        blocks.append(_Block(tuple(keys), is_numpy, dtype, tuple(shape), start))
        stop = start + len(tensors) * tensors[0].nbytes
    is_inline = stop <= _MAX_INLINE_BYTES
    buffer = torch.empty(stop, dtype=torch.uint8)
    if not is_inline:
        buffer.share_memory_()  # type: ignore[no-untyped-call]
    for block, (_, _, tensors) in zip(blocks, found, strict=True):
        torch.stack(tensors, out=_view(buffer, block))
    return tuple(batch), tuple(blocks), buffer.numpy().tobytes() if is_inline else buffer, rest


def _unpacked(
    keys: tuple[Any, ...], blocks: tuple[_Block, ...], sent: bytes | torch.Tensor, rest: dict[Any, Any]
) -> dict[Any, Any]:
    """Return the batch; what `_packed` returned is given."""
    buffer = sent
    if not isinstance(buffer, torch.Tensor):
        buffer = torch.frombuffer(bytearray(buffer), dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)
    values = dict(rest)
    for block in blocks:
        whole = _view(buffer, block)
        values.update(zip(block.keys, whole.numpy() if block.is_numpy else whole.unbind(), strict=True))
    return {key: values[key] for key in keys} if rest else values


def _view(buffer: torch.Tensor, block: _Block) -> torch.Tensor:
    shape = (len(block.keys), *block.shape)
    num_bytes = int(np.prod(shape)) * block.dtype.itemsize
    return buffer[block.start : block.start + num_bytes].view(block.dtype).view(shape)


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor | None:
    is_like_a_tensor = array.dtype.kind in "biuf" and array.dtype.isnative and array.flags.writeable
    return torch.from_numpy(array) if is_like_a_tensor and min(array.strides, default=0) >= 0 else None


def _can_be_copied(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _DTYPES and tensor.is_cpu and not tensor.requires_grad and tensor.layout is torch.strided

"""Batches that cross from a worker to the main process as one buffer.

PyTorch sends a separate handle for each tensor, which costs more than copying most columns. A sent batch is a dict
within its process. A queue to another process sends it as one buffer and returns a plain dict, whose tensors and arrays
are views of that buffer. Small columns are part of the message itself.
"""

from __future__ import annotations

import math
import pickle
from multiprocessing.reduction import ForkingPickler
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch._utils import ExceptionWrapper

from laneway.delivery.buffers import Ticket, lend, receive
from laneway.errors import LanewayError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from laneway.delivery.buffers import Memory
    from laneway.metering import Meter

_ALIGNMENT = 64
"""Alignment of blocks in bytes, enough for every dtype."""
_MAX_INLINE_BYTES = 1 << 14
"""Blocks up to this size travel through the pipe, larger ones in shared memory."""
_SMALL_SHARE = 8
_MAX_SMALL_BYTES = 1 << 17
"""Blocks up to this size travel through the pipe too if they are at most 1 / `_SMALL_SHARE` of the batch."""

_KINDS: list[Any] = [
    *(np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64),
    *(np.float16, np.float32, np.float64),
]
_DTYPES = {torch.from_numpy(np.empty(0, kind)).dtype: np.dtype(kind) for kind in _KINDS} | {
    torch.bfloat16: np.dtype(np.int16)
}
"""dtype of tensors in the buffer -> numpy dtype of that size, as numpy has no bfloat16. PyTorch sends all others."""
_NUMPY_DTYPES = frozenset(map(np.dtype, _KINDS))
"""dtype of arrays in the buffer. All other arrays are pickled."""


class _Block(NamedTuple):
    """Adjacent columns of one dtype and shape."""

    keys: tuple[Any, ...]
    """Keys of the columns in the batch."""
    is_numpy: bool
    """Whether the columns are numpy arrays rather than tensors."""
    dtype: torch.dtype
    """dtype of the columns."""
    shape: tuple[int, ...]
    """Shape of each column."""
    is_inline: bool
    """Whether the block travels through the pipe."""
    start: int
    """Offset of the first column in the buffer in bytes; the others follow it."""

    @property
    def num_bytes(self) -> int:
        """Size of all columns in bytes."""
        return len(self.keys) * math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: bytearray | Memory) -> NDArray[Any]:
        """Return all columns as one view of a buffer, shape (columns, *shape); bfloat16 as int16."""
        shape, dtype = (len(self.keys), *self.shape), _DTYPES[self.dtype]
        if not self.num_bytes:
            return np.empty(shape, dtype)
        array: NDArray[Any] = np.frombuffer(buffer, dtype, math.prod(shape), self.start)
        return array.reshape(shape)


class SentBatch(dict[Any, Any]):
    """A batch that is sent to another process as one buffer, and received as a plain dict."""

    def __copy__(self) -> SentBatch:
        """Return a shallow copy, which is also sent as one buffer."""
        return SentBatch(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a plain dict; only queues between processes use a buffer."""
        return dict, (dict(self),)


def to_send(item: Any) -> Any:  # noqa: ANN401 - a user's transform may return anything
    """Return a sent batch for a dict, and any other item unchanged."""
    return SentBatch(item) if type(item) is dict else item


def _reduce(batch: SentBatch) -> tuple[Any, ...]:
    """Pickle for a queue to another process: as the arguments of `_from_buffer`."""
    try:
        return _from_buffer, _one_buffer(batch)
    except Exception:  # noqa: BLE001 - the queue would drop the error, and the receiver would wait forever
        # Shared memory may be exhausted, for example.
        return _reduce_item(dict(batch))


ForkingPickler.register(SentBatch, _reduce)


class SentItem:
    """An item that is sent to another process; if it can't be pickled, the error is sent instead."""

    def __init__(self, item: Any, meter: Meter) -> None:  # noqa: ANN401 - a user's transform may return anything
        """Send `item`, as measured by a meter."""
        self.item = item
        self.meter = meter


def _reduce_sent(sent: SentItem) -> tuple[Any, ...]:
    began = perf_counter()
    reduced = _reduce_item(sent.item)
    sent.meter.send_s += perf_counter() - began
    return reduced


ForkingPickler.register(SentItem, _reduce_sent)


def _reduce_item(item: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a user's transform may return anything
    """Pickle an item, or the error that it causes: a queue drops the error, and the receiver would wait forever."""
    try:
        return pickle.loads, (bytes(ForkingPickler.dumps(item)),)
    except Exception as error:  # noqa: BLE001 - sent to the receiver
        reason = f"{type(error).__name__}: {str(error)[:500]}"
        return _fail, (reason,)


def _fail(reason: str) -> ExceptionWrapper:
    """Return the error of a batch that can't be sent, as a DataLoader expects it."""
    message = (
        f"a batch can't be sent from a DataLoader worker, since it can't be pickled ({reason}): have transform and "
        "collate_fn return other values, or use num_workers=0"
    )
    return ExceptionWrapper(  # type: ignore[no-untyped-call]
        (LanewayError, LanewayError(message), None), where="in a DataLoader worker process"
    )


def raise_if_unsent(received: object) -> None:
    """Raise the error of a batch that could not be sent."""
    if isinstance(received, ExceptionWrapper):
        received.reraise()  # type: ignore[no-untyped-call]


def _one_buffer(batch: dict[Any, Any]) -> tuple[Any, ...]:
    """Return the keys, the blocks, both buffers, and the values that no block contains."""
    groups: list[tuple[bool, list[Any], list[torch.Tensor]]] = []
    rest: dict[Any, Any] = {}
    last: tuple[bool, torch.dtype, torch.Size] | None = None
    for key, value in batch.items():
        is_numpy = type(value) is np.ndarray
        tensor = _as_tensor(value) if is_numpy else value
        if type(tensor) is not torch.Tensor or not _fits_buffer(tensor):
            rest[key] = value
            continue
        kind = (is_numpy, tensor.dtype, tensor.shape)
        if kind != last:
            groups.append((is_numpy, [], []))
            last = kind
        groups[-1][1].append(key)
        groups[-1][2].append(tensor)
    # Here, so that an error comes before any shared memory is taken.
    pickled_rest = bytes(ForkingPickler.dumps(rest))
    blocks = _lay_out(groups)
    sizes = {True: 0, False: 0} | {block.is_inline: block.start + block.num_bytes for block in blocks}
    inline = bytearray(sizes[True])
    shared, ticket = lend(sizes[False]) if sizes[False] else (None, None)
    for block, (_, _, tensors) in zip(blocks, groups, strict=True):
        into = inline if block.is_inline or shared is None else shared
        torch.stack(tensors, out=torch.from_numpy(block.view(into)).view(block.dtype))
    return tuple(batch), tuple(blocks), inline, ticket, pickled_rest


def _lay_out(groups: list[tuple[bool, list[Any], list[torch.Tensor]]]) -> list[_Block]:
    """Return a block for each group of columns, which assigns it a buffer and an offset."""
    total = sum(len(tensors) * tensors[0].nbytes for _, _, tensors in groups)
    stops = {True: 0, False: 0}
    blocks = []
    for is_numpy, keys, tensors in groups:
        num_bytes = len(tensors) * tensors[0].nbytes
        # Small blocks get memory of their own, so that keeping all labels of an epoch does not keep all of its batches.
        is_inline = num_bytes <= max(_MAX_INLINE_BYTES, min(total // _SMALL_SHARE, _MAX_SMALL_BYTES))
        start = -(-stops[is_inline] // _ALIGNMENT) * _ALIGNMENT
        stops[is_inline] = start + num_bytes
        blocks.append(_Block(tuple(keys), is_numpy, tensors[0].dtype, tuple(tensors[0].shape), is_inline, start))
    return blocks


def _from_buffer(
    keys: tuple[Any, ...], blocks: tuple[_Block, ...], inline: bytearray, ticket: Ticket | None, rest: bytes
) -> dict[Any, Any]:
    """Return the batch from the result of `_one_buffer`."""
    values: dict[Any, Any] = pickle.loads(rest)  # noqa: S301 - pickled by a worker of this process
    shared = receive(ticket) if ticket else None
    for block in blocks:
        whole = block.view(inline if block.is_inline or shared is None else shared)
        # With the ellipsis, a column of a single number is an array too.
        columns: Iterable[Any] = [whole[i, ...] for i in range(len(whole))]
        if not block.is_numpy:
            # Faster than unbind, and the storage of each tensor contains no other column.
            columns = map(torch.from_numpy, columns)
        if block.dtype is torch.bfloat16:
            columns = [column.view(torch.bfloat16) for column in columns]
        values.update(zip(block.keys, columns, strict=True))
    return {key: values[key] for key in keys}


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor | None:
    can_be_tensor = array.dtype in _NUMPY_DTYPES and array.flags.writeable
    return torch.from_numpy(array) if can_be_tensor and min(array.strides, default=0) >= 0 else None


def _fits_buffer(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _DTYPES and tensor.is_cpu and not tensor.requires_grad and tensor.layout is torch.strided

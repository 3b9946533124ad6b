"""Batches that cross from a worker to the main process, one or several as one buffer.

PyTorch sends a separate handle for each tensor, which costs more than copying most columns. A sent batch is a dict
within its process. A queue to another process sends it as one buffer and returns a plain dict, whose tensors and arrays
are views of that buffer. Small columns get memory of their own.
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
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from laneway.delivery.buffers import Memory
    from laneway.metering import Meter

_ALIGNMENT = 64
"""Alignment of blocks in bytes, enough for every dtype."""
_MAX_INLINE_BYTES = 1 << 14
"""Blocks up to this size travel through the pipe, larger ones in shared memory."""
_SMALL_SHARE = 8
"""Blocks of at most 1 / `_SMALL_SHARE` of the batch get memory of their own, so that keeping all labels of an epoch
does not keep all of its batches."""
_MAX_SMALL_BYTES = 1 << 16
"""These travel through the pipe too up to this size; larger ones are copied by the receiver."""

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
    """Adjacent columns of a batch, of one dtype and shape."""

    batch_index: int
    """Index of the batch."""
    keys: tuple[Any, ...]
    """Keys of the columns in the batch."""
    is_numpy: bool
    """Whether the columns are numpy arrays rather than tensors."""
    dtype: torch.dtype
    """dtype of the columns."""
    shape: tuple[int, ...]
    """Shape of each column."""
    is_small: bool
    """Whether the block gets memory of its own."""
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
    """Pickle for a queue to another process: as the arguments of `from_one_buffer`."""
    try:
        return _only_from_buffer, in_one_buffer([batch])
    except Exception:  # noqa: BLE001 - the queue would drop the error, and the receiver would wait forever
        # Shared memory may be exhausted, for example.
        return _reduce_item(dict(batch))


ForkingPickler.register(SentBatch, _reduce)


class SentItems:
    """Items that are sent to another process as a list; in the place of one that can't be pickled, the error is."""

    def __init__(self, items: list[Any], meter: Meter) -> None:
        """Send `items`, as measured by a meter."""
        self.items = items
        self.meter = meter


def _reduce_sent(sent: SentItems) -> tuple[Any, ...]:
    began = perf_counter()
    try:
        reduced: tuple[Any, ...] = pickle.loads, (bytes(ForkingPickler.dumps(_Together(sent.items))),)
    except Exception:  # noqa: BLE001 - of one of the items, perhaps: then the others arrive
        reduced = _load_each, ([_reduce_item(item) for item in sent.items],)
    sent.meter.send_s += perf_counter() - began
    return reduced


ForkingPickler.register(SentItems, _reduce_sent)


class _Together:
    """Items whose batches are sent as one buffer."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items


def _reduce_together(together: _Together) -> tuple[Any, ...]:
    items = together.items
    are_batches = [type(item) is SentBatch for item in items]
    # Pickled here, so that an error comes before any shared memory is taken.
    others = bytes(ForkingPickler.dumps([item for item in items if type(item) is not SentBatch]))
    return _load_together, (are_batches, others, *in_one_buffer([item for item in items if type(item) is SentBatch]))


ForkingPickler.register(_Together, _reduce_together)


def _load_together(are_batches: list[bool], pickled_others: bytes, *buffer: Any) -> list[Any]:  # noqa: ANN401
    """Return the items of `_Together`."""
    batches = iter(from_one_buffer(*buffer))
    others = iter(pickle.loads(pickled_others))  # noqa: S301 - pickled by a worker of this process
    return [next(batches if is_batch else others) for is_batch in are_batches]


def _load_each(reduced: list[tuple[Any, ...]]) -> list[Any]:
    """Return items from the results of `_reduce_item`."""
    return [function(*arguments) for function, arguments in reduced]


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


def error_to_send(where: str) -> ExceptionWrapper:
    """Return the exception that is being handled as a DataLoader sends it; `where` is the start of its message."""
    return ExceptionWrapper(where=where)  # type: ignore[no-untyped-call]


def raise_if_unsent(received: object) -> None:
    """Raise the error of a batch that could not be sent."""
    if isinstance(received, ExceptionWrapper):
        received.reraise()  # type: ignore[no-untyped-call]


class _Group(NamedTuple):
    """Adjacent columns of a batch, of one dtype and shape, before they are sent."""

    batch_index: int
    is_numpy: bool
    keys: list[Any]
    tensors: list[torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of all columns in bytes."""
        return len(self.tensors) * self.tensors[0].nbytes


def in_one_buffer(batches: Sequence[dict[Any, Any]]) -> tuple[Any, ...]:
    """Return the keys of each batch, the blocks, both buffers, and the values that no block contains."""
    groups: list[_Group] = []
    rests: list[dict[Any, Any]] = []
    for index, batch in enumerate(batches):
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
                groups.append(_Group(index, is_numpy, [], []))
                last = kind
            groups[-1].keys.append(key)
            groups[-1].tensors.append(tensor)
        rests.append(rest)
    # Here, so that an error comes before any shared memory is taken.
    pickled_rests = bytes(ForkingPickler.dumps(rests))
    blocks = _lay_out(groups, len(batches))
    sizes = {True: 0, False: 0} | {block.is_inline: block.start + block.num_bytes for block in blocks}
    inline = bytearray(sizes[True])
    shared, ticket = lend(sizes[False]) if sizes[False] else (None, None)
    for block, group in zip(blocks, groups, strict=True):
        into = inline if block.is_inline or shared is None else shared
        torch.stack(group.tensors, out=torch.from_numpy(block.view(into)).view(block.dtype))
    return [*map(tuple, batches)], tuple(blocks), inline, ticket, pickled_rests


def _lay_out(groups: list[_Group], num_batches: int) -> list[_Block]:
    """Return a block for each group of columns, which assigns it a buffer and an offset."""
    totals = [0] * num_batches
    for group in groups:
        totals[group.batch_index] += group.num_bytes
    stops = {True: 0, False: 0}
    blocks = []
    for group in groups:
        num_bytes = group.num_bytes
        share = totals[group.batch_index] // _SMALL_SHARE
        is_inline = num_bytes <= max(_MAX_INLINE_BYTES // num_batches, min(share, _MAX_SMALL_BYTES))
        start = -(-stops[is_inline] // _ALIGNMENT) * _ALIGNMENT
        stops[is_inline] = start + num_bytes
        first = group.tensors[0]
        blocks.append(
            _Block(
                group.batch_index,
                tuple(group.keys),
                group.is_numpy,
                first.dtype,
                tuple(first.shape),
                num_bytes <= share,
                is_inline,
                start,
            )
        )
    return blocks


def from_one_buffer(
    keys: list[tuple[Any, ...]],
    blocks: tuple[_Block, ...],
    inline: bytearray,
    ticket: Ticket | None,
    rests: bytes,
) -> list[dict[Any, Any]]:
    """Return the batches from the result of `in_one_buffer`."""
    values: list[dict[Any, Any]] = pickle.loads(rests)  # noqa: S301 - pickled by a worker of this process
    shared = receive(ticket) if ticket else None
    for block in blocks:
        whole = block.view(inline if block.is_inline or shared is None else shared)
        if block.is_small and not block.is_inline:
            whole = whole.copy()
        # With the ellipsis, a column of a single number is an array too.
        columns: Iterable[Any] = [whole[i, ...] for i in range(len(whole))]
        if not block.is_numpy:
            # Faster than unbind, and the storage of each tensor contains no other column.
            columns = map(torch.from_numpy, columns)
        if block.dtype is torch.bfloat16:
            columns = [column.view(torch.bfloat16) for column in columns]
        values[block.batch_index].update(zip(block.keys, columns, strict=True))
    return [{key: each[key] for key in of_batch} for each, of_batch in zip(values, keys, strict=True)]


def _only_from_buffer(*buffer: Any) -> dict[Any, Any]:  # noqa: ANN401 - see `from_one_buffer`
    """Return a batch that was sent alone."""
    (batch,) = from_one_buffer(*buffer)
    return batch


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor | None:
    can_be_tensor = array.dtype in _NUMPY_DTYPES and array.flags.writeable
    return torch.from_numpy(array) if can_be_tensor and min(array.strides, default=0) >= 0 else None


def _fits_buffer(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _DTYPES and tensor.is_cpu and not tensor.requires_grad and tensor.layout is torch.strided

"""Shared memory that carries a worker's batches to the main process, and is reused once a batch has been released.

New shared memory costs a page fault per page, and a handle that is sent through a socket. So a worker keeps the buffers
that it has sent. The first byte of a buffer is its owner: the receiver, until the last tensor or array that views the
buffer is gone there, then the worker again.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import secrets
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from laneway.errors import LanewayError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Memory = NDArray[np.uint8]
    """Shape (bytes,). A numpy array, because slicing a tensor takes several times as long."""

_HEADER_BYTES = 64
"""Size of the header before the content, which is a multiple of the alignment of every dtype."""
_RECEIVER = slice(8, 16)
"""Bytes of the header with the pid of the process that received the buffer last."""
_PAGE_BYTES = 4096
_MAX_BUFFERS = 16
"""Reusable buffers of a worker. If all are in use, the user keeps batches, and more buffers would be used only once."""

_FREE, _LENT, _ABANDONED = range(3)


class Key(NamedTuple):
    """A reusable buffer."""

    pid: int
    """Process that fills it."""
    nonce: int
    """Random number that distinguishes processes with the same pid."""
    number: int
    """Index of the buffer in its process, from 0."""


class Ticket(NamedTuple):
    """The message that sends a buffer."""

    key: Key | None
    """The buffer; None if it is not reused."""
    memory: torch.Tensor | None
    """Its memory, uint8; None if it was sent before."""
    dropped: Key | None
    """Another buffer, which the sender has dropped; None if there is none."""


class _Outbox:
    """The buffers that this process sends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._nonce = secrets.randbits(32)
        self._lock = threading.Lock()
        self._buffers: dict[int, Memory] = {}
        self._num_created = 0
        parent = multiprocessing.parent_process()
        self._receiver = self.pid if parent is None else parent.pid
        # Named shared memory exists until the last process has released it.
        multiprocessing.util.Finalize(self, self._buffers.clear, exitpriority=0)

    def lend(self, num_bytes: int) -> tuple[Memory, Ticket]:
        with self._lock:
            number = self._find_free(num_bytes)
            if number is not None:
                memory = self._buffers[number]
                memory[0] = _LENT
                return _content(memory, num_bytes), Ticket(self._key(number), None, None)
            dropped = None
            if len(self._buffers) == _MAX_BUFFERS:
                dropped = self._find_free(0)
                if dropped is None:
                    sent = _allocate(num_bytes)
                    return _content(sent.numpy(), num_bytes), Ticket(None, sent, None)
                del self._buffers[dropped]
            # Rounded up, so that slightly larger batches fit too.
            multiple = max(_PAGE_BYTES, (1 << num_bytes.bit_length()) // 8)
            sent = _allocate(-(-num_bytes // multiple) * multiple)
            memory = sent.numpy()
            memory[0] = _LENT
            number, self._num_created = self._num_created, self._num_created + 1
            self._buffers[number] = memory
            key = None if dropped is None else self._key(dropped)
            return _content(memory, num_bytes), Ticket(self._key(number), sent, key)

    def _key(self, number: int) -> Key:
        return Key(self.pid, self._nonce, number)

    def _find_free(self, num_bytes: int) -> int | None:
        """Return a free buffer of at least `num_bytes`, or None; drop the buffers that will not be returned."""
        for number, memory in list(self._buffers.items()):
            state = memory[0]
            is_lost = state == _FREE and memory[_RECEIVER].view(np.int64)[0] != self._receiver
            if state == _ABANDONED or is_lost:
                del self._buffers[number]
            elif state == _FREE and len(memory) >= _HEADER_BYTES + num_bytes:
                return number
        return None


def _allocate(num_bytes: int) -> torch.Tensor:
    """Return new shared memory, uint8.

    Raises:
        OSError: The system has no memory for it.
    """
    num_bytes += _HEADER_BYTES
    strategy = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    if not hasattr(os, "memfd_create") or strategy != "file_descriptor":
        memory = torch.empty(num_bytes, dtype=torch.uint8)
        memory.share_memory_()  # type: ignore[no-untyped-call]
        return memory
    # Not in /dev/shm, which is small in many containers: the kernel kills a process that writes to it once it is full.
    file = os.memfd_create("laneway-buffer")
    try:
        # Raises an error now, rather than when the memory is written to.
        os.posix_fallocate(file, 0, num_bytes)
        # As PyTorch receives tensors.
        storage: Any = torch.UntypedStorage._new_shared_fd_cpu(file, num_bytes)  # type: ignore[attr-defined]  # noqa: SLF001
    finally:
        os.close(file)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _content(memory: Memory, num_bytes: int | None = None) -> Memory:
    return memory[_HEADER_BYTES : None if num_bytes is None else _HEADER_BYTES + num_bytes]


_outbox: _Outbox | None = None


def lend(num_bytes: int) -> tuple[Memory, Ticket]:
    """Return shared memory to fill, uint8 of shape (num_bytes,), and the ticket to send for it, exactly once.

    Its receiver must be the process that started this one.
    """
    global _outbox  # noqa: PLW0603 - one per process
    if _outbox is None or _outbox.pid != os.getpid():
        _outbox = _Outbox()
    return _outbox.lend(num_bytes)


_known: dict[Key, Memory] = {}
"""Reusable buffers that this process has received."""
_leases: weakref.WeakSet[_Lease] = weakref.WeakSet()


class _Lease:
    """Owns the content of a buffer. numpy keeps it as the base of all views, and the last one returns the buffer."""

    def __init__(self, key: Key, memory: Memory) -> None:
        self._key, self._pid = key, os.getpid()
        self._header = memory[:1].data
        self.is_inherited = False
        """Whether a forked child may view the content too, for an unknown time."""
        self.__array_interface__ = _content(memory).__array_interface__

    def __del__(self, getpid: Any = os.getpid) -> None:  # noqa: ANN401 - `os` may be gone when the interpreter exits
        if getpid() != self._pid:
            return
        if self.is_inherited:
            _known.pop(self._key, None)
        self._header[0] = _ABANDONED if self.is_inherited else _FREE


def receive(ticket: Ticket) -> Memory:
    """Return the content of a buffer, uint8; it goes back to the sender when the last view of it is gone.

    Raises:
        LanewayError: The buffer belongs to another process.
    """
    key, sent, dropped = ticket
    if dropped is not None:
        _known.pop(dropped, None)
    if sent is not None:
        memory: Memory = sent.numpy()
        if key is None:
            return _content(memory)
        if key.number == 0:
            forget_ended_workers()
        memory[_RECEIVER].view(np.int64)[0] = os.getpid()
        _known[key] = memory
    if key is None or (known := _known.get(key)) is None:
        message = "a worker's batch was received by a process other than its loader's: send that process dict(batch)"
        raise LanewayError(message)
    lease = _Lease(key, known)
    _leases.add(lease)
    return np.asarray(lease)


def forget_ended_workers() -> None:
    """Release the buffers of processes that no longer exist; views of them stay valid."""
    for pid in {key.pid for key in list(_known)}:
        try:
            os.kill(pid, 0)
        except OSError:
            for key in list(_known):
                if key.pid == pid:
                    _known.pop(key, None)


def _mark_inherited() -> None:
    while True:
        try:
            leases = list(_leases)
        except RuntimeError:  # another thread has just received a buffer
            continue
        break
    for lease in leases:
        lease.is_inherited = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_mark_inherited)

"""Shared memory in which a worker's batches cross to the main process, and which is used again when a batch is gone.

A batch that is new shared memory costs a page fault for each of its pages and a handle that is sent through a socket.
So a worker keeps what it has sent. The first byte of a buffer says whose it is: the receiver's until the last tensor
or array that views it is gone there, then the worker's again.
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
    """Shape (bytes,). By numpy, for a slice of a tensor takes several times as long."""

_HEADER_BYTES = 64
"""Before the content, which so begins where every dtype may."""
_RECEIVER = slice(8, 16)
"""In the header: number of the process that received the buffer last."""
_PAGE_BYTES = 4096
_MAX_BUFFERS = 16
"""Of one worker. What it sends beside is used once: somebody keeps the batches."""

_FREE, _LENT, _ABANDONED = range(3)


class Key(NamedTuple):
    """A buffer that is used again."""

    pid: int
    """Of the process that fills it."""
    nonce: int
    """Tells processes with the same number apart."""
    number: int
    """Of the process's buffers, from 0."""


class Ticket(NamedTuple):
    """What is sent for a buffer."""

    key: Key | None
    """None: it is used once."""
    memory: torch.Tensor | None
    """All of it, uint8; None: it was sent before."""
    dropped: Key | None
    """A buffer that won't be used again."""


class _Outbox:
    """The buffers of this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._nonce = secrets.randbits(32)
        self._lock = threading.Lock()
        self._buffers: dict[int, Memory] = {}
        self._num_made = 0
        parent = multiprocessing.parent_process()
        self._receiver = self.pid if parent is None else parent.pid
        # Where shared memory has a name, it lives until the last process lets go of it.
        multiprocessing.util.Finalize(self, self._buffers.clear, exitpriority=0)

    def lend(self, num_bytes: int) -> tuple[Memory, Ticket]:
        with self._lock:
            found = self._free(num_bytes)
            if found is not None:
                memory = self._buffers[found]
                memory[0] = _LENT
                return _content(memory, num_bytes), Ticket(self._key(found), None, None)
            dropped = None
            if len(self._buffers) == _MAX_BUFFERS:
                dropped = self._free(0)
                if dropped is None:
                    sent = _shared(num_bytes)
                    return _content(sent.numpy(), num_bytes), Ticket(None, sent, None)
                del self._buffers[dropped]
            # A little larger than needed, so that other batches fit too.
            step = max(_PAGE_BYTES, (1 << num_bytes.bit_length()) // 8)
            sent = _shared(-(-num_bytes // step) * step)
            memory = sent.numpy()
            memory[0] = _LENT
            number, self._num_made = self._num_made, self._num_made + 1
            self._buffers[number] = memory
            key = None if dropped is None else self._key(dropped)
            return _content(memory, num_bytes), Ticket(self._key(number), sent, key)

    def _key(self, number: int) -> Key:
        return Key(self.pid, self._nonce, number)

    def _free(self, num_bytes: int) -> int | None:
        """Return a buffer for so many bytes that nobody views, and forget those that went astray."""
        for number, memory in list(self._buffers.items()):
            state = memory[0]
            is_astray = state == _FREE and memory[_RECEIVER].view(np.int64)[0] != self._receiver
            if state == _ABANDONED or is_astray:
                del self._buffers[number]
            elif state == _FREE and len(memory) >= _HEADER_BYTES + num_bytes:
                return number
        return None


def _shared(num_bytes: int) -> torch.Tensor:
    memory = torch.empty(_HEADER_BYTES + num_bytes, dtype=torch.uint8)
    memory.share_memory_()  # type: ignore[no-untyped-call]
    return memory


def _content(memory: Memory, num_bytes: int | None = None) -> Memory:
    return memory[_HEADER_BYTES : None if num_bytes is None else _HEADER_BYTES + num_bytes]


_outbox: _Outbox | None = None


def lend(num_bytes: int) -> tuple[Memory, Ticket]:
    """Return shared memory to be filled, uint8 of shape (num_bytes,), and what has to be sent for it, once.

    The process that started this one has to receive it.
    """
    global _outbox  # noqa: PLW0603 - one for each process
    if _outbox is None or _outbox.pid != os.getpid():
        _outbox = _Outbox()
    return _outbox.lend(num_bytes)


_known: dict[Key, Memory] = {}
"""The buffers that have been received."""
_leases: weakref.WeakSet[_Lease] = weakref.WeakSet()


class _Lease:
    """Owns the content of a buffer until nothing views it any more; numpy keeps it as the base of its arrays."""

    def __init__(self, key: Key, memory: Memory) -> None:
        self._key, self._pid = key, os.getpid()
        self._header = memory[:1].data
        self.is_inherited = False
        """Whether a forked child may view the content too, for as long as it likes."""
        self.__array_interface__ = _content(memory).__array_interface__

    def __del__(self, getpid: Any = os.getpid) -> None:  # noqa: ANN401 - `os` may be gone when the interpreter exits
        if getpid() != self._pid:
            return
        if self.is_inherited:
            _known.pop(self._key, None)
        self._header[0] = _ABANDONED if self.is_inherited else _FREE


def receive(ticket: Ticket) -> Memory:
    """Return the memory that was lent, from its first byte on, uint8; it is given back when nothing views it any more.

    Raises:
        LanewayError: The buffer went to another process before.
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
        message = "a worker's batch came to a process that is not its loader's: send other processes dict(batch)"
        raise LanewayError(message)
    lease = _Lease(key, known)
    _leases.add(lease)
    return np.asarray(lease)


def forget_ended_workers() -> None:
    """Let go of the buffers of processes that are gone; what is still viewed stays as long as that."""
    for pid in {key.pid for key in list(_known)}:
        try:
            os.kill(pid, 0)
        except OSError:
            for key in list(_known):
                if key.pid == pid:
                    _known.pop(key, None)


def _leave_to_child() -> None:
    while True:
        try:
            leases = list(_leases)
        except RuntimeError:  # another thread received a buffer just now
            continue
        break
    for lease in leases:
        lease.is_inherited = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_leave_to_child)

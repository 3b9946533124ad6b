"""Shared memory in which a worker's batches cross to the main process, and which is used again when a batch is gone.

A batch that is new shared memory costs a page fault for each of its pages and a handle that is sent through a socket.
So a worker keeps what it has sent. The first byte of a buffer says whose it is: the receiver's until the last tensor
or array that views it is gone there, then the worker's again.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch

from laneway.errors import LanewayError

_HEADER_BYTES = 64
"""Before the content, which so begins where every dtype may."""
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


class _Outbox:
    """The buffers of this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._nonce = secrets.randbits(32)
        self._lock = threading.Lock()
        self._buffers: dict[int, torch.Tensor] = {}
        self._num_made = 0

    def lend(self, num_bytes: int) -> tuple[torch.Tensor, Ticket]:
        with self._lock:
            for index, memory in list(self._buffers.items()):
                state = int(memory[0])
                if state == _ABANDONED:
                    del self._buffers[index]
                elif state == _FREE and len(memory) >= _HEADER_BYTES + num_bytes:
                    memory[0] = _LENT
                    return _content(memory, num_bytes), Ticket(Key(self.pid, self._nonce, index), None)
            if len(self._buffers) == _MAX_BUFFERS:
                memory = _shared(num_bytes)
                return _content(memory, num_bytes), Ticket(None, memory)
            # Larger than needed, so that other batches fit too; what isn't touched takes no memory.
            memory = _shared(1 << (num_bytes - 1).bit_length())
            memory[0] = _LENT
            index, self._num_made = self._num_made, self._num_made + 1
            self._buffers[index] = memory
            return _content(memory, num_bytes), Ticket(Key(self.pid, self._nonce, index), memory)


def _shared(num_bytes: int) -> torch.Tensor:
    memory = torch.empty(_HEADER_BYTES + num_bytes, dtype=torch.uint8)
    memory.share_memory_()  # type: ignore[no-untyped-call]
    return memory


def _content(memory: torch.Tensor, num_bytes: int) -> torch.Tensor:
    return memory[_HEADER_BYTES : _HEADER_BYTES + num_bytes]


_outbox: _Outbox | None = None


def lend(num_bytes: int) -> tuple[torch.Tensor, Ticket]:
    """Return shared memory to be filled, uint8 of shape (num_bytes,), and what has to be sent for it, once.

    Only the process that receives the ticket may receive the later tickets of this process.
    """
    global _outbox  # noqa: PLW0603 - one for each process
    if _outbox is None or _outbox.pid != os.getpid():
        _outbox = _Outbox()
    return _outbox.lend(num_bytes)


_known: dict[Key, torch.Tensor] = {}
"""The buffers that have been received."""
_leases: weakref.WeakSet[_Lease] = weakref.WeakSet()


class _Lease:
    """Owns the content of a buffer until nothing views it any more; numpy keeps it as the base of its arrays."""

    def __init__(self, key: Key, memory: torch.Tensor) -> None:
        self._key, self._pid = key, os.getpid()
        self._header = memory.numpy()[:1].data
        self.is_inherited = False
        """Whether a forked child may view the content too, for as long as it likes."""
        self.__array_interface__ = _content(memory, len(memory)).numpy().__array_interface__

    def __del__(self, getpid: Any = os.getpid) -> None:  # noqa: ANN401 - `os` may be gone when the interpreter exits
        if getpid() != self._pid:
            return
        if self.is_inherited:
            _known.pop(self._key, None)
        self._header[0] = _ABANDONED if self.is_inherited else _FREE


def receive(ticket: Ticket) -> torch.Tensor:
    """Return the memory that was lent, from its first byte on, uint8; it is given back when nothing views it any more.

    Raises:
        LanewayError: The buffer went to another process before.
    """
    key, memory = ticket
    if key is None:
        return _content(_sent(memory), len(_sent(memory)))
    if memory is not None:
        _forget_ended_workers(key)
        _known[key] = memory
    known = _known.get(key)
    if known is None:
        message = "a worker's batch was received by two processes: let one process alone take them from the loader"
        raise LanewayError(message)
    lease = _Lease(key, known)
    _leases.add(lease)
    return torch.from_numpy(np.asarray(lease))


def _sent(memory: torch.Tensor | None) -> torch.Tensor:
    if memory is None:
        message = "a buffer that is used once was sent without its memory"
        raise LanewayError(message)
    return memory


def _forget_ended_workers(new: Key) -> None:
    """Let go of buffers of processes that are gone, when one that is new sends its first."""
    if new.number:
        return
    for pid in {key.pid for key in _known}:
        try:
            os.kill(pid, 0)
        except OSError:
            for key in [key for key in _known if key.pid == pid]:
                del _known[key]


def _leave_to_child() -> None:
    for lease in list(_leases):
        lease.is_inherited = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_leave_to_child)

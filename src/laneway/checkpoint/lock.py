"""One writer per folder: a file that names it, and that it renews as long as it lives."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Literal, NamedTuple

from laneway.checkpoint.layout import WRITER
from laneway.errors import CheckpointError, LanewayError
from laneway.storage.reading import read_small_file
from laneway.storage.writing import create_file, remove_file, write_file

if TYPE_CHECKING:
    from laneway.storage.filesystem import Storage

BEAT_S = 10.0
"""Seconds from one renewal to the next."""
STALE_S = 30.0
"""A writer that was not renewed for so long is gone."""
_log = logging.getLogger(__name__)


class _Holder(NamedTuple):
    """What the file says."""

    owner: str
    host: str
    pid: int
    beat: int

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()


class WriterLock:
    """Keeps other jobs from writing checkpoints to the same folder.

    Time is measured by one's own clock only: a writer is gone if its file does not change for `STALE_S`.
    """

    def __init__(self, storage: Storage) -> None:
        """Prepare to lock the root of `storage`."""
        self._storage = storage
        self._path = storage.join(WRITER)
        self._mine = _Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), 0)
        self._end = threading.Event()
        self._lost: str | None = None
        self._thread: threading.Thread | None = None

    def acquire(self, if_locked: Literal["error", "wait"]) -> None:
        """Become the writer; a second call does nothing.

        Raises:
            CheckpointError: Another job writes here.
            DataFileError: The storage refused.
        """
        if self._thread is not None:
            return
        while not self._create():
            holder = self._read()
            if holder is None:
                continue
            if self._is_gone(holder):
                _log.warning("the job that wrote checkpoints to %s was killed, or lost: taking over", self._name)
                # Whoever of several takes over wrote last; the others notice.
                write_file(self._storage, self._path, self._mine.encode())
                time.sleep(0.1)
                if self._read() == self._mine:
                    break
            elif if_locked == "error":
                is_own = (holder.host, holder.pid) == (self._mine.host, self._mine.pid)
                whose = "another Checkpoints of this process, " if is_own else ""
                message = (
                    f"{whose}process {holder.pid} on {holder.host} writes checkpoints to {self._name}: "
                    f"{'close() it first' if is_own else 'end that job'}, use another folder, "
                    'or pass if_locked="wait"'
                )
                raise CheckpointError(message)
        self._thread = threading.Thread(target=_renew, args=(weakref.ref(self), self._end), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that this is still the writer.

        Raises:
            CheckpointError: Another job has taken over.
        """
        if self._lost is not None:
            message = f"{self._lost} has taken over {self._name}: this process was silent for over {STALE_S:.0f} s"
            raise CheckpointError(message)

    def release(self) -> None:
        """Cease to be the writer."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        if self._lost is None:
            try:
                remove_file(self._storage, self._path)
            except Exception as error:  # noqa: BLE001 - another job takes over what can't be removed
                _log.warning("%s can't be removed: %s", self._storage.redact(self._path), type(error).__name__)

    def renew(self) -> None:
        """Show that this process lives; called by a thread."""
        try:
            holder = self._read()
            if holder is not None and holder.owner != self._mine.owner:
                self._lost = f"process {holder.pid} on {holder.host}"
                return
            self._mine = self._mine._replace(beat=self._mine.beat + 1)
            write_file(self._storage, self._path, self._mine.encode())
        except LanewayError as error:
            _log.warning("this job can't show that it lives: %s", error)

    @property
    def is_lost(self) -> bool:
        """Whether another job has taken over."""
        return self._lost is not None

    @property
    def _name(self) -> str:
        return self._storage.redact(self._storage.root)

    def _create(self) -> bool:
        """Create the file, and return whether it did not exist."""
        is_mine = create_file(self._storage, self._path, self._mine.encode())
        # Not every store that accepts a condition respects it.
        return is_mine and (self._storage.is_local or self._read() == self._mine)

    def _read(self) -> _Holder | None:
        data = read_small_file(self._storage, self._path)
        if data is None:
            return None
        try:
            fields = json.loads(data)
            return _Holder(str(fields["owner"]), str(fields["host"]), int(fields["pid"]), int(fields["beat"]))
        except (ValueError, KeyError, TypeError):
            # It is being written, or its writer's disk was full.
            return _Holder("", "unknown", 0, len(data))

    def _is_gone(self, holder: _Holder) -> bool:
        """Return whether a writer is gone, after watching it for a while."""
        if holder.host == self._mine.host and holder.pid and not _is_alive(holder.pid):
            return True
        _log.info("waiting up to %.0f s to see whether %s is in use", STALE_S, self._name)
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(min(BEAT_S / 4, STALE_S / 4))
            if self._read() != holder:
                return False
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _renew(lock: weakref.ref[WriterLock], end: threading.Event) -> None:
    while not end.wait(BEAT_S):
        held = lock()
        if held is None or held.is_lost:
            return
        held.renew()
        del held

"""The Python stacks of a process, also of a worker that is stuck: it writes them when it receives a signal."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laneway.activity import STACKS

if TYPE_CHECKING:
    from collections.abc import Collection

# A real-time signal: no library has a meaning for it.
_SIGNAL: Final = signal.SIGRTMIN + 9 if sys.platform == "linux" else 0
_IDLE: Final = re.compile(r"reading/threads\.py\", line \d+ in _work$|multiprocessing/queues\.py\", line \d+ in _feed$")
"""Line of a thread that has nothing to read, or to send."""
_WORKER: Final = re.compile(r"in _worker_loop$")
"""Line of what a DataLoader runs in a worker; a forked one has the stack of its parent below it."""
_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.01


def offer_stacks(cells: memoryview) -> None:
    """Have this worker write the stacks of its threads when its parent asks for them; on Linux only.

    Args:
        cells: The memory of its activity, where the parent finds the file.
    """
    if sys.platform == "linux":
        file = os.memfd_create("laneway-stacks")
        # It needs neither the lock of the interpreter nor a thread that is free.
        faulthandler.register(_SIGNAL, file=file, all_threads=True)
        cells[STACKS] = file + 1


def stacks_of(pid: int, cells: memoryview) -> str:
    """Return the stacks of the threads of a worker, or "" if it doesn't tell them.

    Args:
        pid: The worker.
        cells: The memory of its activity.
    """
    file = cells[STACKS] - 1
    if file < 0:
        return ""
    try:
        with Path(f"/proc/{pid}/fd/{file}").open("rb") as stacks:
            before = os.fstat(stacks.fileno()).st_size
            os.kill(pid, _SIGNAL)
            end, size = time.monotonic() + _TIMEOUT_S, before
            while time.monotonic() < end:
                time.sleep(_POLL_S)
                last, size = size, os.fstat(stacks.fileno()).st_size
                if before < last == size:
                    break
            stacks.seek(before)
            return _relevant(stacks.read().decode(errors="replace"))
    except OSError:
        return ""


def _relevant(stacks: str) -> str:
    """Return the stacks without threads that wait for work, each down to where the worker has begun."""
    found = []
    for stack in stacks.strip().split("\n\n"):
        lines = stack.splitlines()
        if any(_IDLE.search(line) for line in lines[:3]):
            continue
        start = next((index for index, line in enumerate(lines) if _WORKER.search(line)), len(lines))
        found.append("\n".join(lines[:start]))
    return "\n\n".join(found)


def stacks_of_threads(threads: Collection[int]) -> str:
    """Return the stacks of some threads of this process, named by their idents, those that are gone left out."""
    found = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to ask
        if ident in threads:
            stack = "".join(traceback.format_stack(frame)).rstrip()
            found.append(f"Thread {ident:#x} (most recent call last):\n{stack}")
    return "\n\n".join(found)

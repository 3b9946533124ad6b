"""How workers are started, and which signals they ignore."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


def are_forked(context: BaseContext | None) -> bool:
    """Return whether workers are copies of this process, and have what it has computed."""
    return (context or multiprocessing).get_start_method() == "fork"


def start_fork_server(context: BaseContext | None) -> None:
    """Start the server that forks workers, if there is one: before signals are held back.

    Whatever it forks inherits what it holds back, also processes that are not workers.

    Args:
        context: That of the workers; None: the default of this process.
    """
    if (context or multiprocessing).get_start_method() == "forkserver":
        forkserver.ensure_running()


def ignore_signals_of_the_group() -> None:
    """Ignore SIGINT, and SIGTERM unless the process that started this worker sends it, which may save a checkpoint."""
    started_by = multiprocessing.parent_process()
    # Not the parent of a worker that comes from a fork server: that is the server.
    pid = os.getppid() if started_by is None or started_by.pid is None else started_by.pid
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM is held back in all threads, so it reaches only the one below, which can ask who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(pid,), name="laneway-signals", daemon=True).start()


def _end_for(pid: int) -> None:
    """Wait for a SIGTERM from a process, and end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

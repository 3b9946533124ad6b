"""The thread that watches a pass without workers, and its end."""

from __future__ import annotations

import sys
import threading
from typing import Any

from laneway.delivery.own_watch import watch
from laneway.delivery.reports import LoopTimes
from tests.waiting import wait_until


class Running:
    """Stands for a pass, which is only asked for once a batch is late."""


def threads_of_watches() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "laneway-watch"]


def test_no_python_code_that_a_signal_could_interrupt_runs_at_the_end_of_a_watch() -> None:
    before, running = threads_of_watches(), Running()
    end: Any = watch(running, LoopTimes(), 600.0)  # type: ignore[arg-type]
    (thread,) = [each for each in threads_of_watches() if each not in before]
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        end()
    finally:
        sys.setprofile(None)
    assert called == []
    end()  # it may be called again
    wait_until(lambda: not thread.is_alive(), lambda: "the thread is still there")

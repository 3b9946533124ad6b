"""Errors raised wherever a signal handler may run."""

from __future__ import annotations

import dis
import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class InterruptError(BaseException):
    """Raised by the signal handler."""


HANDLERS_RUN_AFTER = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME")}
"""Where CPython runs signal handlers: at the start of a function, after a call, and before a loop goes on."""


class Interruption:
    """Raises an error in this thread, once, where a signal handler may run."""

    def __init__(self, num_steps: int, folder: str = "") -> None:
        """Raise it at this place in the code of a folder, counted from now."""
        self.steps_left = num_steps
        self._folder = folder
        self._last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        """Trace a frame."""
        if not frame.f_code.co_filename.startswith(self._folder):
            return None
        frame.f_trace_opcodes = True
        if event == "return":
            self._last.pop(frame, None)
        elif event == "opcode":
            last, self._last[frame] = self._last.get(frame), frame.f_code.co_code[frame.f_lasti]
            if last in HANDLERS_RUN_AFTER:
                self.steps_left -= 1
                if self.steps_left == 0:
                    sys.settrace(None)
                    raise InterruptError
        return self


@contextmanager
def traced(trace: Interruption) -> Iterator[None]:
    """Trace this thread, without the garbage collector: Python ignores an error in a finalizer that it runs."""
    before = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()

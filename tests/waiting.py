"""Waiting for a fact, never for a time in which it is probably true."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_POLL_S = 0.002


def wait_until(is_true: Callable[[], bool], fact: Callable[[], str], *, timeout_s: float = 60) -> None:
    """Wait until a condition holds.

    Args:
        is_true: The condition.
        fact: Describes the condition, and how far from it things are when time is up.
        timeout_s: Seconds to wait.

    Raises:
        TimeoutError: The condition does not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            message = f"after {timeout_s:g} s still not true: {fact()}"
            raise TimeoutError(message)
        time.sleep(_POLL_S)


@dataclass(frozen=True)
class CountedTransform:
    """A transform that counts its calls in all worker processes, as the bytes of a file."""

    path: Path
    """The file, created by the first call."""
    transform: Callable[[Any], Any] | None = None
    """Transforms the batch, after the call was counted."""

    def __call__(self, batch: Any) -> Any:
        """Count the call, then transform the batch."""
        with self.path.open("ab") as file:
            file.write(b".")
        return batch if self.transform is None else self.transform(batch)

    @property
    def num_calls(self) -> int:
        """Calls in all processes until now."""
        return self.path.stat().st_size if self.path.exists() else 0

    def wait_for(self, num_calls: int) -> None:
        """Wait until the workers have read that many batches.

        Raises:
            TimeoutError: They have not, for a minute.
        """
        wait_until(
            lambda: self.num_calls >= num_calls,
            lambda: f"workers have read {num_calls} batches (they have read {self.num_calls})",
        )

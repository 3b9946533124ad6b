"""Progress bars of work that may take long."""

from __future__ import annotations

from typing import Final

from tqdm import tqdm

from laneway.arguments import check_flag

_SHOW_AFTER_S: Final = 2.0


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A progress bar without a monitor thread: it would outlive the work, and forking with threads is unsafe."""

    monitor_interval = 0


def progress_bar(total: int, what: str, unit: str, *, progress: bool | None) -> ProgressBar:
    """Return a progress bar.

    Args:
        total: Number of things to do.
        what: What is done.
        unit: What is counted.
        progress: True shows it, False does not, None does if the work takes longer than 2 s.

    Raises:
        TypeError: `progress` is none of these.
    """
    check_flag("progress", progress, or_none=True)
    return ProgressBar(
        total=total,
        desc=what,
        unit=unit,
        leave=False,
        disable=progress is False,
        delay=0 if progress else _SHOW_AFTER_S,
    )

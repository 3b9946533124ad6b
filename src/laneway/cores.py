"""How many cores of the machine this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""File of a container: microseconds of CPU time per period, or "max", and microseconds of a period."""


def usable_cores() -> int:
    """Return the cores that this process is bound to, but not more than its container may use at a time."""
    return min(_cores_of_container(), _bound_cores())


def cores_of_rank() -> int:
    """Return the cores that this process may use, at least 1, if the ranks on this machine share its cores evenly.

    torchrun sets the environment variable `LOCAL_WORLD_SIZE` to the number of these ranks. The cores that a process is
    bound to are not divided, since launchers bind each rank to cores of its own.
    """
    value = os.environ.get("LOCAL_WORLD_SIZE", "")
    num_ranks = int(value) if value.isdecimal() else 1
    return max(1, min(_cores_of_container() // max(1, num_ranks), _bound_cores()))


def _bound_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores_of_container() -> int:
    cores = os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
    except (OSError, ValueError):  # not in a container, for example
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))

"""Effects of the machine that a benchmark must not mistake for the cost of the code."""

from __future__ import annotations

import mmap

import numpy as np


def warm_memory(num_mib: int = 1_024) -> None:
    """Touch this much memory and free it, so that the next measurement finds its pages present.

    A virtual machine returns unused memory to its host within seconds. Getting a page back takes thirty times as long
    as clearing one, and the first contender that needs much memory would pay for all.
    """
    np.empty(num_mib << 20, np.uint8)[:: mmap.PAGESIZE] = 0

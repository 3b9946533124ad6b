"""What a machine does that would be mistaken for the cost of what is measured."""

from __future__ import annotations

import mmap

import numpy as np


def warm_memory(num_mib: int = 1_024) -> None:
    """Touch this much memory and give it back, so that what is measured next finds pages that are there.

    A virtual machine gives unused memory back to its host within seconds. To get a page anew takes thirty times as long
    as to clear one, and whoever needs most memory first would pay for all.
    """
    np.empty(num_mib << 20, np.uint8)[:: mmap.PAGESIZE] = 0

"""Whether memory lies in a mapped file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def is_mapped(column: np.ndarray[Any, Any]) -> bool:
    """Return whether a column lies in a mapped file."""
    address = column.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        start, stop = (int(each, 16) for each in span.split("-"))
        if start <= address < stop:
            return inode != "0"
    return False

"""Folders of many checkpoints, for tests of what it takes to look through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laneway.checkpoint.layout import INDEX, Checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def write_indices(path: Path, count: int) -> None:
    """Write the indices of checkpoints that hold nothing: number n is of step n, from 1."""
    for number in range(1, count + 1):
        checkpoint = Checkpoint(number, number)
        folder = path / checkpoint.name
        folder.mkdir(parents=True)
        (folder / INDEX).write_bytes(checkpoint.encode())

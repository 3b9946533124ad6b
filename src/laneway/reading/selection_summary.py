"""What users see of a selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np

if TYPE_CHECKING:
    from laneway.catalog.manifest import Manifest
    from laneway.reading.selecting import RowSelection


class SelectionStep(NamedTuple):
    """A step of a selection."""

    text: str
    """What it selects."""
    num_rows: int
    """Rows that it leaves."""
    blocks_by_keys: int
    """Row groups or record batches that the names of their directories decided when the step was planned."""
    blocks_by_statistics: int
    """Those that the statistics of their columns decided."""
    blocks_by_rows: int
    """Those of which the columns of the step had to be read."""


@final
@dataclass(frozen=True)
class SelectionSummary:
    """Which rows of its files a dataset delivers."""

    steps: tuple[SelectionStep, ...]
    """Filters, splits and slices, each of what the one before has left."""
    num_rows: int
    """Rows that are selected."""
    num_rows_in_files: int
    """Rows of all files."""
    num_whole_blocks: int
    """Row groups or record batches of which all rows are selected."""
    num_partial_blocks: int
    """Those of which some rows are."""
    num_empty_blocks: int
    """Those of which none are: they are never read."""

    @classmethod
    def of(cls, manifest: Manifest, selection: RowSelection) -> SelectionSummary:
        """Return the summary of a selection."""
        rows, most = selection.rows.block_rows, manifest.files.block_rows
        steps = [
            SelectionStep(step.text, int(counts.block_rows.sum()), *counts[1:])
            for step, counts in zip(selection.steps, selection.planned, strict=True)
        ]
        num_whole = int(np.count_nonzero((rows == most) & (rows > 0)))
        num_empty = int(np.count_nonzero(rows == 0))
        num_partial = len(rows) - num_whole - num_empty
        return cls(tuple(steps), int(rows.sum()), manifest.num_rows, num_whole, num_partial, num_empty)

    def __repr__(self) -> str:
        lines = [f"{self.num_rows:,} of {self.num_rows_in_files:,} rows"]
        lines += [f"{step.text}: {step.num_rows:,} rows" for step in self.steps]
        lines.append(
            f"{self.num_whole_blocks:,} row groups as a whole, {self.num_partial_blocks:,} in part, "
            f"{self.num_empty_blocks:,} not at all"
        )
        return "SelectionSummary(\n  " + ",\n  ".join(lines) + "\n)"

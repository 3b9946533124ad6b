"""Pictures of counts: how large files and row groups are, and what checkpoints prove of each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from laneway.pictures.svg import Drawing, Plot, rounded_number
from laneway.wording import counted, plural, rounded_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from laneway.inspection.report import AuditedEpoch

_WIDTH: Final = 460
_MAX_EPOCHS: Final = 20
_BAR: Final = 22
_MAX_NAME: Final = 12


def draw_sizes(title: str, noun: str, sizes: NDArray[np.int64]) -> Drawing:
    """Draw how many of some things have which size in bytes, by powers of two."""
    powers = np.floor(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    first, last = (int(powers.min()), int(powers.max())) if len(powers) else (0, 0)
    counts = np.bincount(powers - first, minlength=last - first + 1)
    words = (
        f"{counted(len(sizes), noun)}, of {rounded_size(float(sizes.min()))} to {rounded_size(float(sizes.max()))}"
        if len(sizes)
        else f"no {plural(noun)}"
    )
    drawing = Drawing(_WIDTH, 190, f"{title}: {words}.")
    drawing.heading(title, words)
    plot = Plot(drawing, 56, _WIDTH - 8, 48, 156, len(counts), max(int(counts.max()), 1) * 1.05)
    plot.scale_y(rounded_number)
    plot.axis()
    every = -(-len(counts) // 5)
    for index, count in enumerate(counts.tolist()):
        middle, width = plot.x(index + 0.5), min((plot.x(1) - plot.x(0)) * 0.86, 60)
        low, high = rounded_size(2.0 ** (first + index)), rounded_size(2.0 ** (first + index + 1))
        plot.bar(middle, width, count, f"{counted(count, noun)} of {low} to {high}")
        if index % every == 0:
            drawing.text(middle, plot.bottom + 16, low, anchor="middle")
    return drawing


def draw_audit(epochs: Sequence[AuditedEpoch], width: int) -> Drawing:
    """Draw what checkpoints prove of the last epochs: delivered exactly once, left, left out, and not proved."""
    shown = epochs[-_MAX_EPOCHS:]
    drawing = Drawing(width, 62 + _BAR * len(shown), f"What the checkpoints prove of {counted(len(epochs), 'epoch')}.")
    left = 176 if any(epoch.source for epoch in shown) else 76
    names = (("done", "exactly once"), ("left", "yet to come"), ("out", "left out on purpose"), ("bad", "not proved"))
    for index, (kind, name) in enumerate(names):
        drawing.box(kind, left + 160 * index, 8, 12, 12)
        drawing.text(left + 18 + 160 * index, 18, name)
    for index, epoch in enumerate(shown):
        y, room = 34 + _BAR * index, width - left - 8
        drawing.text(left - 8, y + 13, _label(epoch), anchor="end")
        proved = epoch.num_delivered, epoch.num_left, epoch.num_left_out
        x = float(left)
        for (kind, name), rows in zip(names, (*proved, epoch.num_rows - sum(proved)), strict=True):
            if rows:
                # Even one row that is not proved is seen.
                part = max(room * rows / max(epoch.num_rows, 1), 3.0)
                drawing.box(kind, min(x, width - 11), y, part, _BAR - 6, says=f"{counted(rows, epoch.unit)} {name}")
                x += part
    return drawing


def _label(epoch: AuditedEpoch) -> str:
    """Return the name of a bar."""
    last = epoch.epoch + epoch.num_epochs - 1
    epochs = f"epoch {epoch.epoch}" if epoch.num_epochs == 1 else f"epochs {epoch.epoch} to {last}"
    if not epoch.source:
        return epochs
    source = epoch.source if len(epoch.source) <= _MAX_NAME else f"{epoch.source[: _MAX_NAME - 3]}..."
    return f"{source}, {epochs}"

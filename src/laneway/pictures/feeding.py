"""The picture of how well a training loop was fed: its utilisation, and where the time of a batch went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from laneway.pictures.svg import Drawing, Plot, rounded_number
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH: Final = 720
_LEFT: Final = 76
_KINDS: Final = ("s0", "s1", "s2", "s3", "s4", "s5")
"""How the stages are drawn, in their order."""


class FedLoop(NamedTuple):
    """What a training loop measured with some number of workers."""

    num_workers: int
    """The workers."""
    utilisation: float
    """Share of the time in which it computed, from 0 to 1."""
    bound_by: str
    """What it waited for, in words."""
    stage_ms: Mapping[str, float]
    """Stage -> milliseconds that it took of a batch, all workers together."""


def draw_utilisation(loops: Sequence[FedLoop], step_ms: float) -> Drawing:
    """Draw which share of the time each loop computed."""
    drawing = Drawing(_WIDTH, 212, f"Utilisation of a loop with steps of {step_ms:g} ms.")
    drawing.heading("Utilisation", f"share of its time that a loop with steps of {step_ms:g} ms spent computing")
    plot = Plot(drawing, _LEFT, _WIDTH - 8, 50, 172, len(loops), 1.05)
    plot.scale_y(lambda share: f"{share:.0%}")
    _workers(plot, loops)
    for index, each in enumerate(loops):
        says = f"{counted(each.num_workers, 'worker')}: {each.utilisation:.1%}, bound by {each.bound_by}"
        plot.bar(plot.x(index + 0.5), _bar_width(plot), each.utilisation, says)
    return drawing


def draw_stages(loops: Sequence[FedLoop]) -> Drawing:
    """Draw how long each stage took of a batch, one above the other."""
    most = max((sum(each.stage_ms.values()) for each in loops), default=0.0)
    drawing = Drawing(_WIDTH, 236, "Milliseconds of each stage of a batch.")
    drawing.heading("Stages", "milliseconds of a batch; stages of several threads and workers run at the same time")
    plot = Plot(drawing, _LEFT, _WIDTH - 8, 74, 196, len(loops), max(most, 1e-3) * 1.05)
    plot.scale_y(rounded_number)
    _workers(plot, loops)
    stages = [*loops[0].stage_ms] if loops else []
    for place, (stage, kind) in enumerate(zip(stages, _KINDS, strict=True)):
        drawing.box(kind, _LEFT + 100 * place, 46, 12, 12)
        drawing.text(_LEFT + 18 + 100 * place, 56, stage)
    for index, each in enumerate(loops):
        below = 0.0
        for stage, kind in zip(stages, _KINDS, strict=True):
            above = below + each.stage_ms[stage]
            says = f"{counted(each.num_workers, 'worker')}, {stage}: {each.stage_ms[stage]:.3g} ms"
            left, top = plot.x(index + 0.5) - _bar_width(plot) / 2, plot.y(above)
            drawing.box(kind, left, top, _bar_width(plot), plot.y(below) - top, says=says)
            below = above
    return drawing


def _bar_width(plot: Plot) -> float:
    return min((plot.x(1) - plot.x(0)) * 0.8, 60.0)


def _workers(plot: Plot, loops: Sequence[FedLoop]) -> None:
    """Draw the axis, with the numbers of workers."""
    plot.axis()
    for index, each in enumerate(loops):
        plot.drawing.text(plot.x(index + 0.5), plot.bottom + 16, f"{each.num_workers:,}", anchor="middle")
    plot.drawing.text(plot.right, plot.bottom + 32, "workers", anchor="end")

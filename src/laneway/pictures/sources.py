"""The picture of a mixture: from which sources the rows of its steps come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from laneway.pictures.epochs import WIDTH
from laneway.pictures.svg import Drawing, Plot
from laneway.wording import counted

if TYPE_CHECKING:
    from laneway.plans.source_samples import SampledSources

_MAX_COLOURS: Final = 8
_MIN_LABEL: Final = 90
"""Width of a cut, in pixels, below which it has no label."""
_MAX_NAME: Final = 18


def draw_sources(samples: SampledSources) -> Drawing:
    """Draw the shares of the sources of a mixture, from its first step that is known on, and its cuts."""
    shares = sorted(zip(samples.shares, range(len(samples.names)), strict=True), reverse=True)
    # Of many sources, those that have least are drawn as one.
    kept = [index for _, index in shares[: _MAX_COLOURS if len(shares) <= _MAX_COLOURS else _MAX_COLOURS - 1]]
    others = [index for _, index in shares[len(kept) :]]
    names = [_name(samples.names[index]) for index in kept] + ([f"{len(others):,} others"] if others else [])
    words = ", ".join(f"{name} {share:.1%}" for name, (share, _) in zip(names[: len(kept)], shares, strict=False))
    drawing = Drawing(WIDTH, 310, f"Shares of the sources: {words}.")
    drawing.heading("Sources", "from which source the rows come, step by step; a dashed line is a new cut")
    plot = Plot(drawing, 76, WIDTH - 170, 76, 268, samples.num_steps, 1.0)
    for part in samples.steps:
        rows = [part.rows[index] for index in kept] + ([sum(part.rows[index] for index in others)] if others else [])
        total, below = sum(rows), 0
        left, right = plot.x(part.first_step), plot.x(part.first_step + part.num_steps)
        for place, (name, number) in enumerate(zip(names, rows, strict=True)):
            if number:
                high, low = plot.y((below + number) / total), plot.y(below / total)
                says = f"{name}: {number / total:.1%} from step {part.first_step:,} on"
                drawing.box(f"s{place}", left, high, right - left + 0.3, low - high, says=says)
                below += number
    plot.scale_y(lambda share: f"{share:.0%}")
    plot.scale_x("step")
    for place, name in enumerate(names):
        share = sum(samples.shares[index] for index in others) if place == len(kept) else shares[place][0]
        drawing.box(f"s{place}", plot.right + 14, 78 + 20 * place, 12, 12)
        drawing.text(plot.right + 32, 88 + 20 * place, f"{name} {share:.1%}")
    _draw_cuts(drawing, plot, samples)
    return drawing


def _draw_cuts(drawing: Drawing, plot: Plot, samples: SampledSources) -> None:
    """Draw where cuts begin, and where the next step is."""
    last = -float(_MIN_LABEL)
    for cut in samples.cuts:
        x = plot.x(cut.first_step)
        is_now = not cut.is_delivered and cut.first_step == samples.next_step and samples.next_step > 0
        drawing.line("mark", [(x, plot.top - 6), (x, plot.bottom + 4)], 2.4 if is_now else 1, "" if is_now else "2 3")
        if x - last >= _MIN_LABEL or (is_now and x - last >= _MIN_LABEL / 2):
            drawing.text(x + 3, plot.top - 20, "next step" if is_now else counted(cut.world_size, "rank"), "tag strong")
            drawing.text(x + 3, plot.top - 8, counted(cut.num_lanes, "lane"))
            last = x


def _name(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..."

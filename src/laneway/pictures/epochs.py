"""Pictures of an epoch: its lanes cut by cut, where the rows of its steps come from, and how well they are mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from laneway.pictures.svg import Drawing, Plot
from laneway.plans.samples import evenly, sample_lanes
from laneway.wording import counted

if TYPE_CHECKING:
    from laneway.plans.epoch_plan import EpochPlan
    from laneway.plans.samples import SampledBatches, SampledLane, SampledStretch

WIDTH: Final = 960
_LEFT: Final = 76
_MAX_LANES, _MAX_STRETCHES, _MAX_WINDOWS = 24, 12, 300
_MAX_BOXES: Final = 2_500
"""Windows that are drawn, in all lanes of all cuts."""
_MAX_DOTS: Final = 6_000
_MIN_LABEL: Final = 90
"""Width of a cut, in pixels, below which it has no label."""


def draw_lanes(plan: EpochPlan) -> Drawing:
    """Draw the lanes of each cut along the rows of the epoch, with their windows, and what was delivered."""
    found = sample_lanes(plan, _MAX_LANES, _MAX_WINDOWS)
    shown, hidden = found[-_MAX_STRETCHES:], found[:-_MAX_STRETCHES]
    num_lanes = max((len(each.lanes) for each in shown), default=1)
    row_height = max(6.0, min(22.0, 200 / num_lanes))
    top, body = 76, num_lanes * row_height
    done = sum(each.num_rows for each in found if each.is_delivered)
    total = sum(each.num_rows for each in found)
    state = f"{done / total:.1%} delivered" if total and done else "nothing delivered yet" if total else "no rows"
    num_windows = counted(plan.num_windows or 0, "window")
    is_detailed = _is_detailed(shown)
    alt = f"The epoch as lanes: {state}, {counted(plan.num_lanes, 'lane')}, {num_windows}."
    drawing = Drawing(WIDTH, int(top + body + 44), alt)
    note = f"{state}; each bar is a lane, " + (
        "each shade a window, whose rows are shuffled together" if is_detailed else "its windows too many to be drawn"
    )
    drawing.heading("Lanes and progress", note)
    x, room = float(_LEFT), WIDTH - _LEFT - 8
    if hidden:
        rows = sum(each.num_rows for each in hidden)
        width = room * rows / total
        says = f"{counted(len(hidden), 'earlier stretch', 'earlier stretches')}, {counted(rows, 'row')}"
        drawing.box("done2", x, top, width, body, says)
        x += width
    marks = []
    for each in shown:
        width = room * each.num_rows / total
        _draw_stretch(drawing, each, x, top, width, row_height, is_detailed=is_detailed)
        marks.append((x, each))
        x += width
    _draw_marks(drawing, marks, x, top, body, plan)
    for index, lane in enumerate(evenly(plan.num_lanes, _MAX_LANES) if shown else ()):
        if row_height >= 11 or index % 2 == 0:
            drawing.text(_LEFT - 8, top + (index + 0.5) * row_height + 4, f"lane {lane}", anchor="end")
    if plan.num_lanes > _MAX_LANES:
        drawing.text(_LEFT, top + body + 36, f"{_MAX_LANES} of {plan.num_lanes:,} lanes")
    return drawing


def _is_detailed(stretches: list[SampledStretch]) -> bool:
    """Return whether windows are drawn."""
    lanes = [lane for each in stretches for lane in each.lanes]
    return all(lane.windows or not lane.num_rows for lane in lanes) and (
        sum(len(lane.windows) for lane in lanes) <= _MAX_BOXES
    )


def _draw_stretch(
    drawing: Drawing, stretch: SampledStretch, x: float, top: float, width: float, height: float, *, is_detailed: bool
) -> None:
    kind = "done" if stretch.is_delivered else "ahead"
    scale = width / stretch.longest
    for index, lane in enumerate(stretch.lanes):
        y = top + index * height
        if not is_detailed:
            says = f"lane {lane.lane}: {counted(lane.num_rows, 'row')}"
            drawing.box(kind, x, y + 1, lane.num_rows * scale, height - 2, says)
            continue
        _draw_windows(drawing, lane, kind, x, y + 1, scale, height - 2)


def _draw_windows(
    drawing: Drawing, lane: SampledLane, kind: str, x: float, y: float, scale: float, height: float
) -> None:
    for index, (window, start, stop) in enumerate(lane.windows):
        shade = f"{kind}2" if index % 2 else kind
        says = f"lane {lane.lane}, window {window}: {counted(stop - start, 'row')}"
        drawing.box(shade, x + start * scale, y, (stop - start) * scale, height, says)


def _draw_marks(
    drawing: Drawing,
    marks: list[tuple[float, SampledStretch]],
    end: float,
    top: float,
    body: float,
    plan: EpochPlan,
) -> None:
    """Write who took each stretch, and draw where it begins."""
    for index, (x, each) in enumerate(marks):
        right = marks[index + 1][0] if index + 1 < len(marks) else end
        is_now = not each.is_delivered and plan.next_step > 0
        drawing.line("mark", [(x, top - 6), (x, top + body + 6)], 2.4 if is_now else 1, "" if is_now else "2 3")
        if right - x >= _MIN_LABEL:
            drawing.text(x + 3, top - 22, counted(each.world_size, "rank"), "tag strong")
            drawing.text(x + 3, top - 9, counted(each.num_lanes, "lane"))
        anchor = "start" if right - x >= _MIN_LABEL or index == 0 else "middle"
        if index == 0 or is_now or x - marks[index - 1][0] >= _MIN_LABEL:
            label = f"step {each.first_step:,}" + (", next" if is_now else "")
            drawing.text(x, top + body + 20, label, anchor="start" if end - x > _MIN_LABEL else anchor)
    if marks and end - marks[-1][0] > 2 * _MIN_LABEL:
        drawing.text(end, top + body + 20, f"step {plan.num_steps:,}", anchor="end")


def draw_rows(plan: EpochPlan, samples: SampledBatches) -> Drawing:
    """Draw where the rows of steps are in the files."""
    next_step, some = plan.next_step, samples.num_ranks < plan.world_size
    of_ranks = f"; {samples.num_ranks} of {plan.world_size:,} ranks" if some else ""
    alt = "Where the rows of each step are in the files, from the first file at the bottom to the last at the top."
    drawing = Drawing(WIDTH, 292, alt)
    plot = Plot(drawing, _LEFT, WIDTH - 8, 50, 252, samples.num_steps, samples.num_rows)
    drawing.heading("Rows against time", f"each dot is a row of a batch: its step, and its place in the files{of_ranks}")
    for share, name in ((0, "first file"), (1, "last file")):
        y = plot.y(share * samples.num_rows)
        drawing.line("grid", [(plot.left, y), (plot.right, y)])
        drawing.text(plot.left - 8, y + 4, name, anchor="end")
    plot.scale_x("step")
    each_of = max(1, _MAX_DOTS // max(len(samples.batches), 1))
    points = [
        (plot.x(batch.step + 0.5), plot.y(int(batch.places[index])))
        for batch in samples.batches
        for index in evenly(len(batch.places), each_of)
    ]
    if points:
        drawing.dots("dots", points, 2.2 if len(points) > _MAX_DOTS / 4 else 3.4)
    if next_step:
        x = plot.x(next_step)
        drawing.line("mark", [(x, plot.top), (x, plot.bottom)], 2.4)
        drawing.text(x, plot.top - 5, "next step", "tag strong", "middle" if x < WIDTH - 60 else "end")
    return drawing


def draw_mixing(samples: SampledBatches) -> Drawing:
    """Draw from how many shards the rows of each batch come."""
    by_step: dict[int, list[tuple[int, float]]] = {}
    for batch in samples.batches:
        by_step.setdefault(batch.step, []).append((batch.shards, batch.expected_shards))
    means = {step: [sum(each) / len(of) for each in zip(*of, strict=True)] for step, of in by_step.items()}
    most = max((max(each) for each in means.values()), default=1)
    mixing = samples.mixing
    words = "there are no batches" if mixing is None else f"on average {mixing:.0%} of what a perfect shuffle has"
    drawing = Drawing(WIDTH, 232, f"Shards in a batch of a rank: {words}.")
    plot = Plot(drawing, _LEFT, WIDTH - 150, 50, 192, samples.num_steps, most * 1.05)
    drawing.heading("Mixing", f"from how many shards the rows of a batch come: {words}")
    plot.scale_y(lambda value: f"{value:,.3g}")
    plot.scale_x("step")
    for index, (kind, name, width) in enumerate((("other", "perfect shuffle", 1.4), ("line", "this epoch", 2.0))):
        values = [(plot.x(step + 0.5), plot.y(of[1 - index])) for step, of in means.items()]
        if values:
            drawing.line(kind, values if len(values) > 1 else values * 2, width, "5 4" if kind == "other" else "")
            drawing.text(plot.right + 10, 70 + 18 * index, name, f"tag word-{kind}")
    return drawing

"""Pictures of an epoch: its lanes cut by cut, where the rows of its steps come from, and how well they are mixed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from laneway.pictures.svg import Drawing, Plot, rounded_number
from laneway.plans.epoch_plan import item_of
from laneway.plans.samples import evenly, sample_lanes
from laneway.wording import counted

if TYPE_CHECKING:
    from laneway.plans.epoch_plan import EpochPlan
    from laneway.plans.samples import SampledBatches, SampledStretch

WIDTH: Final = 960
_LEFT: Final = 76
_TOP: Final = 76
_TEXT_HEIGHT: Final = 11
_MAX_LANES, _MAX_STRETCHES, _MAX_WINDOWS = 24, 12, 300
_MAX_BOXES: Final = 2_500
"""Windows that are drawn, in all lanes of all cuts."""
_MAX_DOTS: Final = 6_000
_MIN_LABEL: Final = 90
"""Width of a cut, in pixels, below which it has no label."""


def draw_lanes(plan: EpochPlan) -> Drawing:
    """Draw the lanes of each cut along the rows of the epoch, with their windows, and what was delivered."""
    found = sample_lanes(plan, _MAX_LANES, _MAX_WINDOWS)
    total, done = sum(each.num_rows for each in found), sum(each.num_rows for each in found if each.is_delivered)
    state = f"{done / total:.1%} delivered" if total and done else "nothing delivered yet" if total else "no rows"
    return _LanePicture(plan, found[-_MAX_STRETCHES:], found[:-_MAX_STRETCHES], total).drawn(state)


@dataclass
class _LanePicture:
    """The picture of the lanes of an epoch."""

    plan: EpochPlan
    """The plan."""
    shown: list[SampledStretch]
    """The last stretches, lane by lane."""
    hidden: list[SampledStretch]
    """Those before, drawn as one."""
    num_rows: int
    """Rows of all stretches."""

    @cached_property
    def item(self) -> str:
        """What lanes consist of."""
        return item_of(self.plan)

    @cached_property
    def is_detailed(self) -> bool:
        """Whether windows are drawn."""
        lanes = [lane for each in self.shown for lane in each.lanes]
        return (
            self.item == "row"
            and all(lane.windows or not lane.num_rows for lane in lanes)
            and (sum(len(lane.windows) for lane in lanes) <= _MAX_BOXES)
        )

    @cached_property
    def row_height(self) -> float:
        """Height of a lane, in pixels."""
        return max(6.0, min(22.0, 200 / self.num_lanes))

    @cached_property
    def num_lanes(self) -> int:
        """Lanes that are drawn one below the other."""
        return max((len(each.lanes) for each in self.shown), default=1)

    @cached_property
    def drawing(self) -> Drawing:
        """The image."""
        return Drawing(WIDTH, int(self.bottom + 44), "")

    @property
    def bottom(self) -> float:
        """The lower edge of the lanes."""
        return _TOP + self.num_lanes * self.row_height

    def width(self, num_rows: int) -> float:
        """Return the width of rows that are delivered in a stretch."""
        return (WIDTH - _LEFT - 8) * num_rows / (self.num_rows or 1)

    def drawn(self, state: str) -> Drawing:
        """Draw all; `state` says how much was delivered."""
        plan, drawing = self.plan, self.drawing
        num_windows = counted(plan.num_windows or 0, "window")
        drawing.alt = f"The epoch as lanes: {state}, {counted(plan.num_lanes, 'lane')}, {num_windows}."
        shades = "each shade a window, whose rows are shuffled together"
        windows = shades if self.is_detailed else "its windows too many to be drawn"
        if self.item == "pack":
            windows = "of packs"
        drawing.heading("Lanes and progress", f"{state}; each bar is a lane, {windows}")
        x = float(_LEFT)
        if self.hidden:
            rows = sum(each.num_rows for each in self.hidden)
            says = counted(len(self.hidden), "earlier stretch")
            drawing.text(x, _TOP - 9, says)
            drawing.box(
                "done2", x, _TOP, self.width(rows), self.bottom - _TOP, says=f"{says}, {counted(rows, self.item)}"
            )
            x += self.width(rows)
        last_label = -math.inf
        for each in self.shown:
            self._draw_stretch(each, x)
            last_label = self._draw_mark(each, x, last_label)
            x += self.width(each.num_rows)
        if self.shown and x - last_label > 2 * _MIN_LABEL:
            drawing.text(x, self.bottom + 20, f"step {plan.num_steps:,}", anchor="end")
        most = max(self.shown, key=lambda each: each.num_lanes, default=None)
        for index, lane in enumerate(() if most is None else most.lanes):
            if self.row_height >= _TEXT_HEIGHT or index % 2 == 0:
                middle = _TOP + (index + 0.5) * self.row_height
                drawing.text(_LEFT - 8, middle + 4, f"lane {lane.lane}", anchor="end")
        if most is not None and most.num_lanes > _MAX_LANES:
            drawing.text(_LEFT, self.bottom + 36, f"{_MAX_LANES} of {most.num_lanes:,} lanes")
        return drawing

    def _draw_stretch(self, stretch: SampledStretch, x: float) -> None:
        """Draw what lanes deliver in a stretch that begins at x."""
        kind, scale = "done" if stretch.is_delivered else "ahead", self.width(stretch.num_rows) / stretch.longest
        for index, lane in enumerate(stretch.lanes):
            y, height = _TOP + index * self.row_height + 1, self.row_height - 2
            if not self.is_detailed:
                says = f"lane {lane.lane}: {counted(lane.num_rows, self.item)}"
                self.drawing.box(kind, x, y, lane.num_rows * scale, height, says=says)
            for place, (window, start, stop) in enumerate(lane.windows if self.is_detailed else ()):
                # Neighbours differ.
                shade = f"{kind}2" if place % 2 else kind
                says = f"lane {lane.lane}, window {window}: {counted(stop - start, 'row')}"
                self.drawing.box(shade, x + start * scale, y, (stop - start) * scale, height, says=says)

    def _draw_mark(self, stretch: SampledStretch, x: float, last_label: float) -> float:
        """Draw where a stretch begins, and write who takes it; return where the last label of a step begins."""
        is_now, width = not stretch.is_delivered and self.plan.next_step > 0, self.width(stretch.num_rows)
        line = [(x, _TOP - 6.0), (x, self.bottom + 6)]
        self.drawing.line("mark", line, 2.4 if is_now else 1, "" if is_now else "2 3")
        if width >= _MIN_LABEL:
            self.drawing.text(x + 3, _TOP - 22, counted(stretch.world_size, "rank"), "tag strong")
            self.drawing.text(x + 3, _TOP - 9, counted(stretch.num_lanes, "lane"))
        if not is_now and x - last_label < _MIN_LABEL:
            return last_label
        label = f"step {stretch.first_step:,}" + (", next" if is_now else "")
        # What comes next is named below the others, if there is no room between them.
        below = 0 if x - last_label >= _MIN_LABEL else 15
        is_left = WIDTH - x > _MIN_LABEL
        self.drawing.text(x, self.bottom + 20 + below, label, anchor="start" if is_left else "end")
        return x


def draw_rows(plan: EpochPlan, samples: SampledBatches) -> Drawing:
    """Draw where the rows of steps are in the files."""
    next_step, some = plan.next_step, samples.num_ranks < plan.world_size
    of_ranks = f"; {samples.num_ranks} of {plan.world_size:,} ranks" if some else ""
    alt = "Where the rows of each step are in the files, from the first file at the bottom to the last at the top."
    drawing = Drawing(WIDTH, 292, alt)
    plot = Plot(drawing, _LEFT, WIDTH - 8, 50, 252, samples.num_steps, samples.num_rows)
    drawing.heading(
        "Rows against time", f"each dot is a row of a batch: its step, and its place in the files{of_ranks}"
    )
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
    plot.scale_y(rounded_number)
    plot.scale_x("step")
    for index, (kind, name, width) in enumerate((("other", "perfect shuffle", 1.4), ("line", "this epoch", 2.0))):
        values = [(plot.x(step + 0.5), plot.y(of[1 - index])) for step, of in means.items()]
        if values:
            drawing.line(kind, values if len(values) > 1 else values * 2, width, "5 4" if kind == "other" else "")
            drawing.text(plot.right + 10, 70 + 18 * index, name, f"tag word-{kind}")
    return drawing

"""Draws docs/images/epoch.svg: data files, the line of an epoch, its lanes, a checkpoint, and the rest cut again.

Nothing in it is drawn manually: the library's own functions compute the place of each cell.
Run it with `.venv/bin/python scripts/draw_epoch.py`. It writes the same bytes every time.
"""
# ruff: noqa: INP001 - scripts are not a package

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from laneway.core.assignment import resolve_cut
from laneway.core.files import FileTable
from laneway.core.options import LaneOptions
from laneway.core.plan import Identity, Plan, Settings
from laneway.core.progress import CutProgress, LanePosition, Progress
from laneway.core.turns import WorkerPlace
from laneway.pictures.svg import STYLE, Drawing, escaped

if TYPE_CHECKING:
    from collections.abc import Iterable

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "epoch.svg"
WIDTH, HEIGHT, MARGIN = 1000, 534, 40

FILE_BLOCKS = ((8, 8, 8), (8, 6), (8, 8, 8, 8, 6), (8, 8, 4))
"""Rows of each row group of each data file: 96 rows."""
NUM_LANES, TURN_ROWS, TURNS = 4, 3, 18
"""Number of lanes, rows of a turn, and turns delivered before the checkpoint."""
RANKS_AFTER = 3
"""Number of ranks of the run that resumes."""
CELL_HEIGHT = 21

HUES = ("#4a7bdc", "#e5883c", "#2fa590", "#b0609f")
PALE = "#f6f1e6"
MORE_STYLE = """
.mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px }
.number { font-size: 12px; font-weight: 600 } .card { fill: #f4f0e6; stroke: #d9d2c0 } .key { fill: #7a5c2e }
@media (prefers-color-scheme: dark) { .card { fill: #1d2128; stroke: #363c46 } .key { fill: #d9b779 } }
"""


class Colored(Protocol):
    """What is drawn as a cell."""

    @property
    def color(self) -> str:
        """The colour, as in CSS."""


def paler(hue: str, share: float) -> str:
    """Return a colour, mixed with a share of that of paper."""
    pairs = [(int(hue[i : i + 2], 16), int(PALE[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(one + (pale - one) * share):02x}" for one, pale in pairs)


@dataclass(frozen=True)
class Row:
    """One row of the dataset."""

    file_index: int
    """Index of the data file."""
    row: int
    """Index of the row in the data file."""

    @property
    def color(self) -> str:
        """The colour of the file, paler towards its end."""
        return paler(HUES[self.file_index], 0.55 * self.row / sum(FILE_BLOCKS[self.file_index]))


class Picture(Drawing):
    """An image of rows, each with a colour of its own, on a sheet of paper."""

    def __init__(self, height: int, alt: str) -> None:
        """Begin an image; `alt` says what is on it."""
        super().__init__(WIDTH, height, alt)
        self.box("paper", 0, 0, WIDTH, height)

    def titled(self, x: float, y: float, title: str, note: str) -> None:
        """Write a title, followed by an explanation."""
        second = f'<tspan class="note" dx="10">{escaped(note)}</tspan>'
        self.elements.append(f'<text x="{x:g}" y="{y:g}"><tspan class="title">{escaped(title)}</tspan>{second}</text>')

    def cell(self, x: float, y: float, width: float, color: str, *, is_faint: bool = False) -> None:
        """Draw a cell."""
        faint = ' opacity="0.22"' if is_faint else ""
        box = f'x="{x:.5g}" y="{y:g}" width="{width:.4g}" height="{CELL_HEIGHT}" rx="1.6"'
        self.elements.append(f'<rect {box} fill="{color}"{faint}/>')

    def cells(self, x: float, y: float, rows: Iterable[Colored], *, pitch: float, spent: int = 0) -> None:
        """Draw rows as cells from left to right, the first `spent` of them faint."""
        for index, row in enumerate(rows):
            self.cell(x + index * pitch, y, pitch - 1.2, row.color, is_faint=index < spent)

    def marker(self, x: float, y: float, position: int) -> None:
        """Draw the position of a lane whose cells are at `y`."""
        self.line("mark", [(x, y - 4), (x, y + CELL_HEIGHT + 4)], 2.4)
        self.text(x, y - 9, position, "strong number", "middle")

    def arrow(self, start: float, stop: float, y: float) -> None:
        """Draw an arrow to the right."""
        self.line("axis", [(start, y), (stop, y)], 1.8)
        self.line("axis", [(stop - 6, y - 5), (stop, y), (stop - 6, y + 5)], 1.8)


def identity() -> Identity:
    """Return the dataset of the picture."""
    files = FileTable.build(
        paths=[f"part-{index}" for index in range(len(FILE_BLOCKS))],
        sizes=[sum(blocks) for blocks in FILE_BLOCKS],
        digests=[""] * len(FILE_BLOCKS),
        blocks=[(blocks, blocks) for blocks in FILE_BLOCKS],
        schema_digest="",
    )
    settings = Settings(
        seed=13, shuffle=True, shard_bytes=8, shard_rows=None, window_bytes=24, remainder="keep", drop_last=False
    )
    return Identity(files, settings)


def lane_rows(plan: Plan, lane: int) -> list[Row]:
    """Return the rows of a lane in the order of delivery."""
    found = []
    for segment in plan.lanes.segments(lane, 0, int(plan.lanes.rows[lane])):
        for index in range(segment.stop - segment.start):
            file_index, row = plan.locate(segment, index)
            found.append(Row(file_index, row))
    return found


def line_rows(plan: Plan) -> list[Row]:
    """Return the rows of the epoch's line, before windows are shuffled."""
    ranges = [each for window in range(len(plan.windows.lane)) for each in plan.window_files(window)]
    return [Row(each.file_index, row) for each in ranges for row in range(each.start, each.stop)]


def draw_files(drawing: Picture, y: float) -> None:
    """Draw the data files and their shards."""
    drawing.titled(MARGIN, y, "Data files", "cut at row groups into shards; each cell is a row")
    x, pitch, shard_gap = float(MARGIN), 8.8, 3.0
    num_rows, num_shards = sum(map(sum, FILE_BLOCKS)), sum(map(len, FILE_BLOCKS))
    used = num_rows * pitch + shard_gap * (num_shards - len(FILE_BLOCKS))
    file_gap = (WIDTH - 2 * MARGIN - used) / (len(FILE_BLOCKS) - 1)
    for file_index, blocks in enumerate(FILE_BLOCKS):
        drawing.text(x, y + 52, f"part-{file_index}.parquet", kind="tag")
        first = 0
        for rows in blocks:
            drawing.cells(x, y + 14, [Row(file_index, first + i) for i in range(rows)], pitch=pitch)
            x, first = x + rows * pitch + shard_gap, first + rows
        x += file_gap - shard_gap


def draw_line(drawing: Picture, y: float, plan: Plan) -> None:
    """Draw the line of the epoch and its cuts."""
    note = "the shards in an order drawn from seed and epoch, cut into lanes"
    drawing.titled(MARGIN, y, "The line of an epoch", note)
    rows = line_rows(plan)
    pitch = (WIDTH - 2 * MARGIN) / len(rows)
    drawing.cells(MARGIN, y + 18, rows, pitch=pitch)
    bounds = [lane * len(rows) // NUM_LANES for lane in range(NUM_LANES + 1)]
    for lane in range(NUM_LANES):
        middle = (bounds[lane] + bounds[lane + 1]) / 2
        drawing.text(MARGIN + middle * pitch, y + 58, f"lane {lane}", kind="tag", anchor="middle")
        if lane:
            x = MARGIN + bounds[lane] * pitch - 0.6
            drawing.line("mark", [(x, y + 12), (x, y + 62)], 1.4, dash="2 4")


def draw_lanes(drawing: Picture, x: float, y: float, plan: Plan, positions: list[int]) -> None:
    """Draw the lanes of the run that saves, with their positions."""
    drawing.titled(x, y, "Lanes", "each with its rows shuffled in windows")
    pitch = 14.0
    for lane, position in enumerate(positions):
        top = y + 38 + 50 * lane
        drawing.text(x, top - 7, f"lane {lane}", kind="tag")
        drawing.cells(x, top, lane_rows(plan, lane), pitch=pitch, spent=position)
        drawing.marker(x + position * pitch - 0.6, top, position)


def draw_checkpoint(drawing: Picture, x: float, y: float, facts: dict[str, object]) -> None:
    """Draw the checkpoint: a few integers."""
    drawing.box("card", x, y, 230, 120)
    drawing.titled(x + 18, y + 27, "Checkpoint", "")
    for index, (name, value) in enumerate(facts.items()):
        drawing.text(x + 18, y + 50 + 19 * index, name, "mono key")
        drawing.text(x + 98, y + 50 + 19 * index, value, "mono strong number")


def draw_rest(drawing: Picture, x: float, y: float, saved: Progress) -> None:
    """Draw the rest of the epoch, in the lanes of the run that resumes."""
    drawing.titled(x, y, "The rest", f"cut for {RANKS_AFTER} ranks")
    for rank in range(RANKS_AFTER):
        found = resolve_cut(identity(), saved, WorkerPlace(rank, RANKS_AFTER), LaneOptions(None, None, TURN_ROWS))
        top = y + 63 + 50 * rank
        drawing.text(x, top - 7, f"rank {rank}", kind="tag")
        drawing.cells(x, top, lane_rows(identity().plan(found.progress), rank), pitch=14.0)


def draw() -> str:
    """Return the picture."""
    alt = (
        "Data files are cut into shards, shards are laid in the line of an epoch, the line is cut into four lanes. "
        "A checkpoint holds one position per lane. What is left is cut again for three ranks."
    )
    drawing = Picture(HEIGHT, alt)
    positions = [TURN_ROWS * len(range(lane, TURNS, NUM_LANES)) for lane in range(NUM_LANES)]
    delivered = {lane: LanePosition(rows) for lane, rows in enumerate(positions)}
    saved = Progress(epoch=0, cut=CutProgress(NUM_LANES, TURN_ROWS, TURNS, delivered))
    plan = identity().plan(saved)
    facts = {"epoch": saved.epoch, "lanes": NUM_LANES, "positions": positions, "next_turn": TURNS}
    draw_files(drawing, 54)
    draw_line(drawing, 162, plan)
    draw_lanes(drawing, MARGIN, 280, plan, positions)
    draw_checkpoint(drawing, 450, 340, facts)
    draw_rest(drawing, 764, 280, saved)
    drawing.arrow(394, 432, 400)
    drawing.arrow(694, 732, 400)
    return drawing.image(STYLE + MORE_STYLE)


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")

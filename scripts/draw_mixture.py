"""Draws docs/images/mixture.svg: two sources, the lanes of their mixture, other weights and ranks, packs, mixed packs.

Nothing in it is drawn manually: the library's own functions compute the place of each cell.
Run it with `.venv/bin/python scripts/draw_mixture.py`. It writes the same bytes every time.
"""
# ruff: noqa: INP001 - scripts are not a package

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.files import FileTable
from laneway.core.mixture_assignment import Mixed, resolve_mixture
from laneway.core.mixtures import MixturePlan, Source
from laneway.core.options import LaneOptions
from laneway.core.pack_line import KnownPacks
from laneway.core.plan import Identity, Settings
from laneway.core.progress import CutProgress, LanePosition, Progress, current_cut
from laneway.core.turns import WorkerPlace
from laneway.core.weighting import Phase, Weighting
from laneway.pictures.svg import STYLE
from laneway.stages.packing import best_fit, chunk
from laneway.stages.packs import PackOptions

# Scripts import from their own directory, mypy from the root.
if TYPE_CHECKING:
    from laneway.stages.packing import Packs
    from scripts.draw_epoch import CELL_HEIGHT, HUES, MARGIN, MORE_STYLE, Picture, paler
else:
    from draw_epoch import CELL_HEIGHT, HUES, MARGIN, MORE_STYLE, Picture, paler

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "mixture.svg"
HEIGHT = 690

SIZES = {"web": 44, "code": 12}
"""Rows of each source."""
WEIGHTS, LATER = {"web": 0.7, "code": 0.3}, {"web": 0.4, "code": 0.6}
"""Weights before and after the cut."""
RANKS, RANKS_AFTER, TURNS, TURN_ROWS = 2, 3, 10, 2
LENGTHS = (14, 3, 7, 9, 2, 11, 6, 19, 4, 8, 5, 12, 2, 6, 13, 3)
"""Tokens of documents."""
LENGTH = 20
"""Tokens of a pack."""
TOKEN_WIDTH, MIXED_TOKEN_WIDTH = 7.6, 3.4
MIXED_PACKS = 12
"""Packs of a lane that are drawn."""


@dataclass(frozen=True)
class Row:
    """A row of a source."""

    source: str
    row: int
    epoch: int

    @property
    def color(self) -> str:
        """The colour of the source, paler towards its end."""
        return paler(HUES[[*SIZES].index(self.source)], 0.6 * self.row / SIZES[self.source])


def source_of(name: str, *, is_packed: bool) -> Source:
    """Return a source of the picture, of one file: of rows, or of packs of documents of known lengths."""
    num_rows = SIZES[name]
    blocks = [4] * (num_rows // 4)
    files = FileTable.build(paths=[name], sizes=[num_rows], digests=[""], blocks=[(blocks, blocks)], schema_digest="")
    settings = Settings(
        seed=1, shuffle=True, shard_bytes=4, shard_rows=None, window_bytes=8, remainder="keep", drop_last=False
    )
    if not is_packed:
        return Source(Identity(files, settings))
    options = PackOptions(
        LENGTH,
        column="input_ids",
        strategy="best_fit",
        separator=None,
        overflow="split",
        mask=None,
        pad_value=0,
        group_rows=len(LENGTHS),
    )
    return Source(Identity(files, settings, packs=KnownPacks(np.resize(LENGTHS, num_rows).astype(np.int32), options)))


def mixed(weights: dict[str, float], *, is_packed: bool = False) -> Mixed:
    """Return the mixture with some weights."""
    sources = {name: source_of(name, is_packed=is_packed) for name in SIZES}
    return Mixed(sources, Weighting((Phase(0, weights),)), LaneOptions(None, None, TURN_ROWS))


def lane_rows(plan: MixturePlan, lane: int, num_rows: int) -> list[Row]:
    """Return the first rows of a lane of the mixture, in the order of delivery."""
    found: dict[int, Row] = {}
    for index, start, places in plan.mixings[-1].lane(lane).split(0, num_rows):
        name, rows = plan.progress.starts[-1].sources[index].name, []
        for epoch, of_lane, first, stop in plan.lanes(plan.current, name).ranges(lane, start, start + len(places)):
            of_epoch = plan.plan(plan.current, name, epoch)
            for segment in of_epoch.lanes.segments(of_lane, first, stop):
                places_in = range(segment.stop - segment.start)
                rows += [Row(name, of_epoch.locate(segment, each)[1], epoch) for each in places_in]
        found |= dict(zip(places.tolist(), rows, strict=True))
    return [found[place] for place in range(num_rows)]


@dataclass(frozen=True)
class Pack:
    """A pack of documents of one source."""

    source: str
    tokens: list[int]
    """Tokens of each document."""


def lane_packs(plan: MixturePlan, lane: int, num_packs: int) -> list[Pack]:
    """Return the first packs of a lane of a mixture of packs."""
    found: dict[int, Pack] = {}
    for index, start, places in plan.mixings[-1].lane(lane).split(0, num_packs):
        name, packs = plan.progress.starts[-1].sources[index].name, []
        for epoch, of_lane, first, stop in plan.lanes(plan.current, name).ranges(lane, start, start + len(places)):
            of_epoch = plan.plan(plan.current, name, epoch)
            line = of_epoch.line
            if line is None:
                message = f"source {name!r} is not packed"
                raise ValueError(message)
            for segment in of_epoch.lanes.segments(of_lane, first, stop):
                documents = line.documents(segment.start, segment.stop)
                tokens = documents.stop - documents.start
                numbers = range(segment.stop - segment.start)
                packs += [Pack(name, tokens[documents.pack == number].tolist()) for number in numbers]
        found |= dict(zip(places.tolist(), packs, strict=True))
    return [found[place] for place in range(num_packs)]


def draw_sources(drawing: Picture, y: float) -> None:
    """Draw the rows of the sources."""
    drawing.titled(MARGIN, y, "Two sources", "of 44 and 12 rows; each cell is a row")
    x = float(MARGIN)
    for name, num_rows in SIZES.items():
        drawing.cells(x, y + 14, [Row(name, row, 0) for row in range(num_rows)], pitch=14.0)
        drawing.text(x, y + 52, name, kind="tag")
        x += 14.0 * num_rows + 40


def draw_lane(drawing: Picture, x: float, y: float, rows: list[Row], *, label: str, spent: int = 0) -> None:
    """Draw a lane, with a dot on the rows of every second epoch."""
    drawing.text(x, y - 7, label, kind="tag")
    drawing.cells(x, y, rows, pitch=14.0, spent=spent)
    for index, row in enumerate(rows):
        if row.epoch % 2:
            drawing.dots("dot", [(x + 14 * index + 6.4, y + CELL_HEIGHT / 2)], 4.4)


def draw_packs(drawing: Picture, x: float, y: float, packs: Packs) -> None:
    """Draw packs, one below the other in columns of three, each piece in the colour of its document."""
    width = packs.length * TOKEN_WIDTH
    for pack in range(len(packs)):
        left, top = x + pack // 3 * (width + 14), y + pack % 3 * (CELL_HEIGHT + 6)
        drawing.box("card", left, top, width, CELL_HEIGHT)
        for piece in range(packs.first_pieces[pack], packs.first_pieces[pack + 1]):
            document, tokens = int(packs.document[piece]), int(packs.tokens[piece])
            color = paler(HUES[document % len(HUES)], 0.5 * (document // len(HUES) % 4) / 4)
            drawing.cell(left, top, tokens * TOKEN_WIDTH - 1.2, color)
            if tokens > 1:
                middle = left + tokens * TOKEN_WIDTH / 2
                drawing.text(middle, top + 15, document, "strong number", "middle")
            left += tokens * TOKEN_WIDTH


def draw_lane_of_packs(drawing: Picture, x: float, y: float, packs: list[Pack], *, label: str) -> None:
    """Draw the packs of a lane, each in the colour of its source."""
    drawing.text(x, y - 7, label, kind="tag")
    width = LENGTH * MIXED_TOKEN_WIDTH
    for index, pack in enumerate(packs):
        left = x + index * (width + 8)
        drawing.box("card", left, y, width, CELL_HEIGHT)
        for piece, tokens in enumerate(pack.tokens):
            color = paler(HUES[[*SIZES].index(pack.source)], 0.3 * (piece % 3))
            drawing.cell(left, y, tokens * MIXED_TOKEN_WIDTH - 1.2, color)
            left += tokens * MIXED_TOKEN_WIDTH


def draw() -> str:
    """Return the picture."""
    alt = (
        "Rows of two sources are mixed by weight in the lanes of two ranks; what is left is cut again for three ranks "
        "with other weights. Documents are packed whole, or end to end. If their lengths are known, packs of each "
        "source are mixed in the place of rows."
    )
    drawing = Picture(HEIGHT, alt)
    draw_sources(drawing, 54)

    first = resolve_mixture(mixed(WEIGHTS), Progress(0), WorkerPlace(0, RANKS)).progress
    plan = MixturePlan(mixed(WEIGHTS).sources, first)
    position = TURNS // RANKS * TURN_ROWS
    drawing.titled(
        MARGIN, 162, "Lanes of the mixture", "70 % and 30 %, without end; a dot: epoch 1, 3, ... of the source"
    )
    for lane in range(RANKS):
        top = 200.0 + 50 * lane
        draw_lane(drawing, MARGIN, top, lane_rows(plan, lane, 65), label=f"rank {lane}", spent=position)
        drawing.marker(MARGIN + position * 14.0 - 0.6, top, position)

    delivered = {lane: LanePosition(position) for lane in range(RANKS)}
    num_lanes = current_cut(first).num_lanes
    saved = replace(first, cut=CutProgress(num_lanes, TURN_ROWS, TURNS, delivered))
    drawing.titled(MARGIN, 322, "Cut again", "for three ranks, with 40 % and 60 %: first what is left of begun epochs")
    for rank in range(RANKS_AFTER):
        later = resolve_mixture(mixed(LATER), saved, WorkerPlace(rank, RANKS_AFTER)).progress
        rows = lane_rows(MixturePlan(mixed(LATER).sources, later), rank, 20)
        draw_lane(drawing, MARGIN + 324.0 * rank, 360.0, rows, label=f"rank {rank}")

    lengths = np.array(LENGTHS, np.int64)
    drawing.titled(MARGIN, 432, "Packs", f"of {LENGTH} tokens, best_fit: no document is cut that fits")
    draw_packs(drawing, MARGIN, 448, best_fit(lengths, LENGTH))
    drawing.titled(MARGIN + 500, 432, "Packs", "chunk: no padding, documents are cut")
    draw_packs(drawing, MARGIN + 500, 448, chunk(lengths, LENGTH))

    of_packs = mixed(WEIGHTS, is_packed=True)
    begun = resolve_mixture(of_packs, Progress(0), WorkerPlace(0, RANKS)).progress
    drawing.titled(
        MARGIN, 566, "Packs of known lengths", "each epoch of a source is packed by itself, and packs are mixed"
    )
    for lane in range(RANKS):
        packs = lane_packs(MixturePlan(of_packs.sources, begun), lane, MIXED_PACKS)
        draw_lane_of_packs(drawing, MARGIN, 600.0 + 46 * lane, packs, label=f"rank {lane}")
    return drawing.image(STYLE + MORE_STYLE + ".dot { stroke: #fdfcf9 }\n")


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")

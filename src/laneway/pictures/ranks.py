"""Pictures of what the ranks of a job read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from laneway.pictures.epochs import WIDTH
from laneway.pictures.svg import Drawing, Plot, rounded_number
from laneway.wording import counted, plural, rounded_size, span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from laneway.plans.costs import StartUp

_MAX_BARS: Final = 64
_LEFT: Final = 76


def draw_bytes(bytes_per_rank: Sequence[int]) -> Drawing:
    """Draw how many bytes each rank has yet to read."""
    words = f"each rank reads {span(bytes_per_rank, rounded_size)} until the end of the epoch"
    return _bars("Bytes per rank", words, bytes_per_rank, rounded_size, is_binary=True)


def draw_start_up(ranks: Sequence[StartUp], block_name: str) -> Drawing:
    """Draw how many row groups (as the format calls them) each rank requests before all of its lanes deliver."""
    blocks = [each.blocks for each in ranks]
    files, read = max(each.files for each in ranks), max(each.num_bytes for each in ranks)
    words = (
        f"{plural(block_name)} of the first window of each lane: per rank at most "
        f"{max(blocks):,}, of {counted(files, 'file')}, {rounded_size(read)}"
    )
    return _bars("Start-up requests", words, blocks, rounded_number)


def _bars(
    title: str, note: str, values: Sequence[int], name: Callable[[float], str], *, is_binary: bool = False
) -> Drawing:
    """Draw a bar for each rank, or for the most of several ranks that follow each other."""
    each_of = -(-len(values) // _MAX_BARS)
    bars = [max(values[first : first + each_of]) for first in range(0, len(values), each_of)]
    joined = f"; each bar is the most of {each_of:,} ranks" if each_of > 1 else ""
    drawing = Drawing(WIDTH, 212, f"{title}: {note}{joined}.")
    drawing.heading(title, f"{note}{joined}")
    plot = Plot(drawing, _LEFT, WIDTH - 8, 50, 172, len(values), max(*bars, 1) * 1.05)
    plot.scale_y(name, is_binary=is_binary)
    plot.axis()
    for index, value in enumerate(bars):
        first, stop = index * each_of, min((index + 1) * each_of, len(values))
        left, right = plot.x(first), plot.x(stop)
        middle, width = (left + right) / 2, min((right - left) * 0.8, 60.0)
        ranks = f"rank {first}" if stop - first == 1 else f"ranks {first} to {stop - 1}"
        plot.bar(middle, width, value, f"{ranks}: {name(value)}")
        if index % -(-len(bars) // 16) == 0:
            drawing.text(middle, plot.bottom + 16, f"{first:,}", anchor="middle")
    drawing.text(plot.right, plot.bottom + 32, "rank", anchor="end")
    return drawing

"""Draws the benchmark results: rows per second against workers, and time to the first batch against position.

Run `python benchmarks/bench_throughput.py --workers 0 1 2 4 --json throughput.json` and
`python benchmarks/bench_resume.py --json resume.json`, then `python benchmarks/draw.py throughput.json resume.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Axes = Any
    Line = tuple[list[float], list[float]]

# Readable on white and on dark pages; the background is transparent.
GREY = "#7d8590"
COLOURS = {
    "laneway": "#2f81f7",
    "with manifest": "#2f81f7",
    "manifest, 8 MiB windows": "#2f81f7",
    "raw": GREY,
    "datasets": "#b07d1e",
    "datasets map": "#c9683a",
    "torch-dataloader-utils": "#3f9e74",
    "litdata": "#b0619f",
    "mosaicml-streaming": "#8a7bd1",
}
LABELS = {
    "with manifest": "laneway, manifest",
    "manifest, 8 MiB windows": "laneway, 8 MiB",
    "raw": "raw pyarrow",
    "datasets map": "datasets (map)",
    "torch-dataloader-utils": "dataloader-utils",
}
DASHES = {"raw": (0, (4, 2)), "with manifest": (0, (4, 2)), "manifest, 8 MiB windows": (0, (1, 1.5))}
PANELS = {"tabular": "Tabular, 42 columns", "tokens": "Tokens, 1,024 per row", "text": "Text"}
LINE_HEIGHT = 10.5
"""Distance between two labels, in points."""
FEWEST_LEVELS = 3
MILLION = 1e6
POSITIONS = {"fresh s": "fresh", "at 1% s": "1%", "at 50% s": "50%", "at 99% s": "99%"}


def style(axes: Axes, title: str) -> None:
    """Remove everything except the lines, faint levels and small numbers."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=GREY, pad=10)
    axes.set_yscale("log")
    axes.patch.set_alpha(0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=GREY)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GREY, alpha=0.22, linewidth=0.6)


def draw_lines(axes: Axes, lines: dict[str, Line], limits: tuple[float, float], number: Callable[[float], str]) -> None:
    """Draw lines with their names at the right end; laneway is last and thickest."""
    for name, (x, y) in sorted(lines.items(), key=lambda item: item[0] == "laneway"):
        is_ours = name == "laneway"
        axes.plot(
            x,
            y,
            color=COLOURS[name],
            linewidth=2.6 if is_ours else 1.3,
            linestyle=DASHES.get(name, "-"),
            marker="o",
            markersize=5 if is_ours else 2.8,
            clip_on=False,
        )
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(FixedLocator(levels_of(*limits)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    figure = axes.figure
    points = figure.dpi / 72
    ends = sorted((float(axes.transData.transform((x[-1], y[-1]))[1]) / points, name) for name, (x, y) in lines.items())
    for height, (was, name) in zip(apart([end for end, _ in ends], LINE_HEIGHT), ends, strict=True):
        x, y = lines[name]
        axes.annotate(
            LABELS.get(name, name),
            (x[-1], y[-1]),
            xytext=(8, height - was),
            textcoords="offset points",
            va="center",
            fontsize=9 if name == "laneway" else 8,
            fontweight="bold" if name == "laneway" else "normal",
            color=COLOURS[name],
            annotation_clip=False,
        )


def apart(heights: list[float], distance: float) -> list[float]:
    """Return ascending heights, moved apart as little as necessary; groups that are too close stay centred."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], distance) - _top(groups[-2], distance) < distance:
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, distance) + i * distance for group in groups for i in range(len(group))]


def _bottom(group: list[float], distance: float) -> float:
    return sum(group) / len(group) - (len(group) - 1) * distance / 2


def _top(group: list[float], distance: float) -> float:
    return _bottom(group, distance) + (len(group) - 1) * distance


def limits_of(lines: Iterable[Line]) -> tuple[float, float]:
    """Return the limits of a log axis."""
    found = [value for _, y in lines for value in y]
    return min(found) * 0.8, max(found) * 1.25


def levels_of(low: float, high: float) -> list[float]:
    """Return a few round numbers on a log axis."""

    def between(steps: tuple[int, ...]) -> list[float]:
        levels = (step * 10.0**power for power in range(-4, 8) for step in steps)
        return [level for level in levels if low <= level <= high]

    levels: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5)):
        levels = levels if len(levels) >= FEWEST_LEVELS else between(steps)
    return levels


def figure_of(num_panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with panels in a row, and space for names to the right of each."""
    figure = Figure(figsize=(10.4, height))
    figure.patch.set_alpha(0)
    gap = 0.8 if num_panels == len(PANELS) else 0.5
    figure.subplots_adjust(left=0.055, right=0.875, top=0.8, bottom=0.13, wspace=gap)
    return figure, [figure.add_subplot(1, num_panels, i + 1) for i in range(num_panels)]


def thousands(value: float) -> str:
    """Return a number as an axis label."""
    return f"{value / MILLION:g} M" if value >= MILLION else f"{value / 1_000:g} k"


def draw_throughput(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure of the rows of bench_throughput."""
    figure, panels = figure_of(len(PANELS), 3.3)
    for axes, (corpus, title) in zip(panels, PANELS.items(), strict=True):
        lines: dict[str, Line] = {}
        for row in rows:
            for name, rate in row["rows/s"].items() if row["corpus"] == corpus else ():
                if name in COLOURS:
                    x, y = lines.setdefault(name, ([], []))
                    x.append(row["num_workers"])
                    y.append(rate)
        style(axes, title)
        workers = sorted({row["num_workers"] for row in rows})
        axes.set_xticks(workers)
        axes.set_xlim(workers[0], workers[-1])
        draw_lines(axes, lines, limits_of(lines.values()), thousands)
        axes.set_xlabel("num_workers", fontsize=8, color=GREY, loc="left")
    figure.text(0.055, 0.95, "rows/s of shuffled Parquet files, in batches of 256", fontsize=8, color=GREY)
    return figure


def draw_resume(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure of the rows of bench_resume: shuffled text in many files, without and with workers."""
    chosen = [row for row in rows if row["layout"] == "200 files" and row["shuffle"] and "error" not in row]
    counts = sorted({row["num_workers"] for row in chosen})
    figure, panels = figure_of(len(counts), 3.0)
    drawn: list[dict[str, Line]] = []
    for num_workers in counts:
        lines: dict[str, Line] = {}
        for row in chosen:
            if row["num_workers"] == num_workers and row["reader"] in COLOURS:
                known = {i: row[name] for i, name in enumerate(POSITIONS) if row[name] is not None}
                lines[row["reader"]] = (list(known), list(known.values()))
        drawn.append(lines)
    limits = limits_of(line for lines in drawn for line in lines.values())
    for axes, num_workers, lines in zip(panels, counts, drawn, strict=True):
        style(axes, f"num_workers={num_workers}")
        axes.set_xticks(range(len(POSITIONS)), POSITIONS.values())
        axes.set_xlim(0, len(POSITIONS) - 1)
        draw_lines(axes, lines, limits, lambda value: f"{value * 1e3:g} ms")
        axes.set_xlabel("position in the epoch", fontsize=8, color=GREY, loc="left")
    figure.text(0.055, 0.95, "Time to the first batch, shuffled text in 200 files", fontsize=8, color=GREY)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is deterministic for the same results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    # matplotlib ends some lines with a space.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def main() -> None:
    """Write both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("throughput", type=Path, help="JSON of bench_throughput.py --workers")
    parser.add_argument("resume", type=Path, help="JSON of bench_resume.py")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    arguments = parser.parse_args()
    # Text is kept as text: it is small and searchable.
    mpl.rcParams.update({"svg.hashsalt": "laneway", "svg.fonttype": "none", "font.family": "sans-serif"})
    save(draw_throughput(json.loads(arguments.throughput.read_text())), arguments.folder / "throughput.svg")
    save(draw_resume(json.loads(arguments.resume.read_text())["resume"]), arguments.folder / "resume.svg")


if __name__ == "__main__":
    main()

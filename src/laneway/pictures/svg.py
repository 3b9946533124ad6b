"""SVG, element by element. Whatever comes from data or file names passes `escaped`."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Anchor = Literal["start", "middle", "end"]

MAX_TEXT: Final = 160
"""Characters of a text from data that are shown."""

STYLE: Final = """
svg text, body { font-family: ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif }
.title { font-size: 15px; font-weight: 600 } .note { font-size: 12.5px } .tag { font-size: 11.5px }
.title, .strong { fill: #23262d } .note, .tag { fill: #5d626b } .paper { fill: #fdfcf9 }
.done { fill: #3f6fd0 } .done2 { fill: #6d93e0 } .ahead { fill: #c0d0f0 } .ahead2 { fill: #dde6f8 }
.bar { fill: #3f6fd0 } .bad { fill: #c0392b } .left { fill: #c9d6f0 } .out { fill: #d9b779 }
.grid { stroke: #e2ddd1 } .axis { stroke: #a39c8b } .mark { stroke: #23262d } .dots { stroke: #3f6fd0 }
.line { stroke: #3f6fd0 } .other { stroke: #a5662a } .word-line { fill: #3f6fd0 } .word-other { fill: #a5662a }
.s0 { fill: #3f6fd0 } .s1 { fill: #d98c3f } .s2 { fill: #4f9d69 } .s3 { fill: #a35fb5 } .s4 { fill: #c0504d }
.s5 { fill: #3f9fae } .s6 { fill: #b5a13f } .s7 { fill: #8a8f99 }
@media (prefers-color-scheme: dark) {
.title, .strong { fill: #eceef2 } .note, .tag { fill: #9aa1ad } .paper { fill: #14171c }
.done { fill: #6d96ee } .done2 { fill: #4f74c4 } .ahead { fill: #3a4f80 } .ahead2 { fill: #2b3a5e }
.bar { fill: #6d96ee } .bad { fill: #e5705f } .left { fill: #3a4f80 } .out { fill: #8a7040 }
.grid { stroke: #2b3038 } .axis { stroke: #646b77 } .mark { stroke: #eceef2 } .dots { stroke: #6d96ee }
.line { stroke: #6d96ee } .other { stroke: #d99a5c } .word-line { fill: #6d96ee } .word-other { fill: #d99a5c }
.s0 { fill: #6d96ee } .s1 { fill: #e5a566 } .s2 { fill: #6cbb86 } .s3 { fill: #bf82d0 } .s4 { fill: #e5706d }
.s5 { fill: #5cbccb } .s6 { fill: #cdba5c } .s7 { fill: #7d838f }
}
"""


def escaped(text: object, most: int = MAX_TEXT) -> str:
    """Return a text for HTML, XML and their attributes: one line of printable characters, cut if it is too long."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text)[: most + 1])
    return html.escape(printable if len(printable) <= most else f"{printable[: most - 3]}...")


def rounded_number(value: float) -> str:
    """Return about how large a number is, such as "850", "1.2 k" or "3 M"."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"


@dataclass
class Drawing:
    """An SVG image."""

    width: int
    """Its width, in pixels."""
    height: int
    """Its height, in pixels."""
    alt: str
    """What is on it, in words."""
    elements: list[str] = field(default_factory=list)
    """The elements drawn so far."""

    def text(self, x: float, y: float, words: object, kind: str = "tag", anchor: Anchor = "start") -> None:
        """Write words with their baseline starting, centred or ending at (x, y)."""
        place = f'x="{x:.5g}" y="{y:.5g}"' + ("" if anchor == "start" else f' text-anchor="{anchor}"')
        self.elements.append(f'<text class="{kind}" {place}>{escaped(words)}</text>')

    def heading(self, title: str, note: str) -> None:
        """Write the title of the image, and below it an explanation."""
        self.text(0, 16, title, "title")
        self.text(0, 34, note, "note")

    def box(self, kind: str, x: float, y: float, width: float, height: float, *, says: str = "") -> None:
        """Draw a filled rectangle; a pointer that rests on it shows what it says."""
        place = f'x="{x:.5g}" y="{y:.5g}" width="{max(width, 0.4):.4g}" height="{height:.4g}"'
        end = f"><title>{escaped(says)}</title></rect>" if says else "/>"
        self.elements.append(f'<rect class="{kind}" {place}{end}')

    def line(self, kind: str, points: Iterable[tuple[float, float]], width: float = 1.0, dash: str = "") -> None:
        """Draw straight lines through points."""
        path = "M" + "L".join(f"{x:.5g} {y:.5g}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.elements.append(f'<path class="{kind}" d="{path}" fill="none" stroke-width="{width:g}"{dashes}/>')

    def dots(self, kind: str, points: Iterable[tuple[float, float]], width: float) -> None:
        """Draw round dots."""
        path = "".join(f"M{x:.4g} {y:.4g}h0" for x, y in points)
        look = f'fill="none" stroke-width="{width:g}" stroke-linecap="round"'
        self.elements.append(f'<path class="{kind}" d="{path}" {look}/>')

    def image(self, style: str = "") -> str:
        """Return the image with a style of its own; without one, that of the page around it applies."""
        box = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escaped(self.alt, 1000)}">'
        own = [f"<style>{style}</style>"] if style else []
        return "\n".join([head, *own, *self.elements, "</svg>", ""])


def stacked(drawings: Iterable[Drawing], margin: int = 24) -> Drawing:
    """Return images one below the other, with a margin around them."""
    all_of_them = [*drawings]
    width = max(each.width for each in all_of_them) + 2 * margin
    height = sum(each.height + margin for each in all_of_them) + margin
    found = Drawing(width, height, " ".join(each.alt for each in all_of_them))
    found.box("paper", 0, 0, width, height)
    top = margin
    for each in all_of_them:
        found.elements += [f'<g transform="translate({margin} {top})">', *each.elements, "</g>"]
        top += each.height + margin
    return found


@dataclass(frozen=True)
class Plot:
    """The part of an image where values are drawn, with its scales."""

    drawing: Drawing
    """The image."""
    left: float
    """Its left edge."""
    right: float
    """Its right edge."""
    top: float
    """Its upper edge."""
    bottom: float
    """Its lower edge."""
    most_x: float
    """The value at the right edge; that at the left one is 0."""
    most_y: float
    """The value at the upper edge; that at the lower one is 0."""

    def x(self, value: float) -> float:
        """Return where a value is."""
        return self.left + (self.right - self.left) * value / (self.most_x or 1)

    def y(self, value: float) -> float:
        """Return where a value is."""
        return self.bottom - (self.bottom - self.top) * value / (self.most_y or 1)

    def scale_y(self, name: Callable[[float], str], *, is_binary: bool = False) -> None:
        """Draw the levels of the y axis."""
        for level in levels(self.most_y, is_binary=is_binary):
            y = self.y(level)
            self.drawing.line("grid", [(self.left, y), (self.right, y)])
            self.drawing.text(self.left - 8, y + 4, name(level), anchor="end")

    def axis(self) -> None:
        """Draw the x axis."""
        self.drawing.line("axis", [(self.left, self.bottom), (self.right, self.bottom)])

    def bar(self, middle: float, width: float, value: float, says: str) -> None:
        """Draw a bar that stands on the x axis; a pointer that rests on it shows what it says."""
        top = self.y(value)
        self.drawing.box("bar", middle - width / 2, top, width, self.bottom - top, says=says)

    def scale_x(self, name: str) -> None:
        """Draw the levels of the x axis, whole numbers, and its name."""
        self.axis()
        for level in levels(self.most_x):
            if level == int(level):
                x, room = self.x(level), self.drawing.width - 30
                anchor: Anchor = "middle" if x < room else "end"
                self.drawing.text(min(x, room + 30), self.bottom + 16, f"{level:,.0f}", anchor=anchor)
        self.drawing.text(self.right, self.bottom + 32, name, anchor="end")


def levels(most: float, *, is_binary: bool = False) -> list[float]:
    """Return a few round numbers from 0 to `most`: multiples of 1, 2 or 5 times a power of 10, or of a power of 2."""
    if most <= 0:
        return [0.0]
    if is_binary:
        step = 2.0 ** math.floor(math.log2(most / 2))
    else:
        rough = most / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(each for each in (1, 2, 5, 10) if each * power >= rough * 0.999)
    return [index * step for index in range(int(most / step * 1.0001) + 1)]

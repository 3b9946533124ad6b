"""What pages consist of: their head and style, facts, tables, images, and what an audit has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from laneway.pictures.counts import draw_audit
from laneway.pictures.epochs import WIDTH
from laneway.pictures.svg import STYLE, escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laneway.inspection.report import AuditReport
    from laneway.pictures.svg import Drawing

_MAX_FINDINGS, _MAX_CHECKPOINTS = 50, 100
MAX_LINE: Final = 2_000
"""Characters of a line of text that are shown."""
_PAGE_STYLE: Final = """
body { margin: 0 auto; max-width: 1000px; padding: 24px 20px 60px; background: #fdfcf9; color: #23262d;
  font-size: 15px; line-height: 1.45 }
h1 { font-size: 24px; margin: 8px 0 2px } h2 { font-size: 18px; margin: 40px 0 8px; border-top: 1px solid #e2ddd1;
  padding-top: 18px } p { margin: 4px 0 14px } .quiet { color: #5d626b; overflow-wrap: anywhere }
svg { display: block; max-width: 100%; height: auto; margin: 14px 0 }
dl { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 } dl div { border: 1px solid #e2ddd1; border-radius: 8px;
  padding: 8px 14px; min-width: 100px } dt { font-size: 12px; color: #5d626b } dd { margin: 0; font-size: 17px;
  font-weight: 600 }
table { border-collapse: collapse; font-size: 13.5px } th, td { text-align: left; padding: 3px 16px 3px 0;
  border-bottom: 1px solid #e2ddd1; overflow-wrap: anywhere } th { font-weight: 600 }
.pair { display: flex; flex-wrap: wrap; gap: 20px } .verdict { font-size: 17px; font-weight: 600 }
.no { color: #c0392b } li { margin: 4px 0; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
body { background: #14171c; color: #eceef2 } .quiet, dt { color: #9aa1ad } h2, dl div, th, td { border-color: #2b3038 }
.no { color: #e5705f }
}
"""
# A browser would refuse to load anything, even if a text from the data got past `escaped`.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def html_page(title: str, note: str, parts: Iterable[str]) -> str:
    """Return a page, given its title and a line below it, which are escaped, and its parts."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{title}</title><style>{STYLE}{_PAGE_STYLE}</style></head><body>",
            f'<h1>{title}</h1><p class="quiet">{note}</p>',
            *parts,
            "</body></html>",
            "",
        ]
    )


def html_facts(facts: Iterable[tuple[str, object]]) -> Iterable[str]:
    """Yield names and values, side by side."""
    yield "<dl>"
    for name, value in facts:
        yield f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>"
    yield "</dl>"


def html_audit(audit: AuditReport, checkpoints: Sequence[str]) -> Iterable[str]:
    """Yield what checkpoints prove, given their names."""
    yield "<h2>Audit</h2>"
    kind, verb = ("verdict", "prove") if audit.is_exact else ("verdict no", "do not prove")
    verdict = f"The checkpoints {verb} that each {audit.unit} was delivered exactly once."
    yield f'<p class="{kind}">{verdict}</p>'
    if audit.epochs:
        yield html_svg(draw_audit(audit.epochs, WIDTH))
    lines = [repr(each) for each in (*audit.epochs[-_MAX_FINDINGS:], *audit.findings[:_MAX_FINDINGS])]
    yield f"<ul>{''.join(f'<li>{_one_line(each)}</li>' for each in lines)}</ul>"
    if len(audit.findings) > _MAX_FINDINGS:
        yield f"<p>{len(audit.findings) - _MAX_FINDINGS:,} more findings: see laneway audit</p>"
    names = [*enumerate(checkpoints)]
    yield from html_table(("", "checkpoint"), names[:_MAX_CHECKPOINTS], len(names))


def html_svg(drawing: Drawing) -> str:
    """Return an image, which has the style of the page."""
    return drawing.image()


def _one_line(text: str) -> str:
    return escaped("; ".join(" ".join(line.split()) for line in text.splitlines()), MAX_LINE)


def html_table(names: Sequence[str], rows: Sequence[Sequence[object]], number: int) -> Iterable[str]:
    """Yield the first rows of a table, and how many more there are."""
    yield f"<table><tr>{''.join(f'<th>{escaped(name)}</th>' for name in names)}</tr>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escaped(value)}</td>' for value in row)}</tr>"
    yield "</table>"
    if number > len(rows):
        yield f'<p class="quiet">and {number - len(rows):,} more</p>'

"""A page about an epoch: one HTML file with its pictures in it, which loads nothing and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from laneway.formats import FORMATS
from laneway.pictures.counts import draw_audit, draw_sizes
from laneway.pictures.epochs import WIDTH
from laneway.pictures.svg import STYLE, escaped
from laneway.wording import counted, plural, rounded_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laneway.inspection.report import AuditReport
    from laneway.manifest import Manifest
    from laneway.pictures.plot import PlanPictures
    from laneway.pictures.svg import Drawing

_MAX_COLUMNS, _MAX_FINDINGS, _MAX_RANKS, _MAX_CHECKPOINTS = 200, 50, 64, 100
_MAX_LINE: Final = 2_000
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


@dataclass(frozen=True)
class Page:
    """What the page about an epoch shows."""

    pictures: PlanPictures
    """The plan of the epoch, with its pictures."""
    manifest: Manifest
    """The data files."""
    data: Mapping[str, Any]
    """The facts about them that `laneway inspect` answers."""
    checkpoint: str | None = None
    """The name of the checkpoint from which the epoch goes on."""
    audit: AuditReport | None = None
    """What the checkpoints prove."""
    checkpoints: Sequence[str] = ()
    """The names of these checkpoints."""

    def html(self) -> str:
        """Return the page."""
        plan = self.pictures.plan
        title = f"Epoch {plan.epoch} of {escaped(self.data['source'])}"
        as_of = "planned from its first row" if self.checkpoint is None else f"as of {escaped(self.checkpoint)}"
        parts = [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{title}</title><style>{STYLE}{_PAGE_STYLE}</style></head><body>",
            f'<h1>{title}</h1><p class="quiet">{as_of}</p>',
            *self._key_facts(),
            "<h2>The epoch</h2>",
            *map(_svg, self.pictures.of_epoch()),
            *self._ranks(),
            *self._data(),
            *self._audit(),
            "</body></html>",
            "",
        ]
        return "\n".join(parts)

    def _key_facts(self) -> Iterable[str]:
        """Yield the numbers at the top."""
        plan, samples = self.pictures.plan, self.pictures.samples
        steps = f"{plan.next_step:,} of {plan.num_steps:,}" if plan.next_step else f"{plan.num_steps:,}"
        facts = [
            ("rows", f"{plan.num_rows:,}"),
            ("steps taken" if plan.next_step else "steps", steps),
            ("ranks", f"{plan.world_size:,}"),
            ("workers per rank", f"{plan.num_workers:,}"),
            ("batch of a rank", "a turn" if plan.batch_size is None else counted(plan.batch_size, "row")),
            ("memory per worker, up to", rounded_size(plan.worker_memory_bytes or 0)),
            ("rows repeated", f"{plan.rows_repeated:,}"),
            ("rows left out", f"{plan.rows_dropped:,}"),
        ]
        if samples.mixing is not None and samples.adjacent is not None:
            facts.append(("mixing, of a perfect shuffle", f"{samples.mixing:.0%}"))
            facts.append(("rows batched with a neighbour", f"{samples.adjacent:.1%}"))
        if self.audit is not None:
            verdict = "exactly once" if self.audit.is_exact else counted(len(self.audit.findings), "finding")
            facts.append(("audit", verdict))
        yield "<dl>"
        for name, value in facts:
            yield f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>"
        yield "</dl>"

    def _ranks(self) -> Iterable[str]:
        """Yield what each rank reads."""
        plan, drawings = self.pictures.plan, self.pictures.of_ranks()
        yield "<h2>What each rank reads</h2>"
        if not drawings:
            yield "<p>Nothing is left of this epoch.</p>"
            return
        yield from map(_svg, drawings)
        batches, read = plan.batches_per_rank or (), plan.bytes_per_rank or ()
        rows = [(rank, f"{batches[rank]:,}", rounded_size(read[rank])) for rank in range(min(len(read), _MAX_RANKS))]
        yield from _table(("rank", "batches left", "reads"), rows, len(read))

    def _data(self) -> Iterable[str]:
        """Yield what the data consist of."""
        data, files = self.data, self.manifest.files
        unit = FORMATS[self.manifest.format].block_name
        yield "<h2>The data</h2>"
        yield (
            f"<p>{counted(data['files'], 'file')} ({escaped(data['format'])}), {counted(data['rows'], 'row')}, "
            f"{rounded_size(data['bytes'])}, about {rounded_size(data['decoded_bytes'])} decoded; fingerprint "
            f"{escaped(data['fingerprint'])}</p>"
        )
        has_rows = files.block_rows > 0
        yield '<div class="pair">'
        yield _svg(draw_sizes("Files", "file", files.sizes))
        yield _svg(draw_sizes(f"{plural(unit).capitalize()}, decoded", unit, files.block_memory_bytes[has_rows]))
        yield "</div>"
        if data["advice"]:
            yield f"<ul>{''.join(f'<li>{escaped(each, _MAX_LINE)}</li>' for each in data['advice'])}</ul>"
        columns = [*data["schema"].items()]
        yield from _table(("column", "type"), columns[:_MAX_COLUMNS], len(columns))

    def _audit(self) -> Iterable[str]:
        """Yield what the checkpoints prove."""
        audit = self.audit
        if audit is None:
            return
        yield "<h2>Audit</h2>"
        kind, verdict = "verdict", "The checkpoints prove that each row was delivered exactly once."
        if not audit.is_exact:
            kind, verdict = "verdict no", "The checkpoints do not prove that each row was delivered exactly once."
        yield f'<p class="{kind}">{verdict}</p>'
        if audit.epochs:
            yield _svg(draw_audit(audit.epochs, WIDTH))
        lines = [repr(each) for each in (*audit.epochs[-_MAX_FINDINGS:], *audit.findings[:_MAX_FINDINGS])]
        yield f"<ul>{''.join(f'<li>{_one_line(each)}</li>' for each in lines)}</ul>"
        if len(audit.findings) > _MAX_FINDINGS:
            yield f"<p>{len(audit.findings) - _MAX_FINDINGS:,} more findings: see laneway audit</p>"
        names = [*enumerate(self.checkpoints)]
        yield from _table(("", "checkpoint"), names[:_MAX_CHECKPOINTS], len(names))


def _svg(drawing: Drawing) -> str:
    return drawing.image(with_style=False)


def _one_line(text: str) -> str:
    return escaped(" ".join(text.split()), _MAX_LINE)


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], number: int) -> Iterable[str]:
    """Yield the first rows of a table, and how many more there are."""
    yield f"<table><tr>{''.join(f'<th>{escaped(name)}</th>' for name in names)}</tr>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escaped(value)}</td>' for value in row)}</tr>"
    yield "</table>"
    if number > len(rows):
        yield f'<p class="quiet">and {number - len(rows):,} more</p>'

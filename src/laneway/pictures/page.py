"""A page about an epoch: one HTML file with its pictures in it, which loads nothing and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laneway.formats import FORMATS
from laneway.pictures.counts import draw_sizes
from laneway.pictures.frame import MAX_LINE, html_audit, html_facts, html_page, html_svg, html_table
from laneway.pictures.svg import escaped
from laneway.plans.epoch_plan import item_of
from laneway.wording import counted, plural, rounded_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laneway.inspection.report import AuditReport
    from laneway.manifest import Manifest
    from laneway.pictures.plot import PlanPictures

_MAX_COLUMNS, _MAX_RANKS = 200, 64


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
            *self._key_facts(),
            "<h2>The epoch</h2>",
            *map(html_svg, self.pictures.of_epoch()),
            *self._ranks(),
            *self._data(),
            *([] if self.audit is None else html_audit(self.audit, self.checkpoints)),
        ]
        return html_page(title, as_of, parts)

    def _key_facts(self) -> Iterable[str]:
        """Yield the numbers at the top."""
        plan, samples, unit = self.pictures.plan, self.pictures.samples, item_of(self.pictures.plan)
        steps = f"{plan.next_step:,} of {plan.num_steps:,}" if plan.next_step else f"{plan.num_steps:,}"
        facts = [
            (plural(unit), f"{plan.num_rows:,}"),
            ("steps taken" if plan.next_step else "steps", steps),
            ("ranks", f"{plan.world_size:,}"),
            ("workers per rank", f"{plan.num_workers:,}"),
            ("batch of a rank", "a turn" if plan.batch_size is None else counted(plan.batch_size, unit)),
            ("memory per worker, up to", rounded_size(plan.worker_memory_bytes or 0)),
            (f"{plural(unit)} repeated", f"{plan.rows_repeated:,}"),
            (f"{plural(unit)} left out", f"{plan.rows_dropped:,}"),
        ]
        if samples.mixing is not None and samples.adjacent is not None:
            facts.append(("mixing, of a perfect shuffle", f"{samples.mixing:.0%}"))
            facts.append(("rows batched with a neighbour", f"{samples.adjacent:.1%}"))
        if self.audit is not None:
            verdict = "exactly once" if self.audit.is_exact else counted(len(self.audit.findings), "finding")
            facts.append(("audit", verdict))
        yield from html_facts(facts)

    def _ranks(self) -> Iterable[str]:
        """Yield what each rank reads."""
        plan, drawings = self.pictures.plan, self.pictures.of_ranks()
        yield "<h2>What each rank reads</h2>"
        if not drawings:
            yield "<p>Nothing is left of this epoch.</p>"
            return
        yield from map(html_svg, drawings)
        batches, read = plan.batches_per_rank or (), plan.bytes_per_rank or ()
        rows = [(rank, f"{batches[rank]:,}", rounded_size(read[rank])) for rank in range(min(len(read), _MAX_RANKS))]
        yield from html_table(("rank", "batches left", "reads"), rows, len(read))

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
        yield html_svg(draw_sizes("Files", "file", files.sizes))
        yield html_svg(draw_sizes(f"{plural(unit).capitalize()}, decoded", unit, files.block_memory_bytes[has_rows]))
        yield "</div>"
        if data["advice"]:
            yield f"<ul>{''.join(f'<li>{escaped(each, MAX_LINE)}</li>' for each in data['advice'])}</ul>"
        columns = [*data["schema"].items()]
        yield from html_table(("column", "type"), columns[:_MAX_COLUMNS], len(columns))

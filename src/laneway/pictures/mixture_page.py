"""A page about a mixture: one HTML file with its pictures in it, which loads nothing and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laneway.pictures.frame import MAX_LINE, html_audit, html_facts, html_page, html_svg, html_table
from laneway.pictures.sources import draw_sources
from laneway.pictures.svg import escaped
from laneway.wording import counted, rounded_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laneway.inspection.report import AuditReport
    from laneway.inspection.summary import StateSummary
    from laneway.plans.epoch_plan import EpochPlan
    from laneway.plans.source_samples import SampledSources

_MAX_SOURCES, _MAX_NAMED, _MAX_ADVICE = 200, 8, 50


@dataclass(frozen=True)
class MixturePage:
    """What the page about a mixture shows."""

    plan: EpochPlan
    """Its plan, from a checkpoint on."""
    samples: SampledSources
    """From which sources its rows come."""
    summary: StateSummary
    """What the checkpoint holds."""
    data: Mapping[str, Mapping[str, Any]]
    """Name of a source -> the facts about its files that `laneway inspect` answers."""
    checkpoint: str
    """The name of the checkpoint."""
    audit: AuditReport
    """What the checkpoints prove."""
    checkpoints: Sequence[str]
    """The names of these checkpoints."""

    def html(self) -> str:
        """Return the page."""
        named = ", ".join([*self.data][:_MAX_NAMED])
        more = len(self.data) - _MAX_NAMED
        title = f"Mixture of {escaped(named)}" + (f" and {more:,} more" if more > 0 else "")
        parts = [
            *self._key_facts(),
            "<h2>The mixture</h2>",
            html_svg(draw_sources(self.samples)),
            *self._sources(),
            *html_audit(self.audit, self.checkpoints),
        ]
        return html_page(title, f"as of {escaped(self.checkpoint)}", parts)

    def _key_facts(self) -> Iterable[str]:
        """Yield the numbers at the top."""
        plan, summary = self.plan, self.summary
        steps = f"{plan.next_step:,}" + ("" if plan.num_steps is None else f" of {plan.num_steps:,}")
        yield from html_facts(
            [
                ("rows delivered", "all" if summary.num_delivered is None else f"{summary.num_delivered:,}"),
                ("end", "none" if plan.num_rows is None else f"after about {counted(plan.num_rows, 'row')}"),
                ("steps taken", steps),
                ("sources", f"{len(summary.sources):,}"),
                ("lanes", f"{plan.num_lanes:,}"),
                ("ranks", f"{plan.world_size:,}"),
                ("workers per rank", f"{plan.num_workers:,}"),
                ("batch of a rank", "a turn" if plan.batch_size is None else counted(plan.batch_size, "row")),
                ("audit", "exactly once" if self.audit.is_exact else counted(len(self.audit.findings), "finding")),
            ]
        )

    def _sources(self) -> Iterable[str]:
        """Yield what the sources consist of."""
        yield "<h2>The sources</h2>"
        of_now = {each.name: each for each in self.summary.sources}
        rows = [
            (
                name,
                f"{of_now[name].share:.2%}" if name in of_now else "removed",
                data["source"],
                f"{data['files']:,}",
                f"{data['rows']:,}",
                rounded_size(data["bytes"]),
            )
            for name, data in self.data.items()
        ]
        names = ("source", "share by weight", "data", "files", "rows of an epoch", "size")
        yield from html_table(names, rows[:_MAX_SOURCES], len(rows))
        advice = [f"{name}: {each}" for name, data in self.data.items() for each in data["advice"]]
        if advice:
            shown = "".join(f"<li>{escaped(each, MAX_LINE)}</li>" for each in advice[:_MAX_ADVICE])
            yield f"<ul>{shown}</ul>"

"""A page about a mixture: one HTML file with its pictures in it, which loads nothing and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from laneway.core.weighting import shares_of
from laneway.pictures.frame import MAX_LINE, html_audit, html_facts, html_page, html_svg, html_table
from laneway.pictures.sources import draw_sources
from laneway.pictures.svg import escaped
from laneway.plans.epoch_plan import item_of
from laneway.wording import counted, plural, rounded_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laneway.core.weighting import Phase
    from laneway.inspection.report import AuditReport
    from laneway.inspection.summary import StateSummary
    from laneway.plans.epoch_plan import EpochPlan
    from laneway.plans.source_samples import SampledSources

_MAX_SOURCES, _MAX_NAMED, _MAX_ADVICE, _MAX_CHANGES = 200, 8, 50, 4


@dataclass(frozen=True)
class MixturePage:
    """What the page about a mixture shows."""

    plan: EpochPlan
    """Its plan, from its start or from a checkpoint on."""
    samples: SampledSources
    """From which sources its rows come."""
    phases: Sequence[Phase]
    """The weights of the sources, from which row on."""
    data: Mapping[str, Mapping[str, Any]]
    """Name of a source -> the facts about its files that `laneway inspect` answers."""
    summary: StateSummary | None = None
    """What the checkpoint holds; None: it is planned from its start."""
    checkpoint: str | None = None
    """The name of the checkpoint."""
    audit: AuditReport | None = None
    """What the checkpoints prove."""
    checkpoints: Sequence[str] = ()
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
            *([] if self.audit is None else html_audit(self.audit, self.checkpoints)),
        ]
        as_of = "planned from its first row" if self.checkpoint is None else f"as of {escaped(self.checkpoint)}"
        return html_page(title, as_of, parts)

    def _key_facts(self) -> Iterable[str]:
        """Yield the numbers at the top."""
        plan, summary, audit, unit = self.plan, self.summary, self.audit, item_of(self.plan)
        all_steps = "" if plan.num_steps is None else f"{plan.num_steps:,}"
        facts = [
            ("end", "none" if plan.num_rows is None else f"after about {counted(plan.num_rows, unit)}"),
            ("sources", f"{len(self.phases[0].weights):,}"),
            ("lanes", f"{plan.num_lanes:,}"),
            ("ranks", f"{plan.world_size:,}"),
            ("workers per rank", f"{plan.num_workers:,}"),
            ("batch of a rank", "a turn" if plan.batch_size is None else counted(plan.batch_size, unit)),
        ]
        if summary is not None:
            delivered = "all" if summary.num_delivered is None else f"{summary.num_delivered:,}"
            taken = f"{plan.next_step:,}" + (f" of {all_steps}" if all_steps else "")
            facts = [(f"{plural(unit)} delivered", delivered), ("steps taken", taken), *facts]
        elif all_steps:
            facts = [("steps", all_steps), *facts]
        if audit is not None:
            facts.append(("audit", "exactly once" if audit.is_exact else counted(len(audit.findings), "finding")))
        yield from html_facts(facts)

    def _sources(self) -> Iterable[str]:
        """Yield what the sources consist of."""
        yield "<h2>The sources</h2>"
        shares = [(phase.start, shares_of(phase.weights)) for phase in self.phases]
        rows = [
            (
                name,
                self._share([(start, of_source[name]) for start, of_source in shares if name in of_source]),
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

    def _share(self, shares: Sequence[tuple[int, float]]) -> str:
        """Return the share of a source by its weight, and what a schedule changes it to.

        Args:
            shares: (row, the share from that row on), empty if the source was removed.
        """
        if not shares:
            return "removed"
        unit = item_of(self.plan)
        changes = [
            f"{share:.2%} from {unit} {start:,} on"
            for (_, before), (start, share) in pairwise(shares)
            if share != before
        ]
        more = [f"{len(changes) - _MAX_CHANGES:,} more"] if len(changes) > _MAX_CHANGES else []
        return ", ".join([f"{shares[0][1]:.2%}", *changes[:_MAX_CHANGES], *more])

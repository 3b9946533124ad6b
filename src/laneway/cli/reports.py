"""The command report: writes a page about an epoch, with its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.cli.data import block_name, facts_of_data
from laneway.cli.output import Answer, output_file
from laneway.cli.saved import states_of_files
from laneway.cli.sources import Data, open_data, open_dataset, open_for_state, refuse_settings
from laneway.core.weighting import Phase
from laneway.inspection.auditing import audit as audit_states
from laneway.inspection.summary import describe_state
from laneway.mixture import Mixture
from laneway.pictures.mixture_page import MixturePage
from laneway.pictures.page import Page
from laneway.pictures.plot import PlanPictures
from laneway.plans.source_samples import sample_sources
from laneway.wording import counted, rounded_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from laneway.cli.saved import SavedStates


def report(arguments: argparse.Namespace) -> Answer:
    """Write a page about an epoch: from its start, or from the last of some checkpoints; or about a mixture."""
    target = output_file("--output", arguments.output, ".html")
    checkpoints = states_of_files(arguments) if arguments.files else []
    page = _resumed_page(arguments, checkpoints) if checkpoints else _fresh_page(arguments)
    more: dict[str, Any]
    if isinstance(page, MixturePage):
        plan = page.plan
        more = {"sources": dict(zip(page.samples.names, page.samples.shares, strict=True))}
    else:
        plan, samples = page.pictures.plan, page.pictures.samples
        more = {"mixing": samples.mixing, "adjacent": samples.adjacent}
    html = page.html()
    target.write_text(html, encoding="utf-8")
    facts: dict[str, Any] = {
        "file": str(target),
        "bytes": len(html.encode()),
        "epoch": plan.epoch,
        "next_step": plan.next_step,
        "num_steps": plan.num_steps,
        "checkpoint": page.checkpoint,
        **more,
        "is_exact": None if page.audit is None else page.audit.is_exact,
    }
    lines = [f"wrote {target} ({rounded_size(facts['bytes'])})"]
    if page.audit is not None and not page.audit.is_exact:
        lines.append(f"the audit has {counted(len(page.audit.findings), 'finding')}: see the page, or laneway audit")
    return Answer(facts, lines)


def _fresh_page(arguments: argparse.Namespace) -> Page | MixturePage:
    """Return the page about an epoch that has not begun, or about a mixture."""
    found = open_data(arguments)
    whole = open_dataset(arguments, found[""].manifest if "" in found else None).whole
    plan = whole.plan(arguments.epoch, arguments.world_size, arguments.workers)
    facts = {name: facts_of_data(data) for name, data in found.items()}
    if isinstance(whole, Mixture):
        return MixturePage(plan, sample_sources(plan), whole.definition.given.phases, facts)
    manifest = found[""].manifest
    return Page(PlanPictures(plan, block_name(manifest)), manifest, facts[""])


def _resumed_page(arguments: argparse.Namespace, checkpoints: Sequence[SavedStates]) -> Page | MixturePage:
    """Return the page about the epoch of the last checkpoint that is not of the start of an epoch."""
    refuse_settings(arguments)
    first, last = checkpoints[0], _last_begun(checkpoints)
    if last.fields["mixture"]:
        return _mixture_page(arguments, checkpoints, last)
    found = open_data(arguments)
    if "" not in found:
        message = f"{arguments.source} is a mixture, and {last.name} is of a single dataset: give its dataset"
        raise ValueError(message)
    data = found[""]
    manifest = data.manifest
    dataset = open_for_state(arguments, last.states[0], manifest).whole
    plan = dataset.plan(None, arguments.world_size, arguments.workers, state=last.whole())
    audited = open_for_state(arguments, first.states[0], manifest).whole
    return Page(
        PlanPictures(plan, block_name(manifest)),
        manifest,
        facts_of_data(data),
        last.name,
        audit_states([each.originals for each in checkpoints], audited),
        [each.name for each in checkpoints],
    )


def _mixture_page(arguments: argparse.Namespace, checkpoints: Sequence[SavedStates], last: SavedStates) -> MixturePage:
    """Return the page about the mixture of the last checkpoint."""
    opened = open_for_state(arguments, last.states[0])
    plan = opened.whole.plan(None, arguments.world_size, arguments.workers, state=last.whole())
    summary = describe_state(last.originals)
    return MixturePage(
        plan,
        sample_sources(plan),
        [Phase(0, {each.name: each.weight for each in summary.sources})],
        {name: facts_of_data(Data.of(each)) for name, each in opened.sources.items()},
        summary,
        last.name,
        audit_states([each.originals for each in checkpoints], opened.whole),
        [each.name for each in checkpoints],
    )


def _last_begun(checkpoints: Sequence[SavedStates]) -> SavedStates:
    """Return the last checkpoint that is not of the start of an epoch, if there is one."""
    begun = [each for each in checkpoints if each.fields["lanes"] is not None]
    return begun[-1] if begun else checkpoints[-1]

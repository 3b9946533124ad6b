"""The command report: writes a page about an epoch, with its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from laneway.cli.data import facts_of_data
from laneway.cli.output import Answer, output_file
from laneway.cli.saved import states_of_files
from laneway.cli.sources import open_dataset, open_for_state, open_manifest
from laneway.inspection.auditing import audit as audit_states
from laneway.pictures.page import Page
from laneway.pictures.plot import PlanPictures
from laneway.wording import counted, rounded_size

if TYPE_CHECKING:
    import argparse

    from laneway.manifest import Manifest

_OF_STATE: Final = (
    *("batch_size", "shuffle", "seed", "lanes", "turn_rows", "shard_bytes", "window_bytes", "remainder", "drop_last"),
    "epoch",
)
"""Arguments that a checkpoint tells."""


def report(arguments: argparse.Namespace) -> Answer:
    """Write a page about an epoch: from its start, or from the last of some checkpoints."""
    target = output_file("--output", arguments.output, ".html")
    manifest = open_manifest(arguments)
    page = _resumed_page(arguments, manifest) if arguments.files else _fresh_page(arguments, manifest)
    html = page.html()
    target.write_text(html, encoding="utf-8")
    samples = page.pictures.samples
    facts: dict[str, Any] = {
        "file": str(target),
        "bytes": len(html.encode()),
        "epoch": page.pictures.plan.epoch,
        "next_step": page.pictures.plan.next_step,
        "num_steps": page.pictures.plan.num_steps,
        "checkpoint": page.checkpoint,
        "mixing": samples.mixing,
        "adjacent": samples.adjacent,
        "is_exact": None if page.audit is None else page.audit.is_exact,
    }
    lines = [f"wrote {target} ({rounded_size(facts['bytes'])})"]
    if page.audit is not None and not page.audit.is_exact:
        lines.append(f"the audit has {counted(len(page.audit.findings), 'finding')}: see the page, or laneway audit")
    return Answer(facts, lines)


def _fresh_page(arguments: argparse.Namespace, manifest: Manifest) -> Page:
    """Return the page about an epoch that has not begun."""
    dataset = open_dataset(arguments, manifest)
    plan = dataset.plan(arguments.epoch, arguments.world_size, arguments.workers)
    return Page(PlanPictures(plan), manifest, facts_of_data(manifest))


def _resumed_page(arguments: argparse.Namespace, manifest: Manifest) -> Page:
    """Return the page about the epoch of the last checkpoint that is not of the start of an epoch."""
    # Not 0, which is equal to False.
    given = [name for name in _OF_STATE if (value := getattr(arguments, name)) is not None and value is not False]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        message = f"the checkpoints tell the epoch and the settings of the dataset: leave out {options}"
        raise ValueError(message)
    checkpoints = states_of_files(arguments)
    first, last = checkpoints[0], checkpoints[-1]
    for each in checkpoints:
        last = last if each.fields["lanes"] is None else each
    dataset = open_for_state(arguments, last.fields, manifest)
    plan = dataset.plan(None, arguments.world_size, arguments.workers, state=last.whole())
    audited = open_for_state(arguments, first.fields, manifest)
    return Page(
        PlanPictures(plan),
        manifest,
        facts_of_data(manifest),
        last.name,
        audit_states([each.originals for each in checkpoints], audited),
        [each.name for each in checkpoints],
    )

"""Commands that look at states, or may: state, rows, where, audit, redistribute."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.cli.given import storage_options
from laneway.cli.mixtures import named_source
from laneway.cli.output import Answer, table, wrapped
from laneway.cli.sources import OF_STATE, open_dataset, open_for_state, refuse_settings, source_of_row
from laneway.cli.state_files import load_checkpoint, load_checkpoints, natural
from laneway.core.merge import merge_ranks
from laneway.delivery.transforms import Transforms
from laneway.errors import CheckpointMismatchError
from laneway.inspection.auditing import audit as audit_states
from laneway.inspection.collecting import states_of_step
from laneway.inspection.redistribution import redistribute as redistributed
from laneway.inspection.summary import compare_states, describe_state
from laneway.mixture import Mixture
from laneway.plans.looking import read_rows
from laneway.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from laneway.cli.state_files import SavedValue
    from laneway.core.schema import SavedState
    from laneway.delivery.dataset_definition import DatasetDefinition


def _lines_of(value: object) -> list[str]:
    """Return the lines of a repr, without the parentheses around them."""
    lines = repr(value).split("\n")
    return wrapped([line.removeprefix("  ").removesuffix(",") for line in lines[1:-1]] or lines)


class SavedStates(NamedTuple):
    """The states of a checkpoint."""

    name: str
    """Where it is, without secrets."""
    states: list[SavedState]
    """Its states: one, or those of several ranks."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of the first state; others of the same step have the same identity."""
        return self.states[0].fields

    @property
    def originals(self) -> list[dict[str, Any]]:
        """The states as they were saved."""
        return [each.original for each in self.states]

    def whole(self) -> dict[str, Any]:
        """Return the state of the whole job, for the plan of its epoch.

        Raises:
            CheckpointMismatchError: It is of the start of an epoch.
        """
        if self.fields["lanes"] is None:
            message = (
                f"{self.name} is of the start of epoch {self.fields['epoch']}, and doesn't say how many rows a batch "
                "has: use laneway plan and laneway where, or dataset.plan().rows_of(step) in Python"
            )
            raise CheckpointMismatchError(message)
        return self.states[0].original if len(self.states) == 1 else merge_ranks(self.states, same_step=False)


def states_of_files(arguments: argparse.Namespace) -> list[SavedStates]:
    """Return the checkpoints of a run, in the order of their numbers or as given."""
    options = storage_options(arguments)
    files = arguments.files if arguments.as_given else sorted(arguments.files, key=natural)
    return [_states_of(each, arguments) for file in files for each in load_checkpoints(file, options)]


def state_of_file(arguments: argparse.Namespace, file: str) -> SavedStates:
    """Return a checkpoint, the newest one of a folder."""
    return _states_of(load_checkpoint(file, storage_options(arguments)), arguments)


def _states_of(saved: SavedValue, arguments: argparse.Namespace) -> SavedStates:
    return SavedStates(saved.name, states_of_step(saved.value, saved.name, arguments.key))


def state(arguments: argparse.Namespace) -> Answer:
    """Say what a checkpoint holds, how it differs from another one, and whether it fits a dataset."""
    saved = state_of_file(arguments, arguments.file)
    summary = describe_state(saved.originals)
    fields = {name: value for name, value in asdict(summary).items() if not name.startswith("_")}
    facts: dict[str, Any] = {"name": saved.name, **fields, "share": summary.share}
    facts["settings"] = dict(summary.settings)
    parts: dict[str, Any] = {"cuts": summary.cuts, "sources": summary.sources, "ahead": summary.ahead}
    facts |= {name: [each._asdict() for each in own] for name, own in parts.items()}
    lines, exit_code = [saved.name, *_lines_of(summary)], 0
    if arguments.diff is not None:
        other = state_of_file(arguments, arguments.diff)
        found = compare_states(saved.originals, other.originals)
        facts["differences"] = {
            "settings": [list(each) for each in found.settings],
            "progress": [list(each) for each in found.progress],
            "files": found.files,
        }
        lines += ["", f"compared with {other.name}", *(_lines_of(found) if found else ["no difference"])]
        exit_code = 1 if found else 0
    if arguments.sources is not None:
        problem = _misfit(arguments, saved)
        is_mixed = bool(saved.fields["mixture"])
        is_named = is_mixed and len(arguments.sources) > 1
        data = ", ".join(named_source(text)[0] if is_named else text for text in arguments.sources)
        facts["fits"], facts["problem"] = problem is None, problem
        lines += ["", *wrapped([f"fits {data}" if problem is None else f"doesn't fit {data}"])]
        lines += [] if problem is None else problem.split("\n")
        exit_code = exit_code or int(problem is not None)
    return Answer(facts, lines, exit_code)


def _misfit(arguments: argparse.Namespace, saved: SavedStates) -> str | None:
    """Return why a state does not belong to a source; None: it does."""
    definition = open_for_state(arguments, saved.states[0]).whole.definition
    try:
        for each in saved.states:
            definition.read_progress(each, each.place, is_worker=each.fields["scope"] == "worker")
    except CheckpointMismatchError as error:
        return str(error)
    return None


def rows(arguments: argparse.Namespace) -> Answer:
    """Say which rows a step had, or will have."""
    saved = state_of_file(arguments, arguments.file)
    opened = open_for_state(arguments, saved.states[0])
    plan = opened.whole.plan(None, arguments.world_size, arguments.workers, state=saved.whole())
    ranks = plan.rows_of(arguments.step)
    chosen = range(len(ranks)) if arguments.rank is None else [arguments.rank]
    if arguments.rank is not None and not 0 <= arguments.rank < len(ranks):
        message = f"there is no rank {arguments.rank}: step {arguments.step} has {counted(len(ranks), 'rank')}"
        raise ValueError(message)
    found: list[dict[str, Any]] = []
    for rank in chosen:
        for index, row in enumerate(ranks[rank]):
            place = row._asdict()
            # Packs have several documents.
            found.append({"rank": rank, "batch_index": place.pop("pack", index), **place})
    is_mixed = bool(saved.fields["mixture"])
    names = [*found[0]] if found else ["rank", "batch_index", "path", "row"]
    if arguments.show:
        by_file: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for each in found:
            by_file.setdefault((each.get("source", ""), each["path"]), []).append(each)
        for (source, path), of_file in by_file.items():
            # As Python values, and before a user's functions, whatever the batches of the run are.
            read = read_rows(_plain(opened.sources[source]), path, [each["row"] for each in of_file], plan.epoch)
            for each, values in zip(of_file, read, strict=True):
                each["values"] = values
        columns = [*dict.fromkeys(name for each in found for name in each["values"])]
        cells = ([*(e[n] for n in names), *(e["values"].get(c, "") for c in columns)] for e in found)
        lines = table([*names, *columns], cells)
    else:
        lines = table(names, ([each[name] for name in names] for each in found))
    is_done = arguments.step < plan.next_step
    facts = {"epoch": plan.epoch, "step": arguments.step, "is_delivered": is_done, "rows": found}
    when = "was delivered" if is_done else "is ahead"
    of_what = "the mixture" if is_mixed and plan.num_rows is None else f"epoch {plan.epoch}"
    return Answer(facts, [f"step {arguments.step:,} of {of_what}, which {when}", *lines])


def _plain(definition: DatasetDefinition) -> DatasetDefinition:
    """Return a dataset without batches, functions and stages, whose rows are Python values."""
    rows = definition if definition.stages is None else definition.without_stages()
    return replace(
        rows,
        options=replace(rows.options, batch_size=None),
        columns=rows.columns.with_output("python"),
        transform=Transforms(),
        collate_fn=None,
    )


def where(arguments: argparse.Namespace) -> Answer:
    """Say when a row is delivered."""
    saved = None
    if arguments.state is None:
        if arguments.sources or arguments.weights is not None or arguments.stop is not None:
            message = "a mixture is described by one of its checkpoints: give it with --state"
            raise ValueError(message)
        whole = open_dataset(arguments).whole
    else:
        saved = state_of_file(arguments, arguments.state)
        is_mixed = bool(saved.fields["mixture"])
        refuse_settings(arguments, [name for name in OF_STATE if name != "epoch" or not is_mixed])
        whole = open_for_state(arguments, saved.states[0]).whole
    # A state has an epoch itself, and of a mixture, the argument is that of the source.
    epoch = arguments.epoch if saved is None and not isinstance(whole, Mixture) else None
    resumed = None if saved is None else saved.whole()
    plan = whole.plan(epoch, arguments.world_size, arguments.workers, state=resumed)
    of_mixture: dict[str, Any] = {}
    if isinstance(whole, Mixture):
        of_mixture = {"source": source_of_row(arguments, whole), "epoch": arguments.epoch or 0}
    found = plan.where(arguments.path, arguments.row, **of_mixture)
    names = ["step", "rank", "worker", "batch_index"]
    facts = {"path": arguments.path, "row": arguments.row, **of_mixture}
    facts["deliveries"] = [each._asdict() for each in found]
    left_out = "is left out of the epoch" + ", or came in a cut that the state has forgotten" * bool(of_mixture)
    cells = [["unknown" if value is None else value for value in each] for each in found]
    lines = table(names, cells) if found else [f"row {arguments.row:,} of {arguments.path} {left_out}"]
    return Answer(facts, lines, exit_code=0 if found else 1)


def audit(arguments: argparse.Namespace) -> Answer:
    """Say whether checkpoints prove that each row was delivered exactly once."""
    checkpoints = states_of_files(arguments)
    source = None
    if arguments.sources is not None:
        source = open_for_state(arguments, checkpoints[0].states[0]).whole
    report = audit_states([each.originals for each in checkpoints], source)
    facts = {
        "is_exact": report.is_exact,
        "checkpoints": [each.name for each in checkpoints],
        "epochs": [asdict(each) for each in report.epochs],
        "findings": [{**asdict(each), "ranges": [one._asdict() for one in each.ranges]} for each in report.findings],
    }
    named = [f"{index}: {each.name}" for index, each in enumerate(checkpoints)] if report.findings else []
    return Answer(facts, [*_lines_of(report), *named], exit_code=0 if report.is_exact else 1)


def redistribute(arguments: argparse.Namespace) -> Answer:
    """Write the states of the ranks of another job."""
    saved = state_of_file(arguments, arguments.file)
    source = None if arguments.sources is None else open_for_state(arguments, saved.states[0]).whole
    states = redistributed(
        saved.originals,
        arguments.world_size,
        arguments.workers,
        batch_size=arguments.new_batch_size,
        source=source,
    )
    folder = Path(arguments.output)
    names = [f"rank-{rank}.json" for rank in range(len(states))]
    present = [name for name in names if (folder / name).exists()]
    if present:
        message = f"{folder / present[0]} exists already: give a new folder with --output"
        raise ValueError(message)
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in zip(names, states, strict=True):
        (folder / name).write_text(json.dumps(own), encoding="utf-8")
    files = [str(folder / name) for name in names]
    return Answer({"files": files}, [f"{counted(len(files), 'state')} in {folder}"])

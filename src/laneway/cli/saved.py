"""Commands that look at states: state, rows, audit, redistribute."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.cli.output import Answer, table, wrapped
from laneway.cli.sources import open_for_state, storage_options
from laneway.cli.state_files import load_checkpoint, load_checkpoints, natural
from laneway.core.merge import merge_ranks
from laneway.errors import CheckpointMismatchError
from laneway.inspection.auditing import audit as audit_states
from laneway.inspection.collecting import states_of_step
from laneway.inspection.redistribution import redistribute as redistributed
from laneway.inspection.summary import compare_states, describe_state
from laneway.wording import counted

if TYPE_CHECKING:
    import argparse

    from laneway.cli.state_files import SavedValue
    from laneway.core.schema import SavedState
    from laneway.dataset import StatefulShardedDataset


def _lines_of(value: object) -> list[str]:
    """Return the lines of a repr, without the parentheses around them."""
    lines = repr(value).split("\n")
    return wrapped([line.removeprefix("  ").removesuffix(",") for line in lines[1:-1]] or lines)


def _originals(saved: SavedValue, key: str | None) -> list[dict[str, Any]]:
    """Return the states of a checkpoint."""
    return [each.original for each in states_of_step(saved.value, saved.name, key)]


def state(arguments: argparse.Namespace) -> Answer:
    """Say what a checkpoint holds, how it differs from another one, and whether it fits a dataset."""
    options = storage_options(arguments)
    saved = load_checkpoint(arguments.file, options)
    summary = describe_state(_originals(saved, arguments.key))
    facts: dict[str, Any] = {"name": saved.name, **asdict(summary), "share": summary.share}
    facts["settings"] = dict(summary.settings)
    facts["cuts"], facts["sources"] = ([each._asdict() for each in own] for own in (summary.cuts, summary.sources))
    lines, exit_code = [saved.name, *_lines_of(summary)], 0
    if arguments.diff is not None:
        other = load_checkpoint(arguments.diff, options)
        found = compare_states(*(_originals(each, arguments.key) for each in (saved, other)))
        facts["differences"] = {
            "settings": [list(each) for each in found.settings],
            "progress": [list(each) for each in found.progress],
            "files": found.files,
        }
        lines += ["", f"compared with {other.name}", *(_lines_of(found) if found else ["no difference"])]
        exit_code = 1 if found else 0
    if arguments.source is not None:
        problem = _misfit(arguments, states_of_step(saved.value, saved.name, arguments.key))
        facts["fits"], facts["problem"] = problem is None, problem
        lines += ["", f"fits {arguments.source}" if problem is None else f"doesn't fit {arguments.source}"]
        lines += [] if problem is None else problem.split("\n")
        exit_code = exit_code or int(problem is not None)
    return Answer(facts, lines, exit_code)


def _misfit(arguments: argparse.Namespace, saved: list[SavedState]) -> str | None:
    """Return why a state does not belong to a source; None: it does."""
    dataset = open_for_state(arguments, saved[0].fields)
    definition = dataset.definition
    try:
        for each in saved:
            definition.read_progress(each, each.place, is_worker=each.fields["scope"] == "worker")
    except CheckpointMismatchError as error:
        return str(error)
    return None


def _for_state(
    arguments: argparse.Namespace,
    file: str,
    **others: Any,  # noqa: ANN401 - options
) -> tuple[StatefulShardedDataset, dict[str, Any]]:
    """Return the dataset of a checkpoint, and the state of the whole job."""
    value = load_checkpoint(file, storage_options(arguments))
    saved = states_of_step(value.value, value.name, arguments.key)
    return open_for_state(arguments, saved[0].fields, **others), whole_state(value.name, saved)


def whole_state(name: str, saved: list[SavedState]) -> dict[str, Any]:
    """Return the state of the whole job in a checkpoint, for the plan of its epoch.

    Args:
        name: The name of the checkpoint.
        saved: Its states.

    Raises:
        CheckpointMismatchError: It is of the start of an epoch.
    """
    if saved[0].fields["lanes"] is None:
        message = (
            f"{name} is of the start of epoch {saved[0].fields['epoch']}, and doesn't say how many rows a batch "
            "has: use laneway plan and laneway where, or dataset.plan().rows_of(step) in Python"
        )
        raise CheckpointMismatchError(message)
    return saved[0].original if len(saved) == 1 else merge_ranks(saved, same_step=False)


def rows(arguments: argparse.Namespace) -> Answer:
    """Say which rows a step had, or will have."""
    dataset, whole = _for_state(arguments, arguments.file)
    plan = dataset.plan(None, arguments.world_size, arguments.workers, state=whole)
    ranks = plan.rows_of(arguments.step)
    chosen = range(len(ranks)) if arguments.rank is None else [arguments.rank]
    if arguments.rank is not None and not 0 <= arguments.rank < len(ranks):
        message = f"there is no rank {arguments.rank}: step {arguments.step} has {counted(len(ranks), 'rank')}"
        raise ValueError(message)
    found: list[dict[str, Any]] = [
        {"rank": rank, "batch_index": index, "path": row.path, "row": row.row}
        for rank in chosen
        for index, row in enumerate(ranks[rank])
    ]
    names = ["rank", "batch_index", "path", "row"]
    if arguments.show:
        # As rows of Python values, whatever the batches of the run were.
        plain, _ = _for_state(arguments, arguments.file, output="python")
        by_path: dict[str, list[dict[str, Any]]] = {}
        for each in found:
            by_path.setdefault(str(each["path"]), []).append(each)
        for path, of_path in by_path.items():
            batch = plain.read(path, [each["row"] for each in of_path])
            for index, each in enumerate(of_path):
                each["values"] = {name: column[index] for name, column in batch.items()}
        columns = plain.schema.names
        lines = table([*names, *columns], ([*(e[n] for n in names), *(e["values"][c] for c in columns)] for e in found))
    else:
        lines = table(names, ([each[name] for name in names] for each in found))
    is_done = arguments.step < plan.next_step
    facts = {"epoch": plan.epoch, "step": arguments.step, "is_delivered": is_done, "rows": found}
    when = "was delivered" if is_done else "is ahead"
    return Answer(facts, [f"step {arguments.step:,} of epoch {plan.epoch}, which {when}", *lines])


class SavedStates(NamedTuple):
    """The states of a checkpoint."""

    name: str
    """Where it is, without secrets."""
    states: list[SavedState]
    """Its states: one, or those of several ranks."""

    @property
    def originals(self) -> list[dict[str, Any]]:
        """The states as they were saved."""
        return [each.original for each in self.states]


def states_of_files(arguments: argparse.Namespace) -> list[SavedStates]:
    """Return the checkpoints of a run, in the order of their numbers or as given."""
    options = storage_options(arguments)
    files = arguments.files if arguments.as_given else sorted(arguments.files, key=natural)
    values = [each for file in files for each in load_checkpoints(file, options)]
    return [SavedStates(each.name, states_of_step(each.value, each.name, arguments.key)) for each in values]


def audit(arguments: argparse.Namespace) -> Answer:
    """Say whether checkpoints prove that each row was delivered exactly once."""
    checkpoints = states_of_files(arguments)
    source = None
    if arguments.source is not None:
        source = open_for_state(arguments, checkpoints[0].states[0].fields)
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
    value = load_checkpoint(arguments.file, storage_options(arguments))
    num_rows = None
    if arguments.source is not None:
        fields = states_of_step(value.value, value.name, arguments.key)[0].fields
        num_rows = open_for_state(arguments, fields).definition.identity.selected.num_rows
    states = redistributed(
        _originals(value, arguments.key),
        arguments.world_size,
        arguments.workers,
        batch_size=arguments.batch_size,
        num_rows=num_rows,
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

"""Opens the dataset that the arguments of a command describe, or that a state belongs to."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from laneway.core.gaps import parse_gaps
from laneway.core.mixture_progress import progress_in
from laneway.dataset import StatefulShardedDataset
from laneway.errors import CheckpointMismatchError
from laneway.manifest import Manifest
from laneway.mixture import Mixture

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from laneway.core.schema import SavedState

OF_STATE: Final = (
    *("batch_size", "shuffle", "seed", "lanes", "turn_rows", "shard_bytes", "window_bytes", "remainder", "drop_last"),
    "epoch",
)
"""Arguments whose values a checkpoint holds."""
_OF_SOURCE = (
    *("path", "shuffle", "seed", "filter", "columns", "shard_bytes", "shard_rows", "window_bytes", "remainder"),
    *("format", "manifest"),
)
"""What a source of a mixture can be given as JSON."""
_IN_PYTHON = "use dataset.plan(state=...), or laneway.audit(states, source=dataset), in Python"
_FROM_STATE = ("seed", "shuffle", "shard_bytes", "shard_rows", "window_bytes", "remainder", "drop_last")


def json_argument(name: str, text: str, example: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of an argument that is JSON.

    Args:
        name: The argument.
        text: Its value.
        example: What it may look like.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{name} must be JSON, such as '{example}' ({error})"
        raise ValueError(message) from None


def storage_options(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    """Return the options of the filesystem.

    Raises:
        ValueError: They are no JSON object.
    """
    text = arguments.storage_options
    found = None if text is None else json_argument("--storage-options", text, '{"anon": true}')
    if found is not None and not isinstance(found, dict):
        message = "--storage-options must be a JSON object"
        raise ValueError(message)
    return found


def open_manifest(arguments: argparse.Namespace) -> Manifest:
    """Return the manifest of the source: scanned, or loaded with --manifest."""
    options, sources = storage_options(arguments), source_texts(arguments)
    if len(sources) != 1:
        message = f"{len(sources)} sources are given, and only a mixture has several: give one"
        raise ValueError(message)
    if arguments.manifest:
        return Manifest.load(sources[0], storage_options=options)
    return Manifest.scan(sources[0], format=arguments.format, storage_options=options, progress=progress_wanted())


def progress_wanted() -> bool | None:
    """Return whether to show progress bars: after 2 s on a terminal, never elsewhere."""
    return None if sys.stderr.isatty() else False


def open_dataset(
    arguments: argparse.Namespace,
    manifest: Manifest | None = None,
    **others: Any,  # noqa: ANN401 - options
) -> StatefulShardedDataset:
    """Return the dataset that the arguments describe; `manifest`: that of its source, if it was opened."""
    given = {name: getattr(arguments, name, None) for name in ("batch_size", "lanes", "turn_rows", "remainder")}
    given |= {"shuffle": getattr(arguments, "shuffle", False), "seed": getattr(arguments, "seed", None) or 0}
    given |= {"drop_last": getattr(arguments, "drop_last", False)}
    sizes = {name: getattr(arguments, name, None) for name in ("shard_bytes", "window_bytes")}
    given |= {name: size for name, size in sizes.items() if size is not None}
    return _dataset(arguments, manifest or open_manifest(arguments), **given, **others)


class Opened(NamedTuple):
    """The dataset or the mixture of a state."""

    whole: StatefulShardedDataset | Mixture
    """The dataset, or the mixture of all sources."""
    sources: Mapping[str, StatefulShardedDataset]
    """Name -> source of a mixture; the only name of a dataset is ""."""


def open_for_state(
    arguments: argparse.Namespace,
    saved: SavedState,
    manifest: Manifest | None = None,
    **others: Any,  # noqa: ANN401 - options
) -> Opened:
    """Return the dataset of the source with the settings of a state, or the mixture of its sources.

    Args:
        arguments: The arguments of the command.
        saved: The state.
        manifest: The manifest of the source, if it is a dataset; None: it is opened.
        **others: Other options of the dataset, or of the sources.

    Raises:
        CheckpointMismatchError: The state has settings that the command line can't give.
        ValueError: The sources of a mixture are not all given by name, or some are for a single dataset.
    """
    fields = saved.fields
    problem = None
    if fields["categories"] is not None:
        problem = f"its dataset has categories=: {_IN_PYTHON}"
    elif fields["stages"] is not None:
        problem = (
            "flat_map() or pack() make items of its rows, and how many may depend on the data: leave out --source, or "
            "use laneway.audit(states, source=...) in Python, or dataset.plan(state=...) for packs of known lengths"
        )
    elif fields["selection"] is not None and arguments.filter is None:
        is_filter = fields["selection"].startswith("filter (") and " | " not in fields["selection"]
        way_out = "give the same --filter" if is_filter else _IN_PYTHON
        problem = f"its rows are selected by {fields['selection']}: {way_out}"
    if problem is not None:
        message = f"the dataset of this state can't be opened by the command line: {problem}"
        raise CheckpointMismatchError(message)
    if fields["mixture"]:
        return _open_mixture(arguments, saved, **others)
    given = [name for name in ("weights", "stop") if getattr(arguments, name, None) is not None]
    if given:
        message = f"--{given[0]} is for a mixture, and the state is of a single dataset: leave it out"
        raise ValueError(message)
    settings = {name: fields[name] for name in _FROM_STATE}
    options = {**settings, "batch_size": _batch_rows(fields), "turn_rows": fields["turn_rows"], **others}
    dataset = _dataset(arguments, manifest or open_manifest(arguments), **options)
    gaps = fields["without"]
    if gaps is not None:
        dataset = dataset.without([tuple(each) for each in parse_gaps(gaps)])
    return Opened(dataset, {"": dataset})


def _open_mixture(arguments: argparse.Namespace, saved: SavedState, **others: Any) -> Opened:  # noqa: ANN401 - options
    """Return the mixture of a state, with the weights of its current cut unless others are given."""
    if arguments.filter is not None:
        message = '--filter is for a single dataset: give a source its own, as NAME={"path": ..., "filter": [...]}'
        raise ValueError(message)
    given: dict[str, str] = {}
    for name, text in map(named_source, source_texts(arguments)):
        if name in given:
            message = f"source {name!r} is given twice: give each source of the mixture once"
            raise ValueError(message)
        given[name] = text
    starts = progress_in(saved).starts
    now = {each.name: each.weight for each in starts[-1].sources} if starts else {}
    missing = [name for name in now if name not in given]
    if missing:
        message = f"the state is of a mixture, and source {missing[0]!r} is not given: add --source {missing[0]}=PATH"
        raise ValueError(message)
    weights: Any = now | {name: 0 for name in given if name not in now}
    if arguments.weights is not None:
        weights = json_argument("--weights", arguments.weights, '{"web": 3, "code": 1}')
    elif not now:
        message = f"the state is of the start of a mixture of {', '.join(given)}, and has no weights: give --weights"
        raise ValueError(message)
    # Their order decides between equal weights.
    names = [*now, *(name for name in given if name not in now)]
    sources = {name: _open_source(arguments, name, given[name], **others) for name in names}
    fields = saved.fields
    stop = arguments.stop
    mixture = Mixture(
        sources,
        weights,
        seed=fields["seed"],
        stop=int(stop) if stop is not None and stop.isdigit() else stop,
        epoch_batches=fields["epoch_batches"],
        turn_rows=fields["turn_rows"],
        rank=0,
        world_size=1,
    )
    return Opened(mixture.batch(_batch_rows(fields), drop_last=fields["drop_last"]), sources)


def _batch_rows(fields: Mapping[str, Any]) -> int:
    """Return the rows of a batch of the run that saved a state."""
    found: int = (fields["turn_rows"] or 1) * (fields["lane_batch_turns"] or 1)
    return found


def refuse_settings(arguments: argparse.Namespace, names: Sequence[str] | None = None) -> None:
    """Refuse arguments whose values a checkpoint holds.

    Raises:
        ValueError: One of them is given.
    """
    # Not 0, which is equal to False.
    held = OF_STATE if names is None else names
    given = [name for name in held if (value := getattr(arguments, name)) is not None and value is not False]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        message = f"the checkpoints hold the epoch and the settings of the dataset: leave out {options}"
        raise ValueError(message)


def source_texts(arguments: argparse.Namespace) -> list[str]:
    """Return the sources that are given, of which there is one unless they are those of a mixture."""
    first = getattr(arguments, "source", None)
    return [*([] if first is None else [first]), *(getattr(arguments, "sources", None) or [])]


def named_source(text: str) -> tuple[str, str]:
    """Return the name and the rest of NAME=SOURCE.

    Raises:
        ValueError: It has no name.
    """
    name, mark, rest = text.partition("=")
    if not mark or not name or not rest:
        message = (
            f"the state is of a mixture, so its sources need names: --source NAME=SOURCE for each, and not {text!r}"
        )
        raise ValueError(message)
    return name, rest


def _open_source(arguments: argparse.Namespace, name: str, text: str, **others: Any) -> StatefulShardedDataset:  # noqa: ANN401
    """Return a source of a mixture: of a path, or of a JSON object with its path and settings.

    Raises:
        ValueError: The object has unknown keys, or no path.
    """
    options: dict[str, Any] = {"path": text}
    if text.startswith("{"):
        example = f'{name}={{"path": "data", "shuffle": true, "seed": 3}}'
        options = json_argument("--source", text, example)
        unknown = [key for key in options if key not in _OF_SOURCE]
        if unknown or "path" not in options:
            problem = f"knows no {unknown[0]!r}" if unknown else "lacks the path"
            message = f"--source {name}=... {problem}: it has some of {', '.join(_OF_SOURCE)}, such as '{example}'"
            raise ValueError(message)
    storage = storage_options(arguments)
    path, condition = options.pop("path"), options.pop("filter", None)
    options |= {"filter": None if condition is None else _conditions(condition)}
    if options.pop("manifest", arguments.manifest):
        found = Manifest.load(path, storage_options=storage)
        options.pop("format", None)
    else:
        form = options.pop("format", arguments.format)
        found = Manifest.scan(path, format=form, storage_options=storage, progress=progress_wanted())
    return StatefulShardedDataset(found, storage_options=storage, rank=0, world_size=1, **options, **others)


def _dataset(arguments: argparse.Namespace, manifest: Manifest, **options: Any) -> StatefulShardedDataset:  # noqa: ANN401
    condition = arguments.filter
    return StatefulShardedDataset(
        manifest,
        columns=getattr(arguments, "columns", None),
        filter=None if condition is None else _conditions(json_argument("--filter", condition, '[["price", ">", 10]]')),
        storage_options=storage_options(arguments),
        rank=0,
        world_size=1,
        **options,
    )


def _conditions(value: Any) -> Any:  # noqa: ANN401 - checked by the dataset
    """Return conditions as tuples, which JSON lacks."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return tuple(value)
    return [_conditions(each) for each in value] if isinstance(value, list) else value

"""Opens the mixture that a state belongs to, from the sources that are given by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.cli.given import conditions, find_manifest, json_argument, source_texts, storage_options
from laneway.core.mixture_progress import progress_in
from laneway.dataset import StatefulShardedDataset
from laneway.mixture import Mixture

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from laneway.core.schema import SavedState

_OF_SOURCE = (
    *("path", "shuffle", "seed", "filter", "columns", "shard_bytes", "shard_rows", "window_bytes", "remainder"),
    "format",
)
"""What a source of a mixture can be given as JSON."""


def open_mixture(arguments: argparse.Namespace, saved: SavedState) -> Mixture:
    """Return the mixture of a state, with the weights of its current cut unless others are given.

    Raises:
        ValueError: The sources are not all given by name, or an option is for a single dataset.
    """
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
    sources = {name: _open_source(arguments, name, given[name]) for name in names}
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
    return mixture.batch(batch_rows(fields), drop_last=fields["drop_last"])


def batch_rows(fields: Mapping[str, Any]) -> int:
    """Return the rows of a batch of the run that saved a state."""
    found: int = (fields["turn_rows"] or 1) * (fields["lane_batch_turns"] or 1)
    return found


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


def _open_source(arguments: argparse.Namespace, name: str, text: str) -> StatefulShardedDataset:
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
    options |= {"filter": None if condition is None else conditions(condition)}
    found = find_manifest(path, options.pop("format", arguments.format), storage)
    return StatefulShardedDataset(found, storage_options=storage, rank=0, world_size=1, **options)

"""Opens the dataset that the arguments of a command describe, or that a state belongs to."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from laneway.core.gaps import parse_gaps
from laneway.dataset import StatefulShardedDataset
from laneway.errors import CheckpointMismatchError
from laneway.manifest import Manifest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

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
    options = storage_options(arguments)
    if arguments.manifest:
        return Manifest.load(arguments.source, storage_options=options)
    return Manifest.scan(arguments.source, format=arguments.format, storage_options=options, progress=progress_wanted())


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


def open_for_state(
    arguments: argparse.Namespace,
    fields: Mapping[str, Any],
    manifest: Manifest | None = None,
    **others: Any,  # noqa: ANN401 - options
) -> StatefulShardedDataset:
    """Return the dataset of the source with the settings of a state.

    Args:
        arguments: The arguments of the command.
        fields: The fields of the state.
        manifest: The manifest of the source; None: it is opened.
        **others: Other options of the dataset.

    Raises:
        CheckpointMismatchError: The state is of a mixture, or has settings that the command line can't give.
    """
    problem = None
    if fields["mixture"]:
        problem = "it is of a mixture: use Mixture.plan(state=...) in Python, with the same sources"
    elif fields["categories"] is not None:
        problem = "its dataset has categories=: use dataset.plan(state=...) in Python"
    elif fields["stages"] is not None:
        problem = "flat_map() or pack() make items of its rows, and how many depends on the data"
    elif fields["selection"] is not None and arguments.filter is None:
        problem = f"its rows are selected by {fields['selection']}: give the same --filter"
    if problem is not None:
        message = f"the dataset of this state can't be opened here: {problem}"
        raise CheckpointMismatchError(message)
    batch = (fields["turn_rows"] or 1) * (fields["lane_batch_turns"] or 1)
    given = {name: fields[name] for name in _FROM_STATE}
    options = {**given, "batch_size": batch, "turn_rows": fields["turn_rows"], **others}
    dataset = _dataset(arguments, manifest or open_manifest(arguments), **options)
    gaps = fields["without"]
    return dataset if gaps is None else dataset.without([tuple(each) for each in parse_gaps(gaps)])


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
    """Return conditions as tuples, which JSON has none of."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return tuple(value)
    return [_conditions(each) for each in value] if isinstance(value, list) else value

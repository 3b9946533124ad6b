"""Opens the dataset that the arguments of a command describe, or that a state belongs to."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from laneway.cli.modules import load_dataset, names_code
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
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.storage.filesystem import Storage

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
_OF_CODE: Final = (
    *("filter", "columns", "format", "manifest", "weights", "stop"),
    *(name for name in OF_STATE if name != "epoch"),
)
"""Arguments whose values are in a user's code, if the source is."""
_IN_CODE = "name the dataset in your code, as --source train.py:dataset"
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


class Opened(NamedTuple):
    """A dataset, or a mixture."""

    whole: StatefulShardedDataset | Mixture
    """The dataset, or the mixture of all sources."""
    sources: Mapping[str, DatasetDefinition]
    """Name -> source of a mixture; the only name of a dataset is ""."""


class Data(NamedTuple):
    """Data files, and where they are."""

    manifest: Manifest
    """The files."""
    storage: Storage
    """Where they are."""
    selection: str | None = None
    """Which of their rows a dataset in a user's code has; None: all."""
    num_rows: int | None = None
    """Number of these rows."""

    @classmethod
    def of(cls, definition: DatasetDefinition) -> Self:
        """Return the data of a dataset."""
        identity = definition.identity
        return cls(definition.manifest, definition.storage, identity.settings.selection, identity.selected.num_rows)


def open_data(arguments: argparse.Namespace) -> dict[str, Data]:
    """Return name -> data of each source of a mixture; the only name of a dataset is ""."""
    coded = _open_code(arguments)
    if coded is None:
        manifest = open_manifest(arguments)
        return {"": Data(manifest, manifest.storage(storage_options=storage_options(arguments)))}
    return {name: Data.of(each) for name, each in coded.sources.items()}


def open_manifest(arguments: argparse.Namespace) -> Manifest:
    """Return the manifest of the source: scanned, or loaded with --manifest."""
    options, sources = storage_options(arguments), source_texts(arguments)
    if len(sources) != 1:
        message = f"{len(sources)} sources are given, and only a mixture has several: give one"
        raise ValueError(message)
    if arguments.manifest:
        return Manifest.load(sources[0], storage_options=options)
    return Manifest.scan(sources[0], format=arguments.format, storage_options=options, progress=progress_wanted())


def _open_code(arguments: argparse.Namespace) -> Opened | None:
    """Return the dataset or mixture of a user's code; None: the source is data.

    Raises:
        ValueError: Something is given that the code decides.
    """
    if "coded" in arguments:
        loaded: Opened = arguments.coded
        return loaded
    texts = source_texts(arguments)
    coded = [each for each in map(_code_in, texts) if each is not None]
    if not coded:
        return None
    (name, code), *others = coded
    if others or len(texts) > 1:
        message = f"{code} is one of {len(texts)} sources: name the dataset or Mixture of all of the data"
        raise ValueError(message)
    _refuse(arguments, _OF_CODE, f"{code} has settings of its own")
    whole = load_dataset(code)
    if name is not None and not (isinstance(whole, Mixture) and arguments.command == "where"):
        message = f"{name}= names the source of a row, for laneway where and a mixture only: leave it out"
        raise ValueError(message)
    # A report needs it several times.
    found = Opened(whole, whole.definition.sources if isinstance(whole, Mixture) else {"": whole.definition})
    arguments.coded = found
    return found


def refuse_code(arguments: argparse.Namespace, why: str) -> None:
    """Refuse a source in a user's code.

    Raises:
        ValueError: It is one.
    """
    code = _code_in(arguments.source)
    if code is not None:
        message = f"{code[1]} is a dataset in code, and {why}"
        raise ValueError(message)


def _code_in(text: str) -> tuple[str | None, str] | None:
    """Return the source of a mixture that an argument names, if any, and its name in code; None: it is not in code."""
    if names_code(text):
        return None, text
    name, _, rest = text.partition("=")
    return (name, rest) if names_code(rest) else None


def progress_wanted() -> bool | None:
    """Return whether to show progress bars: after 2 s on a terminal, never elsewhere."""
    return None if sys.stderr.isatty() else False


def open_dataset(
    arguments: argparse.Namespace,
    manifest: Manifest | None = None,
    *,
    default_batch_size: int | None = None,
    **others: Any,  # noqa: ANN401 - options
) -> Opened:
    """Return the dataset that the arguments describe.

    Args:
        arguments: The arguments of the command.
        manifest: The manifest of the source, if it was opened.
        default_batch_size: Rows of a batch, unless the arguments say how many.
        **others: Other options of the dataset, unless it is in a user's code.
    """
    coded = _open_code(arguments)
    if coded is not None:
        return coded
    given = {name: getattr(arguments, name, None) for name in ("batch_size", "lanes", "turn_rows", "remainder")}
    given |= {"shuffle": getattr(arguments, "shuffle", False), "seed": getattr(arguments, "seed", None) or 0}
    if given["batch_size"] is None:
        given["batch_size"] = default_batch_size
    given |= {"drop_last": getattr(arguments, "drop_last", False)}
    sizes = {name: getattr(arguments, name, None) for name in ("shard_bytes", "window_bytes")}
    given |= {name: size for name, size in sizes.items() if size is not None}
    dataset = _dataset(arguments, manifest or open_manifest(arguments), **given, **others)
    return Opened(dataset, {"": dataset.definition})


def open_for_state(
    arguments: argparse.Namespace,
    saved: SavedState,
    manifest: Manifest | None = None,
) -> Opened:
    """Return the dataset of the source with the settings of a state, or the mixture of its sources.

    A user's code has the settings itself.

    Args:
        arguments: The arguments of the command.
        saved: The state.
        manifest: The manifest of the source, if it is a dataset; None: it is opened.

    Raises:
        CheckpointMismatchError: The state has settings that the command line can't give.
        ValueError: The sources of a mixture are not all given by name, or some are for a single dataset.
    """
    coded, fields = _open_code(arguments), saved.fields
    if coded is not None:
        return coded
    problem = None
    if fields["categories"] is not None:
        problem = f"its dataset has categories=: {_IN_CODE}"
    elif fields["stages"] is not None:
        problem = f"flat_map() or pack() make items of its rows: leave out --source, or {_IN_CODE}"
    elif fields["selection"] is not None and arguments.filter is None:
        is_filter = fields["selection"].startswith("filter (") and " | " not in fields["selection"]
        way_out = "give the same --filter" if is_filter else _IN_CODE
        problem = f"its rows are selected by {fields['selection']}: {way_out}"
    if problem is not None:
        message = f"a path alone does not describe the dataset of this state: {problem}"
        raise CheckpointMismatchError(message)
    if fields["mixture"]:
        return _open_mixture(arguments, saved)
    given = [name for name in ("weights", "stop") if getattr(arguments, name, None) is not None]
    if given:
        message = f"--{given[0]} is for a mixture, and the state is of a single dataset: leave it out"
        raise ValueError(message)
    settings = {name: fields[name] for name in _FROM_STATE}
    options = {**settings, "batch_size": _batch_rows(fields), "turn_rows": fields["turn_rows"]}
    dataset = _dataset(arguments, manifest or open_manifest(arguments), **options)
    gaps = fields["without"]
    if gaps is not None:
        dataset = dataset.without([tuple(each) for each in parse_gaps(gaps)])
    return Opened(dataset, {"": dataset.definition})


def _open_mixture(arguments: argparse.Namespace, saved: SavedState) -> Opened:
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
    return Opened(mixture.batch(_batch_rows(fields), drop_last=fields["drop_last"]), mixture.definition.sources)


def _batch_rows(fields: Mapping[str, Any]) -> int:
    """Return the rows of a batch of the run that saved a state."""
    found: int = (fields["turn_rows"] or 1) * (fields["lane_batch_turns"] or 1)
    return found


def refuse_settings(arguments: argparse.Namespace, names: Sequence[str] = OF_STATE) -> None:
    """Refuse arguments whose values a checkpoint holds.

    Raises:
        ValueError: One of them is given.
    """
    _refuse(arguments, names, "the checkpoints hold the epoch and the settings of the dataset")


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    # Not 0, which is equal to False.
    given = [name for name in names if (value := getattr(arguments, name, None)) is not None and value is not False]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        message = f"{why}: leave out {options}"
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


def source_of_row(arguments: argparse.Namespace, whole: Mixture) -> str:
    """Return the source of a mixture that has the row, as in NAME=SOURCE.

    Raises:
        ValueError: None is named, and there are several.
    """
    coded = _code_in(arguments.source)
    if coded is None:
        return named_source(arguments.source)[0]
    names = [*whole.definition.sources]
    if coded[0] is None and len(names) > 1:
        message = f"{coded[1]} has {len(names)} sources: name that of the row, such as {names[0]}={coded[1]}"
        raise ValueError(message)
    return coded[0] or names[0]


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
    options |= {"filter": None if condition is None else _conditions(condition)}
    if options.pop("manifest", arguments.manifest):
        found = Manifest.load(path, storage_options=storage)
        options.pop("format", None)
    else:
        form = options.pop("format", arguments.format)
        found = Manifest.scan(path, format=form, storage_options=storage, progress=progress_wanted())
    return StatefulShardedDataset(found, storage_options=storage, rank=0, world_size=1, **options)


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

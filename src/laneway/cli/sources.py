"""Opens the dataset that the arguments of a command describe, or that a state belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from laneway.cli.given import conditions, json_argument, open_manifest, source_texts, storage_options
from laneway.cli.mixtures import batch_rows, named_source, open_mixture
from laneway.cli.modules import load_dataset, names_code
from laneway.core.gaps import parse_gaps
from laneway.dataset import StatefulShardedDataset
from laneway.errors import CheckpointMismatchError
from laneway.mixture import Mixture

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from laneway.core.schema import SavedState
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.manifest import Manifest
    from laneway.storage.filesystem import Storage

OF_STATE: Final = (
    *("batch_size", "shuffle", "seed", "lanes", "turn_rows", "shard_bytes", "window_bytes", "remainder", "drop_last"),
    "epoch",
)
"""Arguments whose values a checkpoint holds."""
_OF_CODE: Final = (
    *("filter", "columns", "format", "weights", "stop"),
    *(name for name in OF_STATE if name != "epoch"),
)
"""Arguments whose values are in a user's code, if the source is."""
_IN_CODE = "name the dataset in your code, as --source train.py:dataset"
_FROM_STATE = ("seed", "shuffle", "shard_bytes", "shard_rows", "window_bytes", "remainder", "drop_last")


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
        mixture = open_mixture(arguments, saved)
        return Opened(mixture, mixture.definition.sources)
    given = [name for name in ("weights", "stop") if getattr(arguments, name, None) is not None]
    if given:
        message = f"--{given[0]} is for a mixture, and the state is of a single dataset: leave it out"
        raise ValueError(message)
    settings = {name: fields[name] for name in _FROM_STATE}
    options = {**settings, "batch_size": batch_rows(fields), "turn_rows": fields["turn_rows"]}
    dataset = _dataset(arguments, manifest or open_manifest(arguments), **options)
    gaps = fields["without"]
    if gaps is not None:
        dataset = dataset.without([tuple(each) for each in parse_gaps(gaps)])
    return Opened(dataset, {"": dataset.definition})


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


def _dataset(arguments: argparse.Namespace, manifest: Manifest, **options: Any) -> StatefulShardedDataset:  # noqa: ANN401
    condition = arguments.filter
    return StatefulShardedDataset(
        manifest,
        columns=getattr(arguments, "columns", None),
        filter=None if condition is None else conditions(json_argument("--filter", condition, '[["price", ">", 10]]')),
        storage_options=storage_options(arguments),
        rank=0,
        world_size=1,
        **options,
    )

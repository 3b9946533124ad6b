"""What arguments of commands mean: JSON values, options of the filesystem, and the files of a source."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from laneway.catalog.signature import SavedManifestError
from laneway.manifest import Manifest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


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
        ValueError: They are not a JSON object.
    """
    text = arguments.storage_options
    found = None if text is None else json_argument("--storage-options", text, '{"anon": true}')
    if found is not None and not isinstance(found, dict):
        message = "--storage-options must be a JSON object"
        raise ValueError(message)
    return found


def conditions(value: Any) -> Any:  # noqa: ANN401 - checked by the dataset
    """Return conditions as tuples, which JSON lacks."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return tuple(value)
    return [conditions(each) for each in value] if isinstance(value, list) else value


def source_texts(arguments: argparse.Namespace) -> list[str]:
    """Return the sources that are given, of which there is one unless they are those of a mixture."""
    first = getattr(arguments, "source", None)
    return [*([] if first is None else [first]), *(getattr(arguments, "sources", None) or [])]


def open_manifest(arguments: argparse.Namespace) -> Manifest:
    """Return the manifest of the source: of its data files, or a saved one."""
    sources = source_texts(arguments)
    if len(sources) != 1:
        message = (
            f"{len(sources)} sources are given, and only a mixture has several: give one, or a checkpoint of the "
            "mixture, or name the mixture in your code, as train.py:mixture"
        )
        raise ValueError(message)
    return find_manifest(sources[0], arguments.format, storage_options(arguments))


def find_manifest(path: str, format_: str | None, options: Mapping[str, Any] | None) -> Manifest:
    """Return the manifest of the data files at a path, or the one that is saved there.

    Args:
        path: The path or URL.
        format_: Format of the data files; None: detected.
        options: Options of the filesystem.
    """
    try:
        return Manifest.scan(path, format=format_, storage_options=options, progress=progress_wanted())
    except SavedManifestError:
        return Manifest.load(path, storage_options=options)


def progress_wanted() -> bool | None:
    """Return whether to show progress bars: after 2 s on a terminal, never elsewhere."""
    return None if sys.stderr.isatty() else False

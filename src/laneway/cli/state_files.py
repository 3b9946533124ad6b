"""Reads states from whatever they were saved in, on any storage.

That is a JSON file; a file of torch.save, read with `weights_only=True`; a folder of torch.distributed.checkpoint; a
checkpoint of `laneway.Checkpoints`, or a folder of them; or a glob of such files, one for each rank.
"""

from __future__ import annotations

import io
import json
import pickle
import posixpath
import re
import warnings
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.errors import CheckpointError, StateFormatError
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.listing import list_directory
from laneway.storage.reading import read_range
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.layout import Checkpoint

_ZIP = b"PK\x03\x04"


class SavedValue(NamedTuple):
    """What was read, with its name."""

    name: str
    """Where it is, without secrets."""
    value: Any
    """The value, in which states are nested."""


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts "step-200" before "step-1000"."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def load_checkpoints(path: str, storage_options: Mapping[str, Any] | None = None) -> list[SavedValue]:
    """Return the checkpoints at a path, oldest first: one, or all of a folder of `laneway.Checkpoints`.

    Raises:
        StateFormatError: What is there is nothing in which states are saved.
        CheckpointError: A checkpoint is damaged, or none is complete.
        DataFileError: There is nothing, or it can't be read.
    """
    storage = Storage(path, None, storage_options)
    if any(mark in posixpath.basename(storage.root) for mark in "*?["):
        return [_of_glob(storage, path)]
    entry = get_entry(storage, storage.root)
    if entry is not None and entry.kind == "file":
        return [SavedValue(storage.redact(path), _of_file(storage, storage.root))]
    names = {posixpath.basename(each.path.rstrip("/")) for each in list_directory(storage, storage.root)}
    if entry is None and not names:
        message = f"{storage.redact(path)} does not exist: give a file or folder in which a state was saved"
        raise StateFormatError(message)
    return _of_folder(storage, storage.redact(path), names)


def _of_folder(storage: Storage, name: str, names: set[str]) -> list[SavedValue]:
    """Return the checkpoints in a folder with files of these names; see `load_checkpoints`."""
    # They import torch.distributed.checkpoint, which takes most of a second.
    from laneway.checkpoint.folder import CheckpointFolder  # noqa: PLC0415
    from laneway.checkpoint.layout import INDEX, METADATA, parse_name  # noqa: PLC0415

    if INDEX in names:
        parent, own = posixpath.split(storage.root.rstrip("/"))
        folder = CheckpointFolder(storage.at(parent))
        found = folder.read_index(own)
        values = [] if found is None else [SavedValue(name, _of_checkpoint(folder, found))]
    elif any(map(parse_name, names)):
        folder = CheckpointFolder(storage)
        complete = reversed([*folder.complete()])
        values = [SavedValue(f"{name}/{each.name}", _of_checkpoint(folder, each)) for each in complete]
    elif METADATA in names:
        values = [SavedValue(name, _of_dcp(storage, name))]
    else:
        message = (
            f"{name} is no checkpoint: a state is in a JSON file, a file of torch.save, a folder of "
            "torch.distributed.checkpoint or of laneway.Checkpoints, or in files of ranks that a glob matches"
        )
        raise StateFormatError(message)
    if not values:
        # Only its index makes a checkpoint complete, and a job may delete it meanwhile.
        message = f"{name} holds no complete checkpoint"
        raise CheckpointError(message)
    return values


def load_checkpoint(path: str, storage_options: Mapping[str, Any] | None = None) -> SavedValue:
    """Return the checkpoint at a path, the newest one of a folder; see `load_checkpoints`."""
    return load_checkpoints(path, storage_options)[-1]


def _of_glob(storage: Storage, path: str) -> SavedValue:
    directory, pattern = posixpath.split(storage.root)
    found = [
        each
        for each in list_directory(storage, directory)
        if fnmatch(posixpath.basename(each.path.rstrip("/")), pattern)
    ]
    matching = sorted((each.path for each in found if each.kind == "file"), key=natural)
    if not matching:
        folders = f"; {counted(len(found), 'folder')} do: name one of them, or the folder that they are in"
        message = f"no file matches {storage.redact(path)}{folders if found else ''}"
        raise StateFormatError(message)
    return SavedValue(storage.redact(path), [_of_file(storage, each) for each in matching])


def _of_file(storage: Storage, path: str) -> Any:  # noqa: ANN401 - whatever was saved
    entry = get_entry(storage, path)
    data = read_range(storage, path, 0, entry.size if entry else 0)
    name = storage.redact(path)
    if data[:4] == _ZIP:
        return _read(name, lambda: _of_torch(bytes(data)), "a file of torch.save that weights_only=True can read")
    return _read(name, lambda: json.loads(bytes(data)), "a JSON file, nor one of torch.save")


def _of_torch(data: bytes) -> Any:  # noqa: ANN401 - whatever was saved
    import torch  # noqa: PLC0415 - no other file needs it

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _read(name: str, read: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever was saved
    try:
        return read()
    except (ValueError, RuntimeError, EOFError, KeyError, RecursionError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        message = f"{name} is not {what}: {reason}"
        raise StateFormatError(message) from error


def _of_checkpoint(folder: CheckpointFolder, checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - states of loaders
    from laneway.checkpoint.layout import JOB  # noqa: PLC0415 - see `_of_folder`
    from laneway.checkpoint.reading import read_rank_values, read_values  # noqa: PLC0415 - see `_of_folder`

    job = read_values(folder, checkpoint, JOB)
    return [job, *read_rank_values(folder, checkpoint, None)]


def _of_dcp(storage: Storage, name: str) -> dict[str, Any]:
    if not storage.is_local:
        message = f"{name} is a folder of torch.distributed.checkpoint on a remote storage: copy it to a local one"
        raise StateFormatError(message)
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    def read() -> dict[str, Any]:
        # Whether a state is one value or one for each of its fields depends on the release of torch.
        paths = FileSystemReader(storage.root).read_metadata().planner_data or {}
        wanted = {key: path for key, path in paths.items() if "laneway" in path}
        values: dict[str, Any] = dict.fromkeys(wanted)
        if wanted:
            with warnings.catch_warnings():
                # It says what no_dist says.
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                load(values, storage_reader=FileSystemReader(storage.root), no_dist=True)
        found: dict[str, Any] = {}
        for key, path in wanted.items():
            start = path.index("laneway")
            name, rest = "/".join(map(str, path[:start])), path[start + 1 :]
            if rest:
                found.setdefault(name, {"laneway": [{}]})["laneway"][0][rest[-1]] = values[key]
            else:
                found[name] = {"laneway": values[key]}
        return found

    try:
        found: dict[str, Any] = _read(name, read, "a folder that torch.distributed.checkpoint can read")
    except CheckpointException as error:
        message = f"{name} can't be read by torch.distributed.checkpoint: {error}"
        raise StateFormatError(message) from error
    return found

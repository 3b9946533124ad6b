"""The calls of torch.distributed.checkpoint, with errors that name a rank and a cause instead of all tracebacks."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed.checkpoint._nested_dict import flatten_state_dict, unflatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from laneway.checkpoint.files import CheckpointFiles
from laneway.checkpoint.torch_files import TorchFilesReader, without_zip_checksums
from laneway.errors import CheckpointError, CheckpointMismatchError, LanewayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.layout import Checkpoint

    Path = tuple[str | int, ...]


class OwnGroup:
    """A process group for torch.distributed.checkpoint, which a thread can use beside the training."""

    def __init__(self, ranks: dist.ProcessGroup | None) -> None:
        """Prepare a group of the ranks of another one; None: there is a single rank."""
        self._ranks = ranks
        self._group: dist.ProcessGroup | None = None

    def get(self) -> dist.ProcessGroup | None:
        """Return the group, which the first call makes: all ranks must make that call; None: there is a single rank."""
        if self._ranks is not None and self._group is None:
            members = dist.get_process_group_ranks(self._ranks)
            self._group = dist.new_group(members, backend="gloo", use_local_synchronization=True)
        return self._group


def save_states(files: CheckpointFiles, name: str, states: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Write the part of this rank of the states of modules and optimizers. All ranks must call it.

    Args:
        files: Where it is written.
        name: The folder of the checkpoint, for errors.
        states: The states.
        group: Process group of all ranks; None: there is a single rank.

    Raises:
        CheckpointError: A rank failed; raised on all ranks.
    """
    writer = FileSystemWriter(name, sync_files=False)
    writer.fs = files
    with _errors(name, "written", CheckpointError), without_zip_checksums():
        save(states, storage_writer=writer, process_group=group, no_dist=group is None)


def open_states(folder: CheckpointFolder, checkpoint: Checkpoint, *, verify: bool) -> TorchFilesReader:
    """Open the states of modules and optimizers in a checkpoint, and read which tensors there are.

    Args:
        folder: Where it is.
        checkpoint: The checkpoint.
        verify: Whether to compare checksums of the tensors that are read.

    Raises:
        CheckpointError: The file that says so is damaged.
        DataFileError: It can't be read.
    """
    return TorchFilesReader(checkpoint.name, CheckpointFiles(folder, checkpoint.name, checkpoint.files, verify=verify))


def load_states(reader: TorchFilesReader, states: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Read states of modules and optimizers into the tensors of `states`. All ranks must call it.

    Args:
        reader: The checkpoint.
        states: The states, changed in place.
        group: Process group of all ranks; None: there is a single rank.

    Raises:
        CheckpointError: A file is damaged.
        CheckpointMismatchError: The checkpoint holds other parameters.
        DataFileError: A file can't be read.
    """
    with _errors(os.fspath(reader.path), "loaded", CheckpointMismatchError):
        load(states, storage_reader=reader, process_group=group, no_dist=group is None)


def flat_states(states: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the values in states by the names under which they are saved, and the path of each in the states."""
    return flatten_state_dict(states)


def nested_states(values: dict[str, Any], paths: dict[str, Path]) -> dict[str, Any]:
    """Return states with values at their paths: the inverse of `flat_states`."""
    return unflatten_state_dict(values, paths)


@contextmanager
def _errors(name: str, done: str, default: type[LanewayError]) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # A single process is what the user has, and knows.
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        kind = type(cause) if isinstance(cause, LanewayError) and done == "loaded" else default
        message = f"{name} can't be {done}: on rank {rank}: {cause}"
        raise kind(message) from error

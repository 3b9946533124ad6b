"""Exports the model of a checkpoint to a plain file of `torch.save`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from laneway.checkpoint.torch_calls import load_states, open_states
from laneway.errors import CheckpointError
from laneway.storage.writing import write_file

if TYPE_CHECKING:
    import os

    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.layout import Checkpoint

_PREFIX = "model."


def export_model(folder: CheckpointFolder, checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write the whole state dict of the model, on the CPU, so that `torch.load(path, weights_only=True)` returns it.

    Raises:
        CheckpointError: The checkpoint holds no model, or is damaged.
        DataFileError: The file can't be written.
    """
    if "model" not in checkpoint.parts:
        message = f"{checkpoint.name} holds no model, but {', '.join(map(repr, checkpoint.parts)) or 'nothing'}"
        raise CheckpointError(message)
    found: dict[str, Any] = {}
    reader = open_states(folder, checkpoint, verify=True)
    for name, metadata in reader.metadata.state_dict_metadata.items():
        if name.startswith(_PREFIX):
            value = None
            if isinstance(metadata, TensorStorageMetadata):
                value = torch.empty(metadata.size, dtype=metadata.properties.dtype)
            found[name.removeprefix(_PREFIX)] = value
    states = {"model": found}
    load_states(reader, states, None)
    file = io.BytesIO()
    torch.save(states["model"], file)
    storage = folder.storage.beside(path)
    write_file(storage, storage.root, file.getvalue())

"""Reads a checkpoint into the objects of a training job, and verifies what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.checkpoint.content import decode
from laneway.checkpoint.layout import JOB, METADATA, rank_file
from laneway.checkpoint.torch_calls import load_states
from laneway.checkpoint.verified import VerifiedFile
from laneway.errors import CheckpointError, LanewayError

if TYPE_CHECKING:
    import torch.distributed as dist

    from laneway.checkpoint.content import Objects
    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.layout import Checkpoint


def read_values(folder: CheckpointFolder, checkpoint: Checkpoint, file: str) -> dict[str, Any]:
    """Return the values in the file of the job or of a rank.

    Raises:
        CheckpointError: The file is damaged.
        DataFileError: The file can't be read.
    """
    with VerifiedFile(folder, checkpoint.name, file, checkpoint.files[file]) as opened:
        values: dict[str, Any] = decode(opened.readall())
    return values


def read_rank_values(folder: CheckpointFolder, checkpoint: Checkpoint, rank: int | None) -> list[dict[str, Any]]:
    """Return the values of a rank that saved a checkpoint; None: of all of them, in their order."""
    ranks = range(checkpoint.world_size) if rank is None else [rank]
    return [read_values(folder, checkpoint, rank_file(each)) for each in ranks]


def read_job_values(folder: CheckpointFolder, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the values of the job."""
    return read_values(folder, checkpoint, JOB)


def read_sharded(
    folder: CheckpointFolder,
    checkpoint: Checkpoint,
    objects: Objects,
    group: dist.ProcessGroup | None,
    *,
    verify: bool,
) -> None:
    """Restore modules and optimizers. All ranks must call it.

    Args:
        folder: Where the checkpoint is.
        checkpoint: The checkpoint.
        objects: What to restore.
        group: Process group of all ranks; None: there is a single rank.
        verify: Whether to compare checksums of what is read.

    Raises:
        CheckpointError: A file is damaged.
        CheckpointMismatchError: It holds other parameters than the modules.
        DataFileError: A file can't be read.
    """
    states = {name: state for name, state in objects.sharded().items() if name in checkpoint.parts}
    if not states:
        return
    load_states(folder, checkpoint, states, group, verify=verify)
    objects.set_sharded(states)


def verify_metadata(folder: CheckpointFolder, checkpoint: Checkpoint) -> None:
    """Verify the file that says where tensors are: torch would not tell damage from a file that is missing.

    Raises:
        CheckpointError: It is damaged.
    """
    if METADATA in checkpoint.files:
        _verify(folder, checkpoint, METADATA)


def verify_files(folder: CheckpointFolder, checkpoint: Checkpoint, first: int = 0, step: int = 1) -> None:
    """Read files of a checkpoint and compare all checksums.

    Args:
        folder: Where it is.
        checkpoint: The checkpoint.
        first: Index of the first file, in the order of their names.
        step: Distance to the next one.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    if (problem := folder.problem(checkpoint)) is not None:
        message = f"{checkpoint.name} is damaged: {problem}"
        raise CheckpointError(message)
    for file in sorted(checkpoint.files)[first::step]:
        _verify(folder, checkpoint, file)


def _verify(folder: CheckpointFolder, checkpoint: Checkpoint, file: str) -> None:
    try:
        with VerifiedFile(folder, checkpoint.name, file, checkpoint.files[file]) as opened:
            opened.verify()
    except CheckpointError:
        raise
    except LanewayError as error:
        message = f"{checkpoint.name}/{file} can't be read: {error}"
        raise CheckpointError(message) from error

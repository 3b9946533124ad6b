"""Reads the values in a checkpoint, and verifies its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laneway.checkpoint.content import decode
from laneway.checkpoint.layout import JOB, rank_file
from laneway.checkpoint.verified import VerifiedFile
from laneway.errors import CheckpointError, LanewayError

if TYPE_CHECKING:
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

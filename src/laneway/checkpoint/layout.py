"""The layout of a folder of checkpoints: what its parts are called, and what the index of a checkpoint says.

    run7/
      writer.json                  who writes here
      000012-step-5000/            the twelfth checkpoint of the run, after step 5000
        .metadata, __0_0.distcp    model and optimizer, as torch.distributed.checkpoint writes them
        job.pt                     what the job has once: states of loaders, of the scheduler, what the user adds
        rank-0.pt                  what each rank has: random number generators, what the user adds
        index.json                 written last: the files, with sizes and checksums

A checkpoint exists if it has an index. Checkpoints are ordered by their number, not by step or time: a run that goes
back to an earlier step goes on counting.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT, VERSION = "laneway-checkpoint", 1
INDEX, WRITER, JOB, METADATA = "index.json", "writer.json", "job.pt", ".metadata"
BLOCK_BYTES = 16 << 20
"""Bytes of which each checksum is taken, so that reading a part of a file verifies that part."""
_NAME = re.compile(r"(\d{6,})-step-(\d+)")


def rank_file(rank: int) -> str:
    """Return the name of the file of a rank."""
    return f"rank-{rank}.pt"


def folder_name(number: int, step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"{number:06d}-step-{step}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return the number and step of the checkpoint in a folder of this name, or None for any other folder."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def number_of(name: str) -> int:
    """Return the number of the checkpoint in a folder of this name, 0 for any other folder."""
    found = parse_name(name)
    return found[0] if found else 0


class FileRecord(NamedTuple):
    """A file of a checkpoint."""

    size: int
    """Bytes."""
    checksums: tuple[int, ...]
    """CRC-32 of each block of `BLOCK_BYTES`."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: what its index says."""

    number: int
    """It is the number-th checkpoint of the run, from 1."""
    step: int
    """The step after which it was saved."""
    tag: str | None = None
    """Its name, if it was given one."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured at that step, such as the validation loss."""
    world_size: int = 1
    """Number of ranks that saved it."""
    parts: tuple[str, ...] = ()
    """Names of what it holds: "model", "optimizer", "loader", ..."""
    saved_s: float = 0.0
    """When it was saved, in seconds since 1970 by the clock of rank 0."""
    files: Mapping[str, FileRecord] = field(default_factory=dict, repr=False)
    """Name -> the file."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return folder_name(self.number, self.step)

    @property
    def num_bytes(self) -> int:
        """The bytes of its files."""
        return sum(each.size for each in self.files.values())

    def encode(self) -> bytes:
        """Return its index."""
        fields: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "number": self.number,
            "step": self.step,
            "tag": self.tag,
            "metrics": dict(self.metrics),
            "world_size": self.world_size,
            "parts": list(self.parts),
            "saved_s": self.saved_s,
            "block_bytes": BLOCK_BYTES,
            "files": {name: [record.size, list(record.checksums)] for name, record in sorted(self.files.items())},
        }
        return json.dumps(fields, indent=1).encode()


def decode_index(data: bytes, name: str) -> Checkpoint:
    """Return the checkpoint that an index describes.

    Args:
        data: The bytes of the index.
        name: The folder of the checkpoint, for errors.

    Raises:
        CheckpointError: It is no index, or damaged, or of a newer release.
    """
    try:
        fields = json.loads(data)
        version = fields["version"]
        is_known = fields["format"] == FORMAT and type(version) is int
        if is_known and version > VERSION:
            message = f"{name}/{INDEX} has version {version}, and this release reads versions up to {VERSION}"
            raise CheckpointError(message)
        if is_known and fields["block_bytes"] == BLOCK_BYTES:
            return _checkpoint(fields)
        problem = "it is not the index of a checkpoint"
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    message = f"{name}/{INDEX} is damaged: {problem}"
    raise CheckpointError(message)


def _checkpoint(fields: Mapping[str, Any]) -> Checkpoint:
    tag, files = fields["tag"], {}
    for file, (size, checksums) in fields["files"].items():
        record = files[str(file)] = FileRecord(int(size), tuple(map(int, checksums)))
        if record.size < 0 or len(record.checksums) != -(-record.size // BLOCK_BYTES) or "/" in file or file == "..":
            message = f"file {file!r} has {size} bytes and {len(checksums)} checksums"
            raise ValueError(message)
    return Checkpoint(
        number=int(fields["number"]),
        step=int(fields["step"]),
        tag=None if tag is None else str(tag),
        metrics={str(name): float(value) for name, value in fields["metrics"].items()},
        world_size=int(fields["world_size"]),
        parts=tuple(map(str, fields["parts"])),
        saved_s=float(fields["saved_s"]),
        files=files,
    )

"""Writes a checkpoint: the files of all ranks, then the index."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laneway.checkpoint.files import CheckpointFiles
from laneway.checkpoint.layout import JOB, Checkpoint, FileRecord, rank_file
from laneway.checkpoint.torch_calls import save_states
from laneway.errors import CheckpointError, DataFileError

if TYPE_CHECKING:
    import torch.distributed as dist

    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.ranks import Ranks


@dataclass(frozen=True)
class Snapshot:
    """What a rank writes, none of which changes while training goes on."""

    checkpoint: Checkpoint
    """What the index will say, still without files."""
    sharded: dict[str, Any]
    """States of modules and optimizers; torch.distributed.checkpoint shares their tensors out to the ranks."""
    job: bytes
    """The file of the job; written by rank 0."""
    rank: bytes
    """The file of the rank."""


def write_snapshot(
    folder: CheckpointFolder, snapshot: Snapshot, ranks: Ranks, group: dist.ProcessGroup | None
) -> Checkpoint:
    """Write a checkpoint, and return it once it exists. All ranks must call it.

    Args:
        folder: Where it is written.
        snapshot: What this rank writes.
        ranks: All ranks, with an exchange that nobody else uses.
        group: Process group of all ranks for torch.distributed.checkpoint; None: there is a single rank.

    Raises:
        CheckpointError: It could not be written; raised on all ranks.
        CollectiveError: A rank could not be reached.
    """
    name = snapshot.checkpoint.name
    ranks.broadcast(f"create {name}", lambda: folder.create(name), src_rank=0)
    try:
        return _write_all(folder, snapshot, ranks, group)
    except (CheckpointError, DataFileError):
        # All ranks have failed together, so none of them writes any more.
        if ranks.rank == 0:
            folder.abandon(name)
        raise


def _write_all(
    folder: CheckpointFolder, snapshot: Snapshot, ranks: Ranks, group: dist.ProcessGroup | None
) -> Checkpoint:
    name = snapshot.checkpoint.name

    with CheckpointFiles(folder, name) as files:
        if snapshot.sharded:
            save_states(files, name, snapshot.sharded, group)

        def written() -> dict[str, FileRecord]:
            files.write(rank_file(ranks.rank), snapshot.rank)
            if ranks.rank == 0:
                files.write(JOB, snapshot.job)
            files.sync()
            return files.written

        gathered = ranks.gather(f"write {name}", written, dst_rank=0)

    def published() -> Checkpoint:
        records = {file: record for part in gathered or () for file, record in part.items()}
        found = replace(snapshot.checkpoint, files=records, saved_s=time.time())
        folder.publish(found)
        return found

    return ranks.broadcast(f"publish {name}", published, src_rank=0)

"""Restores a checkpoint into the objects of a job."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from laneway.arguments import check_choice
from laneway.checkpoint.layout import METADATA
from laneway.checkpoint.reading import read_job_values, read_rank_values, verify_files
from laneway.checkpoint.rng import set_rng_state
from laneway.checkpoint.sharded import check_differences, target_of
from laneway.checkpoint.torch_calls import load_states, open_states
from laneway.delivery.loader_state import check_same_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.checkpoint.content import Objects, Restoration
    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.layout import Checkpoint
    from laneway.checkpoint.torch_calls import OwnGroup
    from laneway.checkpoint.torch_files import TorchFilesReader
    from laneway.ranks import Ranks

Verify = Literal["read", "all", "sizes"]
_log = logging.getLogger(__name__)


class Resumed(NamedTuple):
    """What was restored."""

    step: int
    """The step after which it was saved."""
    tag: str | None
    """The name of the checkpoint, if it was given one."""
    user: dict[str, Any]
    """What was passed to `save(user=...)`."""
    rank_user: Any
    """What this rank passed to `save(rank_user=...)`; a list of what all ranks passed if their number differs now."""
    metrics: Mapping[str, float]
    """What was measured at that step."""


class _Found(NamedTuple):
    """What a rank has read of a checkpoint, and checked, before anything is restored."""

    job: dict[str, Any]
    """The values of the job."""
    by_rank: list[dict[str, Any]]
    """Those of this rank; those of all ranks if their number was another one."""
    restoration: Restoration
    """The states that are not of modules and optimizers."""
    reader: TorchFilesReader | None
    """Those that are; None: nothing is to be restored of them."""


def restore(
    checkpoint: Checkpoint,
    objects: Objects,
    folder: CheckpointFolder,
    ranks: Ranks,
    group: OwnGroup,
    *,
    rng: bool,
    strict: bool,
    verify: Verify,
) -> Resumed:
    """Restore a checkpoint. All ranks must call it.

    Args:
        checkpoint: The checkpoint.
        objects: The objects to restore.
        folder: Where it is.
        ranks: All ranks.
        group: Process group for torch.distributed.checkpoint.
        rng: Whether to restore random number generators.
        strict: Whether the checkpoint must hold exactly these objects.
        verify: Checksums to compare.

    Raises:
        CheckpointError: A file is damaged.
        CheckpointMismatchError: The checkpoint holds other parts, or other parameters, or is of other files.
        LanewayError: The loaders of ranks differ in weights, batch size, lanes or workers.
    """
    check_choice("verify", verify, ("read", "all", "sizes"))
    name, is_same_size = checkpoint.name, checkpoint.world_size == ranks.world_size

    def found() -> _Found:
        missing = sorted({*objects.parts} - {*checkpoint.parts})
        if strict:
            objects.check_parts(checkpoint.parts, name)
        elif missing and ranks.rank == 0:
            _log.warning("%s holds no %s, so this is not restored", name, ", ".join(map(repr, missing)))
        if verify == "all":
            verify_files(folder, checkpoint, ranks.rank, ranks.world_size)
        job = read_job_values(folder, checkpoint)
        by_rank = read_rank_values(folder, checkpoint, ranks.rank if is_same_size else None)
        states = by_rank[0]["states"] if is_same_size else None
        restoration = objects.check_states(checkpoint.parts, job["states"], states, name)
        has_tensors = METADATA in checkpoint.files and objects.sharded_parts & {*checkpoint.parts}
        reader = open_states(folder, checkpoint, verify=verify != "sizes") if has_tensors else None
        return _Found(job, by_rank, restoration, reader)

    values, by_rank, restoration, reader = ranks.agree(f"load {name}: read", found)
    ranks.compare(f"load {name}: arguments", restoration.common_arguments, check_same_arguments)
    with ExitStack() as stack:
        target = None
        if reader is not None:
            target, differences = ranks.agree(
                f"load {name}: model",
                lambda: stack.enter_context(target_of(objects, checkpoint.parts, reader)),
            )
            ranks.compare(
                f"load {name}: compare",
                lambda: differences,
                lambda each: check_differences(name, each, strict=strict),
            )
        # What can't be checked comes first: other objects may refuse their states.
        stack.enter_context(restoration.undone_on_failure())
        ranks.agree(f"load {name}: restore", restoration.assign_others)
        if reader is not None and target is not None:
            load_states(reader, target.states, group.get())
            target.assign()
        restoration.assign_checked()
    own = by_rank[0] if is_same_size else None
    if rng and own:
        set_rng_state(own["rng"])
    elif rng and ranks.rank == 0:
        _log.info("%s was saved by %d ranks: generators are not restored", name, checkpoint.world_size)
    rank_user = own["user"] if own else [each["user"] for each in by_rank]
    return Resumed(checkpoint.step, checkpoint.tag, values["user"], rank_user, checkpoint.metrics)

"""Saves checkpoints: takes a snapshot of the job, and writes it, now or in a thread."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from laneway.checkpoint.content import encode
from laneway.checkpoint.groups import count_from, first_numbers, own_groups
from laneway.checkpoint.rng import rng_state
from laneway.checkpoint.sharded import states_of
from laneway.checkpoint.staging import Staging
from laneway.checkpoint.writing import Snapshot, write_snapshot
from laneway.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from laneway.checkpoint.content import Objects
    from laneway.checkpoint.folder import CheckpointFolder
    from laneway.checkpoint.groups import OwnGroups
    from laneway.checkpoint.layout import Checkpoint
    from laneway.checkpoint.torch_calls import OwnGroup
    from laneway.ranks import Ranks


class Saver:
    """Saves checkpoints of a job, at most one at a time."""

    def __init__(
        self,
        folder: CheckpointFolder,
        ranks: Ranks,
        group: OwnGroup,
        after_save: Callable[[float], None],
        *,
        is_async: bool,
    ) -> None:
        """Prepare to save.

        Args:
            folder: Where checkpoints are written.
            ranks: All ranks. Those of the thread that writes have an exchange of their own.
            group: Process group for torch.distributed.checkpoint.
            after_save: Called with the seconds that writing took, after each checkpoint, where it was written.
            is_async: Whether a thread writes.
        """
        self._folder, self._ranks, self._group = folder, ranks, group
        self._writer_ranks = ranks.with_own_exchange("Checkpoints(): writer")
        self._after_save = after_save
        self._staging = Staging() if is_async else None
        self._executor = ThreadPoolExecutor(1, "laneway-checkpoint") if is_async else None
        self._writing: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, checkpoint: Checkpoint, objects: Objects, user: Mapping[str, Any] | None, rank_user: object) -> None:
        """Save a checkpoint, after the one that is being written. All ranks must call it."""
        self.wait()
        snapshot = self._snapshot(checkpoint, objects, user, rank_user)
        if self._executor is None:
            self.write(snapshot)
        else:
            self._writing = self._executor.submit(self.write, snapshot)

    def _snapshot(
        self, checkpoint: Checkpoint, objects: Objects, user: Mapping[str, Any] | None, rank_user: object
    ) -> Snapshot:
        sharded = self._sharded_states(checkpoint.name, objects)
        of_loaders = objects.loader_states()

        def encoded() -> tuple[bytes, bytes]:
            job = {"states": {**objects.plain_states(), **of_loaders}, "user": dict(user or {})}
            mine = {"states": objects.rank_states(), "rng": rng_state(), "user": rank_user}
            return encode(job, "the checkpoint"), encode(mine, f"the checkpoint of rank {self._ranks.rank}")

        job, mine = self._ranks.agree(f"save {checkpoint.name}: collect", encoded)
        if sharded and self._staging is not None:
            sharded = self._staging.copy(sharded)
        # Made here, where all ranks are at the same call.
        self._group.get()
        return Snapshot(checkpoint, sharded, job, mine)

    def _sharded_states(self, name: str, objects: Objects) -> dict[str, Any]:
        """Return the states of modules and optimizers, with numbers of groups that all ranks agree on."""
        states: dict[str, Any] = {}

        def collect() -> OwnGroups:
            states.update(states_of(objects))
            return own_groups(states)

        groups = self._ranks.gather(f"save {name}: model", collect, dst_rank=0)
        numbers = self._ranks.broadcast(f"save {name}: groups", lambda: first_numbers(groups or ()), src_rank=0)
        count_from(states, numbers[own_groups(states)])
        return states

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot. All ranks must call it.

        Raises:
            CheckpointError: It could not be written; raised on all ranks.
        """
        began = time.monotonic()
        write_snapshot(self._folder, snapshot, self._writer_ranks, self._group.get())
        self._after_save(time.monotonic() - began)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: It could not be written.
        """
        error = self.forget()
        if error is not None:
            raise CheckpointError(_failed(error)) from error

    @property
    def failure(self) -> str | None:
        """Why the checkpoint that was written last could not be; None: it was, or is still being written.

        A rank may know it before another one does: all agree on it before any of them raises it.
        """
        error = self._writing.exception() if self._writing is not None and self._writing.done() else None
        return None if error is None else _failed(error)

    def forget(self) -> BaseException | None:
        """Wait for the checkpoint that is being written, and return why it could not be, as far as this rank knows."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.exception()

    def close(self) -> None:
        """End the thread."""
        if self._executor is not None:
            self._executor.shutdown()


def _failed(error: BaseException) -> str:
    return f"the last checkpoint could not be written: {error}"

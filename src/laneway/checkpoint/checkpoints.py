"""Checkpoints: saves, keeps and resumes the training checkpoints in one folder."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from laneway.arguments import check_choice, check_flag, check_int
from laneway.checkpoint.content import Objects, encode
from laneway.checkpoint.exporting import export_model
from laneway.checkpoint.folder import CheckpointFolder
from laneway.checkpoint.housekeeping import Housekeeping
from laneway.checkpoint.layout import Checkpoint
from laneway.checkpoint.preemption import Polls, SignalFlag
from laneway.checkpoint.reading import read_job_values, read_rank_values, read_sharded, verify_files, verify_metadata
from laneway.checkpoint.rng import rng_state, set_rng_state
from laneway.checkpoint.writing import Snapshot, write_snapshot
from laneway.errors import CheckpointError
from laneway.process_groups import as_group, is_initialised
from laneway.ranks import Ranks
from laneway.storage.filesystem import Storage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    import pyarrow.fs
    from fsspec import AbstractFileSystem
    from torch import nn
    from torch.optim import Optimizer

    from laneway.checkpoint.content import Stateful
    from laneway.checkpoint.retention import Policy
    from laneway.process_groups import ProcessGroup
    from laneway.storage.retries import RetryPolicy

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


class Checkpoints:
    """The training checkpoints in one folder: saved, kept and resumed by all ranks of a job together.

    A checkpoint is one commit of everything: model and optimizer through torch.distributed.checkpoint, the progress of
    the loader, random number generators, and what the user adds. It exists from the moment in which its index is
    written, after all files of all ranks. A job that is killed at any time leaves the checkpoints that it completed.

    All ranks must create it, and make the same calls of `save`, `resume`, `load` and `due`.

    Args:
        path: The folder: a local path, or any URL that fsspec supports. It is created if it is missing.
        keep: What to keep, such as `[KeepLatest(3), KeepBest(2, "val_loss")]`: whatever one of them keeps. The newest
            checkpoint and those with a tag are always kept. Empty: everything.
        async_save: Whether `save` only copies the states to memory and returns, while a thread writes them.
        process_group: Process group, or one-dimensional DeviceMesh, of all ranks that hold the model. None: the world,
            or a single process without torch.distributed.
        filesystem: The filesystem of `path`; None: the one that the URL names.
        storage_options: Arguments for the filesystem of a URL: credentials, endpoints.
        retries: Limits of the retries of requests; None: `RetryPolicy()`.
        signals: Signals after which `due` is True once, such as `("SIGTERM", "SIGUSR1")`. Handlers that were installed
            before are still called.
        deadline_s: Seconds until the job is ended, from now; `due` is True once before that, in time for a save.
        if_locked: What to do if another job writes to the folder: "error", or "wait" until it has ended.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument has the wrong type.

    Examples:
        >>> import tempfile, torch
        >>> from laneway import Checkpoints
        >>> model = torch.nn.Linear(2, 1)
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     _ = checkpoints.save(10, model=model, user={"seen": 640})
        ...     resumed = checkpoints.resume(model=model)
        >>> resumed.step, resumed.user
        (10, {'seen': 640})
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: Sequence[Policy] = (),
        async_save: bool = False,
        process_group: ProcessGroup | None = None,
        filesystem: AbstractFileSystem | pyarrow.fs.FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retries: RetryPolicy | None = None,
        signals: Sequence[int | str] = (),
        deadline_s: float | None = None,
        if_locked: Literal["error", "wait"] = "error",
    ) -> None:
        check_flag("async_save", async_save)
        check_choice("if_locked", if_locked, ("error", "wait"))
        self._folder = CheckpointFolder(Storage(path, filesystem, storage_options, retries))
        ranks = Ranks.of(process_group, 0, 1)
        self._group = as_group(process_group) if is_initialised() else None
        self._own_group: dist.ProcessGroup | None = None
        """For torch.distributed.checkpoint, in the thread that writes."""
        self._ranks = ranks.with_own_exchange("Checkpoints()")
        self._writer_ranks = ranks.with_own_exchange("Checkpoints(): writer")
        self._housekeeping = Housekeeping(self._folder, tuple(keep), if_locked)
        """What rank 0 does for all."""
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available()) if async_save else None
        self._executor = ThreadPoolExecutor(1, "laneway-checkpoint") if async_save else None
        self._writing: Future[None] | None = None
        self._flag = SignalFlag(signals) if signals else None
        self._polls = Polls(self._ranks, self._flag, deadline_s)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._folder!r}, rank {self._ranks.rank} of {self._ranks.world_size})"

    # -- Saving -------------------------------------------------------------------------------------------------------

    def due(self, step: int, *, every_steps: int | None = None, every_s: float | None = None) -> bool:
        """Return whether to save after this step, the same on all ranks.

        It is True after every `every_steps` steps; if the last save was `every_s` seconds ago; and once if a rank has
        received one of the signals, or the deadline is near. Ranks compare clocks and signals about once a second, so
        all of them must call it, after the same steps.

        Args:
            step: The step that has just ended.
            every_steps: Saves after the steps that are multiples of it, but not after step 0.
            every_s: Seconds from one save to the next.
        """
        step = check_int("step", step, minimum=0)
        every = None if every_steps is None else check_int("every_steps", every_steps, minimum=1)
        self._raise_failure()
        is_asked = self._polls.ask(every_s)
        return is_asked or (every is not None and step > 0 and step % every == 0)

    @property
    def is_stopping(self) -> bool:
        """Whether all ranks know that the job is to stop: a signal has arrived, or the deadline is near."""
        return self._polls.is_stopping

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield batches, such as those of an evaluation, until the job is to stop: then end, on all ranks at once.

        All ranks must watch equally many batches. See `is_stopping`.
        """
        for batch in batches:
            self._polls.ask(None)
            if self.is_stopping:
                return
            yield batch

    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        scheduler: Stateful | None = None,
        loader: Stateful | Mapping[str, Stateful] | None = None,
        user: Mapping[str, Any] | None = None,
        rank_user: Any = None,  # noqa: ANN401 - whatever torch.save saves
        metrics: Mapping[str, float] | None = None,
        tag: str | None = None,
        if_busy: Literal["wait", "skip"] = "wait",
        **others: Stateful | None,
    ) -> bool:
        """Save a checkpoint. All ranks must call it.

        Args:
            step: The step that has just ended.
            model: The module that is trained, as it is: wrapped by DDP, sharded by FSDP2, compiled.
            optimizer: Its optimizer, or several.
            scheduler: A learning rate scheduler.
            loader: A SavableLoader, whose progress is gathered from all ranks, or another object with a state, which
                each rank saves for itself. A dict saves several by name.
            user: Name -> value that the job has once, as rank 0 passes it: tensors, numbers, strings, lists, dicts.
            rank_user: A value of this rank.
            metrics: Name -> number that was measured at this step, for `KeepBest`.
            tag: A name under which `load` finds the checkpoint. It is never deleted to make room.
            if_busy: With `async_save`, what to do while the last checkpoint is still being written.
            **others: More objects with a state, by name: a GradScaler, an averaged model.

        Returns:
            False if it was skipped because the last one is still being written.

        Raises:
            CheckpointError: It could not be written, or with `async_save` the last one could not; raised on all ranks.
            TypeError: A value can't be saved.
            CollectiveError: A rank could not be reached.
        """
        self._raise_failure()
        check_choice("if_busy", if_busy, ("wait", "skip"))
        objects = Objects.of(model, optimizer, loader, {"scheduler": scheduler, **others})
        wanted = Checkpoint(
            number=0,
            step=check_int("step", step, minimum=0),
            tag=tag,
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            world_size=self._ranks.world_size,
            parts=objects.parts,
        )
        is_skipping = if_busy == "skip" and self._writing is not None and not self._writing.done()
        reports = self._ranks.gather(f"save({step})", lambda: (wanted, is_skipping), dst_rank=0)
        checkpoint = self._ranks.broadcast(
            f"save({step}): begin", lambda: self._housekeeping.begin(reports or []), src_rank=0
        )
        if checkpoint is None:
            return False
        self.wait()
        snapshot = self._snapshot(checkpoint, objects, user, rank_user)
        if self._executor is None:
            self._write(snapshot)
        else:
            self._writing = self._executor.submit(self._write, snapshot)
        self._polls.note_save()
        return True

    def _snapshot(
        self, checkpoint: Checkpoint, objects: Objects, user: Mapping[str, Any] | None, rank_user: object
    ) -> Snapshot:
        sharded = objects.sharded()
        states = objects.job_states()

        def encoded() -> tuple[bytes, bytes]:
            job = {"states": states, "user": dict(user or {})}
            mine = {"states": objects.rank_states(), "rng": rng_state(), "user": rank_user}
            return encode(job, "the checkpoint"), encode(mine, f"the checkpoint of rank {self._ranks.rank}")

        job, mine = self._ranks.agree(f"save {checkpoint.name}: collect", encoded)
        if sharded and self._stager is not None:
            sharded = self._stager.stage(sharded)
        self._dcp_group()
        return Snapshot(checkpoint, sharded, job, mine)

    def _write(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        write_snapshot(self._folder, snapshot, self._writer_ranks, self._own_group)
        self._polls.note_duration(time.monotonic() - began)
        if self._ranks.rank == 0:
            self._housekeeping.clear_out()

    def _dcp_group(self) -> dist.ProcessGroup | None:
        """Return the process group for torch.distributed.checkpoint, which a thread can use beside the training."""
        if self._group is not None and self._own_group is None:
            self._own_group = dist.new_group(
                dist.get_process_group_ranks(self._group), backend="gloo", use_local_synchronization=True
            )
        return self._own_group

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: It could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except Exception as error:
                message = f"the last checkpoint could not be written: {error}"
                raise CheckpointError(message) from error

    def _raise_failure(self) -> None:
        if self._writing is not None and self._writing.done():
            self.wait()

    # -- Restoring ----------------------------------------------------------------------------------------------------

    def resume(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        scheduler: Stateful | None = None,
        loader: Stateful | Mapping[str, Stateful] | None = None,
        rng: bool = True,
        strict: bool = True,
        verify: Verify = "read",
        **others: Stateful | None,
    ) -> Resumed | None:
        """Restore the newest checkpoint that is complete and sound, on any number of ranks. All ranks must call it.

        Newer ones that are damaged are passed over, with a line in the log.

        Args:
            model: The module to restore; this and the other objects as for `save`.
            optimizer: Its optimizer, or several.
            scheduler: A learning rate scheduler.
            loader: A loader, or several by name.
            rng: Whether to restore random number generators, which happens if the number of ranks is the same.
            strict: Whether the checkpoint must hold exactly these objects; False restores what both have.
            verify: Checksums to compare: "read", of what is read; "all", of all files, before anything is restored;
                "sizes", none.
            **others: More objects with a state, by name.

        Returns:
            What was restored, or None if the folder has no checkpoint.

        Raises:
            CheckpointError: There are checkpoints, but none can be loaded.
            CheckpointMismatchError: The checkpoint holds other parts or parameters, or its loader state is of other
                files.
            DataFileError: The storage can't be read.
            CollectiveError: A rank could not be reached.
        """
        objects = Objects.of(model, optimizer, loader, {"scheduler": scheduler, **others})
        candidates = self._ranks.broadcast("resume()", self._housekeeping.candidates, src_rank=0)
        for checkpoint in candidates:
            try:
                found = self._restore(checkpoint, objects, rng=rng, strict=strict, verify=verify)
            except CheckpointError as error:
                if self._ranks.rank == 0:
                    _log.warning("%s is passed over: %s", checkpoint.name, error)
                continue
            self._housekeeping.resumed_from = checkpoint.number
            return found
        if candidates:
            message = (
                f"none of the {len(candidates):,} checkpoints in {self._folder!r} can be loaded, and the objects may "
                "be restored in part; the log names what is wrong with each"
            )
            raise CheckpointError(message)
        return None

    def load(
        self,
        which: int | str,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        scheduler: Stateful | None = None,
        loader: Stateful | Mapping[str, Stateful] | None = None,
        rng: bool = False,
        strict: bool = False,
        verify: Verify = "read",
        **others: Stateful | None,
    ) -> Resumed:
        """Restore one checkpoint, by its step or tag. All ranks must call it; see `resume`.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        objects = Objects.of(model, optimizer, loader, {"scheduler": scheduler, **others})
        checkpoint = self._ranks.broadcast(f"load({which!r})", lambda: self._find(which), src_rank=0)
        return self._restore(checkpoint, objects, rng=rng, strict=strict, verify=verify)

    def _restore(self, checkpoint: Checkpoint, objects: Objects, *, rng: bool, strict: bool, verify: Verify) -> Resumed:
        ranks, folder, name = self._ranks, self._folder, checkpoint.name
        is_same_size = checkpoint.world_size == ranks.world_size

        def values() -> tuple[dict[str, Any], list[dict[str, Any]]]:
            if strict:
                objects.check_parts(checkpoint.parts, name)
            if verify == "all":
                verify_files(folder, checkpoint, ranks.rank, ranks.world_size)
            elif verify == "read":
                verify_metadata(folder, checkpoint)
            job = read_job_values(folder, checkpoint)
            return job, read_rank_values(folder, checkpoint, ranks.rank if is_same_size else None)

        job, by_rank = ranks.agree(f"load {name}: read", values)
        own = by_rank[0] if is_same_size else None
        read_sharded(folder, checkpoint, objects, self._dcp_group(), verify=verify != "sizes")
        ranks.agree(f"load {name}: restore", lambda: objects.set_states(job["states"], own and own["states"], name))
        if rng and own:
            set_rng_state(own["rng"])
        elif rng and ranks.rank == 0:
            _log.info("%s was saved by %d ranks: generators are not restored", name, checkpoint.world_size)
        rank_user = own["user"] if own else [each["user"] for each in by_rank]
        return Resumed(checkpoint.step, checkpoint.tag, job["user"], rank_user, checkpoint.metrics)

    # -- What there is ------------------------------------------------------------------------------------------------

    def list(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first. Any process may call it.

        Raises:
            DataFileError: The folder can't be read.
        """
        return self._folder.complete()

    @property
    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None."""
        return self._folder.newest()

    def verify(self, which: int | str) -> Checkpoint:
        """Compare the sizes and checksums of all files of a checkpoint, and return it. Any process may call it.

        Args:
            which: Its step or tag.

        Raises:
            CheckpointError: There is none, or a file is missing or damaged.
        """
        checkpoint = self._find(which)
        verify_files(self._folder, checkpoint)
        return checkpoint

    def delete(self, which: int | str) -> None:
        """Delete a checkpoint. One process may call it.

        Args:
            which: Its step or tag.

        Raises:
            CheckpointError: There is none.
            DataFileError: The storage refused.
        """
        self._folder.delete(self._find(which).name)

    def export(self, which: int | str, path: str | os.PathLike[str]) -> None:
        """Write the model of a checkpoint to one file, a state dict that `torch.load(weights_only=True)` returns.

        Args:
            which: The step or tag of the checkpoint.
            path: A local path or a URL; a URL of the same kind of storage is written with the options of this one.

        Raises:
            CheckpointError: There is none, it holds no model, or it is damaged.
            DataFileError: The file can't be written.
        """
        export_model(self._folder, self._find(which), path)

    def _find(self, which: int | str) -> Checkpoint:
        found = [each for each in self.list() if which in {each.step, each.tag}]
        if not found:
            steps = ", ".join(f"{each.step}" + (f" ({each.tag})" if each.tag else "") for each in self.list()[-10:])
            kind = "of step" if isinstance(which, int) else "with the tag"
            message = f"{self._folder!r} has no checkpoint {kind} {which!r}; the newest are of steps {steps or 'none'}"
            raise CheckpointError(message)
        return found[-1]

    # -- The end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and let others write to the folder.

        Raises:
            CheckpointError: It could not be written.
        """
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
            if self._flag is not None:
                self._flag.restore()
            self._housekeeping.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

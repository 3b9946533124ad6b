"""Checkpoints: saves, keeps and resumes the training checkpoints in one folder."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from laneway.arguments import check_choice, check_flag, check_int, check_seconds
from laneway.checkpoint.content import Objects, check_user_values
from laneway.checkpoint.exporting import export_model
from laneway.checkpoint.folder import CheckpointFolder
from laneway.checkpoint.housekeeping import Housekeeping, SaveReport, wanted_checkpoint
from laneway.checkpoint.preemption import Polls, SignalFlag
from laneway.checkpoint.reading import verify_files
from laneway.checkpoint.restoring import Resumed, Verify, restore
from laneway.checkpoint.saving import Saver
from laneway.checkpoint.torch_calls import OwnGroup
from laneway.errors import CheckpointError, DataFileError
from laneway.process_groups import as_group, is_initialised
from laneway.ranks import Ranks
from laneway.storage.filesystem import Storage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    import pyarrow.fs
    from fsspec import AbstractFileSystem
    from torch import nn
    from torch.optim import Optimizer

    from laneway.checkpoint.content import Stateful
    from laneway.checkpoint.layout import Checkpoint
    from laneway.checkpoint.retention import Policy
    from laneway.process_groups import ProcessGroup
    from laneway.storage.retries import RetryPolicy

_log = logging.getLogger(__name__)


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
            before are still called. If a cluster sends them to all processes of the job, pass `shield_workers=True` to
            the loader, so that its workers don't end.
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
        check_seconds("deadline_s", deadline_s)
        check_choice("if_locked", if_locked, ("error", "wait"))
        self._folder = CheckpointFolder(Storage(path, filesystem, storage_options, retries))
        self._ranks = Ranks.of(process_group, 0, 1).with_own_exchange("Checkpoints()")
        self._group = OwnGroup(as_group(process_group) if is_initialised() else None)
        self._housekeeping = Housekeeping(self._folder, keep, if_locked)
        """What rank 0 does for all."""
        self._flag = SignalFlag(signals) if signals else None
        self._polls = Polls(self._ranks, self._flag, deadline_s)
        self._saver = Saver(self._folder, self._ranks, self._group, self._after_save, is_async=async_save)

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

        Raises:
            CheckpointError: With `async_save`, the last checkpoint could not be written; raised on all ranks.
        """
        step = check_int("step", step, minimum=0)
        every = None if every_steps is None else check_int("every_steps", every_steps, minimum=1)
        check_seconds("every_s", every_s)
        is_asked = self._polls.ask(every_s, self._saver.failure)
        self._raise(self._saver.failure if self._ranks.exchange is None else self._polls.failure)
        return is_asked or (every is not None and step > 0 and step % every == 0)

    @property
    def is_stopping(self) -> bool:
        """Whether all ranks know that the job is to stop: a signal has arrived, or the deadline is near."""
        return self._polls.is_stopping

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield batches, such as those of an evaluation, until the job is to stop: then end, on all ranks at once.

        All ranks must watch equally many batches. See `is_stopping`.

        Args:
            batches: A loader, or any other iterable.
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
            TypeError: A value can't be saved, or has the wrong type.
            CollectiveError: A rank could not be reached.
        """
        check_choice("if_busy", if_busy, ("wait", "skip"))
        objects = Objects.of(model, optimizer, loader, {"scheduler": scheduler, **others})
        is_skipping = if_busy == "skip" and self._saver.is_busy

        def report() -> SaveReport:
            check_user_values(user)
            wanted = wanted_checkpoint(
                step, tag, {} if metrics is None else metrics, self._ranks.world_size, objects.parts
            )
            return SaveReport(wanted, is_skipping, self._saver.failure)

        try:
            reports = self._ranks.gather(f"save({step})", report, dst_rank=0)
            checkpoint, failure = self._ranks.broadcast(
                f"save({step}): begin", lambda: self._housekeeping.begin(reports or []), src_rank=0
            )
            self._raise(failure)
            if checkpoint is None:
                return False
            self._saver.save(checkpoint, objects, user, rank_user)
        except DataFileError as error:
            message = f"save({step}): {error}"
            raise CheckpointError(message) from error
        self._polls.note_save()
        return True

    def _raise(self, failure: str | None) -> None:
        """Raise the failure of the last checkpoint, of which all ranks know now.

        Raises:
            CheckpointError: It could not be written.
        """
        if failure is not None:
            raise CheckpointError(failure) from self._saver.forget()

    def _after_save(self, duration_s: float) -> None:
        self._polls.note_duration(duration_s)
        if self._ranks.rank == 0:
            self._housekeeping.clear_out()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: It could not be written.
        """
        self._saver.wait()

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
            strict: Whether the checkpoint must hold exactly these objects and parameters; False restores what both
                have, and logs which objects the checkpoint lacks. Parameters that it lacks are always an error.
            verify: Checksums to compare: "read", of what is read; "all", of all files, before anything is restored;
                "sizes", none, but the sizes of files.
            **others: More objects with a state, by name.

        Returns:
            What was restored, or None if the folder has no checkpoint.

        Raises:
            CheckpointError: There are checkpoints, but none can be loaded.
            CheckpointMismatchError: The checkpoint holds other parts or parameters, or its loader state is of other
                files; nothing has changed.
            DataFileError: The storage can't be read.
            CollectiveError: A rank could not be reached.
        """
        objects = Objects.of(model, optimizer, loader, {"scheduler": scheduler, **others})
        before, num_damaged = None, 0
        while True:
            checkpoint, num_passed = self._ranks.broadcast(
                "resume()", partial(self._housekeeping.candidate, before), src_rank=0
            )
            num_damaged += num_passed
            if checkpoint is None:
                break
            try:
                found = self._restore(checkpoint, objects, rng=rng, strict=strict, verify=verify)
            except CheckpointError as error:
                if self._ranks.rank == 0:
                    _log.warning("%s is passed over: %s", checkpoint.name, error)
                before, num_damaged = checkpoint.number, num_damaged + 1
                continue
            self._housekeeping.resumed_from = checkpoint.number
            return found
        if num_damaged:
            message = (
                f"none of the {num_damaged:,} checkpoints in {self._folder!r} can be loaded, and the objects may be "
                "restored in part; the log says what is wrong with each. To start anew, use another folder"
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
        """Restore one checkpoint, by its step or tag (of several with one step, the newest). All ranks must call it.

        By default it restores no random number generators, and only what the checkpoint and this call both have: for an
        evaluation, or to start another run from a model. The arguments are those of `resume`.

        Raises:
            CheckpointError: There is none, or it is damaged.
            CheckpointMismatchError: It lacks parameters, its loader state is of other files, or with `strict` it holds
                other parts; nothing has changed.
            DataFileError: The storage can't be read.
            CollectiveError: A rank could not be reached.
        """
        objects = Objects.of(model, optimizer, loader, {"scheduler": scheduler, **others})
        checkpoint = self._ranks.broadcast(f"load({which!r})", lambda: self._folder.find(which), src_rank=0)
        return self._restore(checkpoint, objects, rng=rng, strict=strict, verify=verify)

    # `choices` are those of restore().
    def _restore(self, checkpoint: Checkpoint, objects: Objects, **choices: Any) -> Resumed:  # noqa: ANN401 - see above
        return restore(checkpoint, objects, self._folder, self._ranks, self._group, **choices)

    # -- What there is ------------------------------------------------------------------------------------------------

    def list(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first. Any process may call it.

        Raises:
            DataFileError: The folder can't be read.
        """
        return [*self._folder.complete()][::-1]

    @property
    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None."""
        return next(self._folder.complete(), None)

    def verify(self, which: int | str) -> Checkpoint:
        """Compare the sizes and checksums of all files of a checkpoint, and return it. Any process may call it.

        Args:
            which: Its step or tag.

        Raises:
            CheckpointError: There is none, or a file is missing or damaged.
        """
        checkpoint = self._folder.find(which)
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
        self._folder.delete(self._folder.find(which).name)

    def export(self, which: int | str, path: str | os.PathLike[str]) -> None:
        """Write the model of a checkpoint to one file, a state dict that `torch.load(weights_only=True)` returns.

        Args:
            which: The step or tag of the checkpoint.
            path: A local path or a URL; a URL of the same kind of storage is written with the options of this one.

        Raises:
            CheckpointError: There is none, it holds no model, or it is damaged.
            DataFileError: The file can't be written.
        """
        export_model(self._folder, self._folder.find(which), path)

    # -- The end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and let others write to the folder.

        Raises:
            CheckpointError: It could not be written.
        """
        try:
            self.wait()
        finally:
            self._saver.close()
            if self._flag is not None:
                self._flag.restore()
            self._housekeeping.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""SavableLoader: a loader whose state can be saved from any rank, and restored on any number of ranks and workers."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from laneway.arguments import check_flag
from laneway.core.merge import merge_ranks
from laneway.core.schema import parse_state, sealed, wrap_state
from laneway.dataset import StatefulShardedDataset
from laneway.delivery.dataloader import BatchSource
from laneway.delivery.loader_arguments import LoaderArguments, arguments_of, check_has_no_state
from laneway.delivery.loader_state import job_state, parse_job_state, parse_rank_state, rank_state, resume_point
from laneway.delivery.runner import LoaderIterator, PassRunner
from laneway.distributed import rank_in_group
from laneway.errors import CheckpointMismatchError, LanewayError
from laneway.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.core.plan import Identity
    from laneway.core.progress import Progress
    from laneway.core.schema import SavedState
    from laneway.process_groups import ProcessGroup

    State = dict[str, Any]


class SavableLoader:
    """A loader whose state can be saved from any rank, and restored on any number of ranks and workers.

    Each pass delivers one epoch, and the next pass the next epoch; `set_epoch` chooses another. The state counts the
    batches that the training loop has received, however far workers have read ahead. The main process counts them, so
    saving does not involve the workers.

    If all ranks have taken the same number of batches of the epoch, as they do when they train together, the
    `state_dict()` of any rank is the state of the whole job. `save_state_rank` and `save_state_global` make no such
    assumption.

    Args:
        dataset: A StatefulShardedDataset; or a DataLoader or StatefulDataLoader over one, of which only the arguments
            are used, instead of those up to `worker_init_fn`.
        num_workers: Number of worker processes; 0: the main process reads its own data.
        batch_size: Rows of a batch, for a dataset without a batch size. None: the items of the dataset are not batched.
        collate_fn: Builds a batch from a list of rows; None: as DataLoader does. If the dataset yields batches, it is
            called on each batch; None: batches stay unchanged.
        pin_memory: Whether to copy batches to page-locked memory.
        prefetch_factor: Number of batches that each worker prefetches; None: 2.
        persistent_workers: Whether workers stay alive after an epoch.
        multiprocessing_context: How to start workers: "fork", "spawn", "forkserver" or a context.
        timeout: Seconds to wait for a batch from a worker; 0: no limit.
        worker_init_fn: Called in each worker with its id.
        shield_workers: Whether workers ignore SIGINT, and SIGTERM that others than this process send, as a cluster does
            to all processes of a job. They go on reading while this process saves a checkpoint, and end with it.
        process_group: Process group, or one-dimensional DeviceMesh, of the data-parallel ranks. It determines rank and
            world size. None: those of the dataset. Ranks that share a data-parallel rank, as in tensor parallelism,
            get the same rows.
        progress: Whether rank 0 shows a progress bar, which starts where the epoch resumes.

    Raises:
        ValueError: An argument is out of its range, or states could not be exact with it.
        TypeError: `dataset` or another argument has the wrong type.

    Example:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(10)}), f"{folder}/part-0.parquet")
        >>> loader = SavableLoader(StatefulShardedDataset(folder, batch_size=4), num_workers=0)
        >>> next(iter(loader))["x"]
        tensor([0, 1, 2, 3])
        >>> state = loader.state_dict()
        >>> resumed = SavableLoader(StatefulShardedDataset(folder, batch_size=4))
        >>> resumed.load_state_dict(state)
        >>> [batch["x"].tolist() for batch in resumed]
        [[4, 5, 6, 7], [8, 9]]
    """

    def __init__(
        self,
        dataset: StatefulShardedDataset | DataLoader[Any],
        *,
        num_workers: int = 0,
        batch_size: int | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        multiprocessing_context: Any = None,  # noqa: ANN401 - DataLoader takes a name or a context
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        shield_workers: bool = False,
        process_group: ProcessGroup | None = None,
        progress: bool = False,
    ) -> None:
        """See the class."""
        options = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": persistent_workers,
            "multiprocessing_context": multiprocessing_context,
            "timeout": timeout,
            "worker_init_fn": worker_init_fn,
        }
        arguments = LoaderArguments(options, batch_size, collate_fn)
        arguments.check()
        source: object = dataset
        self._user_loader = dataset if isinstance(dataset, DataLoader) else None
        if isinstance(dataset, DataLoader):
            arguments.check_unset()
            check_has_no_state(dataset)
            arguments, source = arguments_of(dataset), dataset.dataset
        if not isinstance(source, StatefulShardedDataset):
            message = f"dataset must be a StatefulShardedDataset, or a DataLoader over one, not {dataset!r}"
            raise TypeError(message)
        if process_group is not None:
            source = _of_rank(source, *rank_in_group(process_group))
        self._dataset = source
        self._process_group = process_group
        self._ranks: Ranks | None = None
        check_flag("shield_workers", shield_workers)
        definition = arguments.apply_to(source.definition)
        batches = BatchSource(definition, arguments.keywords, shields_workers=shield_workers)
        self._schedule = source.schedule.of_loader()
        self._runner = PassRunner(batches, self._schedule, shows_progress=progress)
        self._place = batches.place

    # -- Properties ---------------------------------------------------------------------------------------------------

    @property
    def dataset(self) -> StatefulShardedDataset:
        """The dataset that is read: the one that was passed, or its copy for the rank in `process_group`."""
        return self._dataset

    @property
    def sampler(self) -> SavableLoader:
        """The loader itself: frameworks such as Lightning call `loader.sampler.set_epoch(epoch)` before each epoch."""
        return self

    @property
    def num_workers(self) -> int:
        """Number of workers, at least 1: a main process that reads its own data counts as one."""
        return self._place.num_workers

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or the one chosen with `set_epoch` or restored since."""
        return self._schedule.epoch

    @property
    def batches_delivered(self) -> int:
        """Number of batches of the current epoch that this rank has delivered, including those before a resume.

        Rows are counted if there are no batches. After a resume with another number of ranks or workers, it is the
        number that these would have delivered.
        """
        return self._runner.num_received()

    def __len__(self) -> int:
        """Return the number of batches, or rows if there are no batches, that this rank delivers in a whole epoch."""
        return len(self._runner)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to copy or pickle a loader in mid-pass: its workers stay in this process."""
        if self._runner.last is not None:
            message = (
                "a SavableLoader that has begun a pass can't be copied or pickled: save its state_dict(), and load it "
                "into a new SavableLoader over a copy of the dataset"
            )
            raise LanewayError(message)
        return vars(self)

    def __repr__(self) -> str:
        reader = f"{self._place.num_workers} worker(s)"
        return (
            f"{type(self).__name__}({self._dataset!r}, {reader}, {self.batches_delivered:,} of {len(self):,} delivered)"
        )

    # -- Passes -------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass.

        If a state of this epoch was just restored, its progress is kept; another epoch starts from its first row.

        Args:
            epoch: Zero-based.

        Raises:
            ValueError: `epoch` is not an int, or out of its range.
        """
        self._schedule.set_epoch(epoch)

    def start(self) -> None:
        """Start the workers of the next pass now, rather than with its first batch.

        They read ahead while this process prepares the training. If an epoch is chosen or a state restored afterwards,
        they are started anew. Call it from the thread that will iterate.

        Raises:
            LanewayError: The last pass is still being read.
        """
        self._dataset.check_rank()
        self._runner.start_workers()

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over an epoch: that of a restored state, or the next.

        The pass begins with its first batch, so `set_epoch` and states that are restored before that still apply. The
        workers start then too, unless `start` started them.
        """
        self._dataset.check_rank()
        if self._user_loader is not None:
            check_has_no_state(self._user_loader)
        return LoaderIterator(self._runner)

    # -- States of the whole job, without communication ---------------------------------------------------------------

    def state_dict(self) -> State:
        """Return the state of the whole job, if all ranks have taken as many batches as this one, as plain JSON values.

        It is the same on every rank, so one rank can save it for all; nothing is communicated. Near the end of an epoch
        that keeps its remainder, ranks deliver different numbers of batches, so this can't be assumed: then it is the
        state of this rank, marked as such, and other ranks refuse it.
        """
        return wrap_state(job_state(self._runner))

    def load_state_dict(self, state_dict: State) -> None:
        """Resume the next pass from a state of the whole job, or of this rank; a refused state changes nothing.

        Args:
            state_dict: A result of `state_dict`, `save_state_global` or `merge_states`, from any number of ranks and
                workers, or of `save_state_rank` from this rank.

        Raises:
            StateFormatError: The value is not a state, or it is damaged.
            CheckpointMismatchError: The state belongs to other files, another order or another rank; the message lists
                all differences.
        """
        saved = parse_state(state_dict)
        self._schedule.restore(saved, resume_point(self._runner, saved))

    # -- States of one rank -------------------------------------------------------------------------------------------

    def save_state_rank(self) -> State:
        """Return the state of this rank, as plain JSON values; nothing is communicated.

        `restore_state_rank` accepts it on the same rank with the same world size. `merge_states` merges the states of
        all ranks, saved at the same step, into the state of the whole job.
        """
        return rank_state(self._runner)

    def restore_state_rank(self, state: State) -> None:
        """Resume the next pass from a state of this rank; nothing is communicated.

        Args:
            state: A result of `save_state_rank` from this rank, with the same world size.

        Raises:
            StateFormatError: The value is not a state, or it is damaged.
            CheckpointMismatchError: The state is of another rank, of another world size, or of the whole job.
        """
        saved = parse_rank_state(state, self._place)
        self._schedule.restore(saved, resume_point(self._runner, saved))

    # -- States of the whole job, gathered from all ranks -------------------------------------------------------------

    def save_state_global(self, dst_rank: int = 0) -> State | None:
        """Gather the progress of all ranks into the state of the whole job, as plain JSON values.

        Must be called by all ranks. They may have taken different numbers of batches.

        Args:
            dst_rank: Data-parallel rank that receives the state.

        Returns:
            The state on `dst_rank`, None on all other ranks.

        Raises:
            CollectiveError: A rank could not be reached.
            LanewayError: A rank failed; the same error is raised on all ranks.
        """
        return self.gather_state(self.ranks(), f"save_state_global(dst_rank={dst_rank!r})", dst_rank)

    def restore_state_global(self, state: State | None, src_rank: int | None = 0) -> None:
        """Resume the next pass from a state of the whole job, on all ranks or on none.

        Must be called by all ranks. The number of ranks and of workers may differ from when the state was saved.

        Args:
            state: A result of `save_state_global`, `state_dict` or `merge_states`; used on `src_rank` only.
            src_rank: Data-parallel rank that sends the state to the others. None: every rank passes the whole state.

        Raises:
            StateFormatError: The value is not a state, or it is damaged; raised on all ranks.
            CheckpointMismatchError: The state does not belong to the dataset of a rank, it is that of a single rank, or
                ranks passed different states; raised on all ranks.
            CollectiveError: A rank could not be reached.
        """
        ranks = self.ranks()
        call = f"restore_state_global(src_rank={src_rank!r})"
        if src_rank is not None:
            state = ranks.broadcast(call, lambda: parse_job_state(state).original, src_rank)
        self.restore_together(ranks, call, state, is_sent=src_rank is not None)

    def gather_state(self, ranks: Ranks, call: str, dst_rank: int | None) -> State | None:
        """Gather the state of the whole job over `ranks`, on one of them or on all; see `save_state_global`."""

        # The file table may be large, and is the same on all ranks, or else their fingerprints differ.
        def part() -> State:
            ranks.check(self._place.rank, self._place.world_size)
            return sealed({**self.save_state_rank(), "files": ""})

        parts = ranks.gather(call, part, 0 if dst_rank is None else dst_rank)

        def merged() -> State | None:
            return merge_ranks(parts, same_step=False) if parts else None

        call = f"{call}: merge"
        state = ranks.agree(call, merged) if dst_rank is not None else ranks.broadcast(call, merged, src_rank=0)
        return None if state is None else sealed({**state, "files": self._identity.files.encoded})

    def restore_together(self, ranks: Ranks, call: str, state: object, *, is_sent: bool) -> None:
        """Resume the next pass from a state that every rank of `ranks` has; see `restore_state_global`.

        Args:
            ranks: All of them must call it.
            call: What they do, for errors.
            state: The state.
            is_sent: Whether one rank has sent it to all; otherwise they compare what they were given.
        """
        checked: list[tuple[SavedState, Progress]] = []

        def check() -> str:
            ranks.check(self._place.rank, self._place.world_size)
            saved = parse_job_state(state)
            checked.append((saved, resume_point(self._runner, saved)))
            return "" if is_sent else _digest(saved)

        digests = ranks.gather(f"{call}: check", check, dst_rank=0) or []

        def compare() -> None:
            others = [rank for rank, each in enumerate(digests) if each != digests[0]]
            if others:
                message = (
                    f"rank {others[0]} was given another state than rank 0: pass the state of the same save on all "
                    "ranks, or on one rank, with its src_rank= on all of them"
                )
                raise CheckpointMismatchError(message)

        if not is_sent:
            ranks.agree(f"{call}: compare", compare)
        self._schedule.restore(*checked[0])

    def ranks(self) -> Ranks:
        """Return the ranks of the job, able to communicate. Must be called by all of them."""
        if self._ranks is None:
            self._ranks = Ranks.of(self._process_group, self._place.rank, self._place.world_size)
        return self._ranks

    @property
    def _identity(self) -> Identity:
        return self._runner.source.definition.identity


def _digest(saved: SavedState) -> str:
    return hashlib.blake2b(json.dumps(saved.fields, sort_keys=True).encode(), digest_size=16).hexdigest()


def _of_rank(dataset: StatefulShardedDataset, rank: int, world_size: int) -> StatefulShardedDataset:
    """Return the dataset, or its copy for this rank of a process group."""
    place, schedule = dataset.definition.place, dataset.schedule
    if (rank, world_size) == (place.rank, place.world_size):
        return dataset
    if schedule.pending is not None:
        message = (
            f"the dataset is of rank {place.rank} of {place.world_size}, but this process is rank {rank} of "
            f"{world_size} in process_group, and the dataset is in use: create it with rank={rank} and "
            f"world_size={world_size}"
        )
        raise ValueError(message)
    sharded = dataset.shard(world_size, rank)
    sharded.schedule = schedule.copy()
    return sharded

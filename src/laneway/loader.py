"""SavableLoader: a DataLoader whose state is saved on any rank, and restored on any number of ranks and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from torch.utils.data import DataLoader

from laneway.arguments import check_callable, check_choice, check_flag, check_seconds
from laneway.delivery.accelerate import check_checkpoint_of_caller, placement_of_caller
from laneway.delivery.dataloader import BatchSource
from laneway.delivery.loader_arguments import LoaderArguments, check_has_no_state, naming_the_way_out
from laneway.delivery.reports import LOG_INTERVAL_S, Reports, log_line
from laneway.delivery.runner import EpochSampler, LoaderIterator, PassRunner
from laneway.delivery.watchdog import Patience
from laneway.distributed import rank_in_group
from laneway.errors import LanewayError
from laneway.mixture_loader import MixtureLoader
from laneway.ranks import Ranks
from laneway.resumable import ResumableDataset, no_length
from laneway.state_loader import StateLoader
from laneway.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.delivery.metrics import LoaderMetrics
    from laneway.process_groups import ProcessGroup

    State = dict[str, Any]

Progressing = Literal["bar", "log"]
"""What is shown of the progress: a bar, or lines of a log."""


class SavableLoader(StateLoader, MixtureLoader, DataLoader[Any]):
    """A DataLoader whose state can be saved from any rank, and restored on any number of ranks and workers.

    Each pass delivers one epoch, and the next pass the next epoch; `set_epoch` chooses another. The state counts the
    batches that the training loop has received, however far workers have read ahead. The main process counts them, so
    saving does not involve the workers.

    It is a `torch.utils.data.DataLoader`, so frameworks take it where they take one. None of them needs to share out
    its batches, which are those of this rank only.

    If all ranks have taken the same number of batches of the epoch, as they do when they train together, the
    `state_dict()` of any rank is the state of the whole job. `save_state_rank` and `save_state_global` make no such
    assumption.

    Args:
        dataset: A StatefulShardedDataset or Mixture; or a DataLoader or StatefulDataLoader over one, of which only the
            arguments are used. Then those below up to `worker_init_fn` must be left out.
        num_workers: Number of worker processes; 0: the main process reads its own data.
        batch_size: Rows of a batch, for a dataset without a batch size. None: the items of the dataset are not batched.
        collate_fn: Builds a batch from a list of rows; None: as DataLoader does. If the dataset yields batches, it is
            called on each batch; None: batches stay unchanged.
        pin_memory: Whether to copy batches to page-locked memory.
        prefetch_factor: Number of parcels that each worker prefetches; None: 2. A parcel is one batch, or several small
            ones (up to 64, of 4 MiB) if no function of the user is called on rows or batches.
        persistent_workers: Whether workers stay alive after an epoch.
        multiprocessing_context: How to start workers: "fork", "spawn", "forkserver" or a context.
        timeout: Seconds to wait for a batch from a worker; 0: no limit.
        worker_init_fn: Called in each worker with its id.
        shield_workers: Whether workers ignore SIGINT, and SIGTERM that others than this process send, as a cluster does
            to all processes of a job. They keep reading while this process saves a checkpoint, and end with it.
        process_group: Process group, or one-dimensional DeviceMesh, of the data-parallel ranks. It determines rank and
            world size. None: those of the dataset. Ranks that share a data-parallel rank, as in tensor parallelism,
            get the same rows.
        progress: What rank 0 shows of the progress, which starts where the epoch resumes, on stderr: "bar", a progress
            bar; "log", a line of metrics every 30 s and at the end of each pass, for jobs without a terminal; None:
            nothing.
        observer: Called in the main process with the `LoaderMetrics` of each interval, before a batch is read, and at
            the end of each pass. What it raises is raised by `next()`, and no batch is lost.
        observe_every_s: Seconds of such an interval, > 0; one may be longer, as it ends when a batch is requested.
        stall_warning_s: Seconds without a batch after which the log "laneway" says what its worker is doing: the stage,
            the file and row group or row, and the Python stacks; again after twice as long, and so on. None: never.
        stall_timeout_s: Seconds without a batch after which the workers are replaced and the batch is read again,
            which changes nothing of the order or of states. The third time at the same file or row, a `WorkerError`
            names it. None: workers may take as long as they need. It must exceed the time in which workers start.
        sampler: None, as for any DataLoader over an iterable dataset; Lightning passes it when it copies a loader.
        batch_sampler: As `sampler`.

    Raises:
        ValueError: An argument is out of its range, or states could not be exact with it.
        TypeError: `dataset` or another argument has the wrong type.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import StatefulShardedDataset
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

    @naming_the_way_out
    def __init__(
        self,
        dataset: ResumableDataset | DataLoader[Any],
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
        progress: Progressing | None = None,
        observer: Callable[[LoaderMetrics], None] | None = None,
        observe_every_s: float = 10.0,
        stall_warning_s: float | None = 60.0,
        stall_timeout_s: float | None = None,
        sampler: None = None,
        batch_sampler: None = None,
    ) -> None:
        options = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": persistent_workers,
            "multiprocessing_context": multiprocessing_context,
            "timeout": timeout,
            "worker_init_fn": worker_init_fn,
        }
        arguments = LoaderArguments(options, batch_size, collate_fn).checked()
        source: object = dataset
        self._user_loader = dataset if isinstance(dataset, DataLoader) else None
        if isinstance(dataset, DataLoader):
            arguments, source = arguments.of_loader(dataset), dataset.dataset
        if not isinstance(source, ResumableDataset):
            message = f"dataset must be a StatefulShardedDataset or Mixture, or a DataLoader over one, not {dataset!r}"
            raise TypeError(message)
        self._ranks: Ranks | None = None
        if process_group is not None:
            rank, world_size = rank_in_group(process_group)
            source = _of_rank(source, rank, world_size)
            self._ranks = Ranks.of(process_group, rank, world_size)
        check_flag("shield_workers", shield_workers)
        check_choice("progress", progress, get_args(Progressing), or_none=True)
        check_callable("observer", observer)
        check_seconds("observe_every_s", observe_every_s)
        patience = Patience.of(stall_warning_s, stall_timeout_s, arguments.keywords["num_workers"])
        definition = arguments.apply_to(source.definition)
        batches = BatchSource(definition, arguments.keywords, shields_workers=shield_workers, patience=patience)
        self._schedule = source.schedule.of_loader()
        reports = Reports()
        if progress == "log" and batches.place.rank == 0:
            reports.add(log_line, LOG_INTERVAL_S)
        if observer is not None:
            reports.add(observer, observe_every_s)
        self._runner = PassRunner(
            batches,
            self._schedule,
            reports,
            shows_bar=progress == "bar",
            own_warning_s=None if arguments.keywords["num_workers"] else stall_warning_s,
        )
        self._place = batches.place
        super().__init__(source, sampler=sampler, batch_sampler=batch_sampler, **arguments.of_dataloader())
        # A DataLoader refuses another sampler for an iterable dataset.
        vars(self)["sampler"] = EpochSampler(self._schedule)

    # -- Properties ---------------------------------------------------------------------------------------------------

    dataset: ResumableDataset
    """The dataset that is read: the one that was passed, or its copy for the rank in `process_group`."""

    num_workers: int
    """Number of worker processes; 0: the main process reads its own data."""

    sampler: EpochSampler
    """Frameworks such as Lightning call its `set_epoch(epoch)` before each epoch."""

    @property
    def use_stateful_dataloader(self) -> bool:
        """True: Accelerate saves and restores the states of loaders that have this attribute."""
        check_checkpoint_of_caller(self)
        return True

    @property
    def _is_accelerate_prepared(self) -> bool:
        # Accelerator.prepare() wraps a loader that says no, and a wrapper would share out batches again.
        self._runner.placement = placement_of_caller() or self._runner.placement
        return True

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, _: bool) -> None:
        """Ignore that Accelerate says so."""

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or that of the next one if it was chosen with `set_epoch` or restored since.

        It is the epoch of `state_dict()`: a pass that continues after `set_epoch` keeps its own until it ends.
        """
        return self._schedule.epoch

    @property
    def batches_delivered(self) -> int:
        """Number of batches of the current epoch that this rank has delivered, including those before a resume.

        Rows are counted if there are no batches. After a resume with another number of ranks or workers, it is the
        number that these would have delivered.
        """
        return self._runner.num_received()

    def __len__(self) -> int:
        """Return the number of batches, or rows if there are no batches, that this rank delivers in a whole epoch.

        Raises:
            TypeError: It never ends, or it depends on what `flat_map` or `pack` make of rows of unknown lengths.
        """
        num_items = self._runner.num_items
        if num_items is None:
            raise no_length(self, self._runner.source.definition)
        return num_items

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to copy or pickle a loader in the middle of a pass: its workers stay in this process."""
        if self._runner.last is not None:
            message = (
                "a SavableLoader that has begun a pass can't be copied or pickled: save its state_dict(), and load it "
                "into a new SavableLoader over a copy of the dataset"
            )
            raise LanewayError(message)
        return vars(self)

    def __repr__(self) -> str:
        reader = counted(self.num_workers, "worker")
        num_items = self._runner.num_items
        of_all = "" if num_items is None else f" of {num_items:,}"
        progress = f"epoch {self.epoch}: {self.batches_delivered:,}{of_all} delivered"
        return f"{type(self).__name__}({self.dataset!r}, {reader}, {progress})"

    def metrics(self) -> LoaderMetrics:
        """Return what was delivered on this rank since the loader was made, how fast, and where the time went.

        Any thread may call it. It changes nothing, and nothing is communicated.
        """
        return self._runner.metrics()

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
        they are restarted. Call it from the thread that will iterate.

        Raises:
            LanewayError: The last pass is still being read.
        """
        self.dataset.check_rank()
        self._runner.start_workers()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # DataLoader's is private
        """Return an iterator over an epoch: that of a restored state, or the next.

        The pass begins with its first batch, so `set_epoch` and states that are restored before that still apply. The
        workers start then too, unless `start` started them.
        """
        self.dataset.check_rank()
        if self._user_loader is not None:
            check_has_no_state(self._user_loader)
        return LoaderIterator(self._runner, self.dataset)


def _of_rank(dataset: ResumableDataset, rank: int, world_size: int) -> ResumableDataset:
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

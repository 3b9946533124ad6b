"""SavableLoader: a loader whose state can be saved from any rank, and restored on any number of ranks and workers."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm.auto import tqdm

from laneway.arguments import plain_int
from laneway.core.cursor import Cursor, num_items_left
from laneway.core.job import Lockstep
from laneway.core.merge import merge_ranks
from laneway.core.plan import is_complete
from laneway.core.progress import Progress
from laneway.core.state import parse_state, read_state, wrapped
from laneway.core.turns import WorkerPlace
from laneway.dataset import StatefulShardedDataset, parts_of, use_turns_of
from laneway.delivery.dataloader import DataLoaderSource
from laneway.delivery.definition import Composed
from laneway.delivery.torchdata import TorchdataSource, check_exact
from laneway.distributed import Ranks, rank_in_group
from laneway.errors import CheckpointMismatchError, LanewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from laneway.core.cursor import LaneOptions, Settled
    from laneway.core.plan import Plan
    from laneway.delivery.definition import Definition
    from laneway.distributed import ProcessGroup

    State = dict[str, Any]


class _Pass(Protocol):
    """What one rank delivers of an epoch."""

    @property
    def plan(self) -> Plan:
        """The plan that belongs to `progress`."""

    @property
    def is_complete(self) -> bool:
        """Whether this rank has delivered all it has of the epoch."""

    @property
    def rows(self) -> list[Any] | tuple[()]:
        """Single rows that are at hand, last first: to take one is to deliver it."""

    def progress(self) -> Progress:
        """Return what this rank has delivered."""

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        """Return the next batch or row; it counts as delivered from now on."""


class BatchSource(Protocol):
    """Where a rank's batches come from."""

    @property
    def definition(self) -> Definition:
        """What the workers read."""

    @property
    def item_options(self) -> LaneOptions:
        """Lanes, turns and the batches that the training loop receives."""

    @property
    def place(self) -> WorkerPlace:
        """Any worker of the rank."""

    @property
    def in_order(self) -> bool:
        """Whether batches come in their order."""

    def begin(self, progress: Progress, settled: Settled) -> _Pass:
        """Begin a pass that goes on from `progress`, settled for the workers."""


class _CompletePass:
    """A pass over an epoch of which nothing is left."""

    rows = ()

    def __init__(self, settled: Settled) -> None:
        self.plan = settled.plan
        self._progress = settled.progress

    @property
    def is_complete(self) -> bool:
        return True

    def progress(self) -> Progress:
        return self._progress

    def __next__(self) -> Any:  # noqa: ANN401 - as other passes
        raise StopIteration


class _Iterator:
    """Iterates over a pass, as long as it is the loader's last. The pass begins with its first batch."""

    def __init__(self, loader: SavableLoader) -> None:
        self._loader = loader
        self._is_over = self._is_shown = False
        self._pass: _Pass | None = None
        self._rows: list[Any] | tuple[()] = ()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        loader, rows = self._loader, self._rows
        # What else was asked of the loader or its dataset is looked at only where something was: rows are many.
        is_last = loader._pass is self._pass and loader._num_changes == loader._passes.num_changes  # noqa: SLF001
        if rows and is_last:
            loader._num_delivered += 1  # noqa: SLF001 - it is one of us
            return rows.pop()
        if self._is_over:
            raise StopIteration
        if self._pass is None:
            self._pass, self._bar = loader._begin()  # noqa: SLF001 - it is one of us
            self._is_shown = not self._bar.disable
        elif not is_last and loader._running is not self._pass:  # noqa: SLF001 - it is one of us
            message = "this iterator is over: another pass over its SavableLoader has begun, or a state was restored"
            raise LanewayError(message)
        try:
            item = next(self._pass)
        except StopIteration:
            self._is_over = True
            self._bar.close()
            raise
        loader._num_delivered += 1  # noqa: SLF001 - it is one of us
        if self._is_shown:
            self._bar.update()
        else:
            self._rows = self._pass.rows
        return item


class SavableLoader:
    """A loader that can be saved from any rank, and restored on any number of ranks and workers.

    Each pass delivers one epoch, and the next pass the next epoch; `set_epoch` chooses. Its state counts the batches
    that the training loop has received, whatever the workers have made ahead. It is known to the main process, so no
    worker is asked when it is saved.

    Where all ranks have taken equally many batches of the epoch, as they do when they train together, the
    `state_dict()` of any one of them is the state of the whole job. `save_state_rank` and `save_state_global` assume
    nothing.

    Args:
        dataset: A StatefulShardedDataset; or a DataLoader or StatefulDataLoader over one, and then the arguments up to
            `worker_init_fn` are those of that loader. Of a plain DataLoader only the arguments are used.
        num_workers: Processes that read; 0: the main process reads by itself.
        batch_size: Rows of a batch, for a dataset without a batch size of its own. None: what the dataset yields.
        collate_fn: Makes a batch of a list of rows, by default as DataLoader does; or, where the dataset makes
            batches, is called on each. By default those are left as they are.
        pin_memory: Whether batches are copied to page-locked memory.
        prefetch_factor: Batches that each worker makes ahead; None: 2.
        persistent_workers: Whether workers live on after an epoch.
        multiprocessing_context: How workers are started: "fork", "spawn", "forkserver" or a context.
        timeout: Seconds to wait for a batch of a worker; 0: for ever.
        worker_init_fn: Called in each worker with its number.
        process_group: Process group, or DeviceMesh of one dimension, of the data-parallel ranks. It decides about rank
            and world size. None: those of the dataset. Ranks that share a data-parallel rank, as under tensor
            parallelism, get the same rows.
        progress: Whether rank 0 shows a progress bar, from where the epoch goes on.

    Raises:
        ValueError: An argument is out of its range, or under it a state could not be exact.

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
        process_group: ProcessGroup | None = None,
        progress: bool = False,
    ) -> None:
        """See the class."""
        if plain_int(num_workers) is None:
            message = f"num_workers must be an int of at least 0, not {num_workers!r}"
            raise TypeError(message)
        for name, function in (("collate_fn", collate_fn), ("worker_init_fn", worker_init_fn)):
            if function is not None and not callable(function):
                message = f"{name} must be callable, not {function!r}"
                raise TypeError(message)
        options = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": persistent_workers,
            "multiprocessing_context": multiprocessing_context,
            "timeout": timeout,
            "worker_init_fn": worker_init_fn,
        }
        if isinstance(dataset, DataLoader):
            _check_left_to_loader({**options, "batch_size": batch_size, "collate_fn": collate_fn})
            loader, source = dataset, dataset.dataset
            options, batch_size, collate_fn = _arguments_of(loader)
        else:
            loader, source = None, dataset
        if not isinstance(source, StatefulShardedDataset):
            message = f"dataset must be a StatefulShardedDataset, or a DataLoader over one, not {dataset!r}"
            raise TypeError(message)
        if process_group is not None:
            source = _of_rank(source, loader, *rank_in_group(process_group))
        self._dataset = source
        self._process_group = process_group
        self._ranks: Ranks | None = None
        if isinstance(loader, StatefulDataLoader):
            self._source: BatchSource = _torchdata_source(source, loader)
        else:
            definition, place, passes, _ = parts_of(source)
            place = replace(place, num_workers=max(1, options["num_workers"]))
            self._source = DataLoaderSource(_batched(definition, batch_size, collate_fn), place, passes, options)
        _, _, self._passes, self._writer = parts_of(source)
        self._place = self._source.place
        self._rank_place, self._job_place = self._place.of_rank(), WorkerPlace(0, self._place.world_size)
        self._pass: _Pass | None = None
        self._num_changes = 0
        """Of the passes, when the pass had begun; as long as it stays, nothing else was asked for."""
        self._num_delivered = 0
        self._shows_progress = progress
        self._bar: tqdm[Any] = tqdm(disable=True)

    # -- What it is ---------------------------------------------------------------------------------------------------

    @property
    def dataset(self) -> StatefulShardedDataset:
        """The dataset whose batches these are: the one that was given, or its copy for the rank in process_group."""
        return self._dataset

    @property
    def sampler(self) -> SavableLoader:
        """The loader itself: frameworks such as Lightning call `loader.sampler.set_epoch(epoch)` before each epoch."""
        return self

    @property
    def num_workers(self) -> int:
        """Number of workers, at least 1: a process that reads by itself counts as one."""
        return self._place.num_workers

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or the one that was asked for with `set_epoch`, or restored, since."""
        return self._passes.epoch if self._undisturbed is None else self._undisturbed.plan.epoch

    @property
    def batches_delivered(self) -> int:
        """Batches of the present epoch that the training loop has received on this rank, also before a resume.

        Rows, where there are no batches. After a resume on other ranks or workers, it is what they would have come to.
        """
        if self._undisturbed is not None:
            return self._num_delivered
        progress = self._passes.next_progress
        return 0 if progress.cut is None else self._num_before(self._settled(progress))

    def __len__(self) -> int:
        """Return the batches, or rows where there are no batches, that this rank delivers in a whole epoch."""
        return self._source.definition.num_items(self._place, self._source.item_options)

    def __repr__(self) -> str:
        reader = f"{self._place.num_workers} worker(s)"
        return (
            f"{type(self).__name__}({self._dataset!r}, {reader}, {self.batches_delivered:,} of {len(self):,} delivered)"
        )

    # -- EpochSchedule -------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one that the next pass delivers.

        For the epoch of a state that was just restored the progress is kept; another epoch starts afresh.

        Args:
            epoch: Zero-based.
        """
        self._passes.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Return a pass over an epoch: the one that is under way in a restored state, or the next.

        It begins with its first batch; so `set_epoch` and a state that is restored count until then.
        """
        return _Iterator(self)

    def _begin(self) -> tuple[_Pass, tqdm[Any]]:
        last = self._undisturbed
        progress = self._passes.next_progress if last is None else Progress(last.plan.epoch + 1)
        warning = self._source.definition.options.warning_for(self._place)
        if warning:
            warnings.warn(warning, stacklevel=3)
        settled = self._settled(progress)
        if is_complete(settled.plan, settled.progress):
            self._pass = _CompletePass(settled)
            self._passes.begin_elsewhere(progress.epoch, self._place.num_workers)
        else:
            self._pass = self._source.begin(progress, settled)
        yields_rows = self._source.item_options.batch_size is None
        self._lockstep = Lockstep(settled, self._place, yields_rows=yields_rows, in_order=self._source.in_order)
        self._num_changes = self._passes.num_changes
        self._num_delivered = self._num_before(settled)
        self._bar.close()
        self._bar = tqdm(
            total=self._num_delivered + num_items_left(settled, self._place, self._source.item_options),
            initial=self._num_delivered,
            desc=f"epoch {progress.epoch}",
            unit="row" if yields_rows else "batch",
            disable=not self._shows_progress or self._place.rank > 0,
        )
        return self._pass, self._bar

    @property
    def _undisturbed(self) -> _Pass | None:
        """The last pass, unless anything was asked of the loader or of its dataset since."""
        return self._pass if self._num_changes == self._passes.num_changes else None

    @property
    def _running(self) -> _Pass | None:
        """The last pass, unless a state was restored since, to the loader or to its dataset."""
        return self._pass if self._passes.pending is None else self._undisturbed

    def _settled(self, progress: Progress) -> Settled:
        if progress.place is not None and progress.place.num_workers > 1:
            message = (
                f"this is the state of DataLoader worker {progress.place.worker} of {progress.place.num_workers} "
                "alone: give a SavableLoader the state of a rank or of the whole job"
            )
            raise CheckpointMismatchError(message)
        return self._source.definition.settle(progress, self._place)

    def _num_before(self, settled: Settled) -> int:
        return max(0, len(self) - num_items_left(settled, self._place, self._source.item_options))

    # -- States of the whole job, without communication ---------------------------------------------------------------

    def state_dict(self) -> State:
        """Return the state of the whole job, if all ranks have taken as many batches as this one, as plain JSON values.

        It is the same on every rank then, so one rank may save it for all; nothing is communicated. Near the end of an
        epoch that keeps its remainder, ranks deliver unequally many batches, and this can't be assumed: then it is the
        state of this rank alone, says so, and is refused where it does not belong.
        """
        running = self._running
        if running is not None:
            own = running.progress()
            job = self._lockstep.job(own, is_complete=running.is_complete)
            if job is None:
                return wrapped(self._written(own, running.is_complete))
            next_turn, part_rows, complete = job
            return wrapped(self._writer.state_in_step(own, self._job_place, next_turn, part_rows, complete=complete))
        restored = self._passes.pending
        if restored is not None:
            return wrapped(copy.deepcopy(restored.state))
        return wrapped(self._not_begun())

    def load_state_dict(self, state_dict: State) -> None:
        """Go on from a state of the whole job, or of this rank. A state that is refused changes nothing.

        Args:
            state_dict: What `state_dict`, `save_state_global` or `merge_states` returned, on any number of ranks and
                workers, or what `save_state_rank` returned on this rank.

        Raises:
            StateFormatError: It is no state, or a damaged one.
            CheckpointMismatchError: It belongs to other files, another order or another rank; all differences are
                listed.
        """
        self._adopt(state_dict, self._checked(state_dict))

    # -- States of one rank -------------------------------------------------------------------------------------------

    def save_state_rank(self) -> State:
        """Return what this rank has delivered, as plain JSON values; nothing is communicated.

        `restore_state_rank` takes it on the same rank of as many ranks, and `merge_states` makes of those of all ranks,
        saved at the same step, the state of the whole job.
        """
        running = self._running
        if running is not None:
            return self._written(running.progress(), running.is_complete)
        restored = self._passes.pending
        if restored is not None and restored.progress.place is not None:
            return copy.deepcopy(restored.state)
        plan, progress, turns_per_batch = self._settled(self._passes.next_progress)
        complete = is_complete(plan, progress)
        if not complete:
            cursor = Cursor(plan, progress, self._place.of_rank(), turns_per_batch)
            progress, complete = cursor.progress(), cursor.is_at_end
        return self._written(progress, complete)

    def restore_state_rank(self, state: State) -> None:
        """Go on from what `save_state_rank` returned on this rank of as many ranks; nothing is communicated.

        Raises:
            StateFormatError: It is no state, or a damaged one.
            CheckpointMismatchError: It is that of another rank, of another number of ranks, or of the whole job.
        """
        fields = parse_state(state)
        is_shared_out = self._place.world_size > 1 and fields["lanes"] is not None and not fields["complete"]
        if fields["scope"] == "global" and (fields["world_size"] != self._place.world_size or is_shared_out):
            message = (
                f"this is the state of a whole job of {fields['world_size']} rank(s), not of rank {self._place.rank} "
                f"of {self._place.world_size} alone: call restore_state_global() or load_state_dict()"
            )
            raise CheckpointMismatchError(message)
        self._adopt(state, self._checked(state))

    # -- States of the whole job, gathered from all ranks -------------------------------------------------------------

    def save_state_global(self, dst_rank: int = 0) -> State | None:
        """Gather what each rank has delivered into the state of the whole job, as plain JSON values.

        Must be called by all ranks. They may have taken different numbers of batches.

        Args:
            dst_rank: Data-parallel rank that gets the state; the others get None.

        Raises:
            CollectiveError: A rank could not be reached.
            LanewayError: On all ranks, what was wrong on one of them.
        """
        return self.gather_state(self.ranks(), dst_rank)

    def restore_state_global(self, state: State | None, src_rank: int | None = 0) -> None:
        """Go on from a state of the whole job, on all ranks or on none.

        Must be called by all ranks. Their number, and that of workers, may differ from when the state was saved.

        Args:
            state: What `save_state_global`, `state_dict` or `merge_states` returned; only looked at on `src_rank`.
            src_rank: Data-parallel rank that sends the state to the others. None: every rank gives the whole state.

        Raises:
            StateFormatError: On all ranks: it is no state, or a damaged one.
            CheckpointMismatchError: On all ranks: it doesn't belong to the dataset of one of them, it is that of one
                rank only, or ranks gave different states.
            CollectiveError: A rank could not be reached.
        """
        ranks = self.ranks()
        if src_rank is not None:
            state = ranks.broadcast(lambda: dict(_of_job(state)), src_rank)
        self.restore_together(ranks, state, f"src_rank={src_rank!r}")

    def gather_state(self, ranks: Ranks, dst_rank: int | None) -> State | None:
        """Gather the state of the whole job over `ranks`; see `save_state_global`."""
        files = self._writer.constants["files"]

        # All ranks have the same table of files, which may be large, or their fingerprints differ.
        def part() -> State:
            ranks.check(self._place.rank, self._place.world_size)
            return {**self.save_state_rank(), "files": ""}

        parts = ranks.gather(part, dst_rank)
        return ranks.agree(lambda: {**merge_ranks(parts, same_step=False), "files": files} if parts else None)

    def restore_together(self, ranks: Ranks, state: object, call: str = "") -> None:
        """Go on from a state that every rank of `ranks` gives; see `restore_state_global`."""

        def checked() -> tuple[str, Progress]:
            ranks.check(self._place.rank, self._place.world_size)
            fields = _of_job(state)
            return _digest(fields), self._checked(fields)

        digest, progress = ranks.agree(checked, call)
        digests = ranks.gather(lambda: digest) or []
        others = [rank for rank, each in enumerate(digests) if each != digests[0]]
        if others:
            message = (
                f"rank {others[0]} was given another state than rank 0: give all ranks the state of one save, or one "
                "rank the state and all of them its src_rank="
            )
            raise CheckpointMismatchError(message)
        self._adopt(state, progress)

    def ranks(self) -> Ranks:
        """Return the ranks of the job, which can talk to each other. Must be called by all of them."""
        if self._ranks is None:
            self._ranks = Ranks.of(self._process_group, self._place.rank, self._place.world_size)
        return self._ranks

    # -- Writing and reading states -----------------------------------------------------------------------------------

    def _not_begun(self) -> State:
        return self._written(self._passes.next_progress, False)  # noqa: FBT003 - as in its definition

    def _written(self, progress: Progress, complete: bool) -> State:  # noqa: FBT001 - a pair, as lockstep returns it
        # What the whole job has delivered is the same on every rank, to the last value.
        place = self._job_place if progress.place is None else self._rank_place
        return self._writer.state(progress, place, complete=complete)

    def _checked(self, state: object) -> Progress:
        rank, world_size = self._place.rank, self._place.world_size
        identity = self._source.definition.identity
        progress = read_state(state, identity, rank=rank, world_size=world_size, worker=None)
        if progress.place is not None:
            # The lanes of a rank may be more than its present workers can share.
            self._settled(progress)
        return progress

    def _adopt(self, state: object, progress: Progress) -> None:
        self._passes.restore(dict(parse_state(state)), progress)
        self._pass = None


def _of_job(state: object) -> Mapping[str, Any]:
    fields = parse_state(state)
    if fields["scope"] != "global":
        message = (
            f"this is the state of rank {fields['rank']} of {fields['world_size']} alone: call restore_state_rank() on "
            "that rank, or load merge_states() of the states of all ranks"
        )
        raise CheckpointMismatchError(message)
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check_left_to_loader(arguments: dict[str, Any]) -> None:
    given = [name for name, value in arguments.items() if value]
    if given:
        message = f"{', '.join(given)} can't be given together with a DataLoader: give it to the DataLoader"
        raise ValueError(message)


def _arguments_of(loader: DataLoader[Any]) -> tuple[dict[str, Any], int | None, Callable[[Any], Any]]:
    """Return the options of a DataLoader, its batch size, and its collate_fn."""
    if loader.drop_last:
        message = "drop_last=True of a DataLoader can't be exact: give batch_size and drop_last to the dataset"
        raise ValueError(message)
    names = [
        *("num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout"),
        *("worker_init_fn", "generator", "in_order"),
    ]
    return {name: getattr(loader, name) for name in names}, loader.batch_size, loader.collate_fn


def _of_rank(
    dataset: StatefulShardedDataset, loader: DataLoader[Any] | None, rank: int, world_size: int
) -> StatefulShardedDataset:
    """Return the dataset as the rank of a process group reads it."""
    _, place, passes, _ = parts_of(dataset)
    if (rank, world_size) == (place.rank, place.world_size):
        return dataset
    if passes.pending is not None or isinstance(loader, StatefulDataLoader):
        message = (
            f"the dataset is of rank {place.rank} of {place.world_size}, but this process is rank {rank} of "
            f"{world_size} in process_group, and the dataset is in use: make it with rank={rank} and "
            f"world_size={world_size}"
        )
        raise ValueError(message)
    sharded = dataset.shard(world_size, rank)
    if passes.next_progress.epoch:
        sharded.set_epoch(passes.next_progress.epoch)
    return sharded


def _batched(definition: Definition, batch_size: int | None, collate_fn: Callable[[Any], Any] | None) -> Definition:
    """Return a definition that makes batches as a loader was asked to."""
    options = definition.options
    if batch_size is None:
        if collate_fn is None:
            return definition
        transform = definition.transform
        return replace(definition, transform=Composed(transform, collate_fn) if transform else collate_fn)
    options = replace(options, batch_size=_checked_batch_size(options, batch_size))
    return replace(definition, options=options, collate_fn=collate_fn or default_collate)


def _torchdata_source(dataset: StatefulShardedDataset, loader: StatefulDataLoader[Any]) -> TorchdataSource:
    check_exact(loader)
    options = parts_of(dataset).definition.options
    if loader.batch_size is not None:
        batch_size = _checked_batch_size(options, loader.batch_size)
        use_turns_of(dataset, options.turn_rows or batch_size)
    definition, place, passes, writer = parts_of(dataset)
    return TorchdataSource(loader, definition, replace(place, num_workers=max(1, loader.num_workers)), passes, writer)


def _checked_batch_size(options: LaneOptions, batch_size: int) -> int:
    if options.batch_size is not None:
        message = (
            f"the dataset makes batches of {options.batch_size:,} rows already: give batch_size={batch_size} either to "
            "it or to the loader (a DataLoader that is to leave them as they are takes batch_size=None)"
        )
        raise ValueError(message)
    found = plain_int(batch_size)
    if found is None or found < 1:
        message = f"batch_size must be an int of at least 1, or None, not {batch_size!r}"
        raise ValueError(message)
    if options.turn_rows and found % options.turn_rows:
        message = f"batch_size {batch_size} must be a multiple of the dataset's turn_rows {options.turn_rows}"
        raise ValueError(message)
    return found

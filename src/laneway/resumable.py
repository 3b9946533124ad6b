"""Datasets that can stop anywhere and resume exactly there: what a single dataset and a mixture have in common."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from torch.utils.data import IterableDataset

from laneway.arguments import check_count, check_flag, check_function
from laneway.core.turns import WorkerPlace
from laneway.delivery.callers import check_readers
from laneway.delivery.dataset_state import dataset_state, load_dataset_state
from laneway.delivery.iterators import DatasetIterator
from laneway.delivery.schedule import EpochSchedule
from laneway.delivery.workers import is_collated_by_caller, is_in_worker
from laneway.distributed import check_rank, data_parallel_rank
from laneway.errors import StateUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laneway.convert.columns import Output
    from laneway.delivery.definition import Definition


class ResumableDataset(IterableDataset[Any]):
    """A dataset that is delivered in passes, and has a state."""

    definition: Definition
    schedule: EpochSchedule
    _asks_rank: bool
    _given_output: Output | None

    # -- Changed copies -----------------------------------------------------------------------------------------------

    def shard(self, num_shards: int, index: int) -> Self:
        """Return a copy that delivers part `index` of `num_shards`, at the start of epoch 0.

        This sets the rank and world size: which rows a part has depends on the number of parts, on the epoch and on how
        far the other parts have come. To hold out rows, use `split`.

        Args:
            num_shards: Number of parts, >= 1: the world size of the copy.
            index: Part of the copy, in [0, num_shards): its rank.

        Raises:
            ValueError: An argument is out of its range.
        """
        sharded = self._changed(replace(self.definition, place=WorkerPlace(*data_parallel_rank(index, num_shards))))
        sharded._asks_rank = False  # noqa: SLF001 - a copy of this object
        return sharded

    def map(self, fn: Callable[..., Any], *, with_context: bool = False) -> Self:
        """Return a copy that also calls `fn` on what is delivered; its next pass starts where that of this one would.

        That is rows, or batches; after `flat_map`, its items; after `pack`, packs; after `batch`, batches.

        Args:
            fn: Called in the worker with the result of `transform`, if there is one, and of the functions before.
            with_context: Whether `fn` is also passed where its rows come from, and seeds that are the same after any
                resume: a `RowContext` for a row or an item of `flat_map`, a `BatchContext` for a batch. A pack, and a
                batch that was built of rows or items, has none.

        Raises:
            TypeError: `fn` can't be called.
            ValueError: `with_context` is set, and there is no context.
        """
        check_function(fn)
        check_flag("with_context", with_context)
        changed = copy.copy(self)
        changed.definition = self.definition.mapped(fn, takes_context=with_context)
        return changed

    def batch(self, batch_size: int, *, drop_last: bool = False) -> Self:
        """Return a copy that delivers batches, at the start of epoch 0.

        Without functions that were given before, such as to `map`, this is what `batch_size=` of the dataset is:
        columns, by default as tensors. With them, the rows that they return are collated, as by DataLoader. Functions
        that are given afterwards are called on each batch.

        Args:
            batch_size: Rows of a batch, >= 1; after `flat_map` or `pack`, items or packs of it. Only the last batch of
                each rank may be shorter; of items or packs, the last one of each lane.
            drop_last: Whether to drop that batch on all ranks, unless all of them have a whole one; of items or packs,
                whether to drop short ones.

        Raises:
            ValueError: An argument is out of its range, or the dataset delivers batches already.
        """
        definition, size = self.definition, check_count("batch_size", batch_size)
        check_flag("drop_last", drop_last)
        if size is None:
            message = "batch_size must be an int of at least 1, not None"
            raise ValueError(message)
        options = replace(definition.options, batch_size=size)
        if definition.options.batch_size is not None:
            message = (
                f"the dataset already yields batches of {definition.options.batch_size:,} rows: call batch() once, and "
                "on a dataset without batch_size"
            )
            raise ValueError(message)
        if options.turns_per_batch(options.default_turn_rows) is None:
            message = f"batch_size {size} must be a multiple of turn_rows {options.turn_rows}"
            raise ValueError(message)
        output = "torch" if self._given_output is None else self._given_output
        return self._changed(definition.batched(options, output, drop_last=drop_last))

    def _changed(self, definition: Definition) -> Self:
        """Return a copy with another definition, at the start of epoch 0."""
        changed = copy.copy(self)
        changed.definition = definition
        changed.schedule = EpochSchedule(is_endless=definition.is_endless, has_epochs=definition.has_epochs)
        return changed

    def __copy__(self) -> Self:
        """Return a copy with passes of its own; its next pass starts where that of this one would."""
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self), schedule=self.schedule.copy())
        return copied

    # -- Properties ---------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the last pass, or that of the next one if it was chosen with `set_epoch` or loaded since."""
        return self.schedule.epoch

    def __len__(self) -> int:
        """Return the number of batches, or rows if there are no batches, that this rank delivers in a whole epoch.

        It depends on neither lanes nor workers. If `without` takes out rows, or packs are counted by lengths of rows,
        it is that of the epoch that `epoch` says.

        Raises:
            TypeError: It never ends, or it depends on what `flat_map` or `pack` make of rows of unknown lengths.
        """
        num_items = self.definition.num_items(self.definition.place, self.epoch)
        if num_items is None:
            raise no_length(self, self.definition)
        return num_items

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be sent to the workers of a framework that would lose rows: there, nobody can tell."""
        check_readers(self, world_size=self.definition.place.world_size)
        return vars(self)

    # -- Epochs -------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, also for persistent workers.

        If a state of this epoch was just loaded, its progress is kept; another epoch starts from its first row.

        Args:
            epoch: Zero-based.

        Raises:
            ValueError: `epoch` is not an int, or out of its range.
            LanewayError: Called by a framework that would share out the rows again.
        """
        check_readers(self, world_size=self.definition.place.world_size)
        self.schedule.set_epoch(epoch)

    def check_rank(self) -> None:
        """Check that this process is still the rank that it was when the dataset was created, unless it was given.

        Raises:
            LanewayError: torch.distributed was initialised since.
        """
        if self._asks_rank:
            check_rank(self.definition.place.rank, self.definition.place.world_size)

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over an epoch: that of a loaded state, or the next.

        The pass begins with its first item, so `set_epoch` and states that are loaded before that still apply. In a
        DataLoader worker, it begins at once.

        Raises:
            LanewayError: Called by a framework that would lose rows; the message says what to write instead.
        """
        self.check_rank()
        check_readers(self, world_size=self.definition.place.world_size)
        if self.definition.options.batch_size is not None and is_collated_by_caller():
            message = (
                "the DataLoader collates the batches of this dataset once more, to columns of shape [1, rows]: pass "
                "batch_size=None to the DataLoader (its default is 1)"
            )
            warnings.warn(message, stacklevel=2)
        return DatasetIterator(self.definition, self.schedule, self)

    # -- States -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last delivered row or batch, as plain JSON values.

        Raises:
            StateUnavailableError: A loader holds the progress; call its `state_dict` instead.
        """
        self._check_holds_progress()
        return dataset_state(self.definition, self.schedule)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the next pass from a state; a state that is refused changes nothing.

        Args:
            state_dict: A result of `state_dict`.

        Raises:
            StateFormatError: The value is not a state, or it is damaged.
            CheckpointMismatchError: The state belongs to other files, another order or another rank; the message lists
                all differences.
        """
        load_dataset_state(self.definition, self.schedule, state_dict)

    def _check_holds_progress(self) -> None:
        if self.schedule.num_active_workers and not is_in_worker():
            message = (
                "a loader holds the progress, not the dataset: call state_dict() of the SavableLoader or "
                "StatefulDataLoader (a plain DataLoader has no state)"
            )
            raise StateUnavailableError(message)


def no_length(dataset: object, definition: Definition) -> TypeError:
    """Return the error for the length of something that never ends, or whose end depends on the data."""
    if definition.stages is not None and not definition.is_endless:
        message = (
            f"this {type(dataset).__name__} has no length: how many items flat_map() or pack() make of its rows "
            "depends on the data"
        )
        return TypeError(message)
    message = (
        f"a {type(dataset).__name__} without an end has no length: give it a stop or epoch_batches=, or count the steps"
    )
    return TypeError(message)

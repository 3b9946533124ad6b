"""Datasets that say what they will deliver, and what they have delivered, without reading it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from laneway.arguments import check_count, check_int
from laneway.core.merge import merge_states
from laneway.core.progress import Progress
from laneway.core.schema import parse_state
from laneway.errors import CheckpointMismatchError
from laneway.plans.planners import plan_epoch
from laneway.resumable import ResumableDataset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.core.schema import SavedState
    from laneway.delivery.definition import Definition
    from laneway.plans.epoch_plan import EpochPlan
    from laneway.plans.planners import Planner


class PlannedDataset(ResumableDataset):
    """A dataset whose epochs can be planned."""

    def plan(
        self,
        epoch: int | None = None,
        world_size: int | None = None,
        num_workers: int | None = None,
        *,
        state: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> EpochPlan:
        """Return what the ranks of a job do in an epoch, computed without reading data.

        Args:
            epoch: Zero-based; None: `epoch` of this dataset, or that of the state.
            world_size: Number of ranks; None: that of this dataset, or that of the state.
            num_workers: Workers of each rank, 0 or more; None: 0, or as many as the state names. The state of a
                whole job names none: then its lanes are kept, but `worker` and `worker_memory_bytes` are those of one
                worker per rank.
            state: A state from which the epoch goes on, of the whole job; or a list of the states of all ranks. The
                plan also has what was delivered before, in all cuts. None: the epoch starts with its first row.

        Raises:
            ValueError: An argument is out of its range, or steps depend on the data: on what `flat_map` makes of rows,
                or on lengths of documents that are not known.
            StateFormatError: The state is not one, or it is damaged.
            CheckpointMismatchError: The state belongs to other files, another order, or a single rank.

        Examples:
            >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
            >>> from laneway import StatefulShardedDataset
            >>> folder = tempfile.mkdtemp()
            >>> pq.write_table(pa.table({"x": range(100)}), f"{folder}/part-0.parquet", row_group_size=10)
            >>> plan = StatefulShardedDataset(folder, batch_size=3, shuffle=True).plan(epoch=2, world_size=2)
            >>> plan.num_steps, plan.batches_per_rank
            (17, (17, 17))
            >>> for rank, rows in enumerate(plan.rows_of(step=5)):
            ...     print(rank, [row.row for row in rows])
            0 [29, 25, 5]
            1 [89, 72, 49]
            >>> plan.where("part-0.parquet", 72)
            [RowDelivery(step=5, rank=1, worker=0, batch_index=1)]
        """
        definition = self.definition
        _check_counts_items(definition)
        saved = None if state is None else _job_state(state)
        if saved is None:
            progress = Progress(self.epoch if epoch is None else check_int("epoch", epoch, minimum=0))
        else:
            if epoch not in {None, saved.fields["epoch"]}:
                message = f"epoch is {epoch!r}, but the state is of epoch {saved.fields['epoch']}: give one of them"
                raise ValueError(message)
            _check_order(saved)
            progress = definition.read_progress(saved, definition.place.of_rank(), is_worker=False)
        place = definition.place if saved is None else saved.place
        workers = place.num_workers if num_workers is None else check_int("num_workers", num_workers, minimum=0)
        num_ranks = check_count("world_size", world_size) or place.world_size
        return plan_epoch(self._planner(), progress, num_ranks, max(1, workers))

    def _planner(self) -> Planner:
        """Return what finds the rows of the cuts of an epoch."""
        raise NotImplementedError


def _check_counts_items(definition: Definition) -> None:
    """Check that it is known how many items there are.

    Raises:
        ValueError: It depends on the data.
    """
    stages = definition.stages
    if stages is None or definition.identity.counts_items:
        return
    if stages.expansion.num_flat:
        message = (
            "which step has which rows can't be planned, as how many items flat_map() makes of a row depends on the "
            "data: call plan() on what it is before flat_map()"
        )
    else:
        message = (
            "which step has which packs can't be planned, as the lengths of the documents are not known: call "
            "count_lengths() before pack(), on each source of a mixture, or give pack() a column of lengths="
        )
    raise ValueError(message)


def _job_state(state: object) -> SavedState:
    """Return the state of the whole job that a user has given, merged if it is a list.

    Raises:
        CheckpointMismatchError: It is that of a single rank or worker.
    """
    if isinstance(state, Sequence) and not isinstance(state, (str, bytes)):
        return parse_state(merge_states(state))
    saved = parse_state(state)
    if not saved.is_global:
        message = (
            f"this is the state of rank {saved.place.rank} of {saved.place.world_size} only, so how far the others "
            "have come is not known: pass a list of the states of all ranks"
        )
        raise CheckpointMismatchError(message)
    return saved


def _check_order(saved: SavedState) -> None:
    """Check that a state says which step delivered which rows.

    Raises:
        CheckpointMismatchError: Its epoch began in an order that has no steps.
    """
    if saved.fields["order_version"] == 1:
        message = (
            "this state's epoch began in an older release, in whose order lanes don't tell which step had which rows: "
            "plan an epoch that began with this one"
        )
        raise CheckpointMismatchError(message)

"""Progress that a user's StatefulDataLoader keeps in its snapshots: the only module that knows their layout."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from laneway.core.plan import is_complete
from laneway.core.progress import LaneProgress, present_cut
from laneway.core.state import parse_progress
from laneway.core.turns import WorkerPlace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchdata.stateful_dataloader import StatefulDataLoader

    from laneway.core.cursor import Settled
    from laneway.core.progress import Progress
    from laneway.core.state import StateWriter
    from laneway.delivery.definition import Definition
    from laneway.delivery.schedule import EpochSchedule


def worker_states(loader_state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of a dataset in each worker, or in the main process, as of the last delivered batch.

    Args:
        loader_state: What `StatefulDataLoader.state_dict` returned.
    """
    if "_snapshot" not in loader_state:
        return [loader_state["dataset_state"]]
    workers = loader_state["_snapshot"]["_worker_snapshots"]
    return [workers[f"worker_{index}"]["dataset_state"] for index in range(len(workers))]


class TorchdataSource:
    """Feeds one rank from a StatefulDataLoader that a user built."""

    def __init__(
        self,
        loader: StatefulDataLoader[Any],
        definition: Definition,
        place: WorkerPlace,
        passes: EpochSchedule,
        writer: StateWriter,
    ) -> None:
        """Prepare to feed from `loader`.

        Args:
            loader: One that passes `check_exact`.
            definition: Of its dataset.
            place: Any worker of the rank.
            passes: Of its dataset.
            writer: Of its dataset.
        """
        self.definition = definition
        self.item_options = replace(definition.options, batch_size=definition.options.batch_size or loader.batch_size)
        self.place = place
        self.in_order = True
        self.counts_early = loader.num_workers == 0
        """Whether rows of a batch are counted before it is made, so that they are too when it fails."""
        self._loader = loader
        self._passes = passes
        self._writer = writer

    def begin(self, progress: Progress, settled: Settled) -> TorchdataPass:
        """Begin a pass that goes on from `progress`, settled for the workers of this loader."""
        return TorchdataPass(self, progress, settled)

    def batches(self, progress: Progress, settled: Settled) -> Iterator[Any]:
        """Have workers go on from `progress`, and return the batches that they send."""
        check_unused(self._loader)
        if progress.cut is None:
            self._passes.set_epoch(progress.epoch)
        else:
            complete = is_complete(settled.plan, settled.progress)
            place = self.place.of_rank() if progress.place else WorkerPlace(0, self.place.world_size)
            self._passes.restore(self._writer.state(progress, place, complete=complete), progress)
        if progress.cut is not None or not self._loader.persistent_workers:
            # Lets go of workers, so that new workers begin as the dataset of this process says.
            self._loader.load_state_dict({})
        return iter(self._loader)

    def progress(self) -> Progress:
        """Return what this rank has delivered, as the snapshot of the loader says."""
        parts = [parse_progress(state) for state in worker_states(self._loader.state_dict())]
        cuts = [present_cut(part) for part in parts]
        rows = dict(chain.from_iterable(cut.lanes.rows.items() for cut in cuts))
        # Batches come from workers in rotation: some are one ahead, in the round that the others come to next.
        turns = [cut.next_turn for cut in cuts]
        num_ahead = sum(turn > min(turns) for turn in turns)
        group = self.definition.options.turns_per_batch(cuts[0].turn_rows) or 1
        cut = replace(
            cuts[0],
            lanes=LaneProgress(rows),
            next_turn=min(turns) + num_ahead * self.place.of_rank().stride(group),
        )
        return replace(parts[0], cut=cut, place=None if len(rows) == cut.num_lanes else self.place.of_rank())


class TorchdataPass:
    """What one rank delivers of an epoch, and how far it has come. After an error it goes on where it was."""

    rows = ()
    """Single rows that are at hand: none, as the loader counts them itself."""

    def __init__(self, feed: TorchdataSource, progress: Progress, settled: Settled) -> None:
        """Begin; the workers start at once."""
        self._source = feed
        self.plan = settled.plan
        """The plan that belongs to `progress`."""
        self._batches: Iterator[Any] | None = feed.batches(progress, settled)
        self._delivered = settled.progress
        """What had been delivered when the batch failed that was being made."""

    def progress(self) -> Progress:
        """Return what this rank has delivered."""
        return self._delivered if self._batches is None else self._source.progress()

    @property
    def is_complete(self) -> bool:
        """Whether this rank has delivered all it has of the epoch."""
        return is_complete(self.plan, self.progress())

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        """Return the next batch or row; it counts as delivered from now on."""
        if self._batches is None:
            settled = self._source.definition.settle(self._delivered, self._source.place)
            self._batches, self.plan = self._source.batches(self._delivered, settled), settled.plan
        if self._source.counts_early:
            self._delivered = self._source.progress()
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except BaseException:
            if not self._source.counts_early:
                self._delivered = self._source.progress()
            self._batches = None
            raise


def check_unused(loader: StatefulDataLoader[Any]) -> None:
    """Check that no state of its own would come before what a SavableLoader says.

    Raises:
        ValueError: One was loaded.
    """
    if loader.next_iter_state is not None:
        message = (
            "a state was loaded into the StatefulDataLoader itself: load a state of the SavableLoader into the "
            "SavableLoader, and make the StatefulDataLoader anew"
        )
        raise ValueError(message)


def check_exact(loader: StatefulDataLoader[Any]) -> None:
    """Check that the snapshots of a loader are those of the last delivered batch.

    Raises:
        ValueError: It has settings under which they aren't, or a state of its own.
    """
    check_unused(loader)
    if loader.num_workers and loader.snapshot_every_n_steps != 1:
        message = (
            f"snapshot_every_n_steps is {loader.snapshot_every_n_steps}: between snapshots a StatefulDataLoader "
            "knows only how many batches to replay, on as many workers as now; give it snapshot_every_n_steps=1"
        )
        raise ValueError(message)
    if loader.num_workers and not loader.in_order:
        message = "in_order=False: the snapshots of StatefulDataLoader are wrong then; give it in_order=True"
        raise ValueError(message)

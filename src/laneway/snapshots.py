"""Progress that a user's StatefulDataLoader keeps in its snapshots: the only module that knows their layout."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from laneway.plan import is_complete
from laneway.progress import LaneProgress, present_cut
from laneway.state import parse_progress
from laneway.turns import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchdata.stateful_dataloader import StatefulDataLoader

    from laneway.cursor import Settled
    from laneway.passes import Passes
    from laneway.pipeline import Pipeline
    from laneway.progress import Progress
    from laneway.state import StateWriter


def worker_states(loader_state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of a dataset in each worker, or in the main process, as of the last delivered batch.

    Args:
        loader_state: What `StatefulDataLoader.state_dict` returned.
    """
    if "_snapshot" not in loader_state:
        return [loader_state["dataset_state"]]
    workers = loader_state["_snapshot"]["_worker_snapshots"]
    return [workers[f"worker_{index}"]["dataset_state"] for index in range(len(workers))]


class SnapshotFeed:
    """Feeds one rank from a StatefulDataLoader that a user built."""

    def __init__(
        self,
        loader: StatefulDataLoader[Any],
        pipeline: Pipeline,
        place: Place,
        passes: Passes,
        writer: StateWriter,
    ) -> None:
        """Prepare to feed from `loader`.

        Args:
            loader: It has not been iterated over since a state was loaded.
            pipeline: Of its dataset.
            place: Any worker of the rank.
            passes: Of its dataset.
            writer: Of its dataset.

        Raises:
            ValueError: It has settings under which its snapshot isn't that of the last delivered batch.
        """
        if loader.num_workers and loader.snapshot_every_n_steps != 1:
            message = (
                f"snapshot_every_n_steps is {loader.snapshot_every_n_steps}: between snapshots a StatefulDataLoader "
                "knows only how many batches to replay, on as many workers as now; give it snapshot_every_n_steps=1"
            )
            raise ValueError(message)
        if loader.num_workers and not loader.in_order:
            message = "in_order=False: the snapshots of StatefulDataLoader are wrong then; give it in_order=True"
            raise ValueError(message)
        self.pipeline = pipeline
        self.item_wishes = replace(pipeline.wishes, batch_size=pipeline.wishes.batch_size or loader.batch_size)
        self.place = place
        self._loader = loader
        self._passes = passes
        self._writer = writer

    def begin(self, progress: Progress, settled: Settled) -> SnapshotPass:
        """Begin a pass that goes on from `progress`, settled for the workers of this loader."""
        if progress.cut is None:
            self._passes.set_epoch(progress.epoch)
        else:
            complete = is_complete(settled.plan, settled.progress)
            place = self.place.of_rank() if progress.place else Place(0, self.place.world_size)
            self._passes.restore(self._writer.state(progress, place, complete=complete), progress)
        if progress.cut is not None or not self._loader.persistent_workers:
            # Lets go of workers and of any state, so that new workers begin as the dataset of this process says.
            self._loader.load_state_dict({})
        return SnapshotPass(self._loader, settled, self.place.of_rank())


class SnapshotPass:
    """What one rank delivers of an epoch, and how far it has come."""

    def __init__(self, loader: StatefulDataLoader[Any], settled: Settled, rank_place: Place) -> None:
        """Begin; the workers start at once."""
        self._loader = loader
        self._turns_per_batch = settled.turns_per_batch
        self.plan = settled.plan
        """The plan that belongs to `progress`."""
        self._rank_place = rank_place
        self._batches: Iterator[Any] = iter(loader)

    def progress(self) -> Progress:
        """Return what this rank has delivered."""
        parts = [parse_progress(state) for state in worker_states(self._loader.state_dict())]
        cuts = [present_cut(part) for part in parts]
        rows = dict(chain.from_iterable(cut.lanes.rows.items() for cut in cuts))
        # Batches come from workers in rotation: some are one ahead, in the round that the others come to next.
        turns = [cut.next_turn for cut in cuts]
        num_ahead = sum(turn > min(turns) for turn in turns)
        next_turn = min(turns) + num_ahead * self._rank_place.stride(self._turns_per_batch)
        cut = replace(cuts[0], lanes=LaneProgress(rows), next_turn=next_turn)
        return replace(parts[0], cut=cut, place=None if len(rows) == cut.num_lanes else self._rank_place)

    @property
    def is_complete(self) -> bool:
        """Whether this rank has delivered all it has of the epoch."""
        return is_complete(self.plan, self.progress())

    def __next__(self) -> Any:  # noqa: ANN401 - a batch may be anything
        """Return the next batch or row; it counts as delivered from now on."""
        return next(self._batches)

"""Loaders, and functions to run them, for the tests with real DataLoader workers."""

from __future__ import annotations

import io
import multiprocessing
import traceback
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset, merge_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

State = dict[str, Any]

# A fork server that has done the imports starts workers nearly as fast as fork, and pickles as much as spawn.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["laneway", "torchdata.stateful_dataloader"])


def make_loader(path: Path, *, rows: bool = False, dataset: State | None = None, **options: Any) -> Any:
    """Return a StatefulDataLoader whose batches have three rows: the dataset's, or collated from single rows."""
    arguments = {"shard_rows": 4, "window_bytes": 200, "seed": 5, **(dataset or {})}
    if rows:
        return StatefulDataLoader(StatefulShardedDataset(path, **arguments), batch_size=3, **options)
    return StatefulDataLoader(StatefulShardedDataset(path, batch_size=3, **arguments), batch_size=None, **options)


def table_loader(
    source: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    context: Any = None,
    **options: Any,
) -> SavableLoader:
    """Return a SavableLoader of shuffled batches of three rows of a table."""
    arguments = {"shard_rows": 4, "window_bytes": 200, "seed": 5, "batch_size": 3, "shuffle": True, **options}
    dataset = StatefulShardedDataset(source, rank=rank, world_size=world_size, **arguments)
    return SavableLoader(dataset, num_workers=num_workers, multiprocessing_context=context)


@contextmanager
def loader_raises(error: type[Exception], match: str) -> Iterator[None]:
    """Act as pytest.raises, and release the loader that failed.

    The error of a worker is in a reference cycle, which keeps the loader alive. If the garbage collector breaks the
    cycle, it may finalize the queues first, and then torch waits 5 s for each worker that it can't notify.
    """
    with pytest.raises(error, match=match) as raised:
        yield
    traceback.clear_frames(raised.tb)
    del raised


def ids(batches: Iterable[Any]) -> list[list[int]]:
    """Return the row ids of each batch."""
    return [batch["id"].tolist() for batch in batches]


def flat(batches: Iterable[list[int]]) -> list[int]:
    """Return the row ids of all batches in one list."""
    return [row for batch in batches for row in batch]


def saved(state: State) -> State:
    """Return a state after a round trip through a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: State = torch.load(buffer, weights_only=True)
    return loaded


def run_with_states(loader: Any) -> tuple[list[list[int]], list[State]]:
    """Run one epoch; return its batches, and the states before the first batch and after each one."""
    states, batches = [saved(loader.state_dict())], []
    for batch in loader:
        batches.append(batch["id"].tolist())
        states.append(saved(loader.state_dict()))
    return batches, states


def resumed_after_each_batch(make: Callable[[], Any]) -> list[list[int]]:
    """Return the batches of an epoch, after checking that from the state after each of them, the rest follows."""
    uninterrupted, states = run_with_states(make())
    for done, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(state)
        assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"
    return uninterrupted


def rows_while_ranks_change(make: Callable[[int, int], SavableLoader]) -> list[int]:
    """Return the rows of an epoch of jobs of 2, 3, 1 and 2 ranks, the last of which completes it, sorted."""
    received, state = received_while_ranks_change(make, ((2, 1), (3, 1), (1, 2), (2, 100)))
    assert state["complete"]
    return sorted(received)


def received_while_ranks_change(
    make: Callable[[int, int], SavableLoader], steps: Iterable[tuple[int, int]]
) -> tuple[list[int], State]:
    """Return the row ids that jobs received one after another, until one of them was complete, and its state.

    Args:
        make: Returns the loader of a rank, from the rank and the world size.
        steps: World size of each job, and number of batches that each of its ranks takes.
    """
    received: list[int] = []
    state: State = {}
    for world_size, num_batches in steps:
        ranks = [make(rank, world_size) for rank in range(world_size)]
        for loader in ranks:
            if state:
                loader.load_state_dict(state)
            received += flat(ids(islice(loader, num_batches)))
        state = merge_states([loader.save_state_rank() for loader in ranks])
        if state["complete"]:
            break
    return received, state

"""What the tests with real ranks share: processes in a gloo group, their loaders, and the ways to save them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from laneway import SavableLoader, StatefulShardedDataset
from laneway.errors import LanewayError
from tests.compat.loaders import FORKSERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch.distributed.device_mesh import DeviceMesh

State = dict[str, Any]
Ids = list[list[int]]
"""Row ids of each batch."""

NUM_ROWS = 48
GROUP_TIMEOUT_S = 60.0
"""Longer than the tests let ranks wait for one that failed."""
RUN_TIMEOUT_S = 120.0
"""Time that all ranks together have for one function."""

# What pyarrow, torch, its optimizers and DCP import on first use costs each rank, and each of its workers, a second.
RANK_CONTEXT = FORKSERVER
RANK_CONTEXT.set_forkserver_preload(
    [
        *("laneway", "numpy.ma", "numpy.random", "pyarrow.parquet", "pytest", "torchdata.stateful_dataloader"),
        *("torch.distributed.checkpoint", "torch.distributed.checkpoint._fsspec_filesystem", "torch._dynamo"),
    ]
)


# -- Ranks ------------------------------------------------------------------------------------------------------------


class RunRanks(Protocol):
    """Calls a function on all ranks of a group and returns the result of each."""

    def __call__(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]: ...


class RankGroup:
    """Ranks of one gloo group, each a process, that call one function after another."""

    def __init__(self, world_size: int, *, group_timeout_s: float = GROUP_TIMEOUT_S) -> None:
        self._folder = tempfile.TemporaryDirectory()
        ends = [RANK_CONTEXT.Pipe() for _ in range(world_size)]
        # Not daemonic, or they could not have workers.
        self._processes = [
            RANK_CONTEXT.Process(
                target=_run_rank,
                args=(rank_end, f"{self._folder.name}/store", rank, world_size, group_timeout_s),
                daemon=False,
            )
            for rank, (_, rank_end) in enumerate(ends)
        ]
        for process, (_, rank_end) in zip(self._processes, ends, strict=True):
            process.start()
            rank_end.close()
        self._ranks = [end for end, _ in ends]

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        timeout_s: float = RUN_TIMEOUT_S,
        deaths: frozenset[int] = frozenset(),
    ) -> list[Any]:
        """Return the result of `function(rank, *args)` on each rank.

        Args:
            function: Pickled by name, so it must be defined at the top level of a module.
            args: Further arguments.
            timeout_s: Time that all ranks together have.
            deaths: Ranks that must die; their result is None.

        Raises:
            AssertionError: A rank raised (its traceback follows), died, or did not finish. The group is unusable then.
        """
        for rank in self._ranks:
            rank.send((function, args))
        return _collect(self._ranks, deadline=time.monotonic() + timeout_s, deaths=deaths)

    def stop(self, *, timeout_s: float = 10) -> None:
        """End the processes: idle ranks return at once, the others are killed after `timeout_s`."""
        for rank in self._ranks:
            rank.close()
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.stop(timeout_s=0 if error else 10)


class RankPool:
    """Keeps a group of ranks for each world size, and replaces a group in which a rank failed."""

    def __init__(self) -> None:
        self._groups: dict[int, RankGroup] = {}

    def __call__(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        """Return the result of `function(rank, *args)` on each of `world_size` ranks; see `RankGroup.run`."""
        group = self._groups.pop(world_size, None) or RankGroup(world_size)
        try:
            results = group.run(function, *args)
        except BaseException:
            # The other ranks may wait for the one that failed.
            group.stop(timeout_s=0)
            raise
        self._groups[world_size] = group
        return results

    def stop(self) -> None:
        """End all processes."""
        while self._groups:
            self._groups.popitem()[1].stop()


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Do as the fixture `run_ranks`, with ranks that no other test uses."""
    with RankGroup(world_size) as group:
        return group.run(function, *args)


def _collect(ranks: list[Any], *, deadline: float, deaths: frozenset[int]) -> list[Any]:
    results: list[Any] = [None] * len(ranks)
    waiting = dict(zip(ranks, range(len(ranks)), strict=True))
    while waiting:
        ready: list[Any] = connection.wait(list(waiting), timeout=max(0, deadline - time.monotonic()))
        assert ready, f"ranks {sorted(waiting.values())} did not finish in time"
        for end in ready:
            rank = waiting.pop(end)
            try:
                failure, results[rank] = end.recv()
            except EOFError:
                assert rank in deaths, f"rank {rank} died"
                continue
            assert not failure, f"rank {rank} failed:\n{failure}"
            assert rank not in deaths, f"rank {rank} lives"
    return results


def _run_rank(calls: Any, store: str, rank: int, world_size: int, group_timeout_s: float) -> None:
    """Join the group and run the functions that arrive until the test closes the pipe."""
    # Or every worker of this rank would copy all of it, in its first full garbage collection.
    gc.freeze()
    if sys.version_info < (3, 12):
        # A fork just while a thread of gloo takes the GIL, to free the tensors of a collective, deadlocks the child.
        os.register_at_fork(before=lambda: time.sleep(0.002))
    torch.set_num_threads(1)
    # Ranks started by torchrun have the platform's default; a child of the fork server inherits its parent's.
    multiprocessing.set_start_method("fork", force=True)
    warnings.simplefilter("error")
    # Python 3.12 warns of every fork beside threads, and gloo has threads; so do the ranks of every user.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes in total", UserWarning)
    warnings.filterwarnings("ignore", "the dataset has .*, fewer than a batch of", UserWarning)
    warnings.filterwarnings("ignore", "the loaded state is of the last batch of epoch", UserWarning)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=group_timeout_s),
        )
        while (outcome := _answer(calls, rank)) is not None:
            calls.send(outcome)
            # Loaders in reference cycles must not keep their workers until some later test.
            del outcome
            gc.collect()
    except BaseException:  # noqa: BLE001 - the test reports it
        calls.send((traceback.format_exc(), None))
        return
    dist.destroy_process_group()


def _answer(calls: Any, rank: int) -> tuple[str, Any] | None:
    try:
        function, args = calls.recv()
    except EOFError:
        return None
    return "", function(rank, *args)


# -- Loaders ----------------------------------------------------------------------------------------------------------


def make_loader(
    corpus: Path,
    num_workers: int = 0,
    *,
    rows: bool = False,
    batch_size: int = 3,
    process_group: dist.ProcessGroup | DeviceMesh | None = None,
    **dataset: Any,
) -> SavableLoader:
    """Return a loader of shuffled batches, which the dataset or the loader builds."""
    arguments = {"shuffle": True, "shard_rows": 4, "window_bytes": 200, "seed": 5, **dataset}
    source = StatefulShardedDataset(corpus, batch_size=None if rows else batch_size, **arguments)
    return SavableLoader(
        source, num_workers=num_workers, batch_size=batch_size if rows else None, process_group=process_group
    )


def ids(batches: Iterable[Any]) -> Ids:
    """Return the row ids of each batch."""
    return [batch["id"].tolist() for batch in batches]


def flat(batches: Iterable[list[int]]) -> list[int]:
    """Return the row ids of all batches in one list."""
    return [row for batch in batches for row in batch]


def refusal(call: Callable[..., object], *args: Any, **options: Any) -> tuple[str, str]:
    """Return class and message of the error that a call raises on purpose, or two empty strings."""
    try:
        call(*args, **options)
    except (LanewayError, ValueError) as error:
        return type(error).__name__, str(error)
    return "", ""


# -- Saving and restoring ---------------------------------------------------------------------------------------------

WAYS = ("rank files", "global", "global from every rank", "state_dict", "dcp")
"""Ways to save the progress of all ranks."""


def read_state(path: Path) -> Any:
    """Load a state from its file, which may hold plain values only."""
    return torch.load(path, weights_only=True)


def save(loader: SavableLoader, way: str, directory: Path) -> None:
    """Save a loader in one of the `WAYS`. Must be called by all ranks."""
    rank = dist.get_rank()
    directory.mkdir(exist_ok=True)
    if way == "rank files":
        torch.save(loader.save_state_rank(), directory / f"rank-{rank}.pt")
    elif way == "state_dict":
        if rank == 0:
            torch.save(loader.state_dict(), directory / "loader.pt")
    elif way == "dcp":
        dcp_save({"loader": loader}, checkpoint_id=directory)
    else:
        state = loader.save_state_global()
        assert (state is None) == (rank > 0)
        if state is not None:
            torch.save(state, directory / "loader.pt")
    dist.barrier()


def restore(loader: SavableLoader, way: str, directory: Path) -> None:
    """Restore a loader from the files that `save` wrote in the same way. Must be called by all ranks."""
    rank = dist.get_rank()
    if way == "rank files":
        loader.restore_state_rank(read_state(directory / f"rank-{rank}.pt"))
    elif way == "state_dict":
        loader.load_state_dict(read_state(directory / "loader.pt"))
    elif way == "dcp":
        dcp_load({"loader": loader}, checkpoint_id=directory)
    elif way == "global":
        loader.restore_state_global(read_state(directory / "loader.pt") if rank == 0 else None)
    else:
        loader.restore_state_global(read_state(directory / "loader.pt"), src_rank=None)

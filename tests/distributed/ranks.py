"""What the tests with real ranks share: processes in a gloo group, their loaders, and the ways of saving them."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
import warnings
from datetime import timedelta
from multiprocessing import connection
from time import monotonic
from typing import TYPE_CHECKING, Any

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
"""Ranks that wait for one which failed are ended by the test, long before."""

# As its loaders do; what a rank imports besides takes each of them half a second.
FORKSERVER.set_forkserver_preload(
    ["laneway", "torchdata.stateful_dataloader", "torch.distributed.checkpoint", "pytest", "pyarrow.parquet"]
)


# -- Ranks ------------------------------------------------------------------------------------------------------------


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    group_timeout_s: float = GROUP_TIMEOUT_S,
    timeout_s: float = 120.0,
    deaths: frozenset[int] = frozenset(),
) -> list[Any]:
    """Return what `function(rank, *args)` returned on each rank, each a process of its own in one gloo group.

    Args:
        function: Found by its name in the processes, so it belongs to a module.
        world_size: Number of ranks.
        args: Further arguments.
        group_timeout_s: How long a collective of the group waits.
        timeout_s: How long all ranks may take together.
        deaths: Ranks that are to die; theirs is None.

    Raises:
        AssertionError: A rank raised (its traceback follows), died, or came to no end.
    """
    with tempfile.TemporaryDirectory() as directory:
        ends = [FORKSERVER.Pipe(duplex=False) for _ in range(world_size)]
        # Not daemonic, or they could not have workers.
        processes = [
            FORKSERVER.Process(
                target=_rank_process,
                args=(sender, f"{directory}/store", rank, world_size, group_timeout_s, function, args),
                daemon=False,
            )
            for rank, (_, sender) in enumerate(ends)
        ]
        for process, (_, sender) in zip(processes, ends, strict=True):
            process.start()
            sender.close()
        receivers = [receiver for receiver, _ in ends]
        try:
            results = _results(receivers, deadline=monotonic() + timeout_s, deaths=deaths)
            for process in processes:
                process.join(10)
        finally:
            for process in processes:
                process.kill()
                process.join()
                process.close()
            for receiver in receivers:
                receiver.close()
        return results


def _results(receivers: list[Any], *, deadline: float, deaths: frozenset[int]) -> list[Any]:
    results: list[Any] = [None] * len(receivers)
    waiting = dict(zip(receivers, range(len(receivers)), strict=True))
    while waiting:
        ready: list[Any] = connection.wait(list(waiting), timeout=max(0, deadline - monotonic()))
        assert ready, f"ranks {sorted(waiting.values())} came to no end"
        for receiver in ready:
            rank = waiting.pop(receiver)
            try:
                failure, results[rank] = receiver.recv()
            except EOFError:
                assert rank in deaths, f"rank {rank} died"
                continue
            assert not failure, f"rank {rank} failed:\n{failure}"
            assert rank not in deaths, f"rank {rank} lives"
    return results


def _rank_process(
    sender: Any,
    store: str,
    rank: int,
    world_size: int,
    group_timeout_s: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    # What torchrun starts has the default of the platform; a child of the fork server would have that of its parent.
    multiprocessing.set_start_method("fork", force=True)
    warnings.simplefilter("error")
    # Python 3.12 warns of every fork beside threads, and gloo has threads; so do the ranks of every user.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes in total", UserWarning)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=group_timeout_s),
        )
        result = function(rank, *args)
    except BaseException:  # noqa: BLE001 - the test tells of it
        sender.send((traceback.format_exc(), None))
        return
    sender.send(("", result))
    dist.destroy_process_group()


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
    """Return a loader of shuffled batches: the dataset's, or made of its rows."""
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
    """Return class and text of the error that a call raises on purpose; two empty texts where it raises none."""
    try:
        call(*args, **options)
    except (LanewayError, ValueError) as error:
        return type(error).__name__, str(error)
    return "", ""


# -- Saving and restoring ---------------------------------------------------------------------------------------------

WAYS = ("rank files", "global", "global from every rank", "state_dict", "dcp")
"""Ways to save what all ranks have delivered."""


def read_state(path: Path) -> Any:
    """Return a state from its file, with nothing unpickled but plain values."""
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
    """Restore a loader from what `save` wrote in the same way. Must be called by all ranks."""
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

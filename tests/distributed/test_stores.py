"""Ranks communicate over the store of their process group: no connections, and no keys that stay."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

from laneway.dcp import GatheredState
from laneway.distributed import scan_once
from laneway.process_groups import as_group, store_of
from tests.corpora import write_corpus
from tests.distributed.ranks import RunRanks, ids, make_loader

if TYPE_CHECKING:
    from laneway import SavableLoader

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")


def num_sockets() -> int:
    """Return the number of sockets that this process has open."""
    return sum(path.is_socket() for path in Path("/proc/self/fd").iterdir())


def save_and_restore(loader: SavableLoader, corpus: Path) -> None:
    """Communicate in every way."""
    loader.restore_state_global(loader.save_state_global())
    gathered = GatheredState(loader)
    gathered.load_state_dict(gathered.state_dict())
    scan_once(corpus, cache_dir=False)


def count_sockets_and_keys(rank: int, corpus: Path) -> list[tuple[int, int]]:
    del rank
    loader = make_loader(corpus)
    list(islice(loader, 2))
    counts = []
    for _ in range(3):
        dist.barrier()
        counts.append((num_sockets(), store_of(as_group(None)).num_keys()))
        dist.barrier()
        save_and_restore(loader, corpus)
    return counts


def test_saving_opens_no_connection_and_leaves_no_key_in_the_store(run_ranks: RunRanks, corpus: Path) -> None:
    for counts in run_ranks(count_sockets_and_keys, 4, corpus):
        assert counts == counts[:1] * 3


# -- Jobs as scripts start them ---------------------------------------------------------------------------------------


def check_round_trip(corpus: Path) -> None:
    """Save and restore mid-epoch, and check that the epoch goes on where it was."""
    loader = make_loader(corpus)
    batches = iter(loader)
    list(islice(batches, 2))
    fresh = make_loader(corpus)
    fresh.restore_state_global(loader.save_state_global())
    assert ids(fresh) == ids(batches)


def train_and_restart(corpus: Path) -> None:
    """Die in the first two incarnations with a call under way."""
    restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    check_round_trip(corpus)
    if restart < 2 and dist.get_rank() == restart:
        os._exit(1)
    check_round_trip(corpus)
    sys.stdout.write(f"finished after {restart} restarts\n")


def destroy_and_start_again(corpus: Path) -> None:
    """Communicate in three process groups on one store, one after another."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), world_size, is_master=not rank)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=30))
    for _ in range(3):
        dist.init_process_group("cuda:fake", store=store, rank=rank, world_size=world_size)
        check_round_trip(corpus)
        dist.destroy_process_group()
    sys.stdout.write("finished\n")


def save_and_exit(corpus: Path) -> None:
    """Save, and end at once: in the process of rank 0, the server of the store ends too."""
    loader = make_loader(corpus)
    list(islice(loader, 2))
    state = loader.save_state_global()
    if state is not None:
        os._exit(0)
    sys.stdout.write("finished\n")


def test_a_job_that_torchrun_restarts_does_not_read_the_keys_of_earlier_starts(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    command = [*TORCHRUN, "--max-restarts=2", __file__, "train_and_restart", str(tmp_path)]
    job = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=True)
    assert job.stdout.count("finished after 2 restarts") == 3


def free_port() -> int:
    """Return a port that is free now."""
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    return int(store.port)


def start_ranks(function: str, corpus: Path, world_size: int) -> list[str]:
    """Return the output of ranks that are started without torchrun."""
    variables = {**ENVIRONMENT, "WORLD_SIZE": str(world_size)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, function, str(corpus)], env={**variables, "RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, outputs
    return [output for output, _ in outputs]


def test_a_process_that_joins_one_group_after_another_communicates_in_each(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    outputs = start_ranks("destroy_and_start_again", tmp_path, 3)
    assert outputs == ["finished\n"] * 3


def test_the_last_save_succeeds_on_all_ranks_though_rank_0_ends_with_the_store(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    outputs = start_ranks("save_and_exit", tmp_path, 4)
    assert outputs == ["", *["finished\n"] * 3]


if __name__ == "__main__":
    function: Any = globals()[sys.argv[1]]
    if function is not destroy_and_start_again:
        # A backend that sends nothing: gloo would read its own old keys when torchrun restarts a job with one store.
        dist.init_process_group("cuda:fake", timeout=timedelta(seconds=30))
    function(Path(sys.argv[2]))
    if dist.is_initialized():
        dist.destroy_process_group()

"""torch.distributed.checkpoint saves a loader next to a model, and any number of ranks resume from it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from laneway.dcp import GatheredState
from tests.distributed.ranks import NUM_ROWS, Ids, RunRanks, flat, ids, make_loader, refusal

if TYPE_CHECKING:
    from pathlib import Path

    from laneway import SavableLoader

ALL_ROWS = list(range(NUM_ROWS))


def model(weight: float) -> nn.Linear:
    linear = nn.Linear(3, 2, bias=False)
    nn.init.constant_(linear.weight, weight)
    return linear


def checkpoint(corpus: Path) -> Path:
    return corpus.parent / "checkpoint"


def load(loader: SavableLoader | GatheredState, corpus: Path, **options: Any) -> None:
    """Load the checkpoint into a loader, and check that the model saved next to it is intact."""
    fresh = model(0)
    state = {"model": fresh.state_dict(), "loader": loader}
    dcp_load(state, checkpoint_id=checkpoint(corpus), **options)
    assert torch.equal(fresh.weight, model(7).weight)


def save_after(num_batches: int, loader: SavableLoader, stateful: Any, corpus: Path, how: str) -> tuple[Ids, Ids]:
    """Save after `num_batches` of an epoch and continue; return the batches before and after the save."""
    batches = iter(loader)
    received = ids(islice(batches, num_batches))
    state = {"model": model(7).state_dict(), "loader": stateful}
    if how == "save":
        dcp_save(state, checkpoint_id=checkpoint(corpus))
        return received, ids(batches)
    pending = async_save(state, checkpoint_id=checkpoint(corpus))
    rest = ids(batches)
    pending.result()  # type: ignore[union-attr]
    return received, rest


def save_loader(rank: int, corpus: Path, how: str) -> tuple[Ids, Ids]:
    del rank
    loader = make_loader(corpus, 1, remainder="keep")
    return save_after(3, loader, loader, corpus, how)


def load_loader(rank: int, corpus: Path, num_workers: int) -> tuple[Ids, Ids]:
    del rank
    loader = make_loader(corpus, num_workers, remainder="keep")
    load(loader, corpus)
    return ids(loader), ids(loader)


@pytest.mark.parametrize("how", ["save", "async_save"])
# DCP warns in a process without a group, and loads the checkpoint nevertheless.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_a_loader_saved_with_dcp_resumes_on_any_world_size(run_ranks: RunRanks, corpus: Path, how: str) -> None:
    before = run_ranks(save_loader, 2, corpus, how)
    resumed = run_ranks(load_loader, 2, corpus, 1)
    assert [rest for rest, _ in resumed] == [rest for _, rest in before]
    done = [row for received, _ in before for row in flat(received)]
    single = make_loader(corpus, remainder="keep")
    load(single, corpus, no_dist=True)
    worlds = [run_ranks(load_loader, 3, corpus, 2), run_ranks(load_loader, 1, corpus, 0), [(ids(single), ids(single))]]
    for world in worlds:
        assert sorted(done + [row for rest, _ in world for row in flat(rest)]) == ALL_ROWS
        assert sorted(row for _, following in world for row in flat(following)) == ALL_ROWS


def save_in_one_process(corpus: Path) -> list[int]:
    loader = make_loader(corpus, remainder="keep")
    received = flat(ids(islice(loader, 3)))
    dcp_save({"model": model(7).state_dict(), "loader": loader}, checkpoint_id=checkpoint(corpus), no_dist=True)
    return received


# As above.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_two_ranks_resume_from_the_checkpoint_of_a_process_without_a_group(run_ranks: RunRanks, corpus: Path) -> None:
    done = save_in_one_process(corpus)
    resumed = run_ranks(load_loader, 2, corpus, 1)
    assert sorted(done + [row for rest, _ in resumed for row in flat(rest)]) == ALL_ROWS


def save_at_different_batches(rank: int, corpus: Path, num_batches: list[int], how: str) -> tuple[Ids, Ids]:
    loader = make_loader(corpus, remainder="keep")
    return save_after(num_batches[rank], loader, GatheredState(loader), corpus, how)


def load_gathered(rank: int, corpus: Path) -> Ids:
    del rank
    loader = make_loader(corpus, remainder="keep")
    load(GatheredState(loader), corpus)
    return ids(loader)


def load_ungathered(rank: int, corpus: Path) -> Ids:
    return load_loader(rank, corpus, 0)[0]


# With 5 ranks lanes have 9 or 10 rows: 3 batches, or 4.
@pytest.mark.parametrize(
    ("num_batches", "how"), [([1, 4], "async_save"), ([2, 0, 3], "save"), ([3, 4, 3, 4, 4], "save")]
)
def test_gathered_states_are_right_where_ranks_are_at_different_batches(
    run_ranks: RunRanks, corpus: Path, num_batches: list[int], how: str
) -> None:
    before = run_ranks(save_at_different_batches, len(num_batches), corpus, num_batches, how)
    assert [len(received) for received, _ in before] == num_batches
    done = [row for received, _ in before for row in flat(received)]
    for world_size in (len(num_batches), 1, 2):
        for function in (load_gathered, load_ungathered):
            rest = [row for batches in run_ranks(function, world_size, corpus) for row in flat(batches)]
            assert sorted(done + rest) == ALL_ROWS


def gather_from_different_datasets(rank: int, corpus: Path) -> list[tuple[str, str]]:
    loader = make_loader(corpus, seed=rank)
    gathered = GatheredState(loader)
    next(iter(loader))
    before = loader.save_state_rank()
    mine = make_loader(corpus, seed=0).state_dict()
    found = [refusal(gathered.state_dict), refusal(gathered.load_state_dict, mine)]
    try:
        dcp_save({"loader": gathered}, checkpoint_id=checkpoint(corpus))
    except Exception as error:  # noqa: BLE001 - DCP may wrap it in an error of its own
        found.append(("", str(error)))
    assert loader.save_state_rank() == before
    dist.barrier()
    return found


def test_gathered_states_of_ranks_whose_datasets_differ_are_refused_on_every_rank(
    run_ranks: RunRanks, corpus: Path
) -> None:
    one, other = run_ranks(gather_from_different_datasets, 2, corpus)
    assert one == other
    (name, text), (load_name, load_text), (_, dcp_text) = one
    assert name == load_name == "CheckpointMismatchError"
    assert "seed: rank 0 has 0, rank 1 has 1" in text
    assert "on rank 1: " in load_text
    assert "seed: saved 0, this run has 1" in load_text
    assert "seed: rank 0 has 0, rank 1 has 1" in dcp_text

"""Ranks at different batches, with foreign states, or dead: the same error on all ranks, or an exact state."""

from __future__ import annotations

import os
import re
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from laneway import SavableLoader, merge_states
from laneway.dcp import GatheredState
from tests.compat.loaders import saved
from tests.distributed.ranks import (
    NUM_ROWS,
    Ids,
    RankGroup,
    RunRanks,
    State,
    flat,
    ids,
    make_loader,
    read_state,
    refusal,
    restore,
    save,
)

if TYPE_CHECKING:
    from pathlib import Path

ALL_ROWS = list(range(NUM_ROWS))
Refusal = tuple[str, str]


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


# -- States that do not belong to a rank ------------------------------------------------------------------------------


def save_rank_states(rank: int, corpus: Path) -> list[State]:
    del rank
    loader = make_loader(corpus)
    batches = iter(loader)
    states = []
    for _ in range(2):
        next(batches)
        states.append(saved(loader.save_state_rank()))
    return states


def restore_states_of_others(rank: int, corpus: Path, of_four: list[State]) -> dict[str, Refusal]:
    loader = make_loader(corpus, 2)
    batches = iter(loader)
    next(batches)
    older = saved(loader.save_state_rank())
    next(batches)
    before = loader.save_state_rank()
    states = gather(saved(before))
    other = states[1 - rank]
    whole = merge_states(states)
    found = {
        "rank of rank": refusal(loader.restore_state_rank, other),
        "load of rank": refusal(loader.load_state_dict, other),
        "rank of four": refusal(loader.restore_state_rank, of_four[rank]),
        "load of four": refusal(loader.load_state_dict, of_four[rank]),
        "rank of whole": refusal(loader.restore_state_rank, whole),
        "different steps": refusal(merge_states, [older, other]),
        "missing": refusal(merge_states, [other]),
        "twice": refusal(merge_states, [other, other]),
        "different worlds": refusal(merge_states, [*states, *of_four[2:]]),
    }
    assert loader.save_state_rank() == before
    # A pass under way is not affected either.
    assert sum(len(batch) for batch in ids(batches)) == NUM_ROWS // 2 - 6
    return found


def test_foreign_states_are_refused_by_name_with_the_call_to_use_and_change_nothing(
    run_ranks: RunRanks,
    corpus: Path,
) -> None:
    of_four = [states[-1] for states in run_ranks(save_rank_states, 4, corpus)]
    for rank, found in enumerate(run_ranks(restore_states_of_others, 2, corpus, of_four)):
        assert {name for name, _ in found.values()} == {"CheckpointMismatchError"}
        expected = {
            "rank of rank": [f"rank: saved {1 - rank}, ", "save_state_global()", "merge_states()"],
            "load of rank": [f"rank: saved {1 - rank}, ", "save_state_global()", "merge_states()"],
            "rank of four": ["world_size: saved 4, ", "save_state_global()", "merge_states()"],
            "load of four": ["world_size: saved 4, ", "save_state_global()", "merge_states()"],
            "rank of whole": ["whole job of 2 ranks", f"rank {rank} of 2", "restore_state_global()"],
            "different steps": ["step: ", f"rank {rank} has delivered 3 rows", "save_state_global()"],
            "missing": [f"rank {rank} is missing", "save_state_global()"],
            "twice": [f"rank {1 - rank} occurs more than once", "save_state_global()"],
            "different worlds": ["world_size: ", "save_state_global()"],
        }
        missing = {case: [part for part in parts if part not in found[case][1]] for case, parts in expected.items()}
        assert not any(missing.values()), f"{missing} in {found}"


# -- One rank of several fails ----------------------------------------------------------------------------------------


def restore_where_one_rank_fails(rank: int, corpus: Path) -> dict[str, Refusal]:
    loader = make_loader(corpus, 1)
    batches = iter(loader)
    received = ids(islice(batches, 2))
    before = loader.save_state_rank()
    good = gather(saved(loader.state_dict()))[0]
    broken = {"format": "laneway.state"}
    foreign = saved(make_loader(corpus, seed=6).state_dict())
    later = make_loader(corpus)
    list(islice(later, 3))
    stranger = make_loader(corpus, seed=5 + rank)
    of_rank = saved(before)
    found = {
        "source has none": refusal(loader.restore_state_global, None if rank else broken),
        "source forgot": refusal(loader.restore_state_global, None),
        "source has a foreign one": refusal(loader.restore_state_global, None if rank else foreign),
        "source has a rank's": refusal(loader.restore_state_global, None if rank else of_rank),
        "one has none": refusal(loader.restore_state_global, broken if rank == 1 else good, src_rank=None),
        "one has a foreign one": refusal(loader.restore_state_global, foreign if rank == 1 else good, src_rank=None),
        "one has a later one": refusal(
            loader.restore_state_global, saved(later.state_dict()) if rank == 1 else good, src_rank=None
        ),
        "one has another dataset": refusal(stranger.restore_state_global, None if rank else good),
        "no such source": refusal(loader.restore_state_global, good, src_rank=7),
    }
    assert loader.save_state_rank() == before
    state = loader.save_state_global()
    assert (state is None) == (rank > 0)
    resumed = make_loader(corpus)
    resumed.restore_state_global(state)
    whole = ids(make_loader(corpus))
    assert received + ids(resumed) == whole
    # The pass under way is not affected either.
    assert received + ids(batches) == whole
    return found


def test_an_error_on_one_rank_is_raised_on_all_and_changes_nothing(run_ranks: RunRanks, corpus: Path) -> None:
    ranks = run_ranks(restore_where_one_rank_fails, 3, corpus)
    assert ranks[0] == ranks[1] == ranks[2]
    found = ranks[0]
    expected = {
        "source has none": ("StateFormatError", ["on rank 0: ", "format version None"]),
        "source forgot": ("StateFormatError", ["on rank 0: ", "NoneType"]),
        "source has a foreign one": ("CheckpointMismatchError", ["seed: saved 6, this run has 5"]),
        "source has a rank's": ("CheckpointMismatchError", ["state of rank 0 of 3 only", "restore_state_rank()"]),
        "one has none": ("StateFormatError", ["on rank 1: ", "format version None"]),
        "one has a foreign one": ("CheckpointMismatchError", ["on rank 1: ", "seed: saved 6, this run has 5"]),
        "one has a later one": ("CheckpointMismatchError", ["rank 1 was given another state than rank 0"]),
        "one has another dataset": ("CheckpointMismatchError", ["on rank 1 (and on 1 more): ", "seed: saved 5"]),
        "no such source": ("ValueError", ["src_rank must be a data-parallel rank in [0, 3), not 7"]),
    }
    assert {case: name for case, (name, _) in found.items()} == {case: name for case, (name, _) in expected.items()}
    missing = {case: [part for part in parts if part not in found[case][1]] for case, (_, parts) in expected.items()}
    assert not any(missing.values()), f"{missing} in {found}"


def save_after_a_rank_died(rank: int, corpus: Path) -> Refusal:
    loader = make_loader(corpus)
    list(islice(loader, 2))
    loader.save_state_global()
    if rank == 1:
        os._exit(1)
    return refusal(loader.save_state_global)


def test_a_rank_that_died_is_an_error_on_the_others(corpus: Path) -> None:
    with RankGroup(3, group_timeout_s=5) as group:
        results = group.run(save_after_a_rank_died, corpus, timeout_s=60, deaths=frozenset({1}))
    assert results[1] is None
    for rank in (0, 2):
        name, text = results[rank]
        assert name == "CollectiveError"
        assert re.search(
            r"rank [02] of 3 called save_state_global\(dst_rank=0\), but within 5 s, the timeout of the process group, "
            r"rank 1 did not",
            text,
        )


# -- Ranks at different batches ---------------------------------------------------------------------------------------


def save_at_different_batches(rank: int, corpus: Path, num_batches: list[int], rows: bool) -> tuple[Ids, Ids]:
    loader = make_loader(corpus, 2, rows=rows, batch_size=2, remainder="keep")
    batches = iter(loader)
    received = ids(islice(batches, num_batches[rank]))
    save(loader, "global", corpus.parent / "checkpoint")
    return received, ids(batches)


def resume(rank: int, corpus: Path, num_workers: int, rows: bool) -> Ids:
    del rank
    loader = make_loader(corpus, num_workers, rows=rows, batch_size=2, remainder="keep")
    restore(loader, "global", corpus.parent / "checkpoint")
    return ids(loader)


@pytest.mark.parametrize(("num_batches", "rows"), [([1, 3, 2], False), ([0, 8, 1], True)])
def test_a_gathered_state_is_exact_though_ranks_are_at_different_batches(
    run_ranks: RunRanks, corpus: Path, num_batches: list[int], rows: bool
) -> None:
    before = run_ranks(save_at_different_batches, 3, corpus, num_batches, rows)
    assert [len(received) for received, _ in before] == num_batches
    assert sorted(row for both in before for batches in both for row in flat(batches)) == ALL_ROWS
    done = [row for received, _ in before for row in flat(received)]
    for world_size, num_workers in [(3, 2), (2, 1), (1, 0)]:
        rest = [row for batches in run_ranks(resume, world_size, corpus, num_workers, rows) for row in flat(batches)]
        assert sorted(done + rest) == ALL_ROWS


# -- What one rank may claim for the job ------------------------------------------------------------------------------


def load_the_state_of_each_rank(rank: int, corpus: Path, num_lanes: int | None, rows: bool) -> list[str]:
    """Return, for the state of each rank after each batch, whether all ranks accept it, and check what follows."""
    world_size = dist.get_world_size()
    options: dict[str, Any] = {"rows": rows, "remainder": "keep", "lanes": num_lanes}
    whole = ids(make_loader(corpus, **options))
    loader = make_loader(corpus, **options)
    batches = iter(loader)
    received: Ids = []
    outcomes = []
    num_steps = max(gather(len(whole)))
    for step in range(num_steps + 1):
        for owner, state in enumerate(gather(saved(loader.state_dict()))):
            fresh, single = make_loader(corpus, **options), make_loader(corpus, **options, rank=0, world_size=1)
            name, text = refusal(fresh.load_state_dict, state)
            single_name, single_text = refusal(single.load_state_dict, state)
            texts = gather(text)
            # Ranks reach their end at different steps, and none of them goes on to the next epoch.
            fresh.set_epoch(0)
            single.set_epoch(0)
            if not any(texts):
                done = [row for batches_of_rank in gather(received) for row in flat(batches_of_rank)]
                assert not single_name, single_text
                assert received + ids(fresh) == whole, f"rank {owner} was wrong after batch {step}"
                assert sorted(done + flat(ids(single))) == ALL_ROWS, f"rank {owner} was wrong after batch {step}"
                outcomes.append("whole")
                continue
            # The state of one rank alone: valid there, and refused everywhere else.
            assert "save_state_global()" in single_text or "merge_states()" in single_text, single_text
            assert single_name == "CheckpointMismatchError"
            assert [bool(each) for each in texts] == [other != owner for other in range(world_size)]
            if rank == owner:
                assert received + ids(fresh) == whole
            else:
                assert name == "CheckpointMismatchError"
                assert "save_state_global()" in text
            outcomes.append("refused")
        received += ids(islice(batches, 1))
    assert received == whole
    return outcomes


@pytest.mark.parametrize("rows", [False, True])
# 9 or 10 rows for each of 5 ranks are 3 or 4 batches, in lanes of 9 or 10 rows, or of 3 to 6.
@pytest.mark.parametrize(("world_size", "num_lanes"), [(5, None), (5, 10)])
def test_near_the_end_of_an_uneven_epoch_no_rank_claims_a_state_of_the_job_that_it_can_not_know(
    run_ranks: RunRanks, corpus: Path, world_size: int, num_lanes: int | None, rows: bool
) -> None:
    ranks = run_ranks(load_the_state_of_each_rank, world_size, corpus, num_lanes, rows)
    assert all(outcomes == ranks[0] for outcomes in ranks)
    assert {*ranks[0]} == {"whole", "refused"}
    assert {*ranks[0][:world_size]} == {"whole"}


# -- Ranks that call different things ---------------------------------------------------------------------------------


def call_differently(rank: int, corpus: Path) -> dict[str, Refusal]:
    loader = make_loader(corpus)
    next(iter(loader))
    state = gather(saved(loader.state_dict()))[0]
    stranger = make_loader(corpus, rank=0, world_size=2 - rank)
    found = {
        "to different ranks": refusal(loader.save_state_global, rank),
        "to a rank that is none": refusal(loader.save_state_global, 7 if rank else 0),
        "from different ranks": refusal(loader.restore_state_global, state, rank),
        "from one and from all": refusal(loader.restore_state_global, state, None if rank else 0),
        "as another rank": refusal(stranger.save_state_global),
    }
    # Entries that are not part of a state are not sent.
    loader.restore_state_global({**state["laneway"][0], "lock": threading.Lock()})
    assert loader.state_dict()["laneway"] == state["laneway"]
    return found


def test_ranks_that_call_different_things_are_all_told_so(run_ranks: RunRanks, corpus: Path) -> None:
    for found in run_ranks(call_differently, 2, corpus):
        assert (
            "rank 0 called save_state_global(dst_rank=0), rank 1 called save_state_global(dst_rank=1)"
            in found["to different ranks"][1]
        )
        assert "must be a data-parallel rank in [0, 2), not 7" in found["to a rank that is none"][1]
        assert (
            "rank 0 called restore_state_global(src_rank=0), rank 1 called restore_state_global(src_rank=1)"
            in found["from different ranks"][1]
        )
        assert (
            "rank 0 called restore_state_global(src_rank=0), rank 1 called restore_state_global(src_rank=None)"
            in found["from one and from all"][1]
        )
        assert "the dataset was created for rank 0 of 1, but this process is rank 1 of 2" in found["as another rank"][1]


# -- Ranks in different epochs ----------------------------------------------------------------------------------------


class Apart(NamedTuple):
    """What a rank delivered before and after a restore, and without it."""

    whole: Ids
    before: Ids
    after: Ids
    state: State | None


def take_over_epochs(loader: SavableLoader, num_batches: int) -> Ids:
    """Take batches as a loop does that begins the next epoch by itself."""
    taken: Ids = []
    while len(taken) < num_batches:
        taken += ids(islice(loader, num_batches - len(taken)))
    return taken


def restore_apart(rank: int, corpus: Path, way: str, counts: list[int], num_workers: int) -> Apart:
    whole = take_over_epochs(make_loader(corpus, num_workers), 30)
    loader, path = make_loader(corpus, num_workers), corpus.parent / way
    before = take_over_epochs(loader, counts[rank])
    resumed = make_loader(corpus, num_workers)
    if way == "GatheredState":
        dcp_save({"loader": GatheredState(loader)}, checkpoint_id=path)
        dcp_load({"loader": GatheredState(resumed)}, checkpoint_id=path)
        return Apart(whole, before, take_over_epochs(resumed, 30 - counts[rank]), None)
    save(loader, way, path)
    restore(resumed, way, path)
    # Saved again before a batch, and restored from that.
    save(resumed, way, path)
    resumed = make_loader(corpus, num_workers)
    restore(resumed, way, path)
    return Apart(whole, before, take_over_epochs(resumed, 30 - counts[rank]), read_state(path / "loader.pt"))


@pytest.mark.parametrize("way", ["global", "global from every rank", "GatheredState"])
@pytest.mark.parametrize(("counts", "num_workers"), [([12, 5], 0), ([3, 19], 2)])
def test_ranks_in_different_epochs_resume_exactly(
    run_ranks: RunRanks, corpus: Path, way: str, counts: list[int], num_workers: int
) -> None:
    ranks = run_ranks(restore_apart, 2, corpus, way, counts, num_workers)
    for rank in ranks:
        assert rank.before + rank.after == rank.whole
    state = ranks[0].state
    if state is None:
        return
    assert state["epoch"] == 0
    epochs = [count // 8 for count in counts]
    # On another number of ranks, or without a SavableLoader, the way out is named, and nothing changes.
    alone = make_loader(corpus, rank=0, world_size=3)
    next(iter(alone))
    before = alone.save_state_rank()
    name, message = refusal(alone.load_state_dict, state)
    assert name == "CheckpointMismatchError"
    assert f"(rank {epochs.index(0)} in epoch 0, rank {1 - epochs.index(0)} in epoch {max(epochs)})" in message
    assert "resume on 2 ranks, and save again when all of them are in the same epoch" in message
    assert alone.save_state_rank() == before
    for call in (alone.dataset.load_state_dict, alone.restore_state_rank, lambda found: merge_states([found, found])):
        name, message = refusal(call, state)
        assert name == "CheckpointMismatchError"
        assert "restore_state_global() of a SavableLoader, on the same number of ranks" in message


def test_the_state_of_ranks_in_different_epochs_loads_without_communication(run_ranks: RunRanks, corpus: Path) -> None:
    ranks = run_ranks(restore_apart, 2, corpus, "global", [12, 5], 0)
    for rank, found in enumerate(ranks):
        loader = make_loader(corpus, rank=rank, world_size=2)
        loader.load_state_dict(found.state or {})
        assert take_over_epochs(loader, len(found.after)) == found.after

"""Same ranks, same workers: a restored loader delivers the batches that an uninterrupted one would have."""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed.ranks import WAYS, Ids, RunRanks, ids, make_loader, refusal, restore, save

if TYPE_CHECKING:
    from pathlib import Path

MOMENTS = ("before the first batch", "after the first", "in the middle", "after the last", "between epochs")


def run_two_epochs(rank: int, corpus: Path, num_workers: int, rows: bool, batch_size: int = 3) -> list[Ids]:
    del rank
    whole = make_loader(corpus, num_workers, rows=rows, batch_size=batch_size)
    return [ids(whole), ids(whole)]


def save_and_restore(rank: int, corpus: Path, num_workers: int, rows: bool) -> dict[str, Any]:
    """Return two epochs and, for each way and moment of saving, the batches around it and the next epoch."""
    epochs = run_two_epochs(rank, corpus, num_workers, rows)
    saving = make_loader(corpus, num_workers, rows=rows)
    done_at = dict(zip(MOMENTS, (0, 1, len(epochs[0]) // 2, len(epochs[0])), strict=False))
    before: dict[str, Ids] = {}

    def save_at(moment: str, received: Ids) -> None:
        before[moment] = received
        for way in WAYS:
            save(saving, way, corpus.parent / f"{way}, {moment}")

    save_at(MOMENTS[0], [])
    received: Ids = []
    for batch in saving:
        received.append(batch["id"].tolist())
        for moment in MOMENTS[1:-1]:
            if done_at[moment] == len(received):
                save_at(moment, received.copy())
    save_at(MOMENTS[-1], received)

    found = {}
    for moment in MOMENTS:
        for way in WAYS:
            resumed = make_loader(corpus, num_workers, rows=rows)
            restore(resumed, way, corpus.parent / f"{way}, {moment}")
            rest = ids(resumed)
            # The epoch that follows a restore mid-epoch is tested in single-process tests.
            following = [] if rest else ids(resumed)
            found[f"{way}, {moment}"] = [before[moment] + rest, following]
    return {"epochs": epochs, "found": found}


@pytest.mark.parametrize(
    ("world_size", "num_workers", "rows"),
    [(2, 0, False), (2, 0, True), (2, 1, False), (2, 3, True), (1, 3, False)],
)
def test_batches_after_a_restore_are_those_of_the_uninterrupted_run(
    run_ranks: RunRanks, corpus: Path, world_size: int, num_workers: int, rows: bool
) -> None:
    for result in run_ranks(save_and_restore, world_size, corpus, num_workers, rows):
        first, second = result["epochs"]
        # Saved between epochs, a state belongs to the next one.
        after = {"after the last": [first, second], "between epochs": [first + second, []]}
        expected = {f"{way}, {moment}": after.get(moment, [first, []]) for moment in MOMENTS for way in WAYS}
        assert result["found"] == expected


def restore_ten_times(rank: int, corpus: Path, num_workers: int, rows: bool) -> tuple[list[Ids], list[Ids]]:
    epochs = run_two_epochs(rank, corpus, num_workers, rows, 2)
    current, received = make_loader(corpus, num_workers, rows=rows, batch_size=2), []
    for link, way in zip(range(10), cycle(WAYS), strict=False):
        received += ids(islice(current, 1))
        save(current, way, corpus.parent / f"link {link}")
        current = make_loader(corpus, num_workers, rows=rows, batch_size=2)
        restore(current, way, corpus.parent / f"link {link}")
    return epochs, [received + ids(current), ids(current)]


@pytest.mark.parametrize(
    ("world_size", "num_workers", "rows"),
    [(2, 0, False), (2, 0, True), (2, 1, True), (2, 3, False), (1, 3, True)],
)
def test_ten_times_one_batch_save_and_restore(
    run_ranks: RunRanks, corpus: Path, world_size: int, num_workers: int, rows: bool
) -> None:
    for expected, found in run_ranks(restore_ten_times, world_size, corpus, num_workers, rows):
        assert found == expected


def check_lockstep(rank: int, corpus: Path, counts: list[int]) -> tuple[str, str]:
    """Return the refusal of a checked state after each rank has taken its number of batches."""
    loader = make_loader(corpus)
    taken = 0
    while taken < counts[rank]:
        taken += len([*islice(loader, counts[rank] - taken)])
    return refusal(lambda: loader.state_dict(check=True))


def test_a_checked_state_is_refused_on_all_ranks_that_are_not_in_lockstep(run_ranks: RunRanks, corpus: Path) -> None:
    assert run_ranks(check_lockstep, 2, corpus, [5, 5]) == [("", "")] * 2
    for counts, place in (([5, 3], "batch 3 of epoch 0"), ([5, 12], "batch 4 of epoch 1")):
        for name, message in run_ranks(check_lockstep, 2, corpus, counts):
            assert name == "LanewayError"
            assert f"rank 0 is at batch 5 of epoch 0, rank 1 at {place}" in message
            assert "call save_state_global() on all ranks" in message


def test_a_checked_state_needs_the_other_ranks(corpus: Path) -> None:
    loader = make_loader(corpus, rank=0, world_size=2)
    assert "torch.distributed is not initialised" in refusal(lambda: loader.state_dict(check=True))[1]

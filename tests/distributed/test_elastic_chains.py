"""World size and workers change several times mid-epoch: every row is delivered once, and ranks stay in step."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pytest

from tests.distributed.ranks import NUM_ROWS, Ids, RunRanks, flat, ids, make_loader, restore, save

if TYPE_CHECKING:
    from pathlib import Path

CHAIN = [(2, 2, 2), (3, 1, 2), (1, 0, 3), (4, 2, 1), (2, 3, None)]
"""World size, workers and batches of each leg; the last one runs to the end of the epoch and through the next."""
LAST_LANES = 6
ALL_ROWS = list(range(NUM_ROWS))


def leg(
    rank: int,
    corpus: Path,
    index: int,
    num_workers: int,
    num_batches: int | None,
    options: tuple[bool, str, str],
    condition: Any = None,
) -> tuple[Ids, Ids]:
    """Resume from the previous leg; return the batches of this one and, after the last leg, of the next epoch."""
    del rank
    rows, remainder, way = options
    loader = make_loader(corpus, num_workers, rows=rows, batch_size=2, remainder=remainder, filter=condition)
    if index:
        restore(loader, way, corpus.parent / f"leg {index - 1}")
    received = ids(islice(loader, num_batches))
    if num_batches is None:
        return received, ids(loader)
    save(loader, way, corpus.parent / f"leg {index}")
    return received, []


@pytest.mark.parametrize(
    ("rows", "remainder", "way"),
    [
        (False, "keep", "global"),
        (True, "keep", "global from every rank"),
        (False, "keep", "state_dict"),
        (True, "pad", "global"),
        (False, "pad", "state_dict"),
        (False, "drop", "global"),
        (True, "drop", "state_dict"),
        (True, "pad", "dcp"),
    ],
)
def test_every_row_is_delivered_once_over_four_changes_within_one_epoch(
    run_ranks: RunRanks, corpus: Path, rows: bool, remainder: str, way: str
) -> None:
    epoch: list[int] = []
    for index, (world_size, num_workers, num_batches) in enumerate(CHAIN):
        ranks = run_ranks(leg, world_size, corpus, index, num_workers, num_batches, (rows, remainder, way))
        counts = {(len(received), len(following)) for received, following in ranks}
        assert len(counts) == 1 or remainder == "keep", f"leg {index}: batches of each rank"
        assert num_batches is None or counts == {(num_batches, 0)}
        epoch += [row for received, _ in ranks for row in flat(received)]
    following = [row for _, batches in ranks for row in flat(batches)]
    assert sorted(following) == ALL_ROWS, "the next epoch"
    num_distinct = len({*epoch})
    if remainder == "keep":
        assert sorted(epoch) == ALL_ROWS
    elif remainder == "pad":
        assert {*epoch} == {*ALL_ROWS}
        assert len(epoch) - num_distinct < LAST_LANES
    else:
        assert len(epoch) == num_distinct
        assert NUM_ROWS - num_distinct < LAST_LANES


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ([("x", ">", 2)], list(range(5, NUM_ROWS))),
        (pc.field("text").isin([f"row {number} " for number in (4, 8, 20)]), [4, 8, 20]),
        ([("id", "in", [21])], [21]),
        ([("id", "<", 0)], []),
    ],
)
@pytest.mark.parametrize("way", ["global", "state_dict", "dcp"])
def test_every_selected_row_is_delivered_once_over_four_changes(
    run_ranks: RunRanks, corpus: Path, condition: Any, expected: list[int], way: str
) -> None:
    epoch: list[int] = []
    for index, (world_size, num_workers, num_batches) in enumerate(CHAIN):
        options = (False, "keep" if way == "global" else "pad", way)
        ranks = run_ranks(leg, world_size, corpus, index, num_workers, num_batches, options, condition)
        assert len({len(received) for received, _ in ranks}) == 1 or way == "global"
        epoch += [row for received, _ in ranks for row in flat(received)]
    assert {*epoch} == {*expected}
    # An epoch of few rows is over early, and the later legs deliver the next ones.
    assert way != "global" or len({*Counter(epoch).values()}) <= 1

"""Ranks of a job select the same rows: one rank counts them for all."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import torch

from laneway import SavableLoader, StatefulShardedDataset
from laneway.distributed import scan_once
from tests.corpora import write_corpus
from tests.distributed.ranks import RunRanks, flat, ids

if TYPE_CHECKING:
    from pathlib import Path


def filtered(rank: int, corpus: Path, leg: int) -> dict[str, Any]:
    condition = (pc.field("x") >= 2) & (pc.field("id") != 30)
    manifest = scan_once(corpus if rank == 0 else "gone", filter=condition)
    dataset = StatefulShardedDataset(manifest, filter=condition, batch_size=2, shuffle=True, shard_rows=4, seed=3)
    selection = dataset.selection
    assert selection is not None
    loader = SavableLoader(dataset.split({"train": 0.8, "val": 0.2}).train, num_workers=1)
    path = corpus.parent / "state"
    if leg:
        loader.restore_state_global(torch.load(path, weights_only=True) if rank == 0 else None)
    received = ids(islice(loader, 3 if leg == 0 else None))
    if leg == 0:
        state = loader.save_state_global()
        if rank == 0:
            torch.save(state, path)
    validation = flat(ids(dataset.split({"train": 0.8, "val": 0.2}).val))
    return {"read": selection.steps[0].blocks_by_rows, "received": received, "val": validation}


def test_ranks_that_change_deliver_each_selected_row_and_none_of_the_validation_set(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    num_rows = write_corpus(tmp_path / "d")
    first = run_ranks(filtered, 2, tmp_path / "d", 0)
    second = run_ranks(filtered, 3, tmp_path / "d", 1)
    received = {row for rank in (*first, *second) for row in flat(rank["received"])}
    assert len({len(rank["received"]) for rank in first}) == len({len(rank["received"]) for rank in second}) == 1
    assert all(rank["read"] == 0 for rank in (*first, *second)), "counted by scan_once"
    (validation,) = {frozenset(row for rank in ranks for row in rank["val"]) for ranks in (first, second)}
    assert received | validation == {row for row in range(4, num_rows) if row != 30}
    assert not received & validation
    assert validation

"""Ranks of a job select the same rows, and count them together."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pytest
import torch

from laneway import SavableLoader, StatefulShardedDataset
from laneway.distributed import scan_once
from laneway.reading.reader import RowReader
from tests.corpora import settle, write_corpus
from tests.distributed.ranks import RunRanks, flat, ids, refusal

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


def counted(rank: int, corpus: Path, cache: Path) -> dict[str, Any]:
    """Return which rows this rank reads to count, and what it knows then."""
    read: list[tuple[int, int]] = []
    whole = RowReader.read

    def record(self: Any, file_index: int, start: int, stop: int) -> Any:
        read.append((file_index, stop - start))
        return whole(self, file_index, start, stop)

    condition = (pc.field("x") >= 2) & (pc.field("text") != "row 30 éé")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowReader, "read", record)
        manifest = scan_once(
            corpus if rank == 0 else "gone", filter=condition, categories=["text", "x"], cache_dir=cache
        )
        again = scan_once(corpus, filter=condition, categories=["x"], cache_dir=cache)
    num_read = len(read)
    dataset = StatefulShardedDataset(manifest, filter=condition, categories={"text": None, "x": None}, batch_size=2)
    alone = StatefulShardedDataset(corpus, filter=condition, categories={"text": None, "x": None}, batch_size=2)
    assert dataset.selection is not None
    assert alone.selection is not None
    return {
        "read": read[:num_read],
        "counted": dataset.selection.steps[0].blocks_by_rows,
        "same": dataset.categories == alone.categories and dataset.state_dict() == alone.state_dict(),
        "rows": (dataset.selection.num_rows, alone.selection.num_rows),
        "again": (again.selections[0].text, [each.name for each in again.vocabularies]),
        "refused": [
            refusal(scan_once, corpus, filter=condition if rank else None),
            refusal(scan_once, corpus, filter=pc.field("x") >= rank),
            refusal(scan_once, corpus, filter=pc.field("color") == "red"),
            refusal(scan_once, corpus, categories=["color"]),
        ],
    }


def test_each_rank_counts_and_collects_a_part_and_all_know_the_whole(run_ranks: RunRanks, tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path / "d")
    settle(tmp_path / "d")
    results = run_ranks(counted, 3, tmp_path / "d", tmp_path / "cache")
    assert all(result["read"] for result in results)
    files = [{file for file, _ in result["read"]} for result in results]
    assert len(set.union(*files)) == sum(map(len, files)), "each file is read by one rank"
    # Once to count, once to collect, and nothing again.
    assert sum(rows for result in results for _, rows in result["read"]) <= 2 * num_rows
    assert all(result["same"] and result["counted"] == 0 for result in results)
    assert {result["rows"] for result in results} == {(num_rows - 5, num_rows - 5)}
    assert {result["again"][0] for result in results} == {results[0]["again"][0]}
    assert [result["again"][1] for result in results] == [["x"]] * 3
    for name, match in zip(
        ("CollectiveError", "CollectiveError", "SchemaMismatchError", "SchemaMismatchError"),
        ("scan_once(filter=)", "rank 1 called scan_once(filter=): filter (x >= 1)", "color", "color"),
        strict=True,
    ):
        of_ranks = {result["refused"].pop(0) for result in results}
        assert len(of_ranks) == 1
        assert of_ranks.pop()[0] == name, match


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

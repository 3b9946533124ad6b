"""Ranks that share a data-parallel rank, as under tensor parallelism, get the same rows."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.corpora import write_corpus
from tests.distributed.ranks import NUM_ROWS, RunRanks, flat, ids, make_loader, refusal

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = [(0, 1), (2, 3)]
"""Ranks of the world that share data-parallel rank 0, and those that share 1."""


def train_on_mesh(rank: int, corpus: Path, kind: str) -> dict[str, Any]:
    group: Any
    if kind == "mesh":
        group = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["dp"]
    else:
        groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        group = groups[rank % 2]
    loader = make_loader(corpus, 1, process_group=group)
    received = ids(islice(loader, 3))
    saved = {
        "state_dict": loader.state_dict(),
        "rank": loader.save_state_rank(),
        "global": loader.save_state_global(),
    }
    resumed = make_loader(corpus, process_group=group)
    resumed.restore_state_global(saved["global"])
    return {"received": received, "rest": ids(resumed), "saved": saved, "length": len(loader)}


@pytest.mark.parametrize("kind", ["mesh", "group"])
def test_ranks_that_share_a_data_parallel_rank_get_the_same_rows_and_states(
    run_ranks: RunRanks, tmp_path: Path, kind: str
) -> None:
    write_corpus(tmp_path)
    results = run_ranks(train_on_mesh, 4, tmp_path, kind)
    assert [results[first] == results[second] for first, second in PAIRS] == [True, True]
    one, other = results[0], results[2]
    assert one["saved"]["state_dict"] == other["saved"]["state_dict"]
    assert one["saved"]["global"]["scope"] == "global"
    assert other["saved"]["global"] is None
    assert one["saved"]["rank"]["world_size"] == 2
    rows = [flat(result["received"] + result["rest"]) for result in (one, other)]
    assert sorted(rows[0] + rows[1]) == list(range(NUM_ROWS))
    assert [len(result["received"]) + len(result["rest"]) for result in (one, other)] == [one["length"]] * 2


def give_whole_mesh(rank: int, corpus: Path) -> tuple[str, str]:
    del rank
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return refusal(make_loader, corpus, process_group=mesh)


def test_a_two_dimensional_mesh_is_refused_with_the_group_to_give(run_ranks: RunRanks, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    for name, text in run_ranks(give_whole_mesh, 4, tmp_path):
        assert name == "ValueError"
        assert "a DeviceMesh of 2 dimensions ('dp', 'tp')" in text
        assert 'mesh["dp"]' in text

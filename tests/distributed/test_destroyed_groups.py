"""A process group that is destroyed ends, whatever still refers to a loader that communicated over it."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist

from laneway import LanewayError
from laneway.dcp import GatheredState
from tests.distributed.ranks import RunRanks, make_loader

if TYPE_CHECKING:
    from pathlib import Path


def destroy_group(rank: int, corpus: Path) -> None:
    group = dist.new_group([0, 1])
    loader = make_loader(corpus, process_group=group)
    gathered = GatheredState(loader)
    assert (loader.save_state_global() is None) == (rank != 0)
    assert gathered.state_dict()
    reference = weakref.ref(group)
    dist.destroy_process_group(group)
    del group
    gc.collect()
    # A thread of gloo that is still running when the process exits may abort it.
    assert reference() is None
    for communicate in (loader.save_state_global, gathered.state_dict):
        with pytest.raises(LanewayError, match="the process group was destroyed: create the loader after the last"):
            communicate()


def test_a_destroyed_group_ends_though_a_loader_has_used_it(run_ranks: RunRanks, corpus: Path) -> None:
    run_ranks(destroy_group, 2, corpus)

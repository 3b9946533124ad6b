"""A process group that is destroyed ends, whatever still refers to a loader that communicated over it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from laneway import LanewayError, SavableLoader, StatefulShardedDataset
from laneway.dcp import GatheredState

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = Path("/proc/self/task")


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    """Initialise torch.distributed in this process, which is the only rank."""
    assert not dist.is_initialized()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
def test_a_destroyed_group_ends_with_its_threads_though_a_loader_has_used_it(tmp_path: Path) -> None:
    # A thread of gloo that is still running when the process exits may abort it.
    before = len([*THREADS.iterdir()])
    pq.write_table(pa.table({"id": range(8)}), tmp_path / "a.parquet")
    loader = SavableLoader(StatefulShardedDataset(tmp_path / "a.parquet", batch_size=2))
    gathered = GatheredState(loader)
    assert loader.save_state_global() is not None
    gathered.state_dict()
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    gc.collect()
    assert group() is None
    assert len([*THREADS.iterdir()]) < before
    with pytest.raises(LanewayError, match="the process group was destroyed: create the loader after"):
        loader.save_state_global()

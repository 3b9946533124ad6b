"""The store of a process group, which torch shows through a private function only."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

from laneway.process_groups import as_group, store_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store() -> Iterator[Any]:
    """Return the store of a process group of this process alone."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=7))
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield store
    dist.destroy_process_group()


def test_each_group_has_its_own_keys_in_the_store_that_its_ranks_met_in(store: Any) -> None:
    other: Any = dist.new_group([0])
    num_keys = store.num_keys()
    for group, value in ((as_group(None), "a"), (other, "b")):
        found: Any = store_of(group)
        found.set("key", value)
        assert found.timeout == timedelta(seconds=7)
    assert store.num_keys() == num_keys + 2
    assert [store_of(group).get("key") for group in (as_group(None), other)] == [b"a", b"b"]


def test_a_group_without_a_store_is_refused(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del store
    monkeypatch.setattr(dist.distributed_c10d, "_get_process_group_store", lambda _: None)
    with pytest.raises(ValueError, match=r"backend 'gloo' has no store, .* call save_state_rank\(\) on each rank"):
        store_of(as_group(None))

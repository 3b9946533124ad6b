"""The layout of StatefulDataLoader's snapshots, as snapshots.py reads it: fails when torchdata changes it."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway.delivery.torchdata import worker_states


class Counting(IterableDataset[int]):
    """Counts, and says how far it has come."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Any:
        while self.count < 6:
            self.count += 1
            yield self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_each_workers_state_is_that_of_its_last_delivered_batch(num_workers: int) -> None:
    loader = StatefulDataLoader(Counting(), batch_size=2, num_workers=num_workers)
    batches = iter(loader)
    counts = [worker["count"] for worker in worker_states(loader.state_dict())]
    assert counts == [0] * max(1, num_workers)
    for step in range(3 * max(1, num_workers)):
        next(batches)
        counts[step % len(counts)] += 2
        assert [worker["count"] for worker in worker_states(loader.state_dict())] == counts
    assert list(batches) == []
    assert [worker["count"] for worker in worker_states(loader.state_dict())] == [6] * max(1, num_workers)


def test_an_empty_state_makes_the_next_pass_start_workers_anew() -> None:
    loader = StatefulDataLoader(Counting(), batch_size=2, num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 3
    assert list(loader) == []
    loader.load_state_dict({})
    assert len(list(loader)) == 3

"""What DataLoader exposes about its workers; these tests fail if a release of torch changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.utils.data
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway.core.turns import WorkerPlace
from laneway.delivery.workers import num_workers_of_caller, worker_place

if TYPE_CHECKING:
    from collections.abc import Iterator


class Recording(torch.utils.data.IterableDataset[Any]):
    """A dataset that records the number of workers of the loader that asks for its length."""

    num_workers: int | None = -1

    def __len__(self) -> int:
        self.num_workers = num_workers_of_caller(self)
        return 3

    def __iter__(self) -> Iterator[Any]:
        place = worker_place(WorkerPlace(4, 5))
        yield None if place is None else (place.rank, place.world_size, place.worker, place.num_workers)


def test_a_loader_that_asks_for_the_length_reveals_its_number_of_workers() -> None:
    for loader_type in (torch.utils.data.DataLoader, StatefulDataLoader):
        for num_workers in (0, 3):
            dataset = Recording()
            assert len(loader_type(dataset, batch_size=None, num_workers=num_workers)) == 3
            assert dataset.num_workers == num_workers


def test_a_caller_that_is_not_a_loader_has_no_number_of_workers() -> None:
    dataset = Recording()
    assert len(dataset) == 3
    assert dataset.num_workers is None


def test_a_worker_knows_its_place() -> None:
    assert worker_place(WorkerPlace()) is None
    loader = torch.utils.data.DataLoader(Recording(), batch_size=None, num_workers=2, collate_fn=tuple)
    assert [WorkerPlace(*found) for found in loader] == [WorkerPlace(4, 5, 0, 2), WorkerPlace(4, 5, 1, 2)]

"""The text of mismatches."""

from __future__ import annotations

from laneway.core.differences import place_differences
from laneway.core.turns import WorkerPlace


def test_the_differences_of_two_places_say_what_to_do() -> None:
    assert place_differences(WorkerPlace(), WorkerPlace()) == []
    lines = place_differences(WorkerPlace(1, 2, 0, 4), WorkerPlace(0, 3, 0, 1))
    assert [line.split(" (")[0] for line in lines] == [
        "rank: saved 1, this is 0",
        "world_size: saved 2, this is 3",
        "num_workers: saved 4, this is 1",
    ]
    assert "num_workers=4" in lines[2]

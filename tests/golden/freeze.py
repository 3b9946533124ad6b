"""Freezes the orders and states of this release in files of their own: a frozen file is never changed.

Run `python -m tests.golden.freeze` when ORDER_VERSION or FORMAT_VERSION has changed, and commit the files it writes.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from laneway import SavableLoader, StatefulShardedDataset
from laneway.core.apart import merge_gathered
from laneway.core.order import ORDER_VERSION
from laneway.core.progress import Progress
from laneway.core.schema import FORMAT_VERSION
from laneway.core.state import write_state
from laneway.core.turns import WorkerPlace
from tests.compat.loaders import saved
from tests.corpora import write_corpus
from tests.golden import many_files, streams

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"

CASES: dict[str, dict[str, Any]] = {
    "file_order": {"shuffle": False, "lanes": 1},
    "file_order_in_lanes": {"shuffle": False, "lanes": 4, "turn_rows": 2},
    "shuffled": {"shuffle": True, "seed": 0},
    "shuffled_in_lanes": {"shuffle": True, "seed": 2**63 - 1, "lanes": 4, "turn_rows": 2, "remainder": "pad"},
    # Lanes of five rows, then a whole batch of two turns, and then eight rows.
    "shuffled_to_a_short_batch": {"shuffle": True, "seed": 3, "lanes": 6, "turn_rows": 5, "batch_size": 10},
}
"""Arguments of each case; those of order version 1 are the first four."""
COMMON: dict[str, Any] = {"batch_size": 4, "shard_rows": 5, "window_bytes": 500}


def dataset(case: str) -> StatefulShardedDataset:
    """Return the dataset of a case, over the committed files."""
    return StatefulShardedDataset(CORPUS, **(COMMON | CASES[case]))


def epochs(case: str, order_version: int = ORDER_VERSION) -> list[list[list[int]]]:
    """Return the batches of row ids of two epochs in an order."""
    return [[batch["id"].tolist() for batch in epoch_in(case, epoch, order_version)] for epoch in range(2)]


def epoch_in(case: str, epoch: int, order_version: int) -> StatefulShardedDataset:
    """Return the dataset of a case, at the start of an epoch that a release of that order version began."""
    found = dataset(case)
    state = write_state(
        found.definition.identity, Progress(epoch, order_version=order_version), WorkerPlace(), complete=False
    )
    found.load_state_dict(state)
    return found


def state_and_rest(case: str) -> dict[str, Any]:
    """Return a state from the middle of epoch 1, and the row ids that follow it."""
    found = dataset(case)
    found.set_epoch(1)
    for _ in islice(found, 4 if case == "shuffled_to_a_short_batch" else 5):
        pass
    state = saved(found.state_dict())
    rest = dataset(case)
    rest.load_state_dict(state)
    return {"state": state, "rest": [batch["id"].tolist() for batch in rest]}


def state_cut_again() -> dict[str, Any]:
    """Return a state of an epoch that was cut twice, and the row ids that follow it."""
    first = dataset("shuffled_in_lanes")
    for _ in islice(first, 3):
        pass
    second = StatefulShardedDataset(CORPUS, **(COMMON | CASES["shuffled_in_lanes"] | {"batch_size": 6, "lanes": 6}))
    second.load_state_dict(first.state_dict())
    for _ in islice(second, 2):
        pass
    third = StatefulShardedDataset(CORPUS, **(COMMON | CASES["shuffled_in_lanes"] | {"batch_size": 5, "turn_rows": 5}))
    third.load_state_dict(second.state_dict())
    next(iter(third))
    state = saved(third.state_dict())
    rest = StatefulShardedDataset(CORPUS, **(COMMON | CASES["shuffled_in_lanes"] | {"batch_size": 5, "turn_rows": 5}))
    rest.load_state_dict(state)
    return {"state": state, "rest": [batch["id"].tolist() for batch in rest]}


def loader_of_rank(rank: int) -> SavableLoader:
    """Return the loader of one of two ranks."""
    options = COMMON | CASES["shuffled"] | {"remainder": "keep"}
    return SavableLoader(StatefulShardedDataset(CORPUS, **options, rank=rank, world_size=2))


def state_apart() -> dict[str, Any]:
    """Return the state of two ranks in different epochs, and the row ids that each delivers of its epoch after it."""
    loaders = [loader_of_rank(rank) for rank in range(2)]
    loaders[1].set_epoch(1)
    for loader in loaders:
        next(iter(loader))
    state = saved(merge_gathered([loader.save_state_rank() for loader in loaders]))
    return {"state": state, "rest": [rest_of_rank(rank, state) for rank in range(2)]}


def rest_of_rank(rank: int, state: dict[str, Any]) -> list[list[int]]:
    """Return the batches of row ids that a rank delivers of its epoch after it has loaded a state."""
    loader = loader_of_rank(rank)
    loader.load_state_dict(state)
    return [batch["id"].tolist() for batch in loader]


def main() -> None:
    """Write the files that do not exist yet."""
    if not CORPUS.exists():
        write_corpus(CORPUS)
    frozen: dict[str, Any] = {f"state_v{FORMAT_VERSION}_{case}.json": state_and_rest(case) for case in CASES}
    frozen[f"state_v{FORMAT_VERSION}_cut_again.json"] = state_cut_again()
    frozen[f"apart_v{FORMAT_VERSION}.json"] = state_apart()
    frozen[f"orders_v{ORDER_VERSION}.json"] = {case: epochs(case) for case in CASES}
    frozen[f"many_files_v{ORDER_VERSION}.json"] = {case: many_files.orders(case) for case in many_files.CASES}
    frozen[f"streams_v{FORMAT_VERSION}.json"] = {name: streams.state_and_rest(name) for name in streams.CASES}
    for name, content in frozen.items():
        if not (HERE / name).exists():
            (HERE / name).write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()

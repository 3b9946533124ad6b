"""Orders and states of every version, frozen: a release that changes one breaks every checkpoint out there."""

from __future__ import annotations

import json
import re

import pytest

from laneway import StatefulShardedDataset
from laneway.core.order import permutation, shard_order, window_order
from tests.golden.freeze import CASES, COMMON, HERE, dataset, epochs

STATES = sorted(path.name for path in HERE.glob("state_*.json"))


def test_permutations_are_frozen() -> None:
    assert permutation(8, "a", 1).tolist() == [2, 4, 0, 1, 7, 6, 3, 5]
    assert shard_order(10, seed=0, epoch=0).tolist() == [6, 9, 4, 7, 2, 5, 8, 1, 3, 0]
    assert window_order(10, seed=2**63 - 1, epoch=3, lane=2, window=1).tolist() == [4, 3, 8, 7, 2, 5, 9, 6, 1, 0]
    assert shard_order(100_003, seed=5, epoch=7)[::997].sum() == 4_689_929


@pytest.mark.parametrize("case", CASES)
def test_orders_are_frozen(case: str) -> None:
    frozen = json.loads((HERE / "orders_v1.json").read_text())
    assert epochs(dataset(case)) == frozen[case]


@pytest.mark.parametrize("name", STATES)
def test_states_of_every_version_still_load_and_go_on_the_same(name: str) -> None:
    frozen = json.loads((HERE / name).read_text())
    case = re.sub(r"^state_v\d+_", "", name).removesuffix(".json")
    changes = {"batch_size": 5, "turn_rows": 5} if case == "cut_again" else {}
    arguments = CASES["shuffled_in_lanes" if case == "cut_again" else case]
    restored = StatefulShardedDataset(HERE / "corpus", **(COMMON | arguments | changes))
    restored.load_state_dict(frozen["state"])
    assert restored.state_dict() == frozen["state"]
    assert [batch["id"].tolist() for batch in restored] == frozen["rest"]


def test_there_is_something_frozen() -> None:
    assert len(STATES) == 10

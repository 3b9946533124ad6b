"""Orders and states of every version, frozen: a release that changes one breaks every checkpoint out there."""

from __future__ import annotations

import json
import re

import pytest

from laneway import StatefulShardedDataset
from laneway.core.order import ORDER_VERSION, permutation, shard_order, window_order
from tests.golden.freeze import CASES, COMMON, HERE, dataset, epochs, rest_of_rank

STATES = sorted(path.name for path in HERE.glob("state_*.json"))
NUM_STATES = 16

ORDERS = [
    (int(path.stem.removeprefix("orders_v")), case)
    for path in sorted(HERE.glob("orders_v*.json"))
    for case in json.loads(path.read_text())
]


def test_permutations_are_frozen() -> None:
    assert permutation(8, "a", 1).tolist() == [2, 4, 0, 1, 7, 6, 3, 5]
    assert shard_order(10, seed=0, epoch=0).tolist() == [6, 9, 4, 7, 2, 5, 8, 1, 3, 0]
    assert window_order(10, seed=2**63 - 1, epoch=3, lane=2, window=1).tolist() == [4, 3, 8, 7, 2, 5, 9, 6, 1, 0]
    assert shard_order(100_003, seed=5, epoch=7)[::997].sum() == 4_689_929


@pytest.mark.parametrize(("version", "case"), ORDERS)
def test_orders_are_frozen(version: int, case: str) -> None:
    frozen = json.loads((HERE / f"orders_v{version}.json").read_text())
    assert epochs(case, version) == frozen[case]


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_that_begins_now_is_in_the_newest_order(case: str) -> None:
    found = dataset(case)
    assert [[batch["id"].tolist() for batch in found] for _ in range(2)] == epochs(case, ORDER_VERSION)


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
    following = StatefulShardedDataset(HERE / "corpus", **(COMMON | arguments | changes))
    following.set_epoch(frozen["state"]["epoch"] + 1)
    expected = [batch["id"].tolist() for batch in following]
    assert [batch["id"].tolist() for batch in restored] == expected, "the next epoch is in the newest order"


@pytest.mark.parametrize("version", [3])
def test_states_of_ranks_in_different_epochs_still_load_and_go_on_the_same(version: int) -> None:
    frozen = json.loads((HERE / f"apart_v{version}.json").read_text())
    assert [rest_of_rank(rank, frozen["state"]) for rank in range(2)] == frozen["rest"]


def test_there_is_something_frozen() -> None:
    assert len(STATES) == NUM_STATES
    assert {version for version, _ in ORDERS} == {*range(1, ORDER_VERSION + 1)}

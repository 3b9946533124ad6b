"""The definition of a mixture: pickled for workers, and read in persistent and spawned ones."""

from __future__ import annotations

import pickle
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import Mixture, SavableLoader, StatefulShardedDataset
from laneway.core.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    sources = {}
    for index, name in enumerate(("a", "b")):
        pq.write_table(pa.table({"id": range(index * 100, index * 100 + 30)}), tmp_path / f"{name}.parquet")
        sources[name] = StatefulShardedDataset(tmp_path / f"{name}.parquet", shuffle=True)
    return Mixture(sources, {"a": 2, "b": 1}, stop=40).batch(4)


def test_a_pickled_definition_reads_the_same(mixture: Mixture) -> None:
    definition = mixture.definition
    expected = [batch["id"].tolist() for batch in mixture]
    copied = pickle.loads(pickle.dumps(definition))
    assert copied.identity.fingerprint_in(2) == definition.identity.fingerprint_in(2)
    stream = copied.open(copied.resolve(Progress(0), copied.place))
    found = []
    while (taken := stream.take()) is not None:
        found.append(taken.item["id"].tolist())
        taken.delivery.taken = taken.num_taken
    assert found == expected
    assert stream.is_complete


def test_persistent_workers_read_one_pass_after_another(mixture: Mixture) -> None:
    loader = SavableLoader(mixture, num_workers=2, persistent_workers=True)
    other = SavableLoader(mixture, num_workers=2)
    for _ in range(3):
        assert [batch["id"].tolist() for batch in loader] == [batch["id"].tolist() for batch in other]
    assert loader.epoch == 2


def test_rows_are_delivered_one_by_one_while_weights_change(mixture: Mixture) -> None:
    rows = Mixture(mixture._sources, {"a": 1, "b": 1})
    loader = SavableLoader(rows, num_workers=2)
    items = iter(loader)
    assert sum(row["id"] >= 100 for row in islice(items, 10)) == 5
    loader.set_weights({"a": 0, "b": 1})
    assert all(row["id"] >= 100 for row in islice(items, 7))
    resumed = SavableLoader(Mixture(mixture._sources, {"a": 0, "b": 1}), num_workers=2)
    resumed.load_state_dict(loader.state_dict())
    assert [row["id"] for row in islice(resumed, 5)] == [row["id"] for row in islice(items, 5)]

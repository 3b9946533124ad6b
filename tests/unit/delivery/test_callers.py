"""What is looked for on the call stack."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from laneway import SavableLoader, StatefulShardedDataset

if TYPE_CHECKING:
    from pathlib import Path


class Batch:
    """A value of the training loop."""


def test_the_local_variables_of_a_training_loop_are_not_kept(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(8)}), tmp_path / "a.parquet")
    dataset = StatefulShardedDataset(tmp_path, batch_size=4)
    value = Batch()
    found = weakref.ref(value)
    for source in (dataset, SavableLoader(dataset)):
        source.set_epoch(0)
        items = iter(source)
        next(items)
    del value
    assert found() is None

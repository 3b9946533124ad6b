"""The definition of a dataset: what a worker needs, as one value."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laneway import StatefulShardedDataset
from laneway.core.progress import Progress
from laneway.core.turns import WorkerPlace
from laneway.delivery.stream import BatchStream, RowStream
from laneway.delivery.transforms import Transforms
from laneway.metering import Meter
from tests.corpora import write_corpus
from tests.unit.delivery.taking import take, take_all

if TYPE_CHECKING:
    from pathlib import Path

    from laneway.delivery.definition import Definition
    from laneway.delivery.stream import Stream


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 rows."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def stream_of(definition: Definition) -> Stream[Any]:
    return definition.open(definition.resolve(Progress(0), definition.place))


def test_a_definition_is_opened_as_batches_or_rows(corpus: Path) -> None:
    rows = StatefulShardedDataset(corpus).definition
    batches = StatefulShardedDataset(corpus, batch_size=4, output="python").definition
    collated = replace(rows, options=replace(rows.options, batch_size=4), collate_fn=len)
    turns = replace(rows, options=replace(rows.options, turn_rows=3), collate_fn=len)
    assert [type(stream_of(each)) for each in (rows, batches, collated)] == [RowStream, BatchStream, BatchStream]
    assert take(stream_of(rows))["id"] == 0
    assert take(stream_of(batches))["id"] == [0, 1, 2, 3]
    by_turn = turns.open_batches(turns.resolve(Progress(0), turns.place), Meter())
    assert [take(stream_of(collated)), take(by_turn)] == [4, 3]


def test_a_definition_knows_its_columns_and_the_number_of_items_of_a_rank(corpus: Path) -> None:
    definition = StatefulShardedDataset(corpus, columns=["x", "id"], batch_size=5, rank=0, world_size=2).definition
    assert definition.columns.schema.names == ["x", "id"]
    assert [definition.num_items(WorkerPlace(0, 2, 0, workers), 0) for workers in (1, 2, 9)] == [5, 5, 5]


def test_a_pickled_definition_delivers_the_same(corpus: Path) -> None:
    definition = StatefulShardedDataset(corpus, shuffle=True, batch_size=6, output="python", transform=len).definition
    sent = pickle.loads(pickle.dumps(definition))
    assert sent.transform == Transforms().then(len)
    plain, again = replace(definition, transform=Transforms()), replace(sent, transform=Transforms())
    assert [batch["id"] for batch in take_all(stream_of(again))] == [
        batch["id"] for batch in take_all(stream_of(plain))
    ]

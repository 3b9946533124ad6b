"""Keras: `fit` reads a SavableLoader epoch by epoch, and resumes where its state was saved."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from laneway import SavableLoader, StatefulShardedDataset
from tests.corpora import write_corpus
from tests.frameworks.training import NUM_ROWS, needs

if TYPE_CHECKING:
    from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = needs("keras")

SAVE_AT = 4
"""Batches of the second epoch after which the state is saved."""


def pair(batch: dict[str, Any]) -> tuple[Any, Any]:
    """Return inputs and targets; the inputs are the row ids."""
    return batch["id"].float()[:, None], batch["x"][:, None]


def make_loader(corpus: Path, num_workers: int = 2) -> SavableLoader:
    dataset = StatefulShardedDataset(corpus, columns=["id", "x"], shuffle=True, shard_rows=4, batch_size=3)
    return SavableLoader(dataset, num_workers=num_workers, collate_fn=pair)


def fit(loader: SavableLoader, epochs: int, *callbacks: Any, initial_epoch: int = 0) -> list[int]:
    """Fit a new model, and return the row ids in the order of training."""
    import keras

    seen: list[int] = []

    class Recording(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

        def train_step(self, data: Any) -> Any:
            seen.extend(data[0][:, 0].int().tolist())
            return super().train_step(data)

    model = Recording()
    model.compile(optimizer="sgd", loss="mse", run_eagerly=True)
    model.fit(loader, epochs=epochs, initial_epoch=initial_epoch, verbose=0, shuffle=False, callbacks=list(callbacks))
    return seen


def test_each_epoch_of_fit_is_an_epoch(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    loader = make_loader(tmp_path)
    assert fit(make_loader(tmp_path), 2) == ids(loader) + ids(loader)


def ids(loader: SavableLoader) -> list[int]:
    return [row for inputs, _ in loader for row in inputs[:, 0].int().tolist()]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras expects as many batches in each epoch
def test_a_restored_epoch_is_completed_and_the_next_one_is_whole(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    import keras

    whole = fit(make_loader(tmp_path), 3)
    states: list[Any] = []

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            states.append(loader.state_dict())

    loader = make_loader(tmp_path)
    before = fit(loader, 2, Save())[: NUM_ROWS + 3 * SAVE_AT]
    for num_workers in (2, 0, 3):
        resumed = make_loader(tmp_path, num_workers)
        resumed.load_state_dict(states[NUM_ROWS // 3 + SAVE_AT - 1])
        after = fit(resumed, 3, initial_epoch=resumed.epoch)
        if num_workers == 2:
            assert before + after == whole
        assert sorted(before[NUM_ROWS:] + after) == sorted([*range(NUM_ROWS)] * 2)

"""Lightning's Trainer takes a SavableLoader as a DataLoader; tests/compat/test_lightning.py is about resuming it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import LanewayError, SavableLoader, StatefulShardedDataset
from tests.corpora import write_corpus
from tests.frameworks.training import needs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs("lightning")


class Stopped(Exception):  # noqa: N818 - it is not an error
    """Training was stopped."""


@pytest.fixture(autouse=True)
def _lightnings_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_model(stop_at: int | None = None) -> Any:
    """Return a model that records the row ids that it sees."""
    from lightning.pytorch import LightningModule

    class Recording(LightningModule):
        """Records the row ids that it sees."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Linear(1, 1)
            self.seen: list[int] = []

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            if batch_idx == stop_at:
                raise Stopped
            self.seen += batch["id"].tolist()
            loss: torch.Tensor = self.weights(batch["x"].float()[:, None]).mean()
            return loss

        def predict_step(self, batch: dict[str, Any]) -> None:
            self.seen += batch["id"].tolist()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.001)

    return Recording()


def make_trainer(folder: Path, **options: Any) -> Any:
    import lightning.pytorch as pl

    saves = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=2, callbacks=[saves], **quiet, **options)


def make_dataset(corpus: Path, **options: Any) -> StatefulShardedDataset:
    return StatefulShardedDataset(corpus, columns=["id", "x"], **{"batch_size": 3, "shuffle": True, **options})


@pytest.mark.parametrize("in_hook", [False, True])
def test_predict_copies_the_loader_and_sees_every_row(tmp_path: Path, in_hook: bool) -> None:
    num_rows = write_corpus(tmp_path / "corpus")
    model = make_model()
    rows = make_dataset(tmp_path / "corpus", batch_size=None)
    if in_hook:
        model.predict_dataloader = lambda: SavableLoader(rows, batch_size=3, num_workers=1)
        make_trainer(tmp_path).predict(model)
    else:
        make_trainer(tmp_path).predict(model, SavableLoader(rows, batch_size=3, num_workers=1))
    assert sorted(model.seen) == list(range(num_rows))


@pytest.mark.parametrize("make_loader", [DataLoader, StatefulDataLoader, SavableLoader])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_checkpoint_without_the_state_of_the_loader_is_not_resumed_in_mid_epoch(
    tmp_path: Path, make_loader: Any, num_workers: int
) -> None:
    write_corpus(tmp_path / "corpus")

    def loader(make: Any) -> Any:
        batching = {} if make is SavableLoader else {"batch_size": None}
        return make(make_dataset(tmp_path / "corpus"), num_workers=num_workers, **batching)

    with pytest.raises(Stopped):
        make_trainer(tmp_path).fit(make_model(stop_at=5), loader(DataLoader))
    last = tmp_path / "last.ckpt"
    # If it is raised while Lightning calls iter(), Lightning raises another one while it handles it.
    with pytest.raises((LanewayError, RuntimeError)) as failed:
        make_trainer(tmp_path).fit(make_model(), loader(make_loader), ckpt_path=last, weights_only=True)
    error = failed.value if isinstance(failed.value, LanewayError) else failed.value.__context__
    assert isinstance(error, LanewayError)
    assert "Lightning resumes in the middle of an epoch" in str(error)
    assert "return SavableLoader(dataset) from train_dataloader()" in str(error)


def test_a_stateful_dataloader_resumes(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path / "corpus")
    before, after = make_model(stop_at=5), make_model()

    def loader() -> Any:
        return StatefulDataLoader(make_dataset(tmp_path / "corpus"), batch_size=None, num_workers=2)

    with pytest.raises(Stopped):
        make_trainer(tmp_path).fit(before, loader())
    make_trainer(tmp_path).fit(after, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert sorted(before.seen + after.seen) == sorted([*range(num_rows)] * 2)


def test_an_epoch_after_a_resumed_one_is_not_taken_for_it(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path / "corpus")
    before, after = make_model(stop_at=5), make_model()
    with pytest.raises(Stopped):
        make_trainer(tmp_path).fit(before, SavableLoader(make_dataset(tmp_path / "corpus")))
    model_loader = SavableLoader(make_dataset(tmp_path / "corpus"))
    make_trainer(tmp_path, reload_dataloaders_every_n_epochs=1).fit(
        after, model_loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert sorted(before.seen + after.seen) == sorted([*range(num_rows)] * 2)

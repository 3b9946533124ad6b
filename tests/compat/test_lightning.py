"""Lightning's Trainer with a SavableLoader: training that was stopped anywhere resumes exactly there."""

from __future__ import annotations

import os
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from laneway import LanewayError, SavableLoader, StatefulShardedDataset
from tests.compat.loaders import FORKSERVER, flat
from tests.corpora import write_corpus
from tests.distributed.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

NUM_EPOCHS = 3

LIGHTNING_WARNINGS = (
    # Lightning itself calls functions that torch 2.13 deprecates.
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated",
    # It warns about every IterableDataset with a length.
    "ignore:Your `IterableDataset` has `__len__` defined",
    # A resumed run saves to another directory, so that the checkpoints of the first one stay unchanged.
    "ignore:The dirpath has changed from",
)
pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS]


class Step(NamedTuple):
    """A call of training_step."""

    epoch: int
    batch_index: int
    row_ids: list[int]


class Stopped(Exception):  # noqa: N818 - it is not an error
    """Training was stopped."""


def make_loader(corpus: Path, num_workers: int, *, rows: bool = False, batch_size: int = 3) -> SavableLoader:
    dataset = StatefulShardedDataset(
        corpus, shuffle=True, seed=5, shard_rows=4, window_bytes=200, batch_size=None if rows else batch_size
    )
    return SavableLoader(
        dataset,
        num_workers=num_workers,
        batch_size=batch_size if rows else None,
        multiprocessing_context=FORKSERVER if num_workers else None,
    )


def train(
    corpus: Path,
    checkpoints: Path,
    *,
    num_workers: int = 0,
    rows: bool = False,
    batch_size: int = 3,
    stop_at: int | None = None,
    resume_from: Path | None = None,
    corrects_batch_count: bool = False,
    saves_epochs: bool = False,
    **trainer_options: Any,
) -> list[Step]:
    """Train with new objects, and return the steps.

    Args:
        corpus: Directory of the dataset.
        checkpoints: Directory for checkpoints, each named by its step.
        num_workers: Number of workers of the loader.
        rows: Whether the dataset yields rows, and the loader builds batches.
        batch_size: Rows of a batch.
        stop_at: The step at which an error stops training.
        resume_from: The checkpoint to resume from.
        corrects_batch_count: Whether Lightning's count of completed batches is set from the loader after a resume.
        saves_epochs: Whether checkpoints are saved at the end of each epoch instead of at each step.
        trainer_options: Further arguments of the Trainer.
    """
    # Lightning takes seconds to import, which would slow down the collection of other tests.
    from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: PLC0415 - as above
    from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: PLC0415 - as above

    from laneway.integrations.lightning import CorrectBatchCount  # noqa: PLC0415 - as above

    steps: list[Step] = []

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Linear(1, 1)

        def train_dataloader(self) -> SavableLoader:
            return make_loader(corpus, num_workers, rows=rows, batch_size=batch_size)

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            steps.append(Step(self.current_epoch, batch_idx, batch["id"].tolist()))
            loss: torch.Tensor = self.weights(batch["x"].float()[:, None]).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.001)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == stop_at:
                raise Stopped

    when: dict[str, Any] = {"every_n_epochs": 1} if saves_epochs else {"every_n_train_steps": 1}
    saves = ModelCheckpoint(checkpoints, filename="{step}", auto_insert_metric_name=False, save_top_k=-1, **when)
    trainer = Trainer(
        **{"max_epochs": NUM_EPOCHS, "devices": 1, **trainer_options},
        accelerator="cpu",
        callbacks=[saves, Stop(), *([CorrectBatchCount()] if corrects_batch_count else [])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(Model(), ckpt_path=resume_from, weights_only=True)
    except Stopped as stopped:
        traceback.clear_frames(stopped.__traceback__)
    # Releases the workers; if the garbage collector does, torch waits 5 s for each of them.
    loader: Any = trainer.train_dataloader
    loader.load_state_dict(loader.state_dict())
    return steps


def row_ids(steps: list[Step]) -> list[list[int]]:
    return [step.row_ids for step in steps]


def loader_state(checkpoint: Path) -> dict[str, Any]:
    loops = torch.load(checkpoint, weights_only=True)["loops"]
    state: dict[str, Any] = loops["fit_loop"]["state_dict"]["combined_loader"][0]["laneway"][0]
    return state


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_that_was_stopped_mid_epoch_resumes_exactly_there(
    tmp_path: Path, num_workers: int, rows: bool
) -> None:
    num_rows = write_corpus(tmp_path / "corpus")
    how: dict[str, Any] = {"num_workers": num_workers, "rows": rows}
    uninterrupted = train(tmp_path / "corpus", tmp_path / "all", **how)
    per_epoch = len(uninterrupted) // NUM_EPOCHS
    for epoch in range(NUM_EPOCHS):
        of_epoch = uninterrupted[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(flat(row_ids(of_epoch))) == list(range(num_rows))
    # Stopped in the first epoch, resumed and stopped in the second, and once more in the third.
    steps, last = [], None
    for stop_at, saved_at in [(6, 5), (per_epoch + 6, per_epoch + 4), (2 * per_epoch + 9, 2 * per_epoch + 8)]:
        assert saved_at % per_epoch
        directory = tmp_path / f"to-{stop_at}"
        steps += train(tmp_path / "corpus", directory, stop_at=stop_at, resume_from=last, **how)
        steps, last = steps[:saved_at], directory / f"{saved_at}.ckpt"
        assert steps == uninterrupted[:saved_at]
    steps += train(tmp_path / "corpus", tmp_path / "end", resume_from=last, **how)
    assert steps == uninterrupted


@pytest.mark.parametrize(
    ("saved_by", "num_workers"),
    [
        ("step", 0),
        ("epoch", 0),
        ("epoch", 2),
        ("step of max_steps", 0),
    ],
)
def test_training_that_was_stopped_at_the_end_of_an_epoch_continues_with_the_next(
    tmp_path: Path, saved_by: str, num_workers: int
) -> None:
    write_corpus(tmp_path / "corpus")
    per_epoch = len(make_loader(tmp_path / "corpus", num_workers))
    length = {"max_steps": NUM_EPOCHS * per_epoch, "max_epochs": -1} if saved_by == "step of max_steps" else {}
    how: dict[str, Any] = {"num_workers": num_workers, "saves_epochs": saved_by == "epoch", **length}
    uninterrupted = train(tmp_path / "corpus", tmp_path / "all", **how)
    for done in (per_epoch, 2 * per_epoch):
        last = tmp_path / "all" / f"{done}.ckpt"
        after = train(tmp_path / "corpus", tmp_path / f"after-{done}", resume_from=last, **how)
        assert row_ids(uninterrupted[:done] + after) == row_ids(uninterrupted), f"saved at step {done}"


def test_trainer_and_loader_agree_on_the_epochs(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    loader = make_loader(tmp_path / "corpus", 0)
    expected = [(epoch, batch["id"].tolist()) for epoch in range(NUM_EPOCHS) for batch in loader]
    steps = train(tmp_path / "corpus", tmp_path / "all")
    assert [(step.epoch, step.row_ids) for step in steps] == expected


def test_with_other_workers_the_epoch_is_completed_if_the_batch_count_is_corrected(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path / "corpus")
    before = train(tmp_path / "corpus", tmp_path / "before", num_workers=3, stop_at=11)[:10]
    last = tmp_path / "before" / "10.ckpt"
    with pytest.raises(LanewayError, match=r"after \d+ batches, and the loader after 6, since"):
        train(tmp_path / "corpus", tmp_path / "refused", batch_size=5, resume_from=last)
    after = train(tmp_path / "corpus", tmp_path / "after", batch_size=5, resume_from=last, corrects_batch_count=True)
    for epoch in range(NUM_EPOCHS):
        found = [step.row_ids for step in before + after if step.epoch == epoch]
        assert sorted(flat(found)) == list(range(num_rows)), f"epoch {epoch}"


def train_rank(rank: int, corpus: Path, directory: Path) -> tuple[list[Step], list[Step]]:
    """Train on one of two ranks, from the beginning and from the checkpoint of step 5; return the steps of both."""
    for warning in LIGHTNING_WARNINGS:
        warnings.filterwarnings("ignore", warning.removeprefix("ignore:"))
    os.environ["LOCAL_RANK"] = str(rank)
    how: dict[str, Any] = {"num_workers": 1, "devices": 2, "strategy": "ddp"}
    uninterrupted = train(corpus, directory / "two", **how)
    return uninterrupted, train(corpus, directory / "after", resume_from=directory / "two/5.ckpt", **how)


def test_ranks_resume_from_the_state_that_only_rank_0_saved(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path / "corpus")
    ranks = run_ranks(train_rank, 2, tmp_path / "corpus", tmp_path)
    for uninterrupted, after in ranks:
        assert uninterrupted[:5] + after == uninterrupted
    assert loader_state(tmp_path / "two/5.ckpt")["scope"] == "global"
    # One process resumes from the progress of both.
    before = [step for uninterrupted, _ in ranks for step in uninterrupted[:5]]
    last = tmp_path / "two/5.ckpt"
    after = train(tmp_path / "corpus", tmp_path / "one", resume_from=last, corrects_batch_count=True)
    for epoch in range(NUM_EPOCHS):
        found = [step.row_ids for step in before + after if step.epoch == epoch]
        assert sorted(flat(found)) == list(range(num_rows)), f"epoch {epoch}"

"""Lightning Fabric: `setup_dataloaders`, `save` and `load` with a SavableLoader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from tests.corpora import write_corpus
from tests.frameworks.training import (
    BATCH_ROWS,
    NUM_EPOCHS,
    NUM_ROWS,
    Run,
    check_killed_and_resumed,
    check_resumed_on_more_ranks,
    needs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from laneway import SavableLoader

pytestmark = needs("lightning")


def train(run: Run) -> None:
    from lightning.fabric import Fabric

    strategy = "ddp" if run.world_size > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=run.world_size, strategy=strategy)
    fabric.launch()
    model = torch.nn.Linear(1, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.001))
    loader = run.loader()
    batches = fabric.setup_dataloaders(loader)
    state = {"model": model, "loader": loader}
    if run.resumes:
        fabric.load(run.folder / "fabric.ckpt", state)
    for _ in range(loader.epoch, NUM_EPOCHS):
        for batch in cast("SavableLoader", batches):
            run.record(batch["id"])
            optimizer.zero_grad()
            fabric.backward(model(batch["x"][:, None]).pow(2).mean())
            optimizer.step()
            if run.saves_now:
                fabric.save(run.folder / "fabric.ckpt", state)


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_training_resumes_exactly_in_a_later_epoch(tmp_path: Path, world_size: int) -> None:
    write_corpus(tmp_path / "corpus")
    save_at = NUM_ROWS // BATCH_ROWS // world_size + 3
    run = Run(tmp_path / "corpus", tmp_path, "", save_at=save_at, die_at=save_at + 2, world_size=world_size)
    check_killed_and_resumed(train, run)
    if world_size == 2:
        check_resumed_on_more_ranks(train, run, 3)


def test_fabric_counts_passes_and_not_epochs() -> None:
    """The reason to ignore the epoch that it passes to the sampler of a loader; see laneway.delivery.callers."""
    from lightning.fabric.wrappers import _FabricDataLoader

    epochs: list[int] = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    data = torch.utils.data.TensorDataset(torch.zeros(2))
    wrapped: Any = _FabricDataLoader(torch.utils.data.DataLoader(data, sampler=Sampler(data)))
    assert len(list(wrapped)) + len(list(wrapped)) == 4
    assert epochs == [0, 1]

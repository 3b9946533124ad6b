"""Accelerate: `prepare`, `save_state` and `load_state` with a SavableLoader; what would lose rows is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader

from laneway import LanewayError
from tests.corpora import write_corpus
from tests.frameworks.training import (
    BATCH_ROWS,
    NUM_EPOCHS,
    NUM_ROWS,
    Run,
    check_killed_and_resumed,
    check_resumed_on_more_ranks,
    needs,
    rows,
    run_all,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("accelerate")


def train(run: Run) -> dict[str, Any]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=run.per_step)
    model = torch.nn.Linear(1, 1)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.001), run.loader())
    assert type(loader).__name__ == "SavableLoader"
    if run.resumes:
        accelerator.load_state(str(run.folder / "accelerate"))
    steps, ends = [], []
    for _ in range(loader.epoch, NUM_EPOCHS):
        for batch in loader:
            run.record(batch["id"])
            with accelerator.accumulate(model):
                accelerator.backward(model(batch["x"][:, None]).pow(2).mean())
                optimizer.step()
                optimizer.zero_grad()
            steps.append(accelerator.sync_gradients)
            ends.append(accelerator.gradient_state.end_of_dataloader)
            if run.saves_now:
                accelerator.save_state(str(run.folder / "accelerate"), safe_serialization=False)
        assert accelerator.gradient_state.active_dataloader is None
    return {"steps": steps, "ends": ends}


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_training_resumes_exactly(tmp_path: Path, world_size: int) -> None:
    write_corpus(tmp_path / "corpus")
    per_epoch = NUM_ROWS // BATCH_ROWS // world_size
    save_at = per_epoch + 3
    run = Run(tmp_path / "corpus", tmp_path, "", save_at=save_at, die_at=save_at + 2, per_step=3, world_size=world_size)
    whole, after = check_killed_and_resumed(train, run)
    # Each third batch makes a step, and so does the last one of an epoch.
    of_epoch = [(index + 1) % 3 == 0 or index + 1 == per_epoch for index in range(per_epoch)]
    for one, two in zip(whole, after, strict=True):
        assert one.result["steps"] == of_epoch * NUM_EPOCHS
        assert one.result["ends"] == [index + 1 == per_epoch for index in range(per_epoch)] * NUM_EPOCHS
        assert two.result == {name: values[save_at:] for name, values in one.result.items()}
    if world_size == 2:
        check_resumed_on_more_ranks(train, run, 3)


def read_wrapped(run: Run) -> list[str]:
    """Return the errors of reading a dataset in ways that would lose rows."""
    from accelerate import Accelerator, DataLoaderConfiguration

    errors = []
    for dispatches in (None, False):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatches))
        with pytest.raises(LanewayError) as shared:
            next(iter(accelerator.prepare(DataLoader(run.dataset(), batch_size=None))))
        errors.append(str(shared.value))
    # A dataset of a single rank may be shared out.
    single = DataLoader(run.dataset(batch_size=None, rank=0, world_size=1), batch_size=BATCH_ROWS)
    for batch in accelerator.prepare(single):
        run.record(batch["id"])
    return errors


def test_a_dataset_of_ranks_that_would_be_shared_out_again_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    run = Run(tmp_path / "corpus", tmp_path, "shared", world_size=2)
    ranks = run_all(read_wrapped, run)
    assert sorted(rows(ranks)) == list(range(NUM_ROWS))
    for rank in ranks:
        assert len(rank.result) == 2
        for error in rank.result:
            assert "already shared them out among 2 ranks" in error
            assert "pass SavableLoader(dataset)" in error


def test_a_loader_whose_state_is_not_in_the_checkpoint_is_not_begun_again(tmp_path: Path) -> None:
    from accelerate import Accelerator

    write_corpus(tmp_path / "corpus")
    run = Run(tmp_path / "corpus", tmp_path, "", num_workers=0)
    accelerator = Accelerator(cpu=True)
    next(iter(accelerator.prepare(run.loader())))
    accelerator.save_state(str(tmp_path / "checkpoint"))
    # The Accelerator has two loaders now, and loads the state of the first.
    accelerator.prepare(run.loader())
    with pytest.raises(LanewayError, match=r"is number 2 of 2 that the Accelerator has prepared.*after free_memory"):
        accelerator.load_state(str(tmp_path / "checkpoint"))
    accelerator.free_memory()
    resumed = accelerator.prepare(run.loader())
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert resumed.batches_delivered == 1
    # A checkpoint that was saved without any loader.
    Accelerator(cpu=True).save_state(str(tmp_path / "empty"))
    with pytest.raises(LanewayError, match=r"empty has no dl_state_dict\.bin"):
        accelerator.load_state(str(tmp_path / "empty"))


@pytest.mark.parametrize(("num_workers", "context"), [(0, "fork"), (2, "fork"), (1, "spawn")])
def test_skipping_batches_is_refused(tmp_path: Path, num_workers: int, context: str) -> None:
    from accelerate import Accelerator, skip_first_batches

    write_corpus(tmp_path / "corpus")
    run = Run(tmp_path / "corpus", tmp_path, "", num_workers=num_workers)
    options: dict[str, Any] = {"multiprocessing_context": context} if num_workers else {}
    plain = DataLoader(run.dataset(), batch_size=None, num_workers=num_workers, **options)
    accelerator = Accelerator(cpu=True)
    for loader in (plain, accelerator.prepare(plain), accelerator.prepare(run.loader())):
        with pytest.raises(LanewayError, match="from its beginning and drop 3 batches"):
            list(skip_first_batches(loader, 3))
